"""The queue with everything: several kinds, keys in order, several batches at once, replicas that come and go.

It obeys the rules in `estimator.kernels`. Where none of this is needed, `shared_queue` is two to four times as fast.

A lane per key holds its events that wait. Eligible are events without a lane and lanes none of whose events is in hand:
they stand in a heap. An entry of a lane is out of date once its rank or its first event is another.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import (
    ONE,
    TIE,
    ZERO,
    Account,
    Events,
    Floats,
    FloatTable,
    Index,
    Ints,
    Masks,
    Queue,
    Service,
    Tokens,
    drawn_s,
)
from inferline_stream.estimator.shared_queue import Ring, bring_forward, put_back


class Lanes(NamedTuple):
    """The lanes. Lane 0 stands for none. Several slots of a stage share them: each key is in one slot.

    Args:
        lane_of: by event; empty where no key keeps its order, as are ``following`` and ``number``.
        following: by event, the next one that waits in its lane; -1 for the last.
        sent_s: by event that waits; empty where nobody asks.
        number: by event that waits, its place among all arrivals.
        first: (lanes,) first event that waits.
        last: (lanes,) last event that waits.
        waiting: (lanes,) events that wait.
        in_hand: (lanes,) events in hand.
        rank_s: (lanes,) least rank of those that wait.
        falls: (lanes,) whether the rank of one that waits is below that of the one before it.
    """

    lane_of: Masks
    following: Events
    sent_s: Floats
    number: Ints
    first: Ints
    last: Ints
    waiting: Ints
    in_hand: Ints
    rank_s: Floats
    falls: Ints


class Crews(NamedTuple):
    """Replicas that run several batches at once: each has as many places in the ring, of which any does.

    Args:
        replica_of: (places,) replica of each row of ``GeneralState.members``.
        kinds: (replicas,) kind of each.
        at_once: (replicas,) most batches in hand, which is how many places it has; 0 for one that leaves: its free
            places are not in the ring, and those of its batches in hand go from there as these end.
        in_hand: (replicas,) batches in hand.
    """

    replica_of: Ints
    kinds: Ints
    at_once: Ints
    in_hand: Ints


class Heap(NamedTuple):
    """Eligible entries, the least rank and number first: ``item`` is an event, or a lane below 0. ``size`` is (1,)."""

    rank_s: Floats
    number: Ints
    item: Ints
    size: Ints


class GeneralState(NamedTuple):
    """Replicas and what waits for them. A replica has one place, or several where it runs several batches at once.

    Args:
        marks: head of the ring, places, how many of its first ones are free, first position that has not arrived,
            events that are eligible.
        clock: (2,) when to look at a batch that had to wait, if nothing happens before; since when the replicas are
            these, so that no batch starts before.
        ring_time: (2^k,) places in the order in which they are free, in a ring; when.
        ring_row: (2^k,) the place's row of ``members``.
        ring_size: (2^k,) events of the batch in hand.
        ring_kind: (2^k,) kind of the replica.
        members: (places · width) events of the batch in hand, row after row.
        lanes: of the keys.
        heap: of what is eligible; has room for twice the arrivals and all lanes beside what it holds.
        crews: which places are which replica's.
    """

    marks: Ints
    clock: Floats
    ring_time: Floats
    ring_row: Ints
    ring_size: Ints
    ring_kind: Ints
    members: Events
    lanes: Lanes
    heap: Heap
    crews: Crews


def is_current(lanes: Lanes, lane: np.uint64, rank_s: float, number: np.int64) -> bool:
    """Whether an entry of the heap is its lane's newest."""
    return bool(
        lanes.in_hand[lane] == 0
        and lanes.waiting[lane] > 0
        and lanes.rank_s[lane] == rank_s
        and lanes.number[Index(lanes.first[lane])] == number
    )


def oldest_sent_s(lanes: Lanes, heap: Heap) -> float:
    """When the oldest eligible event was sent. Looks at each one: they are fewer than a batch holds."""
    oldest_s = math.inf
    for place in range(heap.size[0]):
        item = heap.item[place]
        if item >= 0:
            oldest_s = min(oldest_s, lanes.sent_s[Index(item)])
        elif is_current(lanes, Index(-item), heap.rank_s[place], heap.number[place]):
            event = lanes.first[Index(-item)]
            while event >= 0:
                oldest_s = min(oldest_s, lanes.sent_s[Index(event)])
                event = np.int64(lanes.following[Index(event)])
    return oldest_s


