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
    ONE,
    ZERO,
    Account,
    Events,
    Floats,
    Index,
    Ints,
    Queue,
    Service,
    Tokens,
    drawn_s,
    note_made,
)
from inferline_stream.estimator.rank_heap import Heap, drop_first, push
from inferline_stream.pipeline.deadline_order import HOPELESS_EVERY
from inferline_stream.pipeline.fallback import FALLBACK, MAIN, NEITHER, allows, count, roll, version_for


class SharedState(NamedTuple):
    """Replicas, and how far the queue has come.

    Args:
        marks: head of the ring, replicas, first position that waits, first position still needed, first one that is not
            known to be in order.
        clock: (1,) the last dispatch.
        ring_time: (2^k,) replicas in the order in which they are free, in a ring; when.
        ring_start: (2^k,) position of the first event of the replica's batch.
        ring_size: (2^k,) events of the batch; 0 once emitted.
    """

    marks: Ints
    clock: Floats
    ring_time: Floats
    ring_start: Ints
    ring_size: Ints


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
    limits, table, varying, lots, hold_s, hop_s, _, _, _, _, _, _ = service
    marks, clock, ring_time, ring_start, ring_size = state
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
            t = held_until(i, max(t, now_s), limit, queue, service)
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
    marks, _, ring_time, ring_start, ring_size = state
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


class TriagedState(NamedTuple):
    """As `SharedState`, where batches are no stretches of the arrivals: each replica has a row of ``members``.

    Args:
        marks: as there; then batches made beside hopeless events since the last that was theirs, hopeless ones so far,
            and the largest batch that was looked at, which is the limit where a cap cut it.
        clock: (1,) the last dispatch.
        ring_time: as there.
        ring_row: (2^k,) the replica's row of ``members``.
        ring_size: as there.
        members: (replicas · width) events of the batch in hand, row after row.
        aside: hopeless ones; room for all that wait.
    """

    marks: Ints
    clock: Floats
    ring_time: Floats
    ring_row: Ints
    ring_size: Ints
    members: Events
    aside: Heap


