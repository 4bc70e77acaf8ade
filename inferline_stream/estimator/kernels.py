"""The loops of the simulation, as plain functions; `estimator.compiled` makes machine code of this very source.

Rules, held bit for bit by the event-heap reference (`estimator.reference`):

- A record that leaves a stage at t arrives at ``t + hop`` and a batch that starts at t ends at ``t + S``: these sums,
  rounded once, are the instants. Service times are above 0.
- At one instant arrivals (records and skip markers) come first, ordered by (sent, sending stage, start of their batch,
  position in it), then dispatch. A batch therefore holds whatever has arrived up to its start, that instant included.
- Shared queue: the next batch goes to the replica that has been free longest; of several that became free at one
  instant, to the one whose batch started first; replicas never used come before, in the order of the allocations.
- Partitioned: each replica takes, one after another, the earliest-entered of the heads of its partitions. Batches that
  end at one instant are ordered by (start, replica).
- With a wait limit a replica waits until its batch limit is reached or the oldest record has waited that long.
- A stage's departures are emitted in order of time, a batch's in the order in which they were taken.

Every kernel can stop at a *horizon*, before which its arrivals are known, and go on later: positions are counted
from the stage's first arrival, `base` is the position of the first one still in the buffers, and state lives in arrays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Events = NDArray[np.int32]
Masks = NDArray[np.uint16]
Flags = NDArray[np.uint8]
FlagTable = NDArray[np.uint8]
Members = NDArray[np.int32]
Table = NDArray[np.int64]

# Positions are unsigned: machine code then needs no check for negative indices, at half the time per event. Their
# constants are too, because numba makes floating-point numbers of sums of signed and unsigned integers.
Index = np.uint64
ZERO, ONE, EIGHT = Index(0), Index(1), Index(8)

LAG_PUBLISHED_EVERY_S = 1.0
"""How old the lag may be by which records without a key choose a partition."""

IDLE, BUSY, WAITING = 0, 1, 2
UNIFORM, SHARES, LESS_LAGGED = 0, 1, 2
UNKNOWN, LATE, ON_TIME = 0, 1, 2


class Tokens(NamedTuple):
    """Records or skip markers: when they were sent, ascending, and whose they are."""

    times: Floats
    events: Events


class Queue(NamedTuple):
    """Records sent to a stage, from position ``base`` up to ``n``; those to arrive before the horizon are all there."""

    times: Floats
    events: Events
    n: int
    base: int
    horizon_s: float


class Service(NamedTuple):
    """See `station.Station`; besides, the time from sending to arrival and the key of the stage's draws."""

    limits: Ints
    table: Floats
    levels: Floats
    max_wait_s: float
    hop_s: float
    key: int


class Account(NamedTuple):
    """Batches by kind and size (kinds · width,), and (2,) Σ S and Σ b·S."""

    batches: Ints
    totals: Floats


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
    """When an event is complete at a stage: see `routes.Feed`. ``masks`` and ``seen`` (tokens so far; may be empty
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


def service_time(table: Floats, levels: Floats, row: int | np.uint64, event: int, key: int) -> float:
    """S of one batch: the mean, or the quantile that belongs to the first event of the batch."""
    if levels.size == 1:
        return float(table[row, 0])
    u = (draw(event, key) + 0.5) / 4294967296.0
    level = 1
    while levels[level] < u:
        level += 1
    low = table[row, level - 1]
    return float(low + (table[row, level] - low) * ((u - levels[level - 1]) / (levels[level] - levels[level - 1])))


def draw_masks(first: int, key: int, thresholds: Ints, masks: Masks) -> None:
    """Which arrows each event takes: thresholds are the cumulative weights in units of 2⁻³²."""
    for i in range(masks.size):
        bits = draw(first + i, key)
        m = 0
        while thresholds[m] <= bits:
            m += 1
        masks[i] = m


def draw_partitions(key: int, uniform: bool, thresholds: Ints, chosen: Masks) -> None:
    """The partition of each event's key: of equal ones, or by cumulative shares in units of 2⁻³²."""
    partitions = thresholds.size
    for i in range(chosen.size):
        bits = draw(i, key)
        if uniform:
            chosen[i] = (bits * partitions) >> 32
        else:
            low = 0
            high = partitions - 1
            while low < high:
                middle = (low + high) // 2
                if thresholds[middle] <= bits:
                    low = middle + 1
                else:
                    high = middle
            chosen[i] = low


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


