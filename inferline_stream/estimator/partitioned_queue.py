"""Partitions bound to replicas, event by event: owners may change between calls, records may follow the lag.

Rules in `estimator.kernels`. Where owners stay and lag does not matter, `estimator.bound_partitions` is quicker.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import (
    ONE,
    ZERO,
    Account,
    Events,
    Floats,
    Index,
    Ints,
    Members,
    Queue,
    Service,
    Table,
    Tokens,
    draw,
    service_time,
)

LAG_PUBLISHED_EVERY_S = 1.0
"""How old the lag may be by which records without a key choose a partition."""

IDLE, BUSY, WAITING = 0, 1, 2
UNIFORM, SHARES, LESS_LAGGED = 0, 1, 2


class PartitionState(NamedTuple):
    """Partitions bound to replicas.

    Args:
        marks: head of the ring, its length, next position to take in, first position still needed, producer of the
            record before.
        clock: (2,) when the lag is next published, when the record before was sent.
        ring_time: (2^k,) when a busy replica ends its batch or a waiting one stops waiting, in order.
        ring_replica: (2^k,) which.
        kind_of: (replicas,) kind.
        state: (replicas,) IDLE, BUSY or WAITING.
        queued: (replicas,) records in its partitions.
        started: (replicas,) start of its batch.
        size_of: (replicas,) events in its batch.
        members: (replicas, most) events in flight.
        from_partition: (replicas, most) their partitions.
        touched: (replicas,) whose state or queue changed at this instant.
        is_touched: (replicas,) the same as flags.
        owner: (partitions,) replica.
        head_of: (partitions,) position of the first record, -1 if empty.
        tail_of: (partitions,) position of the last.
        region: (replicas,) where its part of ``active`` begins.
        active: (partitions,) each replica's partitions that hold records.
        active_event: (partitions,) the events at their heads.
        active_count: (replicas,) how many.
        routing: UNIFORM, by SHARES, or to the LESS_LAGGED of two partitions at random.
        thresholds: (partitions,) cumulative shares in units of 2⁻³².
        route_key: of the draws that choose partitions.
        outstanding: (partitions,) records not yet completed.
        lag: (partitions,) the same as last published.
        sent: (producers, partitions) sent since.
        following: (capacity,) position of the record after this one in its partition.
    """

    marks: Ints
    clock: Floats
    ring_time: Floats
    ring_replica: Ints
    kind_of: Ints
    state: Ints
    queued: Ints
    started: Floats
    size_of: Ints
    members: Members
    from_partition: Table
    touched: Ints
    is_touched: Ints
    owner: Ints
    head_of: Ints
    tail_of: Ints
    region: Ints
    active: Ints
    active_event: Events
    active_count: Ints
    routing: int
    thresholds: Ints
    route_key: int
    outstanding: Ints
    lag: Ints
    sent: Table
    following: Ints


def serve_partitions(
    queue: Queue, service: Service, account: Account, replicas: PartitionState, out: Tokens
) -> np.int64:
    """Records in partitions bound to replicas. Returns how many departures were written."""
    times, events, _, _, horizon_s = queue
    limits, table, levels, max_wait_s, hop_s, key = service
    (
        marks,
        clock,
        ring_time,
        ring_replica,
        kind_of,
        state,
        queued,
        started,
        size_of,
        members,
        from_partition,
        touched,
        is_touched,
        owner,
        head_of,
        tail_of,
        region,
        active,
        active_event,
        active_count,
        routing,
        thresholds,
        route_key,
        outstanding,
        lag,
        sent,
        following,
    ) = replicas
    wrap = Index(ring_time.size - 1)
    width = Index(table.shape[0] // limits.size)
    partitions = owner.size
    producers = sent.shape[0]
    n = Index(queue.n - queue.base)
    base = queue.base
    head = Index(marks[0])
    ring_length = Index(marks[1])
    i = Index(marks[2] - base)
    producer = Index(marks[4])
    publish_s = clock[0]
    last_sent_s = clock[1]
    gone = ZERO
    while True:
        t = math.inf
        if i < n:
            t = times[i] + hop_s
        if ring_length > ZERO and ring_time[head] < t:
            t = ring_time[head]
        if t >= horizon_s:
            break
        if routing == LESS_LAGGED and t >= publish_s:
            for place in range(partitions):
                lag[place] = outstanding[place]
                for writer in range(producers):
                    sent[writer, place] = 0
            publish_s = (math.floor(t / LAG_PUBLISHED_EVERY_S) + 1) * LAG_PUBLISHED_EVERY_S
        touches = 0
        while ring_length > ZERO and ring_time[head] == t:
            r = Index(ring_replica[head])
            head = (head + ONE) & wrap
            ring_length -= ONE
            if state[r] == BUSY:
                for place in range(size_of[r]):
                    k = Index(place)
                    out.times[gone] = t
                    out.events[gone] = members[r, k]
                    gone += ONE
                    outstanding[Index(from_partition[r, k])] -= 1
            state[r] = IDLE
            touched[touches] = np.int64(r)
            is_touched[r] = 1
            touches += 1
        while i < n and times[i] + hop_s == t:
            event = events[i]
            if routing == UNIFORM:
                p = Index((draw(int(event), route_key) * partitions) >> 32)
            elif routing == SHARES:
                bits = draw(int(event), route_key)
                low = 0
                high = partitions - 1
                while low < high:
                    middle = (low + high) // 2
                    if thresholds[middle] <= bits:
                        low = middle + 1
                    else:
                        high = middle
                p = Index(low)
            else:
                if times[i] != last_sent_s:
                    last_sent_s = times[i]
                    producer = Index((draw(int(event), route_key ^ 0x2545F491) * producers) >> 32)
                p = Index((draw(int(event), route_key) * partitions) >> 32)
                if partitions > 1:
                    another = Index((draw(int(event), route_key ^ 0x5851F42D) * (partitions - 1)) >> 32)
                    if another >= p:
                        another += ONE
                    if lag[another] + sent[producer, another] < lag[p] + sent[producer, p]:
                        p = another
                sent[producer, p] += 1
            outstanding[p] += 1
            r = Index(owner[p])
            position = np.int64(i) + base
            if head_of[p] < 0:
                head_of[p] = position
                a = Index(region[r] + active_count[r])
                active[a] = np.int64(p)
                active_event[a] = event
                active_count[r] += 1
            else:
                following[Index(tail_of[p] - base)] = position
            tail_of[p] = position
            queued[r] += 1
            if state[r] != BUSY and is_touched[r] == 0:
                touched[touches] = np.int64(r)
                is_touched[r] = 1
                touches += 1
            i += ONE
        for place in range(touches):
            r = Index(touched[place])
            is_touched[r] = 0
            if state[r] == BUSY or queued[r] == 0:
                continue
            kind = Index(kind_of[r])
            first = Index(region[r])
            count = Index(active_count[r])
            if max_wait_s > 0 and queued[r] < limits[kind]:
                oldest = head_of[Index(active[first])]
                for more in range(active_count[r]):
                    oldest = min(oldest, head_of[Index(active[first + Index(more)])])
                due = times[Index(oldest - base)] + hop_s + max_wait_s
                if due > t:
                    if state[r] == IDLE:
                        state[r] = WAITING
                        slot = head + ring_length
                        ring_length += ONE
                        while slot > head and ring_time[(slot - ONE) & wrap] > due:
                            ring_time[slot & wrap] = ring_time[(slot - ONE) & wrap]
                            ring_replica[slot & wrap] = ring_replica[(slot - ONE) & wrap]
                            slot -= ONE
                        ring_time[slot & wrap] = due
                        ring_replica[slot & wrap] = np.int64(r)
                    continue
            if state[r] == WAITING:
                slot = head
                while ring_replica[slot & wrap] != np.int64(r):
                    slot += ONE
                ring_length -= ONE
                while slot < head + ring_length:
                    ring_time[slot & wrap] = ring_time[(slot + ONE) & wrap]
                    ring_replica[slot & wrap] = ring_replica[(slot + ONE) & wrap]
                    slot += ONE
            size = ZERO
            limit = Index(limits[kind])
            while size < limit and count > ZERO:
                best = first
                a = first + ONE
                while a < first + count:
                    if active_event[a] < active_event[best]:
                        best = a
                    a += ONE
                p = Index(active[best])
                members[r, size] = active_event[best]
                from_partition[r, size] = np.int64(p)
                size += ONE
                if head_of[p] == tail_of[p]:
                    head_of[p] = -1
                    count -= ONE
                    active[best] = active[first + count]
                    active_event[best] = active_event[first + count]
                else:
                    head_of[p] = following[Index(head_of[p] - base)]
                    active_event[best] = events[Index(head_of[p] - base)]
            active_count[r] = np.int64(count)
            queued[r] -= np.int64(size)
            row = kind * width + size
            service_s = service_time(table, levels, row, int(members[r, 0]), key)
            account.batches[row] += 1
            account.totals[0] += service_s
            account.totals[1] += service_s * np.float64(size)
            finish = t + service_s
            state[r] = BUSY
            started[r] = t
            size_of[r] = np.int64(size)
            slot = head + ring_length
            ring_length += ONE
            while slot > head:
                before = (slot - ONE) & wrap
                other = Index(ring_replica[before])
                if ring_time[before] < finish or (
                    ring_time[before] == finish
                    and state[other] == BUSY
                    and (started[other] < t or (started[other] == t and other < r))
                ):
                    break
                ring_time[slot & wrap] = ring_time[before]
                ring_replica[slot & wrap] = np.int64(other)
                slot -= ONE
            ring_time[slot & wrap] = finish
            ring_replica[slot & wrap] = np.int64(r)
    needed = np.int64(i) + base
    for place in range(partitions):
        if head_of[place] >= 0:
            needed = min(needed, head_of[place])
    marks[0] = np.int64(head)
    marks[1] = np.int64(ring_length)
    marks[2] = np.int64(i) + base
    marks[3] = needed
    marks[4] = np.int64(producer)
    clock[0] = publish_s
    clock[1] = last_sent_s
    return np.int64(gone)