def serve_triaged(queue: Queue, service: Service, account: Account, state: TriagedState, out: Tokens) -> np.int64:
    """As `serve_shared`, with hopeless events last."""
    times, events, _, _, horizon_s, entry_s = queue
    (
        limits,
        table,
        varying,
        lots,
        hold_s,
        hop_s,
        slo_s,
        rest_s,
        caps,
        _,
        _,
        (fast, fast_caps, share, window, fast_batches, made, longer_s),
    ) = service
    falls_back = fast.size > 0
    marks, clock, ring_time, ring_row, ring_size, members, aside = state
    base = Index(queue.base)
    n = Index(queue.n) - base
    wrap = Index(ring_time.size - 1)
    now_s = clock[0]
    limit = Index(limits[0])
    cap = Index(caps[0])
    head = Index(marks[0])
    replicas = Index(marks[1])
    width = Index(members.size) // replicas
    i = Index(marks[2]) - base  # first that waits
    d = Index(marks[4]) - base  # first that is not known to be in order
    hopeless = Index(aside.size[0])
    largest = Index(marks[7])
    means = lots.size == 0
    gone = ZERO
    room = Index(out.times.size)
    held = Index(members.size)
    busy_s, served_s = account.totals
    while i < n or hopeless > ZERO:
        free_s = ring_time[head]
        t = max(free_s, now_s)
        if hopeless == ZERO:
            t = max(t, times[i] + hop_s)
        if hold_s > 0 and i < n and times[i] + hop_s <= t:
            t = held_until(i, t, cap, queue, service)
        if t >= horizon_s:
            break
        now_s = t
        row = ring_row[head]
        first = Index(row) * width
        end = gone + Index(ring_size[head])
        k = first
        if limit > ONE and end + EIGHT <= room and k + (end - gone) + EIGHT <= held:
            while gone < end:
                for q in range(8):
                    out.times[gone + Index(q)] = free_s
                    out.events[gone + Index(q)] = members[k + Index(q)]
                gone += EIGHT
                k += EIGHT
            gone = end
        while gone < end:
            out.times[gone] = free_s
            out.events[gone] = members[k]
            gone += ONE
            k += ONE
        if d <= i:
            d = i + ONE
        while d < n and events[d] > events[d - ONE]:  # what entered and arrived later is due later
            d += ONE
        if d < n and times[d] + hop_s <= t:
            d = put_in_order(i, d, t, queue, service)
        j = i
        end = min(i + cap, n)
        while j < end and times[j] + hop_s <= t:
            j += ONE
        size = j - i
        version = MAIN
        if falls_back:
            roll(window, t)
        while size > ZERO:
            largest = max(largest, limit if size == cap else size)
            hopeful_s = entry_s[Index(events[i])]
            fast_s = math.inf
            fast_size = size
            if falls_back:
                fast_end = min(i + Index(fast_caps[0]), n)
                m = i
                while m < fast_end and times[m] + hop_s <= t:
                    m += ONE
                fast_size = m - i
                if allows(window, share, np.int64(fast_size)):
                    fast_s = fast[fast_size]
            version = version_for(t - hopeful_s, table[size], fast_s, (rest_s, longer_s), slo_s)
            if version == FALLBACK:
                size = fast_size
                j = i + size
                largest = max(largest, limit if size == Index(fast_caps[0]) else size)
            if version != NEITHER:
                break
            sent_s = times[i]
            rank_s = max(hopeful_s, sent_s + hop_s - slo_s)
            push(aside, hopeless, (rank_s, marks[6], np.int64(events[i])))
            hopeless += ONE
            marks[6] += 1
            i += ONE
            end = min(i + cap, n)
            while j < end and times[j] + hop_s <= t:
                j += ONE
            size = j - i
        k = first
        if hopeless > ZERO:
            if size > ZERO:
                marks[5] += 1
                if marks[5] >= HOPELESS_EVERY:
                    marks[5] = 0
                    size = ZERO
                    j = i
            if size == ZERO:
                version = MAIN
            while i < j:
                members[k] = events[i]
                k += ONE
                i += ONE
            hopeful = size
            while version == MAIN and hopeless > ZERO and size < limit:
                if hopeful > ZERO and t - hopeful_s + table[size + ONE] + rest_s > slo_s:
                    break
                hopeless -= ONE
                members[k] = np.int32(aside.item[ZERO])
                drop_first(aside, hopeless)
                k += ONE
                size += ONE
            largest = max(largest, size)
        else:
            while i < j:
                members[k] = events[i]
                k += ONE
                i += ONE
        # The beginning of a batch stands in `serve_general`, too: a function of both made this loop seven times slower.
        service_s = table[size] if means else drawn_s(varying, lots, members, (first, size, ZERO, size))
        if version == FALLBACK:
            service_s = fast[size] if means else service_s * (fast[size] / table[size])
            fast_batches[size] += 1
            note_made(made, members, first, size)
        else:
            account.batches[size] += 1
        if falls_back:
            count(window, np.int64(size), np.int64(size) if version == FALLBACK else 0)
        busy_s += service_s
        served_s += service_s * np.float64(size)
        finish_s = t + service_s
        slot = head + replicas
        head += ONE
        while slot > head and ring_time[(slot - ONE) & wrap] > finish_s:
            to = slot & wrap
            slot -= ONE
            ring_time[to] = ring_time[slot & wrap]
            ring_row[to] = ring_row[slot & wrap]
            ring_size[to] = ring_size[slot & wrap]
        slot = slot & wrap
        ring_time[slot] = finish_s
        ring_row[slot] = row
        ring_size[slot] = np.int64(size)
        head = head & wrap
    for place in range(np.int64(replicas)):
        slot = (head + Index(place)) & wrap
        if ring_time[slot] < horizon_s:
            k = Index(ring_row[slot]) * width
            for q in range(ring_size[slot]):
                out.times[gone] = ring_time[slot]
                out.events[gone] = members[k + Index(q)]
                gone += ONE
            ring_size[slot] = 0
    marks[0] = np.int64(head)
    marks[2] = marks[3] = np.int64(i + base)
    marks[4] = np.int64(d + base)
    aside.size[0] = np.int64(hopeless)
    marks[7] = np.int64(largest)
    clock[0] = now_s
    account.totals[0] = busy_s
    account.totals[1] = served_s
    return np.int64(gone)
