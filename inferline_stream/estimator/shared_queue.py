"""One queue per stage from which every replica takes, in order of arrival or of entry: rules in `estimator.kernels`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import (
    EIGHT,
    ONE,
    ZERO,
    Account,
    Flags,
    Floats,
    Index,
    Ints,
    Members,
    Queue,
    Service,
    Tokens,
    service_time,
)


class SharedState(NamedTuple):
    """A queue in order of arrival.

    Args:
        marks: head of the ring, replicas, next position to serve, first position still needed.
        ring_time: (2^k,) replicas in the order in which they are free, in a ring; when.
        ring_start: (2^k,) position of the first event of the replica's batch.
        ring_size: (2^k,) events of the batch; 0 once emitted.
        ring_kind: (2^k,) kind of the replica.
    """

    marks: Ints
    ring_time: Floats
    ring_start: Ints
    ring_size: Ints
    ring_kind: Ints


class EntryState(NamedTuple):
    """A queue in order of entry into the pipeline.

    Args:
        marks: head of the ring, replicas, next position to take in, first position still needed, queued.
        ring_time: (2^k,) replicas in the order in which they are free, in a ring; when.
        ring_start: (2^k,) the replica's row of ``members``.
        ring_size: (2^k,) events of its batch; 0 once emitted.
        ring_kind: (2^k,) its kind.
        members: (replicas, most) events in flight.
        clock: (1,) the last dispatch.
        heap: (capacity,) the queue: event · 2³² + position.
        taken: (capacity,) whether the arrival has left the queue.
    """

    marks: Ints
    ring_time: Floats
    ring_start: Ints
    ring_size: Ints
    ring_kind: Ints
    members: Members
    clock: Floats
    heap: Ints
    taken: Flags


def serve_by_arrival(queue: Queue, service: Service, account: Account, state: SharedState, out: Tokens) -> np.int64:
    """One shared queue in order of arrival. Returns how many departures were written."""
    times, events, _, _, horizon_s = queue
    limits, table, levels, max_wait_s, hop_s, key = service
    marks, ring_time, ring_start, ring_size, ring_kind = state
    base = Index(queue.base)
    n = Index(queue.n) - base
    wrap = Index(ring_time.size - 1)
    width = Index(table.shape[0] // limits.size)
    head = Index(marks[0])
    replicas = Index(marks[1])
    i = Index(marks[2]) - base
    mixed = limits.size > 1
    means = levels.size == 1
    gone = ZERO
    room = Index(out.times.size)
    held = Index(events.size)
    busy_s, served_s = account.totals
    while i < n:
        free = ring_time[head]
        kind = Index(ring_kind[head])
        limit = Index(limits[kind])
        t = times[i] + hop_s
        if max_wait_s > 0:
            full = i + limit - ONE
            t = t + max_wait_s
            if full < n and times[full] + hop_s < t:
                t = times[full] + hop_s
        t = max(t, free)
        if t >= horizon_s:
            break
        k = Index(ring_start[head]) - base
        end = gone + Index(ring_size[head])
        if limit > ONE and end + EIGHT <= room and k + (end - gone) + EIGHT <= held:
            # Eight at a time, whatever is too much is overwritten: how large a batch was cannot be predicted.
            while gone < end:
                for q in range(8):
                    out.times[gone + Index(q)] = free
                    out.events[gone + Index(q)] = events[k + Index(q)]
                gone += EIGHT
                k += EIGHT
            gone = end
        while gone < end:
            out.times[gone] = free
            out.events[gone] = events[k]
            gone += ONE
            k += ONE
        j = i + ONE
        end = min(i + limit, n)
        while j < end and times[j] + hop_s <= t:
            j += ONE
        size = j - i
        row = kind * width + size
        service_s = table[row, 0] if means else service_time(table, levels, row, int(events[i]), key)
        account.batches[row] += 1
        busy_s += service_s
        served_s += service_s * np.float64(size)
        finish = t + service_s
        # The replica leaves the head of the ring and is put back behind all that end no later.
        slot = head + replicas
        head += ONE
        while slot > head and ring_time[(slot - ONE) & wrap] > finish:
            to = slot & wrap
            slot -= ONE
            ring_time[to] = ring_time[slot & wrap]
            ring_start[to] = ring_start[slot & wrap]
            ring_size[to] = ring_size[slot & wrap]
            if mixed:
                ring_kind[to] = ring_kind[slot & wrap]
        slot = slot & wrap
        ring_time[slot] = finish
        ring_start[slot] = np.int64(i + base)
        ring_size[slot] = np.int64(size)
        ring_kind[slot] = np.int64(kind)
        head = head & wrap
        i = j
    needed = i
    for place in range(replicas):
        slot = (head + Index(place)) & wrap
        k = Index(ring_start[slot]) - base
        end = k + Index(ring_size[slot])
        if k < end and ring_time[slot] >= horizon_s:
            needed = min(needed, k)
        elif k < end:
            while k < end:
                out.times[gone] = ring_time[slot]
                out.events[gone] = events[k]
                gone += ONE
                k += ONE
            ring_size[slot] = 0
    marks[0] = np.int64(head)
    marks[2] = np.int64(i + base)
    marks[3] = np.int64(needed + base)
    account.totals[0] = busy_s
    account.totals[1] = served_s
    return np.int64(gone)


def serve_by_entry(queue: Queue, service: Service, account: Account, state: EntryState, out: Tokens) -> int:
    """One shared queue in order of entry into the pipeline. Returns how many departures were written."""
    times, events, n, base, horizon_s = queue
    limits, table, levels, max_wait_s, hop_s, key = service
    marks, ring_time, ring_start, ring_size, ring_kind, members, clock, heap, taken = state
    wrap = ring_time.size - 1
    width = table.shape[0] // limits.size
    head = marks[0]
    replicas = marks[1]
    i = marks[2]
    oldest = marks[3]
    queued = marks[4]
    now = clock[0]
    gone = 0
    while queued > 0 or i < n:
        free = ring_time[head]
        kind = ring_kind[head]
        t = times[oldest - base] + hop_s
        if max_wait_s > 0:
            t = t + max_wait_s
            full = i + limits[kind] - queued - 1
            if full < i:
                t = now
            elif full < n and times[full - base] + hop_s < t:
                t = times[full - base] + hop_s
        t = max(t, now)
        t = max(t, free)
        if t >= horizon_s:
            break
        now = t
        place = ring_start[head]
        for k in range(ring_size[head]):
            out.times[gone] = free
            out.events[gone] = members[place, k]
            gone += 1
        while i < n and times[i - base] + hop_s <= t:
            entry = np.int64(events[i - base]) * 4294967296 + i
            hole = queued
            while hole > 0 and heap[(hole - 1) // 2] > entry:
                heap[hole] = heap[(hole - 1) // 2]
                hole = (hole - 1) // 2
            heap[hole] = entry
            queued += 1
            i += 1
        size = 0
        while queued > 0 and size < limits[kind]:
            entry = heap[0]
            members[place, size] = entry >> 32
            taken[(entry & 0xFFFFFFFF) - base] = 1
            size += 1
            queued -= 1
            last = heap[queued]
            hole = 0
            while True:
                child = 2 * hole + 1
                if child >= queued:
                    break
                if child + 1 < queued and heap[child + 1] < heap[child]:
                    child += 1
                if heap[child] >= last:
                    break
                heap[hole] = heap[child]
                hole = child
            heap[hole] = last
        while oldest < i and taken[oldest - base]:
            oldest += 1
        row = kind * width + size
        service_s = service_time(table, levels, row, int(members[place, 0]), key)
        account.batches[row] += 1
        account.totals[0] += service_s
        account.totals[1] += service_s * size
        finish = t + service_s
        slot = head + replicas
        head += 1
        while slot > head and ring_time[(slot - 1) & wrap] > finish:
            ring_time[slot & wrap] = ring_time[(slot - 1) & wrap]
            ring_start[slot & wrap] = ring_start[(slot - 1) & wrap]
            ring_size[slot & wrap] = ring_size[(slot - 1) & wrap]
            ring_kind[slot & wrap] = ring_kind[(slot - 1) & wrap]
            slot -= 1
        ring_time[slot & wrap] = finish
        ring_start[slot & wrap] = place
        ring_size[slot & wrap] = size
        ring_kind[slot & wrap] = kind
        head = head & wrap
    for at in range(head, head + replicas):
        slot = at & wrap
        if ring_size[slot] > 0 and ring_time[slot] < horizon_s:
            place = ring_start[slot]
            for k in range(ring_size[slot]):
                out.times[gone] = ring_time[slot]
                out.events[gone] = members[place, k]
                gone += 1
            ring_size[slot] = 0
    marks[0] = head
    marks[2] = i
    marks[3] = oldest
    marks[4] = queued
    clock[0] = now
    return gone
