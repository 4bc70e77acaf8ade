"""The latency of every event of a trace under a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from inferline_stream.errors import InvalidInput
from inferline_stream.estimator.evaluation import StageStatistics, evaluate
from inferline_stream.estimator.kernels import Floats
from inferline_stream.estimator.quantile import quantile_s
from inferline_stream.estimator.station import rests_s, station
from inferline_stream.estimator.workload import Workload, prepare
from inferline_stream.pipeline.plan import Allocations
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape, records_per_event
from inferline_stream.pipeline.trace import Trace


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """Latencies and how the stages fared.

    An event's latency is from its entry to its last record in a sink, the overhead of the last hop included. An event
    that skips all stages which feed one ends without a sink record: its latency is NaN, and it counts neither in the
    quantiles nor in the miss rate, because the SLO is on what reaches a sink. Of an event with many results, which no
    stage gathers, each counts.

    Args:
        latency_s: float64 (events,) or (results,), in order of entry.
        stages: by name.
        workload: what was simulated.
    """

    latency_s: Floats
    stages: Mapping[str, StageStatistics]
    workload: Workload

    @property
    def p99_s(self) -> float:
        """P99 of the latency; NaN if no event reaches the sink."""
        return self.quantile_s(0.99)

    def quantile_s(self, share: float) -> float:
        """The smallest latency within which at least this share of the events stays (exact)."""
        return quantile_s(self.latency_s, share)

    def judged_quantile_s(self, share: float) -> float:
        """The same as SLOs judge it, see `Workload.judged_quantile_s`."""
        return self.workload.judged_quantile_s(self.latency_s, share)

    @property
    def degraded(self) -> float:
        """The largest share of any stage's visits that its fallback made."""
        return max((s.degraded / s.arrivals for s in self.stages.values() if s.arrivals), default=0.0)

    def miss_rate(self, slo_s: float) -> float:
        """Share of the events that reach the sink later than the SLO of their class; 0 if none reaches it."""
        known = int(np.count_nonzero(~np.isnan(self.latency_s)))
        return int(np.count_nonzero(self.workload.judged_s(self.latency_s) > slo_s)) / known if known else 0.0


def simulate(
    shape: Shape,
    allocations: Allocations,
    measured: PipelineProfile,
    trace: Trace,
    *,
    order_slo_s: float = 0.0,
    order: str = "deadline",
    slots: Mapping[str, int] | None = None,
    partitions: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Simulation:
    """Simulate a plan on a trace, exactly.

    Args:
        shape: the DAG.
        allocations: by stage.
        measured: profiles, paths taken, overhead of a hop.
        trace: when events enter.
        order_slo_s: the SLO: each stage's queue is in order of max(entry time, arrival − SLO). 0 is the order of
            arrival, infinity the order of entry.
        order: as in `Pipeline`. No stage has news of the others: what leaves one depends on none that comes after it.
        slots: dispatchers as in `Plan`, though no more than replicas; by default as many as the trace needs.
        partitions: of the topics of stages whose replicas are the members of an ordinary consumer group: each takes the
            records of its own, in their order.
        seed: of the paths, slots and service times drawn. The same seed gives the same luck to every plan.

    Raises:
        InvalidInput: a stage without replicas or profile, or a batch size never profiled.
    """
    missing = [f"stage {name!r} has no allocation" for name in shape.stages if name not in allocations]
    if missing:
        raise InvalidInput(*missing)
    if slots is None and measured.overheads is not None:
        records = records_per_event(shape, measured.paths)
        slots = {name: measured.overheads.slots(trace.arrival_rate * records[name]) for name in shape.stages}
    rests = rests_s(shape, measured, order, order_slo_s)
    stations = [
        station(
            measured,
            name,
            allocations[name],
            order_slo_s=order_slo_s,
            rest_s=rests[name],
            partitions=(partitions or {}).get(name),
            slots=max(1, min((slots or {}).get(name, 1), sum(a.replicas for a in allocations[name]))),
        )
        for name in shape.stages
    ]
    workload = prepare(shape, measured, trace, seed=seed)
    evaluation = evaluate(workload, stations)
    assert evaluation.latency_s is not None
    return Simulation(
        evaluation.latency_s[workload.last],
        {shape.stages[s]: statistics for s, statistics in evaluation.statistics.items()},
        workload,
    )
