"""Hopeless last: a queue that spends its time on events that can still be on time.

An event is *hopeless* at a stage once it cannot be on time any more, with the batch that would be formed now and the
rest of its way. It is served all the same, but after those that can be: otherwise a second of shortage makes every
event late until the backlog has drained.

A replica of kind k is free at t. S(b) is the mean service time of a batch of b there, with as many batches in hand as
it then has; R is what is taken for the stages after this one (`rest_s`); an event entered the pipeline at e; T is the
SLO. A batch is taken in these steps, by the dispatcher's queue and the Estimator's kernels alike:

1. ``cap`` is `batch_cap`, from S, R and T. Where a hold applies it is for `cap` hopeful events, and nothing is judged
   before it is over; where no hopeful event waits nothing holds.
2. While hopeful events wait, h of them: the first by rank is judged with b = min(cap, h). It is hopeless if
   ``t - e + S(b) + R > T``. Then it is moved aside, h is one less, and the next one is judged.
3. If hopeful events and hopeless ones wait, each `HOPELESS_EVERY`-th such batch goes to hopeless ones, as if no
   hopeful one waited. So does any while there are more than `OFFSETS_SPAN` offsets between the first hopeless one and
   the last arrival: they would soon not fit a commit, and the partition would have to pause. And so does any while so
   much waits that the queue will soon be full (`QUEUE_EVENTS`): it would hide the live events behind them.
4. Else the batch takes the first min(cap, h) hopeful ones, then hopeless ones while ``size < limit`` and the first
   hopeful one of the batch still makes it: ``t - e + S(size + 1) + R <= T``. Where no hopeful one is left it takes
   hopeless ones, up to the limit.

Both kinds are taken in order of rank, of equal ones in order of arrival. Hopeless is for ever, at that stage: each
event is judged once more than it is taken, at most. A key's lane is judged by its first event and moved aside as a
whole; once some of it was taken, what is left is judged again. Where few lanes wait (`FEW_LANES`) one is hopeless only
if all of its first b events are: a single late one would otherwise hold back a large part of the traffic.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from inferline_stream.pipeline.shape import Paths, Shape, flat_ways, goes_through

NEWS_EVERY_S = 0.5
"""R changes at multiples of this only, to what stages had taken until one such period before: a report's way to the
controller and back. A stay is forgotten with the same time constant."""

NEWS_LASTS_S = 2.0
"""A stay older than this is none: a stage that lately served nobody hopeful is taken to be idle. Its last stay would
otherwise keep the stages before it from sending it anyone in time."""

REST_SHARE = 0.9
"""Share of the events whose way R is enough for. The mean of all ways is too little for those that take a long one:
where a stage lacks replicas, each event waits there until R is all that is left, and those are then late.

Replayed at leaps to twice the rate (replicas start in 30 s), 4.2 % are late with the mean and 2.8 % with this.
"""

BATCH_SHARE = 0.9
"""Of the SLO that a batch and the rest of its way may take. A larger batch would make its own events hopeless."""

HOPELESS_EVERY = 50
"""One batch in so many goes to hopeless events first: none waits for ever, at 2 % of the stage's throughput.