def push(heap: Heap, end: np.uint64, entry: tuple[float, np.int64, np.int64]) -> None:
    """Put an entry into the heap, which has so many."""
    rank_s, number, item = entry
    place = end
    while place > ZERO:
        above = (place - ONE) >> ONE
        if heap.rank_s[above] < rank_s or (heap.rank_s[above] == rank_s and heap.number[above] < number):
            break
        heap.rank_s[place] = heap.rank_s[above]
        heap.number[place] = heap.number[above]
        heap.item[place] = heap.item[above]
        place = above
    heap.rank_s[place] = rank_s
    heap.number[place] = number
    heap.item[place] = item


def drop_first(heap: Heap, end: np.uint64) -> None:
    """Take the first entry out of the heap, which has so many without it: the last one finds its place."""
    rank_s = heap.rank_s[end]
    number = heap.number[end]
    item = heap.item[end]
    place = ZERO
    below = ONE
    while below < end:
        beside = below + ONE
        if beside < end and (
            heap.rank_s[beside] < heap.rank_s[below]
            or (heap.rank_s[beside] == heap.rank_s[below] and heap.number[beside] < heap.number[below])
        ):
            below = beside
        if rank_s < heap.rank_s[below] or (rank_s == heap.rank_s[below] and number < heap.number[below]):
            break
        heap.rank_s[place] = heap.rank_s[below]
        heap.number[place] = heap.number[below]
        heap.item[place] = heap.item[below]
        place = below
        below = (place << ONE) + ONE
    heap.rank_s[place] = rank_s
    heap.number[place] = number
    heap.item[place] = item


