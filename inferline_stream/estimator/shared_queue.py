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
    LOWEST,
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
    fixed_s, per_unit_s, factors, units, largest = varying
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
        if means:
            service_s = table[size]
        else:  # not a function: calls count references to each array that they are given, at 100 ns for these
            lot = Index(lots[Index(events[i])])
            asked = units[ZERO, lot >> EIGHT]
            for q in range(1, size):
                other = units[ZERO, Index(lots[Index(events[i + Index(q)])]) >> EIGHT]
                asked = max(asked, other) if largest[ZERO] else asked + other
            if not largest[ZERO]:
                asked /= np.float64(size)
            service_s = (fixed_s[size] + per_unit_s[size] * asked) * factors[size, lot & LOWEST]
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


def serve_choosing(queue: Queue, service: Service, account: Account, state: SharedState, out: Tokens) -> np.int64:
    """As `serve_shared`, for replicas of several kinds: somewhat slower."""
    times, events, _, _, horizon_s, _ = queue
    limits, table, varying, lots, hold_s, hop_s, _ = service
    fixed_s, per_unit_s, factors, units, largest = varying
    means = lots.size == 0
    marks, clock, ring_time, ring_start, ring_size, ring_kind = state
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
    kind = ZERO
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
        best_s = math.inf
        taken = head
        for other in range(limits.size):
            expected_s = table[Index(other) * width + min(Index(limits[other]), waiting)]
            if expected_s * TIE < best_s:
                for place in range(marks[1]):
                    slot = (head + Index(place)) & wrap
                    if ring_time[slot] > t:
                        break
                    if ring_kind[slot] == other:
                        best_s = expected_s
                        kind = Index(other)
                        taken = head + Index(place)
                        break
        limit = Index(limits[kind])
        again_s = math.inf
        served_by_busy = 0
        if limits.size > 1:
            for place in range(marks[1]):
                slot = (head + Index(place)) & wrap
                if ring_time[slot] > t:
                    again_s = min(again_s, ring_time[slot])
                    most = Index(limits[ring_kind[slot]])
                    expected_s = table[Index(ring_kind[slot]) * width + min(most, waiting)]
                    left_s = ring_time[slot] - t
                    if (left_s + expected_s) * TIE < best_s:
                        served_by_busy += np.int64((best_s / TIE - left_s) / expected_s) * limits[ring_kind[slot]]
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
        while taken > head:
            to = taken & wrap
            taken -= ONE
            ring_time[to] = ring_time[taken & wrap]
            ring_start[to] = ring_start[taken & wrap]
            ring_size[to] = ring_size[taken & wrap]
            ring_kind[to] = ring_kind[taken & wrap]
        row = kind * width + size
        if means:
            service_s = table[row]
        else:  # not a function: calls count references to each array that they are given, at 100 ns for these
            lot = Index(lots[Index(events[i])])
            asked = units[kind, lot >> EIGHT]
            for q in range(1, size):
                other = units[kind, Index(lots[Index(events[i + Index(q)])]) >> EIGHT]
                asked = max(asked, other) if largest[kind] else asked + other
            if not largest[kind]:
                asked /= np.float64(size)
            service_s = (fixed_s[row] + per_unit_s[row] * asked) * factors[row, lot & LOWEST]
        account.batches[row] += 1
        account.totals[0] += service_s
        account.totals[1] += service_s * np.float64(size)
        finish_s = t + service_s
        slot = head + replicas
        head += ONE
        while slot > head and ring_time[(slot - ONE) & wrap] > finish_s:
            to = slot & wrap
            slot -= ONE
            ring_time[to] = ring_time[slot & wrap]
            ring_start[to] = ring_start[slot & wrap]
            ring_size[to] = ring_size[slot & wrap]
            ring_kind[to] = ring_kind[slot & wrap]
        slot = slot & wrap
        ring_time[slot] = finish_s
        ring_start[slot] = np.int64(i + base)
        ring_size[slot] = np.int64(size)
        ring_kind[slot] = np.int64(kind)
        head = head & wrap
        i += size
    marks[0] = np.int64(head)
    marks[2] = np.int64(i + base)
    marks[4] = np.int64(d + base)
    marks[5] = np.int64(m + base)
    clock[0] = now_s
    return np.int64(emit_rest(queue, state, gone, out))
