"""Which holds are worth trying at a stage: with which batch limit, and for how long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from inferline_stream.pipeline.profile import Profile
from inferline_stream.planner.problem import Problem, batch_limits

SHARES = (0.25, 0.5, 0.7, 0.9)
"""Of the longest hold of use. What is left is for waiting while all replicas are busy."""

FILLS = 2.0
"""No batch is held for more than this many times the mean time in which it fills: whatever comes late then comes in a
lull, in which small batches do no harm."""

GAIN = 1.1
"""A full batch has to serve this many times more events per second than batches of 1."""

STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""First digits of every hold beyond a hop: few values, so that simulations can be used again."""


def holds(
    problem: Problem, stage: int, hardware: str, *, rate: float, within_s: float, shares: Sequence[float] = SHARES
) -> list[tuple[int, float]]:
    """Return batch limits and holds with which a full batch still leaves the stage in time.

    A hold counts from when the oldest record was sent: of what is returned the overhead of a hop comes on top.

    Args:
        problem: the problem.
        stage: position of the stage.
        hardware: the kind.
        rate: events per second at the stage.
        within_s: time from their arrival in which events should leave it.
        shares: of the longest hold of use, which ones.
    """
    name = problem.shape.stages[stage]
    if name in problem.partitions or rate <= 0:
        return []
    profile, hop_s = problem.measured.profiles[name, hardware], problem.measured.hop_overhead_s
    found: dict[tuple[int, float], None] = {}
    for limit, full_s in _full_batches(profile, batch_limits(problem, name, hardware)):
        longest_s = min(within_s - full_s, FILLS * (limit - 1) / rate)
        if longest_s > 0:
            found |= {(limit, float(f"{hop_s + rounded_down(share * longest_s):.4g}")): None for share in shares}
    return list(found)


@lru_cache(maxsize=4096)
def _full_batches(profile: Profile, limits: tuple[int, ...]) -> list[tuple[int, float]]:
    """Limits at which a full batch gains enough, and how long it takes."""
    gaining = (limit for limit in limits if profile.throughput(limit) >= GAIN * profile.throughput(1))
    return [(limit, profile.service_time_s(limit)) for limit in gaining]


def rounded_down(seconds: float) -> float:
    """Return the largest of `STEPS`, times a power of ten, that is not above a time above 0."""
    exponent = math.floor(math.log10(seconds))
    digits = seconds / 10.0**exponent * (1 + 1e-12)
    step = max((step for step in STEPS if step <= digits), default=1.0)
    return float(f"{step}e{exponent}")
