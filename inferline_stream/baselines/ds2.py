"""DS2 (Kalavri et al., "Three steps is all you need", OSDI 2018): replicas from true processing rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from inferline_stream.baselines.rule_inputs import StageSeen


@dataclass(frozen=True, slots=True)
class Ds2:
    """⌈arrival / (processed / busy / replicas)⌉: utilization 1 is aimed at.

    Args:
        period_s: how often it decides.
        warm_up: intervals that are ignored after each change.
        headroom: factor on the arrival rate; 1 as published.
        maximum: most replicas.
    """

    period_s: float = 10.0
    warm_up: int = 2
    headroom: float = 1.0
    maximum: int = 100

    def begin(self, replicas: int) -> int:
        """Intervals still to ignore."""
        return self.warm_up

    def step(self, memory: int, seen: StageSeen) -> tuple[int, int]:
        """One interval. A single replica less is not worth a restart."""
        if memory > 0:
            return memory - 1, seen.replicas
        if seen.busy <= 0 or seen.processed <= 0 or seen.ready == 0:
            return 0, seen.replicas
        per_replica = seen.processed / seen.busy / seen.ready
        wanted = min(max(math.ceil(seen.arrival * self.headroom / per_replica - 1e-9), 1), self.maximum)
        if wanted in (seen.replicas, seen.replicas - 1):
            return 0, seen.replicas
        return self.warm_up, wanted
