"""One queue per stage, from which every free replica takes: rules in `estimator.kernels`.

As long as what waits has arrived in order of its keys, the queue is a stretch of the arrivals and costs nothing to
keep. An arrival that is to go before others that wait is moved in front of them within the buffer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import (
    EIGHT,
    ONE,
    TIE,
    ZERO,
    Account,
    Floats,
    Index,
    Ints,
    Queue,
    Service,
    Tokens,
    drawn_s,
)


class SharedState(NamedTuple):
    """Replicas, and how far the queue has come.

    Args:
        marks: head of the ring, replicas, first position that waits, first position still needed, first one that is not
            known to be in order, first one that has not arrived (`serve_choosing`).
        clock: (1,) the last dispatch, or in `serve_choosing` the last look at a batch that had to wait.
        ring_time: (2^k,) replicas in the order in which they are free, in a ring; when.
        ring_start: (2^k,) position of the first event of the replica's batch.
        ring_size: (2^k,) events of the batch; 0 once emitted.
        ring_kind: (2^k,) kind of the replica.
    """

    marks: Ints
    clock: Floats
    ring_time: Floats
    ring_start: Ints
    ring_size: Ints
    ring_kind: Ints


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


def held_until(i: np.uint64, t: float, queue: Queue, service: Service) -> float:
    """When a replica that is free at t takes a batch: once it is full, or the hold since the oldest was sent is over.

    Args:
        i: first that waits.
        t: the present, or the arrival of the first.
        queue: arrivals; those that arrive after t are in order of arrival.
        service: has the batch limit and the hold.
    """
    times = queue.times
    hop_s = service.hop_s
    n = Index(queue.n) - Index(queue.base)
    full = min(i + Index(service.limits[0]), n)
    oldest_s = times[i]
    m = i + ONE
    while m < full and times[m] + hop_s <= t:
        oldest_s = min(oldest_s, times[m])
        m += ONE
    due_s = oldest_s + service.hold_s
    if m - i == Index(service.limits[0]) or due_s <= t:
        return t
    while m < full and times[m] + hop_s <= due_s:
        m += ONE
    if m - i == Index(service.limits[0]):
        return float(times[m - ONE] + hop_s)
    return float(due_s)


def serve_shared(queue: Queue, service: Service, account: Account, state: SharedState, out: Tokens) -> np.int64:
    """Replicas of one kind. Returns how many departures were written.

    Args:
        queue: arrivals; those that wait are put in order in place.
        service: how batches are served.
        account: what was done.
        state: read and written.
        out: departures, written.
    """
    times, events, _, _, horizon_s, _ = queue
    limits, table, varying, lots, hold_s, hop_s, _ = service
    marks, clock, ring_time, ring_start, ring_size, _ = state
    base = Index(queue.base)
    n = Index(queue.n) - base
    wrap = Index(ring_time.size - 1)
    now_s = clock[0]  # the last batch, where batches are held
    limit = Index(limits[0])
    head = Index(marks[0])
    replicas = Index(marks[1])
    i = Index(marks[2]) - base  # first that waits
    d = Index(marks[4]) - base  # first that is not known to be in order
    means = lots.size == 0
    gone = ZERO
    room = Index(out.times.size)
    held = Index(events.size)
    busy_s, served_s = account.totals
    while i < n:
        free_s = ring_time[head]
        t = max(times[i] + hop_s, free_s)
        if hold_s > 0:
            t = held_until(i, max(t, now_s), queue, service)
        if t >= horizon_s:
            break
        now_s = t
        k = Index(ring_start[head]) - base
        end = gone + Index(ring_size[head])
        if limit > ONE and end + EIGHT <= room and k + (end - gone) + EIGHT <= held:
            # Eight at a time, whatever is too much is overwritten: how large a batch was cannot be predicted.
            while gone < end:
                for q in range(8):
                    out.times[gone + Index(q)] = free_s
                    out.events[gone + Index(q)] = events[k + Index(q)]
                gone += EIGHT
                k += EIGHT
            gone = end
        while gone < end:
            out.times[gone] = free_s
            out.events[gone] = events[k]
            gone += ONE
            k += ONE
        if d <= i:
            d = i + ONE
        while d < n and events[d] > events[d - ONE]:  # what entered and arrived later is due later
            d += ONE
        if d < n and times[d] + hop_s <= t:
            d = put_in_order(i, d, t, queue, service)
        j = i + ONE
        end = min(i + limit, n)
        while j < end and times[j] + hop_s <= t:
            j += ONE
        size = j - i
        service_s = table[size] if means else drawn_s(varying, lots, events, (i, size, ZERO, size))
        account.batches[size] += 1
        busy_s += service_s
        served_s += service_s * np.float64(size)
        finish_s = t + service_s
        # The replica leaves the head of the ring and is put back behind all that end no later.
        slot = head + replicas
        head += ONE
        while slot > head and ring_time[(slot - ONE) & wrap] > finish_s:
            to = slot & wrap
            slot -= ONE
            ring_time[to] = ring_time[slot & wrap]
            ring_start[to] = ring_start[slot & wrap]
            ring_size[to] = ring_size[slot & wrap]
        slot = slot & wrap
        ring_time[slot] = finish_s
        ring_start[slot] = np.int64(i + base)
        ring_size[slot] = np.int64(size)
        head = head & wrap
        i = j
    marks[0] = np.int64(head)
    marks[2] = np.int64(i + base)
    marks[4] = np.int64(d + base)
    clock[0] = now_s
    account.totals[0] = busy_s
    account.totals[1] = served_s
    return np.int64(emit_rest(queue, state, gone, out))


def emit_rest(queue: Queue, state: SharedState, gone: np.uint64, out: Tokens) -> np.uint64:
    """Emit the batches that end before the horizon, and note which arrivals are still needed."""
    marks, _, ring_time, ring_start, ring_size, _ = state
    base = Index(queue.base)
    wrap = Index(ring_time.size - 1)
    head = Index(marks[0])
    needed = Index(marks[2]) - base
    for place in range(marks[1]):
        slot = (head + Index(place)) & wrap
        k = Index(ring_start[slot]) - base
        end = k + Index(ring_size[slot])
        if k < end and ring_time[slot] >= queue.horizon_s:
            needed = min(needed, k)
        elif k < end:
            while k < end:
                out.times[gone] = ring_time[slot]
                out.events[gone] = queue.events[k]
                gone += ONE
                k += ONE
            ring_size[slot] = 0
    marks[3] = np.int64(needed + base)
    return gone


class Ring(NamedTuple):
    """Replicas in the order in which they are free, see `SharedState`; ``first`` is what is known of the batch."""

    time: Floats
    first: Ints
    size: Ints
    kind: Ints


def chosen(
    ring: Ring, kinds: tuple[Ints, Floats], places: tuple[np.uint64, np.uint64, np.uint64], t: float, waiting: np.uint64
) -> tuple[np.uint64, np.uint64, np.int64]:
    """Choose the free replica whose batch would end first.

    Args:
        ring: has one that is free.
        kinds: limits and table, see `Service`.
        places: head of the ring, how many of its first ones are free, replicas.
        t: the present.
        waiting: events that wait.

    Returns:
        Its kind, its place, and how many events busy replicas could end before it would end its batch.
    """
    limits, table = kinds
    head, free, replicas = places
    wrap = Index(ring.time.size - 1)
    width = Index(table.shape[0] // limits.size)
    kind = Index(ring.kind[head & wrap])
    taken = head
    best_s = math.inf
    for other in range(limits.size):
        expected_s = table[Index(other) * width + min(Index(limits[other]), waiting)]
        if expected_s * TIE < best_s:
            for ahead in range(np.int64(free)):
                if ring.kind[(head + Index(ahead)) & wrap] == other:
                    best_s = expected_s
                    kind = Index(other)
                    taken = head + Index(ahead)
                    break
    served_by_busy = np.int64(0)
    for ahead in range(np.int64(free), np.int64(replicas)):
        slot = (head + Index(ahead)) & wrap
        most = Index(limits[ring.kind[slot]])
        expected_s = table[Index(ring.kind[slot]) * width + min(most, waiting)]
        left_s = ring.time[slot] - t
        if (left_s + expected_s) * TIE < best_s:
            served_by_busy += np.int64((best_s / TIE - left_s) / expected_s) * limits[ring.kind[slot]]
    return kind, taken, served_by_busy


def bring_forward(ring: Ring, head: np.uint64, taken: np.uint64) -> None:
    """Overwrite the place of a free replica by those before it: the head is then free for its return."""
    wrap = Index(ring.time.size - 1)
    while taken > head:
        to = taken & wrap
        taken -= ONE
        ring.time[to] = ring.time[taken & wrap]
        ring.first[to] = ring.first[taken & wrap]
        ring.size[to] = ring.size[taken & wrap]
        ring.kind[to] = ring.kind[taken & wrap]


def put_back(
    ring: Ring, lowest: np.uint64, slot: np.uint64, replica: tuple[float, np.int64, np.int64, np.int64]
) -> None:
    """Put a replica with a batch behind all that end no later.

    Args:
        ring: the others; ``slot`` is behind them.
        lowest: the first place that it may come to.
        slot: the first place that is free.
        replica: time, first, size and kind.
    """
    wrap = Index(ring.time.size - 1)
    finish_s, first, size, kind = replica
    while slot > lowest and ring.time[(slot - ONE) & wrap] > finish_s:
        to = slot & wrap
        slot -= ONE
        ring.time[to] = ring.time[slot & wrap]
        ring.first[to] = ring.first[slot & wrap]
        ring.size[to] = ring.size[slot & wrap]
        ring.kind[to] = ring.kind[slot & wrap]
    slot = slot & wrap
    ring.time[slot] = finish_s
    ring.first[slot] = first
    ring.size[slot] = size
    ring.kind[slot] = kind


def serve_choosing(queue: Queue, service: Service, account: Account, state: SharedState, out: Tokens) -> np.int64:
    """As `serve_shared`, for replicas of several kinds: somewhat slower."""
    times, events, _, _, horizon_s, _ = queue
    limits, table, varying, lots, hold_s, hop_s, _ = service
    means = lots.size == 0
    marks, clock, ring_time, ring_start, ring_size, ring_kind = state
    ring = Ring(ring_time, ring_start, ring_size, ring_kind)
    base = Index(queue.base)
    n = Index(queue.n) - base
    wrap = Index(ring_time.size - 1)
    width = Index(table.shape[0] // limits.size)
    head = Index(marks[0])
    replicas = Index(marks[1])
    i = Index(marks[2]) - base
    d = Index(marks[4]) - base
    m = Index(marks[5]) - base  # first that has not arrived
    now_s = clock[0]
    gone = ZERO
    while i < n:
        t = max(times[i] + hop_s, ring_time[head], now_s)
        if t >= horizon_s:
            break
        if d <= i:
            d = i + ONE
        while d < n and events[d] > events[d - ONE]:  # what entered and arrived later is due later
            d += ONE
        if d < n and times[d] + hop_s <= t:
            d = put_in_order(i, d, t, queue, service)
        m = max(m, i + ONE)
        while m < n and times[m] + hop_s <= t:
            m += ONE
        waiting = m - i
        free = ONE
        while free < replicas and ring_time[(head + free) & wrap] <= t:
            free += ONE
        kind, taken, served_by_busy = chosen(ring, (limits, table), (head, free, replicas), t, waiting)
        limit = Index(limits[kind])
        again_s = ring_time[(head + free) & wrap] if free < replicas else math.inf
        waits = bool(served_by_busy >= np.int64(waiting))
        if hold_s > 0 and waiting < limit and not waits:
            oldest_s = times[i]
            k = i + ONE
            while k < m:
                oldest_s = min(oldest_s, times[k])
                k += ONE
            due_s = oldest_s + hold_s
            if due_s > t:
                waits = True
                again_s = min(again_s, due_s)
        if waits:
            # Look again when another event arrives, when another replica is free, or when the oldest has waited enough.
            if m < n:
                again_s = min(again_s, times[m] + hop_s)
            now_s = min(again_s, horizon_s)
            continue
        now_s = t
        size = min(limit, waiting)
        at = head
        while at <= taken:  # in order of time: also those that were free before it
            slot = at & wrap
            k = Index(ring_start[slot]) - base
            end = gone + Index(ring_size[slot])
            while gone < end:
                out.times[gone] = ring_time[slot]
                out.events[gone] = events[k]
                gone += ONE
                k += ONE
            ring_size[slot] = 0
            at += ONE
        bring_forward(ring, head, taken)
        row = kind * width + size
        service_s = table[row] if means else drawn_s(varying, lots, events, (i, size, kind, row))
        account.batches[row] += 1
        account.totals[0] += service_s
        account.totals[1] += service_s * np.float64(size)
        back = head + replicas
        head += ONE
        put_back(ring, head, back, (t + service_s, np.int64(i + base), np.int64(size), np.int64(kind)))
        head = head & wrap
        i += size
    marks[0] = np.int64(head)
    marks[2] = np.int64(i + base)
    marks[4] = np.int64(d + base)
    marks[5] = np.int64(m + base)
    clock[0] = now_s
    return np.int64(emit_rest(queue, state, gone, out))
