"""Three rules of managed and open platforms: Dataflow's documented heuristic, Numaflow, and Seldon Core 2."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from inferline_stream.baselines.rule_inputs import StageSeen


@dataclass(frozen=True, slots=True)
class DataflowMemory:
    """Since when a stage has been behind, or idle; None if it is not."""

    behind_since_s: float | None = None
    idle_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Dataflow:
    """Google Dataflow's horizontal autoscaling of streaming pipelines, as documented.

    Args:
        period_s: how often it looks.
        behind_s: backlog, in seconds of throughput, above which it scales up …
        behind_cpu: … if CPU utilization is above this.
        caught_up_s: backlog below which it scales down …
        idle_cpu: … if CPU utilization is below this; also the utilization aimed at.
        patience_s: how long either must last.
        drain_s: within which the backlog has to be gone.
        maximum: most replicas.
    """

    period_s: float = 10.0
    behind_s: float = 15.0
    behind_cpu: float = 0.2
    caught_up_s: float = 10.0
    idle_cpu: float = 0.75
    patience_s: float = 120.0
    drain_s: float = 150.0
    maximum: int = 100

    def begin(self, replicas: int) -> DataflowMemory:
        """Neither behind nor idle."""
        return DataflowMemory()

    def step(self, memory: DataflowMemory, seen: StageSeen) -> tuple[DataflowMemory, int]:
        """One look."""
        backlog_s = seen.lag / seen.processed if seen.processed > 0 else (math.inf if seen.lag > 0 else 0.0)
        behind = backlog_s > self.behind_s and seen.cpu > self.behind_cpu
        idle = backlog_s < self.caught_up_s and seen.cpu < self.idle_cpu
        memory = DataflowMemory(
            (seen.time_s if memory.behind_since_s is None else memory.behind_since_s) if behind else None,
            (seen.time_s if memory.idle_since_s is None else memory.idle_since_s) if idle else None,
        )
        if memory.behind_since_s is not None and seen.time_s - memory.behind_since_s >= self.patience_s:
            per_replica = seen.processed / seen.ready if seen.ready and seen.processed > 0 else 0.0
            needed = seen.arrival + seen.lag / self.drain_s
            wanted = math.ceil(needed / per_replica - 1e-9) if per_replica > 0 else seen.replicas + 1
            return DataflowMemory(), min(max(wanted, seen.replicas), self.maximum)
        if memory.idle_since_s is not None and seen.time_s - memory.idle_since_s >= self.patience_s:
            return DataflowMemory(), max(1, math.ceil(seen.replicas * seen.cpu / self.idle_cpu - 1e-9))
        return memory, seen.replicas


@dataclass(frozen=True, slots=True)
class NumaflowMemory:
    """Last change, and recent (time, pending, rate)."""

    changed_s: float = -math.inf
    recent: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Numaflow:
    """Numaflow's vertex autoscaling: pending records against a target processing time.

    Args:
        period_s: how often it looks.
        target_s: seconds of throughput that may be pending.
        step: most replicas added or taken away at once.
        up_cooldown_s: after any change, until more are added.
        down_cooldown_s: after any change, until some are taken away.
        look_back_s: span of the means.
        minimum: fewest replicas.
        maximum: most replicas.
    """

    period_s: float = 30.0
    target_s: float = 20.0
    step_size: int = 2
    up_cooldown_s: float = 90.0
    down_cooldown_s: float = 90.0
    look_back_s: float = 120.0
    minimum: int = 0
    maximum: int = 50

    def begin(self, replicas: int) -> NumaflowMemory:
        """No change yet."""
        return NumaflowMemory()

    def desired(self, pending: float, rate: float, replicas: int) -> int:
        """Replicas that work the pending records off within the target."""
        if pending <= 0 and rate <= 0:
            return 0
        if rate <= 0:
            return replicas + self.step_size if pending > 0 else replicas
        return math.floor(pending / rate / self.target_s * replicas + 0.5)

    def step(self, memory: NumaflowMemory, seen: StageSeen) -> tuple[NumaflowMemory, int]:
        """One look."""
        recent = tuple(look for look in memory.recent if look[0] > seen.time_s - self.look_back_s)
        recent = (*recent, (seen.time_s, seen.lag, seen.processed))
        memory = replace(memory, recent=recent)
        if seen.replicas == 0:
            if seen.lag <= 0:
                return memory, 0
            return replace(memory, changed_s=seen.time_s), 1
        pending, rate = (sum(look[i] for look in recent) / len(recent) for i in (1, 2))
        wanted = self.desired(pending, rate, seen.replicas)
        wanted = min(max(wanted, seen.replicas - self.step_size), seen.replicas + self.step_size)
        idle = pending <= 0 and rate <= 0
        wanted = min(max(wanted, self.minimum, 0 if idle else 1), self.maximum)
        cooldown_s = self.up_cooldown_s if wanted > seen.replicas else self.down_cooldown_s
        if wanted == seen.replicas or seen.time_s - memory.changed_s < cooldown_s:
            return memory, seen.replicas
        return replace(memory, changed_s=seen.time_s), wanted


@dataclass(frozen=True, slots=True)
class SeldonMemory:
    """Last change, and since when there has been no lag."""

    changed_s: float = -math.inf
    idle_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Seldon:
    """Seldon Core 2's model autoscaling: one replica more when lag passes a threshold, one less when idle.

    Args:
        period_s: how often it looks.
        lag_threshold: lag above which a replica is added.
        idle_s: how long without a request until one is taken away.
        stable_s: after a change, until one is taken away.
        maximum: most replicas.
    """

    period_s: float = 5.0
    lag_threshold: float = 30.0
    idle_s: float = 30.0
    stable_s: float = 300.0
    maximum: int = 100

    def begin(self, replicas: int) -> SeldonMemory:
        """No change yet."""
        return SeldonMemory()

    def step(self, memory: SeldonMemory, seen: StageSeen) -> tuple[SeldonMemory, int]:
        """One look."""
        if seen.lag > self.lag_threshold:
            return SeldonMemory(seen.time_s, None), min(seen.replicas + 1, self.maximum)
        idle = seen.lag <= 0 and seen.arrival <= 0
        since_s = (seen.time_s if memory.idle_since_s is None else memory.idle_since_s) if idle else None
        memory = replace(memory, idle_since_s=since_s)
        if (
            since_s is not None
            and seen.time_s - since_s >= self.idle_s
            and seen.time_s - memory.changed_s >= self.stable_s
            and seen.replicas > 1
        ):
            return SeldonMemory(seen.time_s, since_s), seen.replicas - 1
        return memory, seen.replicas