def serve_general(queue: Queue, service: Service, account: Account, state: GeneralState, out: Tokens) -> np.int64:
    """Serve the queue up to its horizon.

    Args:
        queue: arrivals.
        service: how batches are served.
        account: what was done.
        state: read and written.
        out: departures, written.

    Returns:
        How many departures were written.
    """
    times, events, _, _, horizon_s, entry_s = queue
    limits, table, varying, lots, hold_s, hop_s, slo_s = service
    means = lots.size == 0
    marks, clock, ring_time, ring_row, ring_size, ring_kind, members, lanes, heap, crews = state
    replica_of, kinds, at_once, under_way = crews
    ring = Ring(ring_time, ring_row, ring_size, ring_kind)
    lane_of, following, sent_s, number_of, first_of, last_of, waiting_in, in_hand, rank_of, falls = lanes
    keyed = lane_of.size > 0
    heap_rank, heap_number, heap_item, _ = heap
    batches, totals = account
    out_times, out_events = out
    entries = Index(heap.size[0])
    n = Index(queue.n) - Index(queue.base)
    wrap = Index(ring_time.size - 1)
    width = Index(members.size // replica_of.size)
    levels = Index(table.shape[0] // (limits.size * members.size // replica_of.size))
    head = Index(marks[0])
    replicas = Index(marks[1])
    free = Index(marks[2])
    m = Index(marks[3]) - Index(queue.base)
    eligible = marks[4]
    wake_s, since_s = clock
    gone = ZERO
    while True:
        ends_s = ring_time[(head + free) & wrap] if free < replicas else math.inf
        t = min(ends_s, wake_s)
        if free > ZERO and m < n:  # with nobody free it is enough to know what has arrived until somebody is
            t = min(t, max(times[m] + hop_s, since_s))
        if not t < horizon_s:
            break
        # Batches that end leave, and free their keys.
        while free < replicas and ring_time[(head + free) & wrap] <= t:
            slot = (head + free) & wrap
            end_s = ring_time[slot]
            first = Index(ring_row[slot]) * width
            ending = replica_of[Index(ring_row[slot])]
            under_way[ending] -= 1
            for q in range(ring_size[slot]):
                event = members[first + Index(q)]
                out_times[gone] = end_s
                out_events[gone] = event
                gone += ONE
                lane = Index(lane_of[Index(event)]) if keyed else ZERO
                if lane == ZERO:
                    continue
                in_hand[lane] -= 1
                if in_hand[lane] > 0 or waiting_in[lane] == 0:
                    continue
                other = Index(first_of[lane])
                number = number_of[other]
                rank_s = max(entry_s[other], sent_s[other] + hop_s - slo_s)
                if falls[lane]:
                    before_s = rank_s
                    falls[lane] = 0
                    while following[other] >= 0:
                        other = Index(following[other])
                        other_s = max(entry_s[other], sent_s[other] + hop_s - slo_s)
                        if other_s < before_s:
                            falls[lane] = 1
                        before_s = other_s
                        rank_s = min(rank_s, other_s)
                rank_of[lane] = rank_s
                eligible += waiting_in[lane]
                push(heap, entries, (rank_s, number, -np.int64(lane)))
                entries += ONE
            if at_once[ending] > 0:
                free += ONE
            else:
                bring_forward(ring, head, head + free)
                head += ONE
                replicas -= ONE
        # Arrivals.
        while m < n and times[m] + hop_s <= t:
            own = Index(events[m])
            number = np.int64(m) + queue.base
            rank_s = max(entry_s[own], times[m] + hop_s - slo_s)
            if sent_s.size > 0:
                sent_s[own] = times[m]
            m += ONE
            item = np.int64(own)
            lane = Index(lane_of[own]) if keyed else ZERO
            if lane == ZERO:
                eligible += 1
            else:
                number_of[own] = number
                following[own] = -1
                lowers = True
                if waiting_in[lane] == 0:
                    first_of[lane] = item
                    falls[lane] = 0
                    rank_of[lane] = rank_s
                else:
                    before = Index(last_of[lane])
                    following[before] = np.int32(item)
                    if rank_s < max(entry_s[before], sent_s[before] + hop_s - slo_s):
                        falls[lane] = 1
                    lowers = rank_s < rank_of[lane]
                    rank_of[lane] = min(rank_s, rank_of[lane])
                last_of[lane] = item
                waiting_in[lane] += 1
                if in_hand[lane] > 0:
                    continue
                eligible += 1
                if not lowers:
                    continue
                number = number_of[Index(first_of[lane])]
                item = -np.int64(lane)
            push(heap, entries, (rank_s, number, item))
            entries += ONE
        # Batches.
        wake_s = math.inf
        while eligible > 0 and free > ZERO:
            waiting = Index(eligible)
            kind = Index(ring_kind[head & wrap])
            taken = head
            if levels > ONE:
                best_s = math.inf
                fastest = 0
                for of_kind in range(limits.size):
                    size = min(Index(limits[of_kind]), waiting)
                    for candidate in range(kinds.size):
                        if kinds[candidate] == of_kind and under_way[candidate] < at_once[candidate]:
                            level = Index(of_kind) * levels + Index(under_way[candidate])
                            expected_s = table[level * width + size]
                            if expected_s * TIE < best_s:
                                best_s = expected_s
                                fastest = candidate
                kind = Index(kinds[fastest])
                while replica_of[Index(ring_row[taken & wrap])] != fastest:
                    taken += ONE
                served_by_busy = 0
                for ahead in range(np.int64(free), np.int64(replicas if limits.size > 1 else free)):
                    slot = (head + Index(ahead)) & wrap
                    busy = replica_of[Index(ring_row[slot])]
                    if at_once[busy] == 0:
                        continue
                    other_kind = Index(ring_kind[slot])
                    # The next batch there finds the others that its replica has in hand now.
                    level = other_kind * levels + Index(under_way[busy]) - ONE
                    expected_s = table[level * width + min(Index(limits[other_kind]), waiting)]
                    left_s = ring_time[slot] - t
                    if (left_s + expected_s) * TIE < best_s:
                        served_by_busy += np.int64((best_s / TIE - left_s) / expected_s) * limits[other_kind]
                if served_by_busy >= eligible:
                    break
            elif limits.size > 1:  # as in `chosen`, which takes a quarter longer here
                best_s = math.inf
                for candidate in range(limits.size):
                    expected_s = table[Index(candidate) * width + min(Index(limits[candidate]), waiting)]
                    if expected_s * TIE < best_s:
                        for ahead in range(np.int64(free)):
                            if ring_kind[(head + Index(ahead)) & wrap] == candidate:
                                best_s = expected_s
                                kind = Index(candidate)
                                taken = head + Index(ahead)
                                break
                served_by_busy = 0
                for ahead in range(np.int64(free), np.int64(replicas)):
                    slot = (head + Index(ahead)) & wrap
                    if at_once[replica_of[Index(ring_row[slot])]] == 0:
                        continue
                    most = Index(limits[ring_kind[slot]])
                    expected_s = table[Index(ring_kind[slot]) * width + min(most, waiting)]
                    left_s = ring_time[slot] - t
                    if (left_s + expected_s) * TIE < best_s:
                        served_by_busy += np.int64((best_s / TIE - left_s) / expected_s) * limits[ring_kind[slot]]
                if served_by_busy >= eligible:
                    break
            limit = Index(limits[kind])
            if hold_s > 0 and waiting < limit:
                heap.size[0] = np.int64(entries)
                due_s = oldest_sent_s(lanes, heap) + hold_s
                if due_s > t:
                    wake_s = due_s
                    break
            row = ring_row[taken & wrap]
            first = Index(row) * width
            size = ZERO
            while size < limit and entries > ZERO:
                item = heap_item[ZERO]
                number = heap_number[ZERO]
                rank_s = heap_rank[ZERO]
                lane = Index(-item) if item < 0 else ZERO
                if lane == ZERO:
                    members[first + size] = np.int32(item)
                    size += ONE
                    eligible -= 1
                elif (
                    in_hand[lane] == 0
                    and waiting_in[lane] > 0
                    and rank_of[lane] == rank_s
                    and number_of[Index(first_of[lane])] == number
                ):
                    eligible -= waiting_in[lane]
                    while size < limit and waiting_in[lane] > 0:
                        event_taken = first_of[lane]
                        members[first + size] = np.int32(event_taken)
                        size += ONE
                        first_of[lane] = np.int64(following[Index(event_taken)])
                        waiting_in[lane] -= 1
                        in_hand[lane] += 1
                entries -= ONE
                drop_first(heap, entries)
            bring_forward(ring, head, taken)
            under_way[replica_of[Index(row)]] += 1
            row_of_table = (kind * levels + Index(under_way[replica_of[Index(row)]]) - ONE) * width + size
            if means:
                service_s = table[row_of_table]
            else:
                service_s = drawn_s(varying, lots, members, (first, size, kind, row_of_table))
            batches[row_of_table] += 1
            totals[0] += service_s
            totals[1] += service_s * np.float64(size)
            # Those that are free stay in front.
            back = head + replicas
            head += ONE
            free -= ONE
            put_back(ring, head + free, back, (t + service_s, row, np.int64(size), np.int64(kind)))
            head = head & wrap
    heap.size[0] = np.int64(entries)
    marks[0] = np.int64(head & wrap)
    marks[1] = np.int64(replicas)
    marks[2] = np.int64(free)
    marks[3] = np.int64(m) + queue.base
    marks[4] = eligible
    clock[0] = wake_s
    return np.int64(gone)


def serve_in_turn(
    queue: Queue,
    service: Service,
    account: Account,
    state: GeneralState,
    out: tuple[Tokens, Floats, tuple[FloatTable, Floats]],
) -> np.int64:
    """Serve the queue up to one instant after another.

    Args:
        queue: arrivals; those that arrive before the last of the instants are all there.
        service: how batches are served.
        account: what was done.
        state: read and written.
        out: departures, written; the instants, ascending; and (instants, 2), written: Σ of the service times of the
            batches begun before each, and Σ of their S(b), with S(b) as profiled; empty where all take just that.

    Returns:
        How many departures were written.
    """
    times, events, n, base, _, entry_s = queue
    (gone_times, gone_events), instants_s, (spent_s, profiled_s) = out
    gone = np.int64(0)
    for k in range(instants_s.size):
        if state.marks[1] > 0:
            part = Queue(times, events, n, base, instants_s[k], entry_s)
            gone += serve_general(part, service, account, state, Tokens(gone_times[gone:], gone_events[gone:]))
        spent_s[k, 0] = spent_s[k, 1] = account.totals[0]
        if profiled_s.size > 0:
            spent_s[k, 1] = 0.0
            for row in range(account.batches.size):
                if account.batches[row] > 0:
                    spent_s[k, 1] += account.batches[row] * profiled_s[row]
    return gone
