"""How many events are late with two changes whose effects add up, for many pairs of changes at machine speed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK = 128
"""Events after which it is looked whether a pair is lost."""


def late_by_pair(effects_s: Times, spare_s: Times, weights: Ints, pairs: tuple[Ints, Ints], most: float) -> Ints:
    """Return by pair how many events are late; where there are more than ``most``, some number above it.

    Args:
        effects_s: (changes, events) what each change adds to the latency of each event.
        spare_s: (events,) how far each event is from being late; the first ones should be those nearest to it.
        weights: (events,) how many events each stands for.
        pairs: (pairs,) the one change, and the other.
        most: late events of interest.
    """
    late = np.empty(pairs[0].size, dtype=np.int64)
    limit = np.int64(min(most, 2.0**62)) if most >= 0 else np.int64(-1)
    _compiled()(effects_s, (spare_s, weights), pairs, limit, late)
    return late


def count_pairs(
    effects_s: Times, events_at: tuple[Times, Ints], pairs: tuple[Ints, Ints], most: np.int64, late: Ints
) -> None:
    """`late_by_pair`, written to ``late``; ``events_at`` are the room and the weight of each event."""
    spare_s, weights = events_at
    one, other = pairs
    events = spare_s.size
    for pair in range(one.size):
        mine, others = effects_s[one[pair]], effects_s[other[pair]]
        total = np.int64(0)
        first = 0
        while first < events and total <= most:
            end = min(first + BLOCK, events)
            for i in range(first, end):
                if others[i] > spare_s[i] - mine[i]:
                    total += weights[i]
            first = end
        late[pair] = total


@cache
def _compiled() -> Callable[[Times, tuple[Times, Ints], tuple[Ints, Ints], np.int64, Ints], None]:
    from numba import njit

    kernel: Callable[[Times, tuple[Times, Ints], tuple[Ints, Ints], np.int64, Ints], None] = njit(
        nogil=True, cache=True, error_model="numpy"
    )(count_pairs)
    return kernel