def serve_partitions(queue: Queue, service: Service, account: Account, replicas: PartitionState, out: Tokens) -> int:
    """Records in partitions bound to replicas. Returns how many departures were written."""
    times, events, n, base, horizon_s = queue
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
    wrap = ring_time.size - 1
    width = table.shape[0] // limits.size
    partitions = owner.size
    producers = sent.shape[0]
    head = marks[0]
    ring_length = marks[1]
    i = marks[2]
    producer = marks[4]
    publish_s = clock[0]
    last_sent_s = clock[1]
    gone = 0
    while True:
        t = math.inf
        if i < n:
            t = times[i - base] + hop_s
        if ring_length > 0 and ring_time[head] < t:
            t = ring_time[head]
        if t >= horizon_s:
            break
        if routing == LESS_LAGGED and t >= publish_s:
            for p in range(partitions):
                lag[p] = outstanding[p]
                for q in range(producers):
                    sent[q, p] = 0
            publish_s = (math.floor(t / LAG_PUBLISHED_EVERY_S) + 1) * LAG_PUBLISHED_EVERY_S
        touches = 0
        while ring_length > 0 and ring_time[head] == t:
            r = ring_replica[head]
            head = (head + 1) & wrap
            ring_length -= 1
            if state[r] == BUSY:
                for k in range(size_of[r]):
                    out.times[gone] = t
                    out.events[gone] = members[r, k]
                    gone += 1
                    outstanding[from_partition[r, k]] -= 1
            state[r] = IDLE
            touched[touches] = r
            is_touched[r] = 1
            touches += 1
        while i < n and times[i - base] + hop_s == t:
            event = events[i - base]
            if routing == UNIFORM:
                p = (draw(int(event), route_key) * partitions) >> 32
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
                p = low
            else:
                if times[i - base] != last_sent_s:
                    last_sent_s = times[i - base]
                    producer = (draw(int(event), route_key ^ 0x2545F491) * producers) >> 32
                p = (draw(int(event), route_key) * partitions) >> 32
                if partitions > 1:
                    other = (draw(int(event), route_key ^ 0x5851F42D) * (partitions - 1)) >> 32
                    if other >= p:
                        other += 1
                    if lag[other] + sent[producer, other] < lag[p] + sent[producer, p]:
                        p = other
                sent[producer, p] += 1
            outstanding[p] += 1
            r = owner[p]
            if head_of[p] < 0:
                head_of[p] = i
                active[region[r] + active_count[r]] = p
                active_event[region[r] + active_count[r]] = event
                active_count[r] += 1
            else:
                following[tail_of[p] - base] = i
            tail_of[p] = i
            queued[r] += 1
            if state[r] != BUSY and is_touched[r] == 0:
                touched[touches] = r
                is_touched[r] = 1
                touches += 1
            i += 1
        for k in range(touches):
            r = touched[k]
            is_touched[r] = 0
            if state[r] == BUSY or queued[r] == 0:
                continue
            kind = kind_of[r]
            if max_wait_s > 0 and queued[r] < limits[kind]:
                oldest = n
                for a in range(region[r], region[r] + active_count[r]):
                    oldest = min(oldest, head_of[active[a]])
                due = times[oldest - base] + hop_s + max_wait_s
                if due > t:
                    if state[r] == IDLE:
                        state[r] = WAITING
                        slot = head + ring_length
                        ring_length += 1
                        while slot > head and ring_time[(slot - 1) & wrap] > due:
                            ring_time[slot & wrap] = ring_time[(slot - 1) & wrap]
                            ring_replica[slot & wrap] = ring_replica[(slot - 1) & wrap]
                            slot -= 1
                        ring_time[slot & wrap] = due
                        ring_replica[slot & wrap] = r
                    continue
            if state[r] == WAITING:
                slot = head
                while ring_replica[slot & wrap] != r:
                    slot += 1
                ring_length -= 1
                while slot < head + ring_length:
                    ring_time[slot & wrap] = ring_time[(slot + 1) & wrap]
                    ring_replica[slot & wrap] = ring_replica[(slot + 1) & wrap]
                    slot += 1
            size = 0
            begin = region[r]
            while size < limits[kind] and active_count[r] > 0:
                best = begin
                for a in range(begin + 1, begin + active_count[r]):
                    if active_event[a] < active_event[best]:
                        best = a
                p = active[best]
                members[r, size] = active_event[best]
                from_partition[r, size] = p
                size += 1
                if head_of[p] == tail_of[p]:
                    head_of[p] = -1
                    active_count[r] -= 1
                    active[best] = active[begin + active_count[r]]
                    active_event[best] = active_event[begin + active_count[r]]
                else:
                    head_of[p] = following[head_of[p] - base]
                    active_event[best] = events[head_of[p] - base]
            queued[r] -= size
            row = kind * width + size
            service_s = service_time(table, levels, row, int(members[r, 0]), key)
            account.batches[row] += 1
            account.totals[0] += service_s
            account.totals[1] += service_s * size
            finish = t + service_s
            state[r] = BUSY
            started[r] = t
            size_of[r] = size
            slot = head + ring_length
            ring_length += 1
            while slot > head:
                before = (slot - 1) & wrap
                other = ring_replica[before]
                if ring_time[before] < finish or (
                    ring_time[before] == finish
                    and state[other] == BUSY
                    and (started[other] < t or (started[other] == t and other < r))
                ):
                    break
                ring_time[slot & wrap] = ring_time[before]
                ring_replica[slot & wrap] = other
                slot -= 1
            ring_time[slot & wrap] = finish
            ring_replica[slot & wrap] = r
    needed = i
    for p in range(partitions):
        if head_of[p] >= 0:
            needed = min(needed, head_of[p])
    marks[0] = head
    marks[1] = ring_length
    marks[2] = i
    marks[3] = needed
    marks[4] = producer
    clock[0] = publish_s
    clock[1] = last_sent_s
    return gone


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
    """Latency of the events that a final stage sends to the sink; of several finals the last counts."""
    times, events = gone
    for i in range(times.size):
        event = Index(events[i])
        latency = times[i] + hop_s - entry_s[event]
        if not latency_s[event] >= latency:
            latency_s[event] = latency
