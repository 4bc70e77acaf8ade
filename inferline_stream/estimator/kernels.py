"""The loops of the simulation, as plain functions; `estimator.numba_kernels` makes machine code of this very source.

Rules, held bit for bit by the event-heap reference (`tests.support.event_heap`):

- A record that leaves a stage at t arrives at ``t + hop`` and a batch that starts at t ends at ``t + S``: these sums,
  rounded once, are the instants. Service times are above 0. Where hops differ, what a stage sends at t, and what enters
  the pipeline then, counts as sent at ``t + extra``, by a draw of its event and the stage; ``hop`` is the least. A join
  that is skipped sends its markers without.
- At one instant arrivals (records and skip markers) come first, ordered by (sent, sending stage, start of their batch,
  position in it), then dispatch. A batch therefore holds whatever has arrived up to its start, that instant included.
- One queue: in order of max(entry time, arrival − SLO), of equal ones in order of arrival. Whenever a replica is free,
  a batch is made of the first that wait; which of them go last, and how many the batch takes, says
  `pipeline.deadline_order`, and which version serves it `pipeline.fallback`: where times vary, the fallback's draw what
  those of the stage do. In order of entry nothing is hopeless: R is −∞. Of several kinds that are free the one
  whose batch would end first takes it, within `TIE` the first of the allocations. It leaves what waits to busy replicas
  where those, one batch after the other, could end all of it before it would end its own. What waits are the hopeful
  ones, while there are any.
- With a hold that replica waits until its batch limit is reached or the oldest that waits was sent that long ago: a
  dispatcher counts from when a record entered its topic.
- Where events of one key keep their order, those of a key of which a batch is in hand are not eligible until it ends.
  The waiting ones of a key go together, in order of arrival, as many as the batch holds: at the place of the one of
  them that is first in the queue's order, of equal ones by the arrival of their first. What is said above of events
  that wait is said of the eligible ones.
- A replica may have several batches in hand. How long a batch takes depends on how many its replica has when it starts,
  itself included. A batch goes to the replica with which it would end first, within `TIE` to the first of the kinds in
  the order of the allocations, and of one kind's to the first. A batch that follows one in hand is expected to find the
  others in hand still.
- Of several slots each serves its events as if alone; of batches that end at one instant the lower slot's come first.
- A member of an ordinary consumer group is a slot of one replica. It takes the records of its partitions in order of
  arrival, whatever their keys: it runs one batch at a time, which keeps every order.
- A stage's departures are emitted in order of time, a batch's in the order in which they were taken.

Every kernel can stop at a *horizon*, before which its arrivals are known, and go on later: positions are counted
from the stage's first arrival, `base` is the position of the first one still in the buffers, and state lives in arrays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inferline_stream.pipeline.fallback import FALLBACK, allows, count, version_for

Floats = NDArray[np.float64]
FloatTable = NDArray[np.float64]
Ints = NDArray[np.int64]
Events = NDArray[np.int32]
Masks = NDArray[np.uint16]
Flags = NDArray[np.uint8]
FlagTable = NDArray[np.uint8]

# Positions are unsigned: machine code then needs no check for negative indices, at half the time per event. Their
# constants are too, because numba makes floating-point numbers of sums of signed and unsigned integers.
Index = np.uint64
ZERO, ONE, TWO, THREE, FOUR, FIVE, SIX, SEVEN, EIGHT, LOWEST = map(Index, (*range(9), 255))

UNKNOWN, LATE, ON_TIME = 0, 1, 2

TIE = 1.01
"""Times of service count as equal within this ratio where a replica is chosen."""


class Tokens(NamedTuple):
    """Records or skip markers: when they were sent, ascending, and whose they are."""

    times: Floats
    events: Events


class Queue(NamedTuple):
    """Records sent to a stage, from position ``base`` up to ``n``; those to arrive before the horizon are all there.

    ``entry_s`` is when each event entered, by event.
    """

    times: Floats
    events: Events
    n: int
    base: int
    horizon_s: float
    entry_s: Floats


class Varying(NamedTuple):
    """How service times differ from S(b), see `pipeline.profile`; empty arrays where every batch takes S(b).

    Args:
        fixed_s: (kinds · width,) what any batch takes.
        per_unit_s: (kinds · width,) what it takes for each unit of its mean event, or of its largest.
        factors: (kinds · width, LEVELS) equally probable factors of a batch, ascending, of mean 1.
        units: (kinds, LEVELS) equally probable units of an event, ascending.
        largest: (kinds,) whether the largest event counts.
    """

    fixed_s: Floats
    per_unit_s: Floats
    factors: Floats
    units: Floats
    largest: Flags


class Fallback(NamedTuple):
    """A stage's other version, see `pipeline.fallback`; an empty table where it has none.

    Args:
        table: as `Service.table`, F(b).
        caps: as `Service.caps`, by F(b).
        share: of the events that it may make.
        window: what has been served lately, of one slot; written.
        batches: its batches by row of the table; written.
        made: by event, whether it made any of the event's results; written.
        longer_s: R' - R.
    """

    table: Floats
    caps: Ints
    share: float
    window: Ints
    batches: Ints
    made: Flags
    longer_s: float


class Service(NamedTuple):
    """See `station.Station`; besides, the time from sending to arrival, and the SLO of the queue's order.

    ``lots`` is by event: above the lowest 8 bits its place among the units, in them that of its batch's factor, where
    it is the first of a batch. Empty where nothing varies. ``rest_s`` is R, and ``caps`` (kinds · levels,) the largest
    batch that leaves time for it, as `pipeline.deadline_order` says; −∞ and the limits in order of entry. ``span`` is
    how many arrivals may lie behind the first hopeless one, ``room`` how many events may wait before hopeless ones go
    first, ``cap_slo_s`` the SLO by which batches are cut.
    """

    limits: Ints
    table: Floats
    varying: Varying
    lots: Masks
    hold_s: float
    hop_s: float
    slo_s: float
    rest_s: float
    caps: Ints
    span: int
    room: int
    cap_slo_s: float
    fallback: Fallback


class Account(NamedTuple):
    """Batches by kind and size (kinds · width,), and (2,) Σ S and Σ b·S."""

    batches: Ints
    totals: Floats


class Sources(NamedTuple):
    """Tokens of a stage's sources, one source's after another's.

    Args:
        times: when they were sent, each source's ascending.
        events: whose they are.
        begin: (sources,) first not yet taken of each source; moved on.
        end: (sources,) end of each source's.
        horizon_s: those sent from here on wait for the next call.
    """

    times: Floats
    events: Events
    begin: Ints
    end: Ints
    horizon_s: float


class Joining(NamedTuple):
    """When an event is complete at a stage: see `feeds.Feed`. ``masks`` and ``seen`` (tokens so far; may be empty
    with one source) are by event."""

    masks: Masks
    admits: FlagTable
    needed: Flags
    visits: Flags
    skips: bool
    seen: Flags
    hop_s: float


class Lateness(NamedTuple):
    """What makes an event late at one stage.

    Args:
        entry_s: by event.
        masks: by event.
        rest_s: (masks,) fastest time from the stage to the sink; -inf where the sink is not reached.
        slo_s: the SLO.
        settles: events that are not late here are on time.
        fate: by event: UNKNOWN, LATE or ON_TIME.
    """

    entry_s: Floats
    masks: Masks
    rest_s: Floats
    slo_s: float
    settles: bool
    fate: Flags


def draw(event: int, key: int) -> int:
    """32 random bits that belong to an event and a key: two plans that are compared meet the same luck.

    Products stay below 2⁶³, so that the interpreted source and the machine code agree.
    """
    x = event ^ (event >> 16)
    x = (x * 0x21F0AAAD) & 0xFFFFFFFF
    x = x ^ (x >> 15) ^ key
    x = (x * 0x735A2D97) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x5851F42D) & 0xFFFFFFFF
    return x ^ (x >> 16)


def drawn_s(
    varying: Varying, lots: Masks, events: Events, batch: tuple[np.uint64, np.uint64, np.uint64, np.uint64]
) -> float:
    """How long a batch takes whose service time varies.

    Args:
        varying: how.
        lots: see `Service`.
        events: has those of the batch.
        batch: where the first of them is, how many there are, the kind of the replica, and its row of the table.
    """
    fixed_s, per_unit_s, factors, units, largest = varying
    first, size, kind, row = batch
    lot = Index(lots[Index(events[first])])
    asked = units[kind, lot >> EIGHT]
    for q in range(1, size):
        other = units[kind, Index(lots[Index(events[first + Index(q)])]) >> EIGHT]
        asked = max(asked, other) if largest[kind] else asked + other
    if not largest[kind]:
        asked /= np.float64(size)
    service_s: float = (fixed_s[row] + per_unit_s[row] * asked) * factors[row, lot & LOWEST]
    return service_s


def choose_version(
    fallback: Fallback, size: tuple[np.uint64, np.uint64], age_s: float, service_s: float, times: tuple[float, float]
) -> int:
    """Return the version of a stage with a fallback that makes an event in time; after `roll`.

    Args:
        fallback: of the stage.
        size: of the batch that it would make, and the row of it.
        age_s: of the event.
        service_s: of the batch that the stage itself would make.
        times: R and the SLO.
    """
    events, row = size
    rest_s, slo_s = times
    may = allows(fallback.window, fallback.share, np.int64(events))
    fast_s = fallback.table[row] if may else math.inf
    return version_for(age_s, service_s, fast_s, (rest_s, fallback.longer_s), slo_s)


def note_version(
    fallback: Fallback, version: int, events: Events, batch: tuple[np.uint64, np.uint64, np.uint64]
) -> None:
    """Note which version makes a batch, where its first event is, of how many, and its row of the table."""
    first, size, row = batch
    degraded = np.int64(size) if version == FALLBACK else np.int64(0)
    count(fallback.window, np.int64(size), degraded)
    if degraded > 0:
        fallback.batches[row] += 1
        for q in range(degraded):
            fallback.made[Index(events[first + Index(q)])] = 1


def draw_lots(key: int, chosen: Masks) -> None:
    """What each event draws at one stage: 16 bits, see `Service`."""
    for i in range(chosen.size):
        chosen[i] = draw(i, key) >> 16


def draw_masks(first: int, key: int, thresholds: Ints, masks: Masks) -> None:
    """Which arrows each event takes: thresholds are the cumulative weights in units of 2⁻³²."""
    for i in range(masks.size):
        bits = draw(first + i, key)
        m = 0
        while thresholds[m] <= bits:
            m += 1
        masks[i] = m


def draw_keys(key: int, thresholds: Ints, chosen: Masks) -> None:
    """The number of each event's key from 1; 0 for a rare one. Thresholds are cumulative shares in units of 2⁻³²."""
    for i in range(chosen.size):
        bits = draw(i, key)
        first = 0
        end = thresholds.size
        while first < end:
            middle = (first + end) >> 1
            if thresholds[middle] <= bits:
                first = middle + 1
            else:
                end = middle
        chosen[i] = 0 if first == thresholds.size else first + 1


