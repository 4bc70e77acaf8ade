"""A rule of others as the policy of a live run: it sees what the controller observes, and the controller acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inferline_stream.baselines.rule_inputs import PipelineRule, PipelineSeen, StageSeen
from inferline_stream.pipeline.shape import Shape
from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.observation import Observation, StageObservation
from inferline_stream.tuner.tuner_state import TunerState


@dataclass(slots=True)
class LiveRule:
    """A policy's step: the rule, at its own pace. The Tuner's state stays as it is.

    Args:
        rule: the rule.
        shape: the pipeline's DAG.
        visit_ratios: mean visits to each stage per event.
        hardware: by stage, what its replicas run on.
        replicas: by stage, to begin with.
        partitions: of each stage's topic, which bound how many replicas a rule asks for.
    """

    rule: PipelineRule
    shape: Shape
    visit_ratios: Mapping[str, float]
    hardware: Mapping[str, str]
    replicas: dict[str, int]
    partitions: int | None
    _memory: Any = None
    _looked_s: float | None = None
    _lags: dict[str, int] = field(default_factory=dict)

    def __call__(self, state: TunerState, seen: Observation) -> tuple[TunerState, Decision | None]:
        """One step."""
        if self._looked_s is None:
            self._memory, self._looked_s = self.rule.begin(self.replicas), seen.time_s
        span_s = seen.time_s - self._looked_s
        if span_s < self.rule.period_s:
            return state, None
        stages = {
            name: self._seen(name, stage, seen, span_s)
            for name in self.shape.stages
            if (stage := seen.stages.get(name)) is not None
        }
        if len(stages) < len(self.shape.stages):
            return state, None
        self._looked_s = seen.time_s
        self._lags = {name: stage.lag for name, stage in seen.stages.items()}
        parents = {
            name: tuple(self.shape.stages[self.shape.arrows[a].parent] for a in self.shape.parents(s))
            for s, name in enumerate(self.shape.stages)
        }
        looked = PipelineSeen(seen.time_s, stages, parents, _arrivals(seen, span_s))
        self._memory, wanted = self.rule.step(self._memory, looked)
        changed = {name: count for name, count in wanted.items() if count != self.replicas[name]}
        if not changed:
            return state, None
        up = any(count > self.replicas[name] for name, count in changed.items())
        self.replicas = {**self.replicas, **changed}
        replicas = {name: {self.hardware[name]: count} for name, count in self.replicas.items()}
        action = Action.SCALE_UP if up else Action.SCALE_DOWN
        return state, Decision(replicas, action, Reason.LIMIT_CHANGED, "as the rule asks")

    def _seen(self, name: str, stage: StageObservation, seen: Observation, span_s: float) -> StageSeen:
        ready = sum(supply.ready for supply in stage.supply.values())
        arrival = seen.arrival_rate * self.visit_ratios[name]
        processed = max(0.0, arrival - (stage.lag - self._lags.get(name, 0)) / span_s)
        busy = stage.utilization or 0.0
        return StageSeen(
            time_s=seen.time_s,
            replicas=self.replicas[name],
            ready=ready,
            lag=float(stage.lag),
            arrival=arrival,
            processed=processed,
            busy=busy,
            cpu=busy,
            partitions=self.partitions,
        )


def _arrivals(seen: Observation, span_s: float) -> tuple[float, ...]:
    """Arrivals since the last look, evenly within each second."""
    seconds = min(len(seen.recent), max(1, round(span_s)))
    times: list[float] = []
    for back, count in zip(range(seconds, 0, -1), seen.recent[-seconds:], strict=True):
        times += (seen.time_s - back + (np.arange(count) + 0.5) / max(count, 1)).tolist()
    return tuple(times)
