"""One queue per stage, from which every free replica takes: rules in `estimator.kernels`.

As long as what waits has arrived in order of its keys, the queue is a stretch of the arrivals and costs nothing to
keep. An arrival that is to go before others that wait is moved in front of them within the buffer. Hopeless events
leave it for a heap, see `pipeline.deadline_order`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import (
    EIGHT,
    FIVE,
    FOUR,
    ONE,
    SEVEN,
    SIX,
    THREE,
    TWO,
    ZERO,
    Account,
    Events,
    Floats,
    Index,
    Ints,
    Queue,
    Service,
    Tokens,
    choose_version,
    drawn_s,
    note_version,
)
from inferline_stream.estimator.rank_heap import Heap, drop_first, push
from inferline_stream.pipeline.deadline_order import HOPELESS_EVERY
from inferline_stream.pipeline.fallback import FALLBACK, MAIN, NEITHER, roll, version_for


class SharedState(NamedTuple):
    """Replicas, and how far the queue has come.

    Args:
        marks: head of the ring, replicas, first position that waits, first position still needed, first one that is not
            known to be in order.
        clock: (1,) the last dispatch.
        ring: (2^k,) replicas in the order in which they are free, in a ring.
        free_s: (replicas,) when each is free.
        first_of: (replicas,) position of the first event of its batch.
        size_of: (replicas,) events of the batch; 0 once emitted.
    """

    marks: Ints
    clock: Floats
    ring: Ints
    free_s: Floats
    first_of: Ints
    size_of: Ints


def put_in_order(i: np.uint64, d: np.uint64, t: float, queue: Queue, service: Service) -> np.uint64:
    """Move what arrives until t in front of those that wait and are due later. Returns the first that arrives after t.

    Args:
        i: first that waits.
        d: first that is not known to be in order: it entered before its predecessor, which still waits.
        t: the present.
        queue: arrivals; changed in place.
        service: has the SLO of the order.
    """
    times, events, _, _, _, entry_s = queue
    hop_s, slo_s = service.hop_s, service.slo_s
    n = Index(queue.n) - Index(queue.base)
    while d < n and times[d] + hop_s <= t:
        event = events[d]
        sent_s = times[d]
        rank_s = max(entry_s[Index(event)], sent_s + hop_s - slo_s)
        slot = d
        while slot > i:
            before = slot - ONE
            if max(entry_s[Index(events[before])], times[before] + hop_s - slo_s) <= rank_s:
                break
            events[slot] = events[before]
            times[slot] = times[before]
            slot = before
        events[slot] = event
        times[slot] = sent_s
        d += ONE
    return d


def known_in_order(i: np.uint64, d: np.uint64, t: float, queue: Queue, service: Service) -> np.uint64:
    """Put what arrives until t in order. Returns the first that is not known to be.

    Args:
        i: first that waits.
        d: first that was not known to be in order.
        t: the present.
        queue: arrivals; changed in place.
        service: has the SLO of the order.
    """
    times, events, _, _, _, _ = queue
    n = Index(queue.n) - Index(queue.base)
    d = max(d, i + ONE)
    while d < n and events[d] > events[d - ONE]:  # what entered and arrived later is due later
        d += ONE
    if d < n and times[d] + service.hop_s <= t:
        d = put_in_order(i, d, t, queue, service)
    return d


def waiting(times: Floats, i: np.uint64, end: np.uint64, latest: tuple[float, float]) -> np.uint64:
    """Count those of some arrivals, from i on, that have come by t; given t and the hop."""
    t, hop_s = latest
    j = i
    while j < end and times[j] + hop_s <= t:
        j += ONE
    return j - i


def put_back(ring: Ints, free_s: Floats, free: tuple[np.uint64, np.uint64], row: np.uint64) -> np.uint64:
    """Put a replica with a batch behind all that end no later. Returns its place.

    Args:
        ring: the others, in the order in which they are free.
        free_s: by replica, when each is.
        free: the first place that it may come to, and the first that is free, behind the others.
        row: the replica.
    """
    lowest, slot = free
    wrap = Index(ring.size - 1)
    while slot > lowest and free_s[Index(ring[(slot - ONE) & wrap])] > free_s[row]:
        ring[slot & wrap] = ring[(slot - ONE) & wrap]
        slot -= ONE
    ring[slot & wrap] = np.int64(row)
    return slot


def held_until(i: np.uint64, t: float, cap: np.uint64, queue: Queue, service: Service) -> float:
    """When a replica that is free at t takes a batch: once it is full, or the hold since the oldest was sent is over.

    Args:
        i: first that waits.
        t: the present, or the arrival of the first.
        cap: events of a full batch.
        queue: arrivals; those that arrive after t are in order of arrival.
        service: has the hold.
    """
    times = queue.times
    hop_s = service.hop_s
    n = Index(queue.n) - Index(queue.base)
    full = min(i + cap, n)
    oldest_s = times[i]
    m = i + ONE
    while m < full and times[m] + hop_s <= t:
        oldest_s = min(oldest_s, times[m])
        m += ONE
    due_s = oldest_s + service.hold_s
    if m - i == cap or due_s <= t:
        return t
    while m < full and times[m] + hop_s <= due_s:
        m += ONE
    if m - i == cap:
        return float(times[m - ONE] + hop_s)
    return float(due_s)


def move_events(source: Events, first: np.uint64, size: np.uint64, target: Events, at: np.uint64) -> None:
    """Copy events; up to seven places behind them in the target are overwritten, too.

    Eight at a time, since how many there are cannot be predicted. All are read before one is written, so that they are
    moved as one.
    """
    q = ZERO
    padded = ((size + SEVEN) >> THREE) << THREE
    if first + padded <= Index(source.size) and at + padded <= Index(target.size):
        while q < size:
            k, to = first + q, at + q
            a, b, c, d = source[k], source[k + ONE], source[k + TWO], source[k + THREE]
            e, f, g, h = source[k + FOUR], source[k + FIVE], source[k + SIX], source[k + SEVEN]
            target[to], target[to + ONE], target[to + TWO], target[to + THREE] = a, b, c, d
            target[to + FOUR], target[to + FIVE], target[to + SIX], target[to + SEVEN] = e, f, g, h
            q += EIGHT
    while q < size:
        target[at + q] = source[first + q]
        q += ONE


def emit(
    time_s: float, source: Events, batch: tuple[np.uint64, np.uint64, np.uint64], out: Tokens, at: np.uint64
) -> None:
    """Write the departures of a batch; the next ones overwrite what is behind them.

    Args:
        time_s: when it ends.
        source: has its events.
        batch: where the first of them is, how many there are, and how many there may be.
        out: departures, written.
        at: where the first goes.
    """
    first, size, limit = batch
    times = out.times
    if limit == ONE:
        if size == ONE:
            times[at] = time_s
            out.events[at] = source[first]
    else:
        q = ZERO
        if at + size + SEVEN <= Index(times.size):
            while q < size:
                to = at + q
                times[to], times[to + ONE], times[to + TWO], times[to + THREE] = time_s, time_s, time_s, time_s
                to += FOUR
                times[to], times[to + ONE], times[to + TWO], times[to + THREE] = time_s, time_s, time_s, time_s
                q += EIGHT
        while q < size:
            times[at + q] = time_s
            q += ONE
        move_events(source, first, size, out.events, at)


def serve_shared(queue: Queue, service: Service, account: Account, state: SharedState, out: Tokens) -> np.int64:
    """Serve in order of entry. Returns how many departures were written.

    Args:
        queue: arrivals; those that wait are put in order in place.
        service: how batches are served.
        account: what was done.
        state: read and written.
        out: departures, written.
    """
    times, events, _, _, horizon_s, _ = queue
    limits, table, varying, lots, hold_s, hop_s, _, _, _, _, _, _, _ = service
    marks, clock, ring, free_s, first_of, size_of = state
    base = Index(queue.base)
    n = Index(queue.n) - base
    wrap = Index(ring.size - 1)
    now_s = clock[0]  # the last batch, where batches are held
    limit = Index(limits[0])
    head = Index(marks[0])
    replicas = Index(marks[1])
    first_s = free_s[Index(ring[head])]  # when the head is free
    i = Index(marks[2]) - base  # first that waits
    d = Index(marks[4]) - base  # first that is not known to be in order
    means = lots.size == 0
    gone = ZERO
    busy_s, served_s = account.totals
    while i < n:
        t = max(times[i] + hop_s, first_s)
        if hold_s > 0:
            t = held_until(i, max(t, now_s), limit, queue, service)
        if t >= horizon_s:
            break
        now_s = t
        row = Index(ring[head])
        emit(first_s, events, (Index(first_of[row]) - base, Index(size_of[row]), limit), out, gone)
        gone += Index(size_of[row])
        d = known_in_order(i, d, t, queue, service)
        size = ONE + waiting(times, i + ONE, min(i + limit, n), (t, hop_s))
        service_s = table[size] if means else drawn_s(varying, lots, events, (i, size, ZERO, size))
        account.batches[size] += 1
        busy_s += service_s
        served_s += service_s * np.float64(size)
        finish_s = t + service_s
        free_s[row] = finish_s
        first_of[row] = np.int64(i + base)
        size_of[row] = np.int64(size)
        # The replica leaves the head of the ring and is put back behind all that end no later.
        slot = put_back(ring, free_s, (head + ONE, head + replicas), row)
        head += ONE
        # Where the same replica is the next one, its time is not read back: that would take longer than all the rest.
        first_s = free_s[Index(ring[head & wrap])] if slot > head else finish_s
        head = head & wrap
        i += size
    marks[0] = np.int64(head)
    marks[2] = np.int64(i + base)
    marks[4] = np.int64(d + base)
    clock[0] = now_s
    account.totals[0] = busy_s
    account.totals[1] = served_s
    return np.int64(emit_rest(queue, state, gone, out))


def emit_rest(queue: Queue, state: SharedState, gone: np.uint64, out: Tokens) -> np.uint64:
    """Emit the batches that end before the horizon, and note which arrivals are still needed."""
    marks, _, ring, free_s, first_of, size_of = state
    base = Index(queue.base)
    wrap = Index(ring.size - 1)
    head = Index(marks[0])
    needed = Index(marks[2]) - base
    for place in range(marks[1]):
        row = Index(ring[(head + Index(place)) & wrap])
        k = Index(first_of[row]) - base
        end = k + Index(size_of[row])
        if k < end and free_s[row] >= queue.horizon_s:
            needed = min(needed, k)
        elif k < end:
            while k < end:
                out.times[gone] = free_s[row]
                out.events[gone] = queue.events[k]
                gone += ONE
                k += ONE
            size_of[row] = 0
    marks[3] = np.int64(needed + base)
    return gone


class TriagedState(NamedTuple):
    """As `SharedState`, where batches are no stretches of the arrivals: each replica has a row of ``members``.

    Args:
        marks: as there; then batches made beside hopeless events since the last that was theirs, hopeless ones so far,
            and the largest batch that was looked at, which is the limit where a cap cut it.
        clock: (1,) the last dispatch.
        ring: as there.
        free_s: as there.
        size_of: as there.
        members: (replicas · width) events of the batch in hand, row after row; the width is a multiple of eight.
        aside: hopeless ones; room for all that wait.
    """

    marks: Ints
    clock: Floats
    ring: Ints
    free_s: Floats
    size_of: Ints
    members: Events
    aside: Heap


def serve_triaged(queue: Queue, service: Service, account: Account, state: TriagedState, out: Tokens) -> np.int64:
    """As `serve_shared`, with hopeless events last."""
    times, events, _, _, horizon_s, entry_s = queue
    limits, table, varying, lots, hold_s, hop_s, slo_s, rest_s, caps, _, _, _, fallback = service
    falls_back = fallback.table.size > 0
    marks, clock, ring, free_s, size_of, members, aside = state
    base = Index(queue.base)
    n = Index(queue.n) - base
    wrap = Index(ring.size - 1)
    now_s = clock[0]
    limit = Index(limits[0])
    cap = Index(caps[0])
    head = Index(marks[0])
    replicas = Index(marks[1])
    first_s = free_s[Index(ring[head])]  # when the head is free
    width = Index(members.size) // replicas
    i = Index(marks[2]) - base  # first that waits
    d = Index(marks[4]) - base  # first that is not known to be in order
    hopeless = Index(aside.size[0])
    largest = Index(marks[7])
    means = lots.size == 0
    gone = ZERO
    busy_s, served_s = account.totals
    plain = means and hold_s <= 0 and not falls_back
    while i < n or hopeless > ZERO:
        # While nobody is hopeless a batch is a stretch of the arrivals, as in order of entry: a loop of few variables.
        while plain and hopeless == ZERO and i < n:
            t = max(first_s, now_s, times[i] + hop_s)
            if t >= horizon_s:
                break
            d = known_in_order(i, d, t, queue, service)
            size = ONE + waiting(times, i + ONE, min(i + cap, n), (t, hop_s))
            age_s = t - entry_s[Index(events[i])]
            if version_for(age_s, table[size], math.inf, (rest_s, 0.0), slo_s) == NEITHER:
                break
            now_s = t
            largest = max(largest, limit if size == cap else size)
            row = Index(ring[head])
            emit(first_s, members, (row * width, Index(size_of[row]), limit), out, gone)
            gone += Index(size_of[row])
            move_events(events, i, size, members, row * width)
            i += size
            account.batches[size] += 1
            busy_s += table[size]
            served_s += table[size] * np.float64(size)
            finish_s = t + table[size]
            free_s[row] = finish_s
            size_of[row] = np.int64(size)
            slot = put_back(ring, free_s, (head + ONE, head + replicas), row)
            head += ONE
            first_s = free_s[Index(ring[head & wrap])] if slot > head else finish_s
            head = head & wrap
        if hopeless == ZERO and i == n:
            break
        t = max(first_s, now_s)
        if hopeless == ZERO:
            t = max(t, times[i] + hop_s)
        if hold_s > 0 and i < n and times[i] + hop_s <= t:
            t = held_until(i, t, cap, queue, service)
        if t >= horizon_s:
            break
        now_s = t
        row = Index(ring[head])
        first = row * width
        emit(first_s, members, (first, Index(size_of[row]), limit), out, gone)
        gone += Index(size_of[row])
        d = known_in_order(i, d, t, queue, service)
        size = waiting(times, i, min(i + cap, n), (t, hop_s))
        version = MAIN
        if falls_back:
            roll(fallback.window, t)
        while size > ZERO:
            largest = max(largest, limit if size == cap else size)
            hopeful_s = entry_s[Index(events[i])]
            if falls_back:
                fast_size = waiting(times, i, min(i + Index(fallback.caps[0]), n), (t, hop_s))
                version = choose_version(fallback, (fast_size, fast_size), t - hopeful_s, table[size], (rest_s, slo_s))
                if version == FALLBACK:
                    size = fast_size
                    largest = max(largest, limit if size == Index(fallback.caps[0]) else size)
            else:
                version = version_for(t - hopeful_s, table[size], math.inf, (rest_s, 0.0), slo_s)
            if version != NEITHER:
                break
            sent_s = times[i]
            rank_s = max(hopeful_s, sent_s + hop_s - slo_s)
            push(aside, hopeless, (rank_s, marks[6], np.int64(events[i])))
            hopeless += ONE
            marks[6] += 1
            i += ONE
            size -= ONE
            size += waiting(times, i + size, min(i + cap, n), (t, hop_s))
        if hopeless > ZERO:
            if size > ZERO:
                marks[5] += 1
                if marks[5] >= HOPELESS_EVERY:
                    marks[5] = 0
                    size = ZERO
            if size == ZERO:
                version = MAIN
        move_events(events, i, size, members, first)
        i += size
        if hopeless > ZERO:
            hopeful = size
            while version == MAIN and hopeless > ZERO and size < limit:
                if hopeful > ZERO and t - hopeful_s + table[size + ONE] + rest_s > slo_s:
                    break
                hopeless -= ONE
                members[first + size] = np.int32(aside.item[ZERO])
                drop_first(aside, hopeless)
                size += ONE
            largest = max(largest, size)
        service_s = table[size] if means else drawn_s(varying, lots, members, (first, size, ZERO, size))
        if falls_back:
            note_version(fallback, version, members, (first, size, size))
        if version == FALLBACK:
            service_s = fallback.table[size] if means else service_s * (fallback.table[size] / table[size])
        else:
            account.batches[size] += 1
        busy_s += service_s
        served_s += service_s * np.float64(size)
        finish_s = t + service_s
        free_s[row] = finish_s
        size_of[row] = np.int64(size)
        slot = put_back(ring, free_s, (head + ONE, head + replicas), row)
        head += ONE
        first_s = free_s[Index(ring[head & wrap])] if slot > head else finish_s
        head = head & wrap
    for place in range(np.int64(replicas)):
        row = Index(ring[(head + Index(place)) & wrap])
        if free_s[row] < horizon_s:
            k = row * width
            for q in range(size_of[row]):
                out.times[gone] = free_s[row]
                out.events[gone] = members[k + Index(q)]
                gone += ONE
            size_of[row] = 0
    marks[0] = np.int64(head)
    marks[2] = marks[3] = np.int64(i + base)
    marks[4] = np.int64(d + base)
    aside.size[0] = np.int64(hopeless)
    marks[7] = np.int64(largest)
    clock[0] = now_s
    account.totals[0] = busy_s
    account.totals[1] = served_s
    return np.int64(gone)