def draw_partitions(key: int, partitions: int, keys: Masks, chosen: Masks) -> None:
    """The partition of each event: that of its key where that is a busy one; ``keys`` may be empty."""
    for i in range(chosen.size):
        whose = i
        if keys.size > 0 and keys[i] > 0:
            whose = chosen.size + int(keys[i])
        chosen[i] = (draw(whose, key) * partitions) >> 32


def delay(gone: Tokens, key: int, extra_s: Floats, late: Tokens, until: tuple[int, float]) -> tuple[np.int64, np.int64]:
    """Give every token what its event draws of the time between two stages beyond the least, and put them in order.

    Args:
        gone: tokens, ascending; none of an earlier call.
        key: of the draws.
        extra_s: equally probable times, 256 of them.
        late: tokens that wait, ascending, with room for all; those before the horizon come first, ascending.
        until: how many wait, and the horizon: tokens from there on wait for the next call.

    Returns:
        How many are before the horizon, and how many there are.
    """
    times, events = late
    sent_s, whose = gone
    held, horizon_s = until
    n = Index(held)
    for i in range(sent_s.size):
        event = whose[i]
        t = sent_s[i] + extra_s[draw(int(event), key) >> 24]
        place = n
        while place > ZERO and times[place - ONE] > t:
            times[place] = times[place - ONE]
            events[place] = events[place - ONE]
            place -= ONE
        times[place] = t
        events[place] = event
        n += ONE
    ready = ZERO
    while ready < n and times[ready] < horizon_s:
        ready += ONE
    return np.int64(ready), np.int64(n)


