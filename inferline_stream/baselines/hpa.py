"""Kubernetes' HorizontalPodAutoscaler, v2: its default behaviour, and scaling on CPU, on busy shares, or on KEDA's lag.

Kubernetes, `pkg/controller/podautoscaler` (horizontal.go, replica_calculator.go): tolerance 0.1, sync every 15 s.
KEDA 2.18, `pkg/scalers/kafka_scaler.go`: lag against a threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from inferline_stream.baselines.rule_inputs import StageSeen

TOLERANCE = 0.1
"""A metric within this of its target changes nothing."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Behavior:
    """How fast recommendations are followed.

    Args:
        up_share: most growth per period, as a share of the replicas at its start.
        up_pods: or this many replicas, whichever is more.
        down_window_s: the largest recommendation of this long ago counts when scaling down.
        period_s: of a sync, and of the limits on growth.
        minimum: fewest replicas.
        maximum: most replicas.
    """

    up_share: float = 1.0
    up_pods: int = 4
    down_window_s: float = 300.0
    period_s: float = 15.0
    minimum: int = 1
    maximum: int = 100


@dataclass(frozen=True, slots=True)
class Recommended:
    """Memory: (time, replicas) of the recommendations that still count."""

    past: tuple[tuple[float, int], ...] = ()


def followed(
    behavior: Behavior, memory: Recommended, time_s: float, current: int, recommended: int
) -> tuple[Recommended, int]:
    """The replicas that a recommendation leads to, within stabilization, limits on growth and bounds.

    The replicas found at the first sync count as the first recommendation.
    """
    memory = memory if memory.past else Recommended(((time_s, current),))
    past = (*((t, n) for t, n in memory.past if t > time_s - behavior.down_window_s), (time_s, recommended))
    wanted = max(recommended, min(current, max(n for _, n in past)))
    limit = max(current + behavior.up_pods, math.ceil(current * (1 + behavior.up_share)))
    wanted = min(wanted, limit) if current > 0 else wanted
    return Recommended(past), min(max(wanted, behavior.minimum), behavior.maximum)


def within_tolerance(ratio: float) -> bool:
    """Whether the metric is close enough to its target to leave everything as it is."""
    return abs(1.0 - ratio) <= TOLERANCE + _ROUNDING


def beyond_tolerance(wanted: int, pods: int, tolerance: float) -> int:
    """Return the number to ask a HorizontalPodAutoscaler for, so that it acts where it has to.

    It leaves a change alone where ``|asked / pods − 1| ≤ tolerance``. More than wanted is asked for rather than none
    of what is missing, and no fewer until that is enough fewer.

    Args:
        wanted: workers.
        pods: that there are.
        tolerance: a share, 0 or more.
    """
    if pods <= 0 or abs(wanted / pods - 1) > tolerance + _ROUNDING:  # versions differ in 11 of 10, at 10 %
        return wanted
    return max(wanted, math.floor(pods * (1 + tolerance) + _ROUNDING) + 1) if wanted > pods else pods


@dataclass(frozen=True, slots=True)
class HpaCpu:
    """Scales on CPU utilization, ⌈ready·utilization/target⌉.

    Args:
        target: utilization aimed at.
        behavior: see `Behavior`.
        busy: look at the share of time in which replicas are busy instead (`hpa-busy`), for stages on a GPU.
    """

    target: float = 0.8
    behavior: Behavior = field(default_factory=Behavior)
    busy: bool = False

    @property
    def period_s(self) -> float:
        """A sync."""
        return self.behavior.period_s

    def begin(self, replicas: int) -> Recommended:
        """No recommendation yet."""
        return Recommended()

    def step(self, memory: Recommended, seen: StageSeen) -> tuple[Recommended, int]:
        """One sync."""
        ratio = (seen.busy if self.busy else seen.cpu) / self.target
        if seen.ready == 0:
            return memory, max(seen.replicas, self.behavior.minimum)
        wanted = seen.replicas if within_tolerance(ratio) else math.ceil(seen.ready * ratio - _ROUNDING)
        return followed(self.behavior, memory, seen.time_s, seen.replicas, wanted)


@dataclass(frozen=True, slots=True)
class Keda:
    """A ScaledObject with a Kafka trigger, which keeps a replica.

    Args:
        lag_threshold: records per replica.
        behavior: the HPA's.
    """

    lag_threshold: int = 10
    behavior: Behavior = field(default_factory=Behavior)

    @property
    def period_s(self) -> float:
        """A sync of the HPA."""
        return self.behavior.period_s

    def begin(self, replicas: int) -> Recommended:
        """No recommendation yet."""
        return Recommended()

    def metric(self, seen: StageSeen) -> int:
        """The lag that is reported to the HPA: of no more replicas than partitions."""
        lag, partitions = int(seen.lag), seen.partitions
        if partitions is not None and lag // self.lag_threshold > partitions:
            return partitions * self.lag_threshold
        return lag

    def step(self, memory: Recommended, seen: StageSeen) -> tuple[Recommended, int]:
        """One sync."""
        lag = self.metric(seen)
        ratio = lag / (self.lag_threshold * seen.ready) if seen.ready else math.inf
        wanted = seen.replicas if within_tolerance(ratio) else math.ceil(lag / self.lag_threshold)
        return followed(self.behavior, memory, seen.time_s, seen.replicas, wanted)
