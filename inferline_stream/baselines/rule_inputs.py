"""What the rules of others look at: lag, rates and busy shares of each stage, since they last looked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class StageSeen:
    """One stage.

    Args:
        time_s: now.
        replicas: asked for, ready or not.
        ready: those that work.
        lag: records in its topic that are not committed, those being processed included.
        arrival: records per second into its topic since the last look.
        processed: records per second out of it.
        busy: share of the time in which ready replicas were busy.
        cpu: share of their CPU that they used; for stages on a GPU the busy share stands in.
        partitions: of its topic; None for a queue without.
    """

    time_s: float
    replicas: int
    ready: int
    lag: float
    arrival: float = 0.0
    processed: float = 0.0
    busy: float = 0.0
    cpu: float = 0.0
    partitions: int | None = None


@dataclass(frozen=True, slots=True)
class PipelineSeen:
    """Every stage, in topological order.

    Args:
        time_s: now.
        stages: by name.
        parents: of each stage, by name; none for an entry stage.
        arrivals: entry times of the events since the last look, ascending.
    """

    time_s: float
    stages: Mapping[str, StageSeen]
    parents: Mapping[str, tuple[str, ...]]
    arrivals: tuple[float, ...] = ()


class StageRule(Protocol):
    """Decides on one stage by itself. Parameters are its fields; memory goes in and comes out."""

    @property
    def period_s(self) -> float:
        """How often it looks."""

    def begin(self, replicas: int) -> Any:
        """Memory before the first look."""

    def step(self, memory: Any, seen: StageSeen) -> tuple[Any, int]:
        """New memory, and the replicas wanted."""


class PipelineRule(Protocol):
    """Decides on all stages at once."""

    @property
    def period_s(self) -> float:
        """How often it looks."""

    def begin(self, replicas: Mapping[str, int]) -> Any:
        """Memory before the first look."""

    def step(self, memory: Any, seen: PipelineSeen) -> tuple[Any, dict[str, int]]:
        """New memory, and the replicas wanted by stage."""


@dataclass(frozen=True, slots=True)
class Each:
    """A rule of one stage, applied to each stage by itself; stages may have parameters of their own.

    Args:
        rule: for every stage not named in ``by_stage``.
        by_stage: other parameters of the same rule.
    """

    rule: StageRule
    by_stage: Mapping[str, StageRule] | None = None

    @property
    def period_s(self) -> float:
        """That of the rule."""
        return self.rule.period_s

    def begin(self, replicas: Mapping[str, int]) -> dict[str, Any]:
        """Each stage's memory."""
        return {name: self._of(name).begin(count) for name, count in replicas.items()}

    def step(self, memory: dict[str, Any], seen: PipelineSeen) -> tuple[dict[str, Any], dict[str, int]]:
        """Each stage by itself."""
        after, wanted = {}, {}
        for name, stage in seen.stages.items():
            after[name], wanted[name] = self._of(name).step(memory[name], stage)
        return after, wanted

    def _of(self, name: str) -> StageRule:
        return (self.by_stage or {}).get(name, self.rule)