def merge(pending: Sources, join: Joining, out: Tokens, skipped: Tokens) -> tuple[np.int64, np.int64]:
    """Events that are complete at a stage, in order of the last of their tokens sent before the horizon.

    Args:
        pending: the tokens.
        join: what each event needs.
        out: events that run here and the sending time of their last token, written.
        skipped: events that skip the stage and the arrival of their last token, written.

    Returns:
        How many of each were written.
    """
    times, events, begin, end, horizon_s = pending
    masks, admits, needed, visits, skips, seen, hop_s = join
    sources = begin.size
    room = Index(out.times.size)
    n = ZERO
    skips_out = ZERO
    if sources == 1 and not skips:
        # Nobody to wait for: a filter. What is not admitted is overwritten by the next.
        i = Index(begin[0])
        last = Index(end[0])
        while i < last and times[i] < horizon_s:
            event = events[i]
            if n < room:
                out.times[n] = times[i]
                out.events[n] = event
            n += Index(admits[0, Index(masks[Index(event)])])
            i += ONE
        begin[0] = np.int64(i)
        return np.int64(n), np.int64(0)
    if sources == 2 and not skips:
        # Without branches on what cannot be predicted: which source is next, and whether it is the last token.
        first = Index(begin[0])
        second = Index(begin[1])
        first_end = Index(end[0])
        second_end = Index(end[1])
        first_s = times[first] if first < first_end else math.inf
        second_s = times[second] if second < second_end else math.inf
        while min(first_s, second_s) < horizon_s:
            later = second_s < first_s
            event = events[second if later else first]
            if n < room:
                out.times[n] = second_s if later else first_s
                out.events[n] = event
            mask = Index(masks[Index(event)])
            admitted = admits[Index(later), mask]
            tokens = seen[Index(event)] + admitted
            seen[Index(event)] = tokens
            n += Index(admitted & (tokens == needed[mask]))
            if later:
                second += ONE
                second_s = times[second] if second < second_end else math.inf
            else:
                first += ONE
                first_s = times[first] if first < first_end else math.inf
        begin[0] = np.int64(first)
        begin[1] = np.int64(second)
        return np.int64(n), np.int64(0)
    while True:
        source = -1
        t = horizon_s
        for k in range(sources):
            if begin[k] < end[k] and times[Index(begin[k])] < t:
                t = times[Index(begin[k])]
                source = k
        if source < 0:
            break
        event = events[Index(begin[source])]
        begin[source] += 1
        mask = Index(masks[Index(event)])
        if admits[source, mask] == 0:
            continue
        if needed[mask] > 1:
            seen[Index(event)] += 1
            if seen[Index(event)] < needed[mask]:
                continue
        if visits[mask]:
            out.times[n] = t
            out.events[n] = event
            n += ONE
        elif skips:
            skipped.times[skips_out] = t + hop_s
            skipped.events[skips_out] = event
            skips_out += ONE
    return np.int64(n), np.int64(skips_out)


