"""What changes of consumer groups' members cost, how many the objective pays for, and what is remembered of them.

A change makes about λ · share that moves · (hole − slack) / (1 − ρ) events late: those that come during the hole and
while what it left is worked off, beyond what an event may wait for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from inferline_stream.pipeline.group_profile import Sharing
from inferline_stream.pipeline.trace import Trace
from inferline_stream.tuner.decision import Decision
from inferline_stream.tuner.staffing_table import Staffing
from inferline_stream.tuner.traffic import RATE_WINDOW_S

HOUR_S = 3600.0

BUSIEST = 0.95
"""Utilization beyond which a queue counts as draining no slower."""


@dataclass(frozen=True, slots=True)
class GroupBasis:
    """What the policy knows of consumer groups beside the plan.

    Args:
        sharing: by group.
        quiet_s: how long fewer members must have been wanted, and nothing changed, before there are fewer; 0 where a
            change makes no event late.
        changes_per_hour: that the objective pays for, over all groups.
        needed_per_hour: that the levels of the sample's traffic would take.
    """

    sharing: Mapping[str, Sharing]
    quiet_s: float = 0.0
    changes_per_hour: float = math.inf
    needed_per_hour: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the plan's members are held, since the traffic's levels need more changes than may be."""
        return self.needed_per_hour > self.changes_per_hour


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """What the policy remembers of groups from one step to the next.

    Args:
        asked: replicas that the default policy would have now.
        ready: by group, members when it was looked at last.
        since_s: by group, when its members last changed, ours or not.
        lately: by group, what was wanted, each with the time from which on.
        changes_s: when the number of a group was changed, within the last hour.
        raised: the default policy's last decision that asks for more.
    """

    asked: Mapping[str, Mapping[str, int]]
    ready: Mapping[str, int] = field(default_factory=dict)
    since_s: Mapping[str, float] = field(default_factory=dict)
    lately: Mapping[str, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    changes_s: tuple[float, ...] = ()
    raised: Decision | None = None


def lost_s(sharing: Sharing, before: int, after: int, *, utilization: float, slack_s: float) -> float:
    """Return the late events of one change in seconds of the group's traffic.

    Args:
        sharing: of the group.
        before: members.
        after: members.
        utilization: ρ afterwards.
        slack_s: how long an event may wait beyond what it takes at rest.
    """
    return sharing.moved_share(before, after) * sharing.excess_s(slack_s) / (1 - min(utilization, BUSIEST))


def changes_needed(table: Staffing, throughputs: Mapping[str, float], sample: Trace, wait_s: float) -> float:
    """Return how often per hour the levels of a sample's traffic change the members of groups, over all groups.

    More are taken to be asked for at once, and fewer when so few were needed for a while.

    Args:
        table: of the sample.
        throughputs: µ of one member, by group.
        sample: traffic.
        wait_s: that while.
    """
    length = int(sample.arrivals_s[-1]) if len(sample) else 0
    window = int(RATE_WINDOW_S)
    if length < 2 * window:
        return 0.0
    seconds = np.bincount(sample.arrivals_s.astype(np.int64), minlength=length)[:length]
    rates = np.convolve(seconds, np.full(window, 1 / window), mode="valid").tolist()
    changes = 0
    for name, throughput in throughputs.items():
        counts = [math.ceil(table.needed(name, rate / table.carried_rate) / throughput - 1e-9) for rate in rates]
        changes += _steps(counts, math.ceil(wait_s))
    return changes * HOUR_S / length


def _steps(counts: Sequence[int], wait: int) -> int:
    held, since, changes = counts[0], 0, 0
    for now, most in enumerate(_most_lately(counts, wait)):
        if most > held or (most < held and now - since >= wait):
            held, since, changes = most, now, changes + 1
    return changes


def _most_lately(counts: Sequence[int], wait: int) -> list[int]:
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(counts, (wait, 0), mode="edge"), wait + 1)
    most: list[int] = windows.max(axis=1).tolist()
    return most


def most_wanted(lately: Sequence[tuple[float, int]], since_s: float) -> int:
    """The most of what was wanted since then, of what was wanted from when on."""
    ends = itertools.chain((time_s for time_s, _ in lately[1:]), (math.inf,))
    return max(count for (_, count), end_s in zip(lately, ends, strict=True) if end_s > since_s)
