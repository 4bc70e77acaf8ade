"""Apache Flink's autoscaler: true processing rates against a target utilization, with room for catching up.

Flink Kubernetes operator 1.13, `flink-autoscaler` (ScalingMetricEvaluator, JobVertexScaler, ScalingExecutor).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from inferline_stream.baselines.rule_inputs import PipelineSeen, StageSeen


@dataclass(frozen=True, slots=True)
class FlinkMemory:
    """What the autoscaler remembers.

    Args:
        since_s: last rescale, or the start.
        window: (time, stages) of the metric window.
        down: wishes for fewer replicas by stage: (first wished, largest wish).
    """

    since_s: float | None = None
    window: tuple[tuple[float, Mapping[str, StageSeen]], ...] = ()
    down: Mapping[str, tuple[float, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rates:
    """One vertex over the metric window."""

    lag: float
    rate_in: float
    target: float
    true_rate: float


@dataclass(frozen=True, slots=True)
class Flink:
    """The autoscaler's settings.

    Args:
        period_s: how often it looks.
        stabilization_s: after a rescale nothing is measured for this long.
        window_s: metrics are means over this.
        utilization: aimed at.
        utilization_max: above it a vertex is scaled.
        utilization_min: below it a vertex is scaled.
        restart_s: expected downtime of a rescale, caught up with afterwards.
        catch_up_s: within which lag has to be gone.
        backlog_s: lag, in seconds of its rate, above which only more replicas are considered.
        max_down: most that is taken away at once, as a share.
        max_up: most that is added at once, as a multiple.
        scale_down_s: how long after it was first wished for something is taken away.
        maximum: most replicas.
    """

    period_s: float = 60.0
    stabilization_s: float = 300.0
    window_s: float = 900.0
    utilization: float = 0.7
    utilization_max: float = 1.0
    utilization_min: float = 0.4
    restart_s: float = 300.0
    catch_up_s: float = 1800.0
    backlog_s: float = 300.0
    max_down: float = 0.6
    max_up: float = 1e5
    scale_down_s: float = 3600.0
    maximum: int = 200

    def begin(self, replicas: Mapping[str, int]) -> FlinkMemory:
        """Nothing was measured yet."""
        return FlinkMemory()

    def capacity(self, lag: float, rate: float, utilization: float, *, restart: bool) -> float:
        """Rate at which a vertex must be able to work: its input at this utilization, lag and downtime caught up."""
        downtime = rate * self.restart_s / self.catch_up_s if restart else 0.0
        by_utilization = rate / utilization if utilization > 0 else math.inf
        return lag / self.catch_up_s + downtime + by_utilization

    def parallelism(self, current: int, lag: float, target: float, true_rate: float, partitions: int | None) -> int:
        """Replicas that bring the true rate to the capacity at the utilization aimed at."""
        if true_rate <= 0:
            return current
        factor = self.capacity(lag, target, self.utilization, restart=True) / true_rate
        factor = min(max(factor, 1 - self.max_down), 1 + self.max_up)
        most = self.maximum if partitions is None else min(self.maximum, partitions)
        wanted = min(max(math.ceil(factor * current - 1e-9), 1), most)
        return wanted if partitions is None else aligned(wanted, partitions, most)

    def within_bounds(self, rates: Rates) -> bool:
        """Whether a vertex may stay as it is."""
        behind = rates.lag > self.backlog_s * rates.target
        highest = 1.0 if behind else self.utilization_max
        lowest = 0.0 if behind else self.utilization_min
        slowest = self.capacity(rates.lag, rates.target, highest, restart=False)
        fastest = self.capacity(rates.lag, rates.target, lowest, restart=True)
        return slowest <= rates.true_rate <= fastest

    def rates(self, memory: FlinkMemory, seen: PipelineSeen) -> dict[str, Rates]:
        """Means over the window; targets flow from the sources down."""
        first_s, first = memory.window[0]
        span_s = max(seen.time_s - first_s, 1e-9)
        looks = [stages for _, stages in memory.window]
        found: dict[str, Rates] = {}
        for name, stage in seen.stages.items():
            rate_in = sum(look[name].processed for look in looks) / len(looks)
            busy = sum(look[name].busy for look in looks) / len(looks)
            if not seen.parents[name]:
                target = max(rate_in + (stage.lag - first[name].lag) / span_s, 0.0)
            else:
                target = 0.0
                for parent in seen.parents[name]:
                    left = found[parent].rate_in
                    arrived = sum(look[name].arrival for look in looks) / len(looks) / len(seen.parents[name])
                    target += found[parent].target * (arrived / left if left > 0 else 0.0)
            found[name] = Rates(stage.lag, rate_in, target, rate_in / busy if busy > 0 else 0.0)
        return found

    def step(self, memory: FlinkMemory, seen: PipelineSeen) -> tuple[FlinkMemory, dict[str, int]]:
        """One look."""
        now_s = seen.time_s
        current = {name: stage.replicas for name, stage in seen.stages.items()}
        since_s = now_s - self.period_s if memory.since_s is None else memory.since_s
        if now_s - since_s < self.stabilization_s:
            return replace(memory, since_s=since_s, window=()), current
        window = (*((t, s) for t, s in memory.window if t > now_s - self.window_s), (now_s, seen.stages))
        memory = replace(memory, since_s=since_s, window=window)
        if now_s - since_s < self.stabilization_s + self.window_s:
            return memory, current
        rates = self.rates(memory, seen)
        wished = {
            name: self.parallelism(count, rates[name].lag, rates[name].target, rates[name].true_rate, stage.partitions)
            for (name, count), stage in zip(current.items(), seen.stages.values(), strict=True)
        }
        down: dict[str, tuple[float, int]] = {}
        for name, count in current.items():
            if wished[name] < count:
                first_s, largest = memory.down.get(name, (now_s, wished[name]))
                down[name] = (first_s, max(largest, wished[name]))
                wished[name] = down[name][1] if now_s - first_s >= self.scale_down_s else count
        memory = replace(memory, down=down)
        if wished == current or all(self.within_bounds(rates[name]) for name in current):
            return memory, current
        kept = {name: wish for name, wish in down.items() if wished[name] == current[name]}
        return FlinkMemory(since_s=now_s, down=kept), wished


def aligned(wanted: int, partitions: int, most: int) -> int:
    """The next parallelism from which partitions are shared evenly, or with which each replica has fewer."""
    for count in range(wanted, most + 1):
        if partitions % count == 0 or partitions // count < partitions // wanted:
            return count
    return wanted