def count_late(gone: Tokens, lateness: Lateness) -> int:
    """Events not yet known to be late whose age and fastest possible rest exceed the SLO; they are marked."""
    times, events = gone
    entry_s, masks, rest_s, slo_s, settles, fate = lateness
    count = 0
    for i in range(times.size):
        event = Index(events[i])
        if times[i] + rest_s[Index(masks[event])] - entry_s[event] > slo_s:
            if fate[event] == UNKNOWN:
                fate[event] = LATE
                count += 1
        elif settles:
            fate[event] = ON_TIME
    return count


def count_missing(first: int, end: int, lateness: Lateness) -> int:
    """Events of a range that should have left by now to be on time, and have not; they are marked late."""
    count = 0
    for i in range(first, end):
        event = Index(i)
        if lateness.fate[event] == UNKNOWN and lateness.rest_s[Index(lateness.masks[event])] > -math.inf:
            lateness.fate[event] = LATE
            count += 1
    return count


def record_latencies(gone: Tokens, entry_s: Floats, hop_s: float, latency_s: Floats) -> None:
    """Latency of the events that a stage sends to a sink; of several sinks the last counts."""
    times, events = gone
    for i in range(times.size):
        event = Index(events[i])
        latency = times[i] + hop_s - entry_s[event]
        if not latency_s[event] >= latency:
            latency_s[event] = latency


def look(arrived: Tokens, gone: Tokens, left: Flags, marks: Ints, looks: tuple[Floats, FloatTable]) -> None:
    """Note what had come to a stage, and left it, before each of several instants.

    Args:
        arrived: records sent to the stage that have not left, or left lately, in order.
        gone: departures since the last call, in order.
        left: by event, whether it has left; written.
        marks: (5,) records in ``arrived``, those counted, departures counted, the first there that has not left,
            records before those there; written.
        looks: the instants, ascending, and a table with a row for each, whose first columns are written: records that
            came, records that left, and when the oldest that had not left was sent (NaN if all had).
    """
    instants_s, seen = looks
    known, came, completed, oldest, before = marks
    n = 0
    for k in range(instants_s.size):
        while came < known and arrived.times[came] < instants_s[k]:
            came += 1
        while n < gone.times.size and gone.times[n] < instants_s[k]:
            left[gone.events[n]] = 1
            n += 1
        while oldest < came and left[arrived.events[oldest]] > 0:
            oldest += 1
        seen[k, 0] = before + came
        seen[k, 1] = completed + n
        seen[k, 2] = arrived.times[oldest] if oldest < came else math.nan
    for rest in range(n, gone.times.size):
        left[gone.events[rest]] = 1
    marks[1] = came
    marks[2] = completed + gone.times.size
    marks[3] = oldest
