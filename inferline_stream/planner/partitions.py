"""How many partitions a topic needs, and which replica counts are worth having with them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

GROWTH = 2.0
"""Default room for growth: partitions can be added to a topic later, but keyed records then change partition."""

UNEVENNESS = 0.15
"""Default for how much more than its even share the busiest replica may be given by whole partitions."""

LEAST_PARTITIONS = 6
"""Never advise fewer: one replica planned may still be asked for two, three or six when traffic surges."""

MOST_PARTITIONS = 1000
"""Never advise more: every partition costs the brokers files and memory, and each replica a fetch."""


def rungs(partitions: int) -> tuple[int, ...]:
    """Replica counts, ascending, at which the busiest replica holds fewer partitions than with one replica less.

    With P partitions a replica more helps only where ⌈P/r⌉ falls; between those counts it costs money and a
    handover and changes nothing for the busiest replica (partitions of equal rate).

    Raises:
        ValueError: fewer than one partition.
    """
    if partitions < 1:
        raise ValueError(f"{partitions} partitions: a topic has 1 or more")
    return tuple(r for r in range(1, partitions + 1) if r == 1 or -(-partitions // r) < -(-partitions // (r - 1)))


def rung_above(partitions: int, replicas: int) -> int | None:
    """The smallest rung above a replica count; None beyond the last."""
    return next((r for r in rungs(partitions) if r > replicas), None)


def rung_below(partitions: int, replicas: int) -> int | None:
    """The largest rung below a replica count; None below the first."""
    return next((r for r in reversed(rungs(partitions)) if r < replicas), None)


def unevenness(partitions: int, replicas: int) -> float:
    """How much more than its even share the busiest of ``replicas`` holds: ⌈P/r⌉·r/P − 1."""
    return -(-partitions // replicas) * replicas / partitions - 1


@dataclass(frozen=True, slots=True)
class PartitionAdvice:
    """How many partitions a topic should have, and what decided it.

    Args:
        partitions: the count advised.
        peak_replicas: replicas it must be able to feed: planned, times peak, times growth.
        unevenness: how much more than its even share the busiest replica holds at the planned replicas.
        useful_replicas: most replicas that can help as records are keyed now; fewer than
            ``peak_replicas`` means that one partition is too hot, which no partition count cures
            if it is a single key.
        reason: one sentence for people.
    """

    partitions: int
    peak_replicas: int
    unevenness: float
    useful_replicas: int
    reason: str


def advise_partitions(
    replicas: int,
    *,
    peak: float = 1.0,
    growth: float = GROWTH,
    shares: Sequence[float] = (),
    tolerance: float = UNEVENNESS,
    least: int = LEAST_PARTITIONS,
    most: int = MOST_PARTITIONS,
) -> PartitionAdvice:
    """The smallest partition count that feeds the peak, evenly enough, with what is known of skew.

    Args:
        replicas: planned replicas of the stage that reads the topic.
        peak: most arrivals expected over those planned for, e.g. 1.5.
        growth: further factor for traffic to grow before partitions must be added.
        shares: share of records of each partition as measured; empty where records carry no key.
        tolerance: accepted `unevenness` at every replica count from planned to the peak (rungs fine enough).
        least: smallest count to advise.
        most: largest count to advise.

    Raises:
        ValueError: no replicas, factors below 1, or a tolerance that is not above 0.
    """
    if replicas < 1 or peak < 1 or growth < 1 or not tolerance > 0:
        raise ValueError(
            f"replicas {replicas}, peak {peak} and growth {growth} must be 1 or more, tolerance {tolerance} above 0"
        )
    peak_replicas = min(math.ceil(replicas * peak * growth), most)
    hottest = max(shares, default=0.0) / (sum(shares) or 1.0)
    useful = math.floor(1 / hottest + 1e-9) if hottest > 0 else most
    counts = range(max(peak_replicas, least), most + 1)
    fine = next((p for p in counts if _even(p, replicas, peak_replicas, tolerance)), None)
    partitions = most if fine is None else fine
    reason = f"{replicas} replicas planned, {peak_replicas} at {peak:g}× peak and {growth:g}× growth"
    if partitions > peak_replicas:
        reason += f"; {partitions} partitions keep the busiest replica within {tolerance:.0%} of an even share"
    if useful < peak_replicas:
        reason += (
            f"; but one partition carries {hottest:.0%} of the records, so more than {useful} replicas cannot help: "
            "spread its keys"
        )
    return PartitionAdvice(partitions, peak_replicas, unevenness(partitions, replicas), useful, reason)


def _even(partitions: int, planned: int, peak: int, tolerance: float) -> bool:
    """Whether planned replicas share evenly and, from there to the peak, each rung has the next one close above it."""
    if unevenness(partitions, planned) > tolerance:
        return False
    steps = [r for r in rungs(partitions) if r >= planned]
    return all(b <= max(a + 1, a * (1 + 2 * tolerance)) or a >= peak for a, b in itertools.pairwise(steps))
