"""How many replicas each stage needs for a multiple of the planned traffic, found by simulation before it comes.

The plan says what the sample traffic needs. For more or less of the same traffic the number is not proportional: fewer
replicas share bursts worse, and a stage with room to spare needs no more for a while. The Estimator knows;
the table that it gives is looked up at each step.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape
from inferline_stream.pipeline.trace import Trace

MULTIPLES = (
    *(0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15),
    *(1.2, 1.25, 1.3, 1.4, 1.5, 1.6, 1.75, 1.9, 2.1, 2.3, 2.6, 3.0, 3.5, 4.0),
)
"""Of the sample's traffic: in steps of 5 % where a replica more or less is a large step."""

MOST_EVENTS = 40_000
"""Events of the sample that are simulated, its busiest stretch: enough for 400 of them to be the slowest percent."""


@dataclass(frozen=True, slots=True)
class Staffing:
    """Supply needed, by stage and multiple of the sample's traffic.

    Args:
        multiples: ascending.
        supply: by stage, events per second that the replicas found give at full batches, one per multiple,
            never falling.
    """

    multiples: tuple[float, ...]
    supply: Mapping[str, tuple[float, ...]]

    def needed(self, stage: str, multiple: float) -> float:
        """Supply for a multiple of the traffic; beyond the table in proportion."""
        row = self.supply[stage]
        last = self.multiples[-1]
        if multiple > last:
            return row[-1] * multiple / last
        return row[bisect.bisect_left(self.multiples, multiple * (1 - 1e-9))]


def staffing(
    shape: Shape,
    plan: Plan,
    measured: PipelineProfile,
    sample: Trace,
    prices: Mapping[str, float],
    *,
    multiples: Sequence[float] = MULTIPLES,
    objective: float = 0.99,
    seed: int = 0,
) -> Staffing:
    """Simulate the sample at each multiple of its rate and take away what is not needed.

    At multiple 1 it is the plan itself. Elsewhere the search starts from the plan in proportion, adds to
    the stage that is busiest until the SLO is met, and then gives back, dearest first, whatever the SLO is
    met without.

    Args:
        shape: the DAG.
        plan: hardware and batch limits that stay; stages of several kinds keep their mixture.
        measured: profiles and paths.
        sample: what was planned for.
        prices: dollars per hour by hardware kind.
        multiples: ascending.
        objective: share of events that must meet the SLO.
        seed: of the paths drawn.
    """
    stretch = busiest(sample, MOST_EVENTS)
    search = _Search(shape, plan, measured, prices, objective=objective, seed=seed)
    rows: dict[str, list[float]] = {name: [] for name in shape.stages}
    for multiple in multiples:
        found = search.replicas(stretch, multiple)
        for name, replicas in found.items():
            supply = replicas * search.throughput[name]
            rows[name].append(max([supply, *rows[name][-1:]]))
    return Staffing(tuple(multiples), {name: tuple(row) for name, row in rows.items()})


def busiest(trace: Trace, events: int) -> Trace:
    """That many consecutive arrivals, where they come fastest."""
    if len(trace) <= events:
        return trace
    times = trace.arrivals_s
    first = int((times[events - 1 :] - times[: len(times) - events + 1]).argmin())
    return Trace(times[first : first + events] - times[first])


class _Search:
    def __init__(
        self,
        shape: Shape,
        plan: Plan,
        measured: PipelineProfile,
        prices: Mapping[str, float],
        *,
        objective: float,
        seed: int,
    ) -> None:
        self._shape, self._plan, self._measured = shape, plan, measured
        self._objective, self._seed = objective, seed
        planned = {name: sum(a.replicas for a in plan.allocations[name]) for name in shape.stages}
        self.throughput: dict[str, float] = {}
        self._price: dict[str, float] = {}
        for name in shape.stages:
            held = plan.allocations[name]
            supply = sum(a.replicas * measured.profiles[name, a.hardware].throughput(a.max_batch_size) for a in held)
            self.throughput[name] = supply / planned[name]
            self._price[name] = sum(a.replicas * prices[a.hardware] for a in held) / planned[name]
        self._planned = planned
        self._load = {name: plan.arrival_rate * plan.visit_ratios[name] for name in shape.stages}

    def replicas(self, sample: Trace, multiple: float) -> dict[str, int]:
        """The replicas by stage for the sample at this multiple of its rate."""
        if abs(multiple - 1) < 1e-9:
            return dict(self._planned)
        faster = sample.sped_up(multiple)
        least = {
            name: max(1, math.ceil(load * multiple / self.throughput[name] * 1.0001))
            for name, load in self._load.items()
        }
        now = {name: max(least[name], math.ceil(count * multiple)) for name, count in self._planned.items()}
        for _ in range(sum(now.values())):
            if self._meets(faster, now):
                break
            busy = max(now, key=lambda n: self._load[n] / (now[n] * self.throughput[n]))
            now[busy] += 1
        shrinking = [name for name in now if now[name] > least[name]]
        while shrinking:
            name = max(shrinking, key=lambda n: (self._price[n], n))
            after = {**now, name: now[name] - 1}
            if self._meets(faster, after):
                now = after
                if now[name] > least[name]:
                    continue
            shrinking.remove(name)
        return now

    def _meets(self, sample: Trace, replicas: Mapping[str, int]) -> bool:
        partitions = self._plan.partitions
        if any(partitions.get(name, count) < count for name, count in replicas.items()):
            partitions = {name: max(count, partitions[name]) for name, count in replicas.items()}
        found = simulate(
            self._shape,
            {name: self._mixed(name, count) for name, count in replicas.items()},
            self._measured,
            sample,
            queues="partitioned" if partitions else "shared",
            partitions=partitions or None,
            seed=self._seed,
        )
        return found.quantile_s(self._objective) <= self._plan.slo_s

    def _mixed(self, name: str, replicas: int) -> tuple[Allocation, ...]:
        """That many replicas in the plan's mixture of kinds."""
        held = self._plan.allocations[name]
        shares = [replicas * a.replicas / self._planned[name] for a in held]
        counts = [math.floor(share) for share in shares]
        for i in sorted(range(len(held)), key=lambda i: counts[i] - shares[i])[: replicas - sum(counts)]:
            counts[i] += 1
        return tuple(Allocation(a.hardware, a.max_batch_size, n) for a, n in zip(held, counts, strict=True))