Replayed at a leap to twice the rate (replicas start in 30 s), 3.9 % are late and the longest wait is 83 SLOs; with one
batch in 10 it is 5.8 % and 67 SLOs, with one in 100 4.0 % and 91. Runs with few late events hardly differ: in one that
drifts 0.165 %, 0.172 % and 0.163 %.
"""

DEMAND_AFTER_SLOS = 60.0
"""Age in SLOs from which hopeless events count as backlog. Younger ones are late already: a replica for them would save
nobody."""

FEW_LANES = 100
"""Keys, of hopeful events that may be taken, below which few of them carry a stage; an event without a key, or with one
too rare to be known, is one of its own."""

OFFSETS_SPAN = 9_216
"""Offsets, of one partition, from the first hopeless one on, that may wait to be committed before hopeless events go
first: three eighths of what the metadata of a commit describes as a bitmap. At half of it the partition pauses."""

QUEUE_EVENTS = 12_288
"""Events of 1 KB that may wait in a slot before hopeless ones go first: three quarters of a dispatcher's queue. It
counts bytes; simulations know of none."""


def batch_cap(service_s: Sequence[float], rest_s: float, slo_s: float) -> int:
    """Return the largest batch that leaves time enough for the rest of its way, at least 1.

    Args:
        service_s: S(b) for b = 1 up to the limit.
        rest_s: R of the stage.
        slo_s: T.
    """
    most_s = BATCH_SHARE * slo_s
    return next((b for b in range(len(service_s), 1, -1) if service_s[b - 1] + rest_s <= most_s), 1)


@dataclass(frozen=True, slots=True)
class Stay:
    """Mean time from an event's arrival at a stage to the end of its service, of hopeful events lately.

    Args:
        sum_s: Σ of the stays, each forgotten since its end.
        events: Σ of their number, forgotten alike.
        last_s: when the last one ended; −∞ without any.
    """

    sum_s: float = 0.0
    events: float = 0.0
    last_s: float = -math.inf

    def add(self, stay_s: float, events: int, now_s: float) -> Stay:
        """Return it with a batch that ended now, not before the last: its hopeful events, and their mean stay."""
        kept = math.exp((self.last_s - now_s) / NEWS_EVERY_S)
        return Stay(self.sum_s * kept + stay_s * events, self.events * kept + events, now_s)

    def at(self, now_s: float) -> float | None:
        """Return the mean; None where the last batch ended longer than `NEWS_LASTS_S` ago."""
        return self.sum_s / self.events if now_s - self.last_s <= NEWS_LASTS_S else None

    def merged(self, other: Stay) -> Stay:
        """Return the stay at both, as of two slots of a stage."""
        last_s = max(self.last_s, other.last_s)
        if last_s == -math.inf:
            return self
        mine, others = (math.exp((each.last_s - last_s) / NEWS_EVERY_S) for each in (self, other))
        return Stay(self.sum_s * mine + other.sum_s * others, self.events * mine + other.events * others, last_s)


def rest_s(
    shape: Shape,
    paths: Paths,
    stay_s: Mapping[str, float | None],
    alone_s: Mapping[str, float],
    *,
    hop_s: float,
    slo_s: float,
) -> dict[str, float]:
    """Return R of every stage: the time from the end of its service until the event is in the sink.

    Of each set of arrows that an event may take it is the longest Σ (hop + stay) over the stages that it has yet to
    visit, and a hop into the sink; of all sets the one that is enough for `REST_SHARE` of the events that visit the
    stage. Where nothing is known of any stage after this one it is the least of them: a stage without news condemns no
    event that might make it.

    Args:
        shape: the DAG.
        paths: sets of arrows, with their shares.
        stay_s: by stage, `Stay.at`; None, or left out, where it is not known.
        alone_s: by stage, S(1) on the fastest hardware of the plan, in place of a stay that is not known.
        hop_s: mean time between two stages, and from the last to the sink.
        slo_s: the SLO: no stay counts as longer.
    """
    stages = shape.stages
    taken_s = [min(slo_s, alone_s[name] if (stay := stay_s.get(name)) is None else stay) for name in stages]
    known = [stay_s.get(name) is not None for name in stages]
    ways = _ways(shape, paths)
    longest_s = [_longest_s(len(stages), way, taken_s, hop_s) for _, way in ways]
    found: dict[str, float] = {}
    for s, name in enumerate(stages):
        rests = [(share, rest[s]) for (share, _), rest in zip(ways, longest_s, strict=True) if rest[s] >= 0.0]
        whole = sum(share for share, _ in rests)
        if whole > 0.0 and any(known[after] for after in _after(shape)[s]):
            found[name] = _enough(rests, REST_SHARE * whole)
        else:
            found[name] = min((rest for _, rest in rests), default=0.0)
    return found


def _enough(rests: Sequence[tuple[float, float]], share: float) -> float:
    """Return the least rest, of (share, rest), that is as long as any of so large a share of them."""
    reached = 0.0
    for own, rest in sorted(rests, key=operator.itemgetter(1)):
        reached += own
        if reached >= share * (1 - 1e-9):
            return rest
    return max(rest for _, rest in rests)


_Way = tuple[tuple[int, tuple[int, ...]], ...]
"""Stages that an event visits, the last ones first, and to which stages it goes from each."""


def _longest_s(stages: int, way: _Way, taken_s: Sequence[float], hop_s: float) -> list[float]:
    """Longest time from each stage to the end of the way; below 0 where it is not visited."""
    rest = [-1.0] * stages
    for s, children in way:
        rest[s] = max([hop_s + taken_s[child] + rest[child] for child in children], default=hop_s)
    return rest


@functools.lru_cache(maxsize=64)
def _ways(shape: Shape, paths: Paths) -> tuple[tuple[float, _Way], ...]:
    """Share of each set of arrows, and the way along them."""
    return tuple(
        (
            share,
            tuple(
                (s, tuple(shape.arrows[a].child for a in shape.children(s) if mask >> a & 1))
                for s in reversed(range(len(shape.stages)))
                if goes_through(shape, mask)[s]
            ),
        )
        for mask, share in flat_ways(shape, paths)
    )


@functools.lru_cache(maxsize=64)
def _after(shape: Shape) -> tuple[frozenset[int], ...]:
    """Stages that come after each."""
    after: list[frozenset[int]] = [frozenset()] * len(shape.stages)
    for s in reversed(range(len(shape.stages))):
        children: Iterable[int] = [shape.arrows[a].child for a in shape.children(s)]
        after[s] = frozenset(children).union(*(after[child] for child in children))
    return tuple(after)
