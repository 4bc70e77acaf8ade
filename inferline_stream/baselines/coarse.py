"""Coarse-grained serving: the whole pipeline replicated as one unit, as InferLine's comparisons do.

Sized for the mean rate (CG-Mean) or for the peak over windows of one SLO (CG-Peak), and scaled by one unit at a time in
the manner of AutoScale (Gandhi et al., TOCS 2012): up as soon as the rate asks for it, down only after a wait.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from inferline_stream.baselines.rule_inputs import PipelineSeen
from inferline_stream.calculus.envelope import trace_envelope
from inferline_stream.pipeline.hardware import Catalogue, dollars_per_hour
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape
from inferline_stream.pipeline.trace import Trace


@dataclass(frozen=True, slots=True)
class Unit:
    """One replica of every stage.

    Args:
        batch_size: the same in every stage.
        throughput: events per second: the slowest stage's.
        service_time_s: along the longest path.
    """

    batch_size: int
    throughput: float
    service_time_s: float


def unit(
    shape: Shape,
    measured: PipelineProfile,
    hardware: Mapping[str, str],
    slo_s: float,
    at_once: Mapping[str, int] | None = None,
) -> Unit:
    """The unit with the largest batch at which a batch passes the longest path within the SLO, else batches of 1.

    Batch sizes above what a stage was profiled at are its largest there. As in the paper every event is taken to
    visit every stage: a stage that few visit may take longer than the SLO in a plan that keeps it.

    Args:
        shape: the DAG.
        measured: profiles.
        hardware: by stage.
        slo_s: latency target.
        at_once: by stage, batches that a replica has in hand; 1 unless given.
    """
    profiles = {name: measured.profiles[name, hardware[name]] for name in shape.stages}
    sizes = sorted({b for profile in profiles.values() for b in profile.batch_sizes})
    many = at_once or {}
    best: Unit | None = None
    for size in sizes:
        batch = {name: min(size, profile.batch_sizes[-1]) for name, profile in profiles.items()}
        service_s = shape.longest_path_s(
            {name: profiles[name].service_time_s(b, many.get(name, 1)) for name, b in batch.items()}
        )
        if best is None or service_s <= slo_s:
            throughput = min(profiles[name].throughput(b, many.get(name, 1)) for name, b in batch.items())
            best = Unit(size, throughput, service_s)
    assert best is not None, "every profile has batches of 1"
    return best


def mean_rate(trace: Trace) -> float:
    """What CG-Mean is sized for."""
    return trace.arrival_rate


def peak_rate(trace: Trace, slo_s: float) -> float:
    """What CG-Peak is sized for: the largest rate of any window of one SLO."""
    return trace_envelope(trace, (slo_s,))[0][1] / slo_s


def units_for(rate: float, throughput: float) -> int:
    """⌈rate / throughput⌉, at least 1."""
    return max(1, math.ceil(rate / throughput - 1e-9))


def peak_cost_per_hour(
    shape: Shape, measured: PipelineProfile, plan: Plan, catalogue: Catalogue, sample: Trace
) -> float | None:
    """Dollars per hour of CG-Peak on the plan's hardware for the same sample; None where no batch meets the SLO.

    Args:
        shape: the DAG.
        measured: profiles.
        plan: ours; of a stage that mixes hardware, the first kind.
        catalogue: prices.
        sample: the arrivals that the plan was made for.
    """
    hardware = {stage: held[0].hardware for stage, held in plan.allocations.items()}
    at_once = {stage: held[0].concurrency for stage, held in plan.allocations.items()}
    one = unit(shape, measured, hardware, plan.slo_s, at_once)
    if one.service_time_s > plan.slo_s:
        return None
    units = units_for(peak_rate(sample, plan.slo_s), one.throughput)
    return dollars_per_hour({kind: units * n for kind, n in Counter(hardware.values()).items()}, catalogue)


@dataclass(frozen=True, slots=True)
class CoarseMemory:
    """Recent arrivals, units, and since when fewer would do."""

    arrivals: tuple[float, ...] = ()
    units: int = 1
    fewer_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Coarse:
    """Scaling of a coarse-grained deployment.

    Args:
        throughput: of one unit.
        stages: that a unit replicates.
        window_s: rates are the largest of windows of this length (CG-Peak: one SLO); None takes the mean (CG-Mean).
        span_s: how far back arrivals are looked at.
        period_s: how often a unit may come or go.
        wait_s: how long fewer units must do before one goes (AutoScale's t_wait).
        maximum: most units.
    """

    throughput: float
    stages: tuple[str, ...]
    window_s: float | None = None
    span_s: float = 30.0
    period_s: float = 10.0
    wait_s: float = 120.0
    maximum: int = 100

    def begin(self, replicas: Mapping[str, int]) -> CoarseMemory:
        """As many units as the stages have replicas."""
        return CoarseMemory(units=max((replicas[name] for name in self.stages), default=1))

    def step(self, memory: CoarseMemory, seen: PipelineSeen) -> tuple[CoarseMemory, dict[str, int]]:
        """One interval."""
        arrivals = tuple(t for t in memory.arrivals if t > seen.time_s - self.span_s) + seen.arrivals
        if self.window_s is None:
            rate = len(arrivals) / min(self.span_s, max(seen.time_s, 1e-9))
        else:
            rate = peak_rate(Trace(np.array(arrivals)), self.window_s)
        needed, units, since_s = units_for(rate, self.throughput), memory.units, memory.fewer_since_s
        if needed > units:
            units, since_s = min(units + 1, self.maximum), None
        elif needed < units:
            since_s = seen.time_s if since_s is None else since_s
            if seen.time_s - since_s >= self.wait_s:
                units, since_s = units - 1, seen.time_s
        else:
            since_s = None
        return CoarseMemory(arrivals, units, since_s), dict.fromkeys(self.stages, units)
