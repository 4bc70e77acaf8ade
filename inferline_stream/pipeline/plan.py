"""What the Planner decides: an allocation per stage, its cost, and the traffic it was made for."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from inferline_stream.pipeline.hardware import MOST_REPLICAS, Catalogue, dollars_per_hour
from inferline_stream.pipeline.idle import Idle
from inferline_stream.pipeline.units import format_duration


@dataclass(frozen=True, slots=True)
class Allocation:
    """Hardware, batch limit and replicas of one stage.

    Args:
        hardware: the kind.
        max_batch_size: batch limit.
        replicas: how many.
        hold_s: how long after the oldest eligible event reached the stage a free replica waits for a fuller batch; a
            full batch goes at once. All allocations of a stage have the same, since they share one queue.
        concurrency: most batches that a replica has in hand at once; above 1 only for stages that wait for others.

    Raises:
        ValueError: a batch limit or a concurrency below 1, a number of replicas that cannot be, or a hold that is
            negative or not finite.
    """

    hardware: str
    max_batch_size: int
    replicas: int
    hold_s: float = 0.0
    concurrency: int = 1

    def __post_init__(self) -> None:
        if self.max_batch_size < 1 or not 0 <= self.replicas <= MOST_REPLICAS:
            raise ValueError(f"{self}: max_batch_size must be 1 or more and replicas 0 to {MOST_REPLICAS}")
        if self.concurrency < 1:
            raise ValueError(f"{self}: concurrency must be 1 or more")
        if not (math.isfinite(self.hold_s) and self.hold_s >= 0):
            raise ValueError(f"{self}: hold_s must be finite and 0 or more")


Allocations = Mapping[str, tuple[Allocation, ...]]
"""By stage; a stage that mixes hardware has one allocation per kind."""


def replicas_of(allocations: tuple[Allocation, ...]) -> int:
    """Replicas of a stage over all its hardware kinds."""
    return sum(allocation.replicas for allocation in allocations)


def hold_of(allocations: tuple[Allocation, ...]) -> float:
    """Return the hold of a stage in seconds; 0 where nothing is held, and without allocations."""
    return next((allocation.hold_s for allocation in allocations if allocation.replicas), 0.0)


def in_words(allocations: tuple[Allocation, ...]) -> str:
    """Return what a stage holds in words, such as "2 × cpu, batches up to 4, held 12 ms"; empty without replicas."""
    held_s = hold_of(allocations)
    words = " + ".join(
        f"{a.replicas} × {a.hardware}, batches up to {a.max_batch_size}"
        + (f", {a.concurrency} at once" if a.concurrency > 1 else "")
        for a in allocations
        if a.replicas
    )
    return f"{words}, held {format_duration(held_s)}" if held_s else words


def cost_per_hour(allocations: Allocations, catalogue: Catalogue) -> float:
    """Dollars per hour of every replica held: linear in replicas (InferLine), and whole devices of those shared."""
    return dollars_per_hour(counts_by_kind(allocations.values()), catalogue)


def counts_by_kind(options: Iterable[tuple[Allocation, ...]]) -> Counter[str]:
    """Replicas of each hardware kind, over all stages."""
    counts = Counter[str]()
    for a in itertools.chain.from_iterable(options):
        counts[a.hardware] += a.replicas
    return counts


@dataclass(frozen=True, slots=True)
class KeyBound:
    """A key whose events one replica cannot serve, at a stage that processes them in order: one batch at a time.

    More replicas do not help it. `Stage(ordered=False)` does, and so does faster hardware.

    Args:
        key: the key.
        arrival_rate: its events per second at the stage.
        served_rates: most events per second that one replica serves, by the hardware kinds that are too slow.
    """

    key: str
    arrival_rate: float
    served_rates: Mapping[str, float]

    def __str__(self) -> str:
        rates = ", ".join(f"{kind} {rate:.4g}" for kind, rate in self.served_rates.items())
        return (
            f"key_bound: events of key {self.key!r} come {self.arrival_rate:.4g} times a second and keep their order, "
            f"so one replica at a time serves them, at most so many a second: {rates}; Stage(ordered=False) lifts that"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A provisioned pipeline and the evidence it was chosen on.

    Args:
        pipeline: the pipeline's name.
        slo_s: the SLO it meets.
        allocations: by stage.
        cost_per_hour: dollars per hour.
        predicted_p99_s: P99 of the estimated latencies on the sample trace.
        arrival_rate: mean λ of the sample trace, per second.
        envelope: the sample's traffic envelope: (window_s, most arrivals in any such window), ascending.
        visit_ratios: by stage.
        utilization: ρ by stage, as planned: λ·s/(Σ replicas·µ).
        algorithm: which search found it.
        lower_bound_per_hour: dollars per hour below which no plan with one hardware kind per stage and without holds
            meets the SLO less the margin, as far as a search proved it; 0 where none did. As high as the cost: none of
            those is cheaper.
        slots: by stage, dispatchers, each with a queue of its own; stages that are missing have one.
        key_bound: by stage, the most frequent key, where one replica of some hardware kind could not serve it.
        order: of the queues, as in `Pipeline`.
        reserve: multiple of the sample's traffic for which replicas are always held while the policy scales; None for
            what the odds of the sample and since are worth.
        at_once: by stage, how many results of one event may visit it at the same moment, where that is several.
        idle: by stage, when it sleeps; stages that never do are left out.
    """

    pipeline: str
    slo_s: float
    allocations: Allocations
    cost_per_hour: float
    predicted_p99_s: float
    arrival_rate: float
    envelope: tuple[tuple[float, int], ...]
    visit_ratios: Mapping[str, float]
    utilization: Mapping[str, float]
    algorithm: str = "inferline"
    lower_bound_per_hour: float = 0.0
    slots: Mapping[str, int] = field(default_factory=dict)
    key_bound: Mapping[str, KeyBound] = field(default_factory=dict)
    order: str = "deadline"
    reserve: float | None = None
    at_once: Mapping[str, int] = field(default_factory=dict)
    idle: Mapping[str, Idle] = field(default_factory=dict)
