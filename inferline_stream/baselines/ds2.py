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
        activation: intervals in a row that must ask for a change.
        headroom: factor on the arrival rate; 1 as published.
        maximum: most replicas.
    """

    period_s: float = 10.0
    warm_up: int = 2
    activation: int = 1
    headroom: float = 1.0
    maximum: int = 100

    def begin(self, replicas: int) -> tuple[int, int]:
        """Intervals still to ignore, and intervals in a row that asked for a change."""
        return self.warm_up, 0

    def step(self, memory: tuple[int, int], seen: StageSeen) -> tuple[tuple[int, int], int]:
        """One interval. A single replica less is not worth a restart."""
        ignore, asked = memory
        if ignore > 0:
            return (ignore - 1, 0), seen.replicas
        if seen.busy <= 0 or seen.processed <= 0 or seen.ready == 0:
            return (0, 0), seen.replicas
        per_replica = seen.processed / seen.busy / seen.ready
        wanted = min(max(math.ceil(seen.arrival * self.headroom / per_replica - 1e-9), 1), self.maximum)
        if wanted in (seen.replicas, seen.replicas - 1):
            return (0, 0), seen.replicas
        if asked + 1 < self.activation:
            return (0, asked + 1), seen.replicas
        return (self.warm_up, 0), wanted
