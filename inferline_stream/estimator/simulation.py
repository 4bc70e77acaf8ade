"""The latency of every event of a trace under a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from inferline_stream.errors import InvalidInput, UsageError
from inferline_stream.estimator.evaluation import SLICE_EVENTS, StageStatistics, evaluate
from inferline_stream.estimator.kernels import Floats
from inferline_stream.estimator.quantile import quantile_s
from inferline_stream.estimator.station import station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.plan import Allocations
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape, visit_ratios
from inferline_stream.pipeline.trace import Trace


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """Latencies and how the stages fared.

    An event's latency is from its entry to its record in the sink, the overhead of the last hop included. An event
    that skips the final stage ends without a sink record: its latency is NaN, and it counts neither in the quantiles
    nor in the miss rate, because the SLO is on what reaches the sink.

    Args:
        latency_s: float64 (events,), in order of entry.
        stages: by name.
    """

    latency_s: Floats
    stages: Mapping[str, StageStatistics]

    @property
    def p99_s(self) -> float:
        """P99 of the latency; NaN if no event reaches the sink."""
        return self.quantile_s(0.99)

    def quantile_s(self, share: float) -> float:
        """The smallest latency within which at least this share of the events stays (exact)."""
        return quantile_s(self.latency_s, share)

    def miss_rate(self, slo_s: float) -> float:
        """Share of the events that reach the sink later than the SLO; 0 if none reaches it."""
        known = int(np.count_nonzero(~np.isnan(self.latency_s)))
        return int(np.count_nonzero(self.latency_s > slo_s)) / known if known else 0.0


def simulate(
    shape: Shape,
    allocations: Allocations,
    measured: PipelineProfile,
    trace: Trace,
    *,
    order_slo_s: float = 0.0,
    partitions: Mapping[str, int] | None = None,
    slots: Mapping[str, int] | None = None,
    seed: int = 0,
    memory_bytes: float = math.inf,
) -> Simulation:
    """Simulate a plan on a trace, exactly.

    Args:
        shape: the DAG.
        allocations: by stage.
        measured: profiles, paths taken, overhead of a hop.
        trace: when events enter.
        order_slo_s: the SLO: each stage's queue is in order of max(entry time, arrival − SLO). 0 is the order of
            arrival, infinity the order of entry.
        partitions: of each stage's input topic, where replicas own partitions as in a consumer group; None for one
            queue per stage, as in InferLine §3 and as replicas are run here.
        slots: dispatchers as in `Plan`, though no more than replicas; by default as many as the trace needs.
        seed: of the paths, partitions and service times drawn. The same seed gives the same luck to every plan.
        memory_bytes: refuse what would need more than this.

    Raises:
        InvalidInput: a stage without replicas, profile or partitions, or a batch size never profiled.
        UsageError: the simulation needs more memory than allowed.
    """
    needed = memory_needed_bytes(len(trace), len(shape.stages))
    if needed > memory_bytes:
        raise UsageError(
            f"simulating {len(trace):,} events needs {needed / 1e9:.1f} GB, {memory_bytes / 1e9:.1f} GB are allowed; "
            "use a part of the trace, or a machine with more memory"
        )
    _check(shape, allocations, partitions)
    if slots is None and measured.overheads is not None and partitions is None:
        ratios = visit_ratios(shape, measured.paths)
        slots = {name: measured.overheads.slots(trace.arrival_rate * ratios[name]) for name in shape.stages}
    stations = [
        station(
            measured,
            name,
            allocations[name],
            order_slo_s=order_slo_s,
            partitions=None if partitions is None else partitions[name],
            slots=max(1, min((slots or {}).get(name, 1), sum(a.replicas for a in allocations[name]))),
        )
        for name in shape.stages
    ]
    workload = prepare(shape, measured, trace, seed=seed)
    evaluation = evaluate(workload, stations)
    assert evaluation.latency_s is not None
    return Simulation(
        evaluation.latency_s, {shape.stages[s]: statistics for s, statistics in evaluation.statistics.items()}
    )


def memory_needed_bytes(events: int, stages: int) -> int:
    """Upper estimate of the memory beside the trace itself: each event's latency, path, draws, joins; slices."""
    return events * (16 + 2 * stages) + SLICE_EVENTS * 4096


def _check(shape: Shape, allocations: Allocations, partitions: Mapping[str, int] | None) -> None:
    problems = [f"stage {name!r} has no allocation" for name in shape.stages if name not in allocations]
    if partitions is not None:
        problems += [
            f"stage {name!r}: the partitions of its input topic are not given"
            for name in shape.stages
            if name not in partitions
        ]
    if problems:
        raise InvalidInput(*problems)
