"""How long a stage waits before it gives replicas back: longer where the pipeline often changes its mind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from inferline_stream.tuner.plan_basis import Replicas

REVERSAL_S = 60.0
"""A stage whose replicas go the other way within this time has changed its mind."""

FREE = 6.0
"""Reversals of all stages together that change nothing: an hour of calm traffic may cause as many."""

GROWTH, MOST = 4.0, 2.0
"""Each one beyond those makes the wait four times as long, and the second is the last one that does: half a minute
grows to eight. With two minutes a day of web traffic has 80 reversals, with four 40, with eight 16."""

FORGIVEN_S = 8 * 3600.0
"""Within this time a reversal is forgiven: traffic that was noisy in the morning mostly is so at noon."""


@dataclass(frozen=True, slots=True)
class Patience:
    """What the policy has learned of the noise in its traffic.

    Args:
        reversals: of calm traffic, that were not forgiven when the last one came.
        counted_s: when that was.
        moved: by stage, whether its last change was for more replicas, and when that was.
    """

    reversals: float = 0.0
    counted_s: float = 0.0
    moved: Mapping[str, tuple[bool, float]] = field(default_factory=dict)

    def wait_s(self, now_s: float, shortest_s: float) -> float:
        """How long a stage waits now, given how long it waits where there are no reversals."""
        return shortest_s * math.pow(GROWTH, max(self._left(now_s) - FREE, 0.0))

    def after(self, held: Replicas, wanted: Replicas, now_s: float, *, calm: bool) -> Patience:
        """What is known after a decision.

        Args:
            held: replicas wanted before.
            wanted: replicas wanted from now on.
            now_s: the time.
            calm: whether traffic neither leapt nor outgrew the plan lately. Where it did, replicas that come and go
                are no noise.
        """
        moved, reversals = dict(self.moved), 0
        for stage, kinds in wanted.items():
            change = sum(kinds.values()) - sum(held[stage].values())
            if change == 0:
                continue
            grows = change > 0
            grew, moved_s = moved.get(stage, (grows, now_s))
            reversals += grew is not grows and now_s - moved_s < REVERSAL_S
            moved[stage] = grows, now_s
        if not reversals or not calm:
            return Patience(self.reversals, self.counted_s, moved)
        return Patience(min(self._left(now_s) + reversals, FREE + MOST), now_s, moved)

    def _left(self, now_s: float) -> float:
        return max(self.reversals - (now_s - self.counted_s) / FORGIVEN_S, 0.0)
