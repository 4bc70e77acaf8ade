"""The queue with everything: several kinds, keys in order, several batches at once, replicas that come and go.

It obeys the rules in `estimator.kernels`. Where none of this is needed, `shared_queue` is two to four times as fast.

A lane per key holds its events that wait. Eligible are events without a lane and lanes none of whose events is in hand:
they stand in a heap. An entry of a lane is out of date once its rank or its first event is another. Those that are
hopeless stand in a heap of their own, see `pipeline.deadline_order`.
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
    Fallback,
    Flags,
    Floats,
    FloatTable,
    Index,
    Ints,
    Masks,
    Queue,
    Service,
    Tokens,
    choose_version,
    drawn_s,
    note_version,
)
from inferline_stream.estimator.rank_heap import Heap, drop_first, push
from inferline_stream.estimator.shared_queue import put_back
from inferline_stream.pipeline.deadline_order import (
    BATCH_SHARE,
    DEMAND_AFTER_SLOS,
    FEW_LANES,
    HOPELESS_EVERY,
    NEWS_EVERY_S,
)
from inferline_stream.pipeline.fallback import FALLBACK, MAIN, NEITHER, TOTAL, roll, version_for

NEVER, HIDDEN, OLD, WAS = 0, 1, 2, 3
"""An event at a stage: hopeful; hopeless, and no demand; so old that it is demand; taken as a hopeless one."""

PLACES, HOPELESS, SINCE, DEMAND, LARGEST = range(5)
"""Places in `GeneralState.tally`."""


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
        aside: (lanes,) whether it is hopeless.
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
    aside: Ints


class Crews(NamedTuple):
    """Replicas that run several batches at once: each has as many places in the ring, of which any does.

    Args:
        replica_of: (places,) replica of each.
        kinds: (replicas,) kind of each.
        at_once: (replicas,) most batches in hand, which is how many places it has; 0 for one that leaves: its free
            places are not in the ring, and those of its batches in hand go from there as these end.
        in_hand: (replicas,) batches in hand.
    """

    replica_of: Ints
    kinds: Ints
    at_once: Ints
    in_hand: Ints


class Fates(NamedTuple):
    """What has become of a stage's events.

    Args:
        of: by event; empty where nobody asks.
        class_of: by event, its live class; empty where there is one. Those of one class become due in their order.
        hidden_from: (classes,) first event of each class that is not too old to be hidden (`DEMAND_AFTER_SLOS`).
    """

    of: Flags
    class_of: Masks
    hidden_from: Ints


class GeneralState(NamedTuple):
    """Replicas and what waits for them. A replica has one place, or several where it runs several batches at once.

    Args:
        marks: head of the ring, places, how many of its first ones are free, first position that has not arrived,
            events that are eligible.
        clock: (2,) when to look at a batch that had to wait, if nothing happens before; since when the replicas are
            these, so that no batch starts before.
        ring: (2^k,) places in the order in which they are free, in a ring; each is a row of what follows.
        free_s: (places,) when each is free.
        size_of: (places,) events of the batch in hand.
        kind_of: (places,) kind of the replica.
        members: (places · width) events of the batch in hand, row after row.
        lanes: of the keys.
        heap: of what is eligible; has room for twice the arrivals and all lanes beside what it holds.
        aside: of what is hopeless; room for as much again.
        tally: hopeful entries of the heap; hopeless events that wait; batches made beside these since the last that was
            theirs; hopeless ones that are too old to be hidden; the largest batch that was looked at, which is the
            limit where a cap cut it.
        fates: of the events.
        crews: which places are which replica's.
    """

    marks: Ints
    clock: Floats
    ring: Ints
    free_s: Floats
    size_of: Ints
    kind_of: Ints
    members: Events
    lanes: Lanes
    heap: Heap
    aside: Heap
    tally: Ints
    fates: Fates
    crews: Crews


def is_current(lanes: Lanes, lane: np.uint64, rank_s: float, number: np.int64) -> bool:
    """Whether an entry of the heap is its lane's newest."""
    return bool(
        lanes.in_hand[lane] == 0
        and lanes.waiting[lane] > 0
        and lanes.aside[lane] == 0
        and lanes.rank_s[lane] == rank_s
        and lanes.number[Index(lanes.first[lane])] == number
    )


class Ring(NamedTuple):
    """Places in the order in which they are free, see `GeneralState`; with when each is, and of which kind."""

    order: Ints
    free_s: Floats
    kind_of: Ints


def bring_forward(order: Ints, head: np.uint64, taken: np.uint64) -> None:
    """Overwrite the place of a free replica by those before it: the head is then free for its return."""
    wrap = Index(order.size - 1)
    while taken > head:
        order[taken & wrap] = order[(taken - ONE) & wrap]
        taken -= ONE


def place_at_several(
    times: tuple[Ints, Floats, np.uint64],
    places: tuple[np.uint64, np.uint64, np.uint64, np.uint64],
    ring: Ring,
    crews: Crews,
    t: float,
) -> tuple[np.uint64, np.uint64]:
    """Choose the place for the next batch, where replicas run several at once.

    Args:
        times: batch limits by kind, S(b) by kind, batches in hand and b, and the width of a row of it.
        places: head of the ring, how many of its places are free, how many there are; and how many events wait.
        ring: of the places.
        crews: which places are which replica's.
        t: the present.

    Returns:
        The kind of its replica, and the place: the end of the ring, where what waits is left to busy replicas.
    """
    limits, table, width = times
    head, free, replicas, waiting = places
    replica_of, kinds, at_once, under_way = crews
    order, free_s, kind_of = ring
    wrap = Index(order.size - 1)
    levels = Index(table.size) // (Index(limits.size) * width)
    best_s = math.inf
    fastest = 0
    for kind in range(limits.size):
        size = min(Index(limits[kind]), waiting)
        for candidate in range(kinds.size):
            if kinds[candidate] == kind and under_way[candidate] < at_once[candidate]:
                level = Index(kind) * levels + Index(under_way[candidate])
                expected_s = table[level * width + size]
                if expected_s * TIE < best_s:
                    best_s = expected_s
                    fastest = candidate
    taken = head
    while replica_of[Index(order[taken & wrap])] != fastest:
        taken += ONE
    served_by_busy = 0
    for ahead in range(np.int64(free), np.int64(replicas if limits.size > 1 else free)):
        row = Index(order[(head + Index(ahead)) & wrap])
        busy = replica_of[row]
        if at_once[busy] == 0:
            continue
        other_kind = Index(kind_of[row])
        # The next batch there finds the others that its replica has in hand now.
        level = other_kind * levels + Index(under_way[busy]) - ONE
        expected_s = table[level * width + min(Index(limits[other_kind]), waiting)]
        left_s = free_s[row] - t
        if (left_s + expected_s) * TIE < best_s:
            served_by_busy += np.int64((best_s / TIE - left_s) / expected_s) * limits[other_kind]
    return Index(kinds[fastest]), head + replicas if served_by_busy >= np.int64(waiting) else taken


def place_of_kind(
    times: tuple[Ints, Floats, np.uint64],
    places: tuple[np.uint64, np.uint64, np.uint64, np.uint64],
    ring: Ring,
    crews: Crews,
    t: float,
) -> tuple[np.uint64, np.uint64]:
    """Choose the place for the next batch as `place_at_several`, of replicas of several kinds that run one each."""
    limits, table, width = times
    head, free, replicas, waiting = places
    order, free_s, kind_of = ring
    wrap = Index(order.size - 1)
    kind = Index(kind_of[Index(order[head & wrap])])
    taken = head
    best_s = math.inf
    for candidate in range(limits.size):
        expected_s = table[Index(candidate) * width + min(Index(limits[candidate]), waiting)]
        if expected_s * TIE < best_s:
            for ahead in range(np.int64(free)):
                if kind_of[Index(order[(head + Index(ahead)) & wrap])] == candidate:
                    best_s = expected_s
                    kind = Index(candidate)
                    taken = head + Index(ahead)
                    break
    served_by_busy = 0
    for ahead in range(np.int64(free), np.int64(replicas)):
        row = Index(order[(head + Index(ahead)) & wrap])
        if crews.at_once[crews.replica_of[row]] == 0:
            continue
        most = Index(limits[kind_of[row]])
        expected_s = table[Index(kind_of[row]) * width + min(most, waiting)]
        left_s = free_s[row] - t
        if (left_s + expected_s) * TIE < best_s:
            served_by_busy += np.int64((best_s / TIE - left_s) / expected_s) * limits[kind_of[row]]
    return kind, head + replicas if served_by_busy >= np.int64(waiting) else taken


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


def note_fate(fates: Fates, tally: Ints, event: np.uint64, becomes: int) -> None:
    """Note what becomes of an event: hopeless, taken as such, or hopeful with the rest of its lane."""
    if fates.of.size > 0:
        if fates.of[event] == OLD:
            tally[DEMAND] -= 1
        fates.of[event] = becomes
        number = Index(fates.class_of[event]) if fates.class_of.size > 0 else ZERO
        if becomes == HIDDEN and np.int64(event) < fates.hidden_from[number]:
            fates.of[event] = OLD
            tally[DEMAND] += 1


def note_ages(fates: Fates, tally: Ints, due_s: Floats, latest_s: float) -> None:
    """Note which hopeless events are too old to be hidden: those that were due before the latest."""
    for number in range(fates.hidden_from.size):
        event = fates.hidden_from[number]
        while event < due_s.size:
            if fates.class_of.size == 0 or fates.class_of[Index(event)] == number:
                if not due_s[Index(event)] < latest_s:
                    break
                if fates.of[Index(event)] == HIDDEN:
                    fates.of[Index(event)] = OLD
                    tally[DEMAND] += 1
            event += 1
        fates.hidden_from[number] = event


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
    limits, table, varying, lots, hold_s, hop_s, slo_s, rest_s, caps, span, room, _, fallback = service
    falls_back = fallback.table.size > 0
    means = lots.size == 0
    batches, totals = account
    judges = rest_s > -math.inf
    marks, clock, order, free_s, size_of, kind_of, members, lanes, heap, aside, tally, fates, crews = state
    replica_of, _, at_once, under_way = crews
    ring = Ring(order, free_s, kind_of)
    lane_of, following, sent_s, number_of, first_of, last_of, waiting_in, in_hand, rank_of, falls, set_aside = lanes
    keyed = lane_of.size > 0
    heap_rank, heap_number, heap_item, _ = heap
    out_times, out_events = out
    entries = Index(heap.size[0])
    asides = Index(aside.size[0])
    places = tally[PLACES]
    hopeless = tally[HOPELESS]
    largest = Index(tally[LARGEST])
    n = Index(queue.n) - Index(queue.base)
    wrap = Index(order.size - 1)
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
        ends_s = free_s[Index(order[(head + free) & wrap])] if free < replicas else math.inf
        t = min(ends_s, wake_s)
        if free > ZERO and m < n:  # with nobody free it is enough to know what has arrived until somebody is
            t = min(t, max(times[m] + hop_s, since_s))
        if not t < horizon_s:
            break
        # Batches that end leave, and free their keys.
        while free < replicas and free_s[Index(order[(head + free) & wrap])] <= t:
            row = Index(order[(head + free) & wrap])
            end_s = free_s[row]
            first = row * width
            ending = replica_of[row]
            under_way[ending] -= 1
            for q in range(size_of[row]):
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
                places += 1
                push(heap, entries, (rank_s, number, -np.int64(lane)))
                entries += ONE
            if at_once[ending] > 0:
                free += ONE
            else:
                bring_forward(order, head, head + free)
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
                places += 1
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
                if set_aside[lane] > 0:
                    hopeless += 1
                    note_fate(fates, tally, own, HIDDEN)
                    continue
                eligible += 1
                places += waiting_in[lane] == 1
                if not lowers:
                    continue
                number = number_of[Index(first_of[lane])]
                item = -np.int64(lane)
            push(heap, entries, (rank_s, number, item))
            entries += ONE
        # Batches.
        wake_s = math.inf
        while (eligible > 0 or hopeless > 0) and free > ZERO:
            waiting = Index(eligible if eligible > 0 else hopeless)
            if levels > ONE:
                kind, taken = place_at_several((limits, table, width), (head, free, replicas, waiting), ring, crews, t)
            elif limits.size > 1:
                kind, taken = place_of_kind((limits, table, width), (head, free, replicas, waiting), ring, crews, t)
            else:
                kind, taken = ZERO, head
            if taken == head + replicas:
                break
            row = Index(order[taken & wrap])
            level = kind * levels + Index(under_way[replica_of[row]])
            row_of_table = level * width
            limit = Index(limits[kind])
            cap = Index(caps[level])
            if hold_s > 0 and eligible > 0 and waiting < cap:
                heap.size[0] = np.int64(entries)
                due_s = oldest_sent_s(lanes, heap) + hold_s
                if due_s > t:
                    wake_s = due_s
                    break
            largest = max(largest, limit if np.int64(cap) <= eligible else Index(eligible))
            version = MAIN
            if falls_back:
                roll(fallback.window, t)
            # Those that cannot be on time any more go aside.
            while judges and eligible > 0:
                item = heap_item[ZERO]
                number = heap_number[ZERO]
                rank_s = heap_rank[ZERO]
                lane = Index(-item) if item < 0 else ZERO
                batch = min(cap, Index(eligible))
                if lane == ZERO:
                    hopeful_s = entry_s[Index(item)]
                elif not is_current(lanes, lane, rank_s, number):
                    entries -= ONE
                    drop_first(heap, entries)
                    continue
                else:
                    other = Index(first_of[lane])
                    hopeful_s = entry_s[other]
                    if places < FEW_LANES:
                        for _ in range(1, np.int64(batch)):
                            if following[other] < 0:
                                break
                            other = Index(following[other])
                            hopeful_s = max(hopeful_s, entry_s[other])
                age_s = t - hopeful_s
                if falls_back:
                    fast_size = min(Index(fallback.caps[level]), Index(eligible))
                    sizes = fast_size, row_of_table + fast_size
                    version = choose_version(fallback, sizes, age_s, table[row_of_table + batch], (rest_s, slo_s))
                else:
                    version = version_for(age_s, table[row_of_table + batch], math.inf, (rest_s, 0.0), slo_s)
                if version != NEITHER:
                    break
                entries -= ONE
                drop_first(heap, entries)
                push(aside, asides, (rank_s, number, item))
                asides += ONE
                places -= 1
                if lane == ZERO:
                    eligible -= 1
                    hopeless += 1
                    note_fate(fates, tally, Index(item), HIDDEN)
                else:
                    eligible -= waiting_in[lane]
                    hopeless += waiting_in[lane]
                    set_aside[lane] = 1
                    event_taken = first_of[lane]
                    while event_taken >= 0:
                        note_fate(fates, tally, Index(event_taken), HIDDEN)
                        event_taken = np.int64(following[Index(event_taken)])
            most = cap
            if hopeless > 0 and eligible > 0:
                tally[SINCE] += 1
                far = np.int64(m) + queue.base - aside.number[ZERO] > span or eligible + hopeless > room
                if tally[SINCE] >= HOPELESS_EVERY or far:
                    tally[SINCE] = 0
                    most = ZERO
            if most == ZERO or eligible == 0:
                version = MAIN
            if version == FALLBACK:
                most = Index(fallback.caps[level])
                largest = max(largest, limit if np.int64(most) <= eligible else Index(eligible))
            first = row * width
            size = ZERO
            while size < most and entries > ZERO:
                item = heap_item[ZERO]
                number = heap_number[ZERO]
                rank_s = heap_rank[ZERO]
                lane = Index(-item) if item < 0 else ZERO
                if lane == ZERO:
                    members[first + size] = np.int32(item)
                    size += ONE
                    eligible -= 1
                    places -= 1
                elif is_current(lanes, lane, rank_s, number):
                    eligible -= waiting_in[lane]
                    places -= 1
                    while size < most and waiting_in[lane] > 0:
                        event_taken = first_of[lane]
                        members[first + size] = np.int32(event_taken)
                        size += ONE
                        first_of[lane] = np.int64(following[Index(event_taken)])
                        waiting_in[lane] -= 1
                        in_hand[lane] += 1
                entries -= ONE
                drop_first(heap, entries)
            # Then hopeless ones, as far as the first hopeful one still makes it.
            spare_s = math.inf
            if hopeless > 0 and size > ZERO:
                spare_s = slo_s
                hopeful_s = entry_s[Index(members[first])]
            while version == MAIN and hopeless > 0 and size < limit:
                if spare_s < math.inf and t - hopeful_s + table[row_of_table + size + ONE] + rest_s > spare_s:
                    break
                item = aside.item[ZERO]
                lane = Index(-item) if item < 0 else ZERO
                asides -= ONE
                drop_first(aside, asides)
                if lane == ZERO:
                    members[first + size] = np.int32(item)
                    size += ONE
                    hopeless -= 1
                    note_fate(fates, tally, Index(item), WAS)
                    continue
                hopeless -= waiting_in[lane]
                set_aside[lane] = 0
                event_taken = first_of[lane]
                while event_taken >= 0:
                    fits = size < limit and not (
                        spare_s < math.inf and t - hopeful_s + table[row_of_table + size + ONE] + rest_s > spare_s
                    )
                    note_fate(fates, tally, Index(event_taken), WAS if fits else NEVER)
                    if fits:
                        members[first + size] = np.int32(event_taken)
                        size += ONE
                        first_of[lane] = np.int64(following[Index(event_taken)])
                        waiting_in[lane] -= 1
                        in_hand[lane] += 1
                    event_taken = np.int64(following[Index(event_taken)])
            bring_forward(order, head, taken)
            under_way[replica_of[row]] += 1
            largest = max(largest, size)
            row_of_table += size
            if means:
                service_s = table[row_of_table]
            else:
                service_s = drawn_s(varying, lots, members, (first, size, kind, row_of_table))
            if falls_back:
                note_version(fallback, version, members, (first, size, row_of_table))
            if version == FALLBACK:
                fast_s = fallback.table[row_of_table]
                service_s = fast_s if means else service_s * (fast_s / table[row_of_table])
            else:
                batches[row_of_table] += 1
            totals[0] += service_s
            totals[1] += service_s * np.float64(size)
            # Those that are free stay in front.
            free_s[row] = t + service_s
            size_of[row] = np.int64(size)
            put_back(order, free_s, (head + free, head + replicas), row)
            free -= ONE
            head = (head + ONE) & wrap
    heap.size[0] = np.int64(entries)
    aside.size[0] = np.int64(asides)
    tally[PLACES] = places
    tally[HOPELESS] = hopeless
    tally[LARGEST] = np.int64(largest)
    marks[0] = np.int64(head & wrap)
    marks[1] = np.int64(replicas)
    marks[2] = np.int64(free)
    marks[3] = np.int64(m) + queue.base
    marks[4] = eligible
    clock[0] = wake_s
    return np.int64(gone)


def write_caps(limits: Ints, table: Floats, caps: Ints, rest_s: float, slo_s: float) -> None:
    """Write those of one version."""
    width, levels = table.size // caps.size, caps.size // limits.size
    for row in range(caps.size):
        cap = limits[row // levels]
        while cap > 1 and not table[row * width + cap] + rest_s <= BATCH_SHARE * slo_s:
            cap -= 1
        caps[row] = cap


def set_caps(service: Service, rest_s: float) -> None:
    """Write the batches that R leaves time for, as `pipeline.deadline_order.batch_cap` has them."""
    limits, table, _, _, _, _, _, _, caps, _, _, slo_s, fallback = service
    write_caps(limits, table, caps, rest_s, slo_s)
    if fallback.table.size > 0:
        write_caps(limits, fallback.table, fallback.caps, rest_s, slo_s)


def serve_in_turn(
    queue: Queue,
    service: Service,
    account: Account,
    state: GeneralState,
    out: tuple[Tokens, Floats, FloatTable, tuple[FloatTable, Floats]],
) -> np.int64:
    """Serve the queue up to one instant after another.

    Args:
        queue: arrivals; those that arrive before the last of the instants are all there.
        service: how batches are served; ``caps`` are written.
        account: what was done.
        state: read and written.
        out: departures, written; the instants, ascending; R and R' - R until each, empty where they stay;
            and (instants, 4), written: Σ of the service times of the
            batches begun before each, Σ of their S(b) or F(b), with S(b) as profiled (empty where all take just that),
            hopeless events that wait and are no demand, and events that went to the fallback.

    Returns:
        How many departures were written.
    """
    times, events, n, base, _, entry_s = queue
    (gone_times, gone_events), instants_s, rests_s, (spent_s, profiled_s) = out
    limits, table, varying, lots, hold_s, hop_s, slo_s, rest_s, caps, span, room, cap_slo_s, fallback = service
    gone = np.int64(0)
    for k in range(instants_s.size):
        if rests_s.size > 0 and (rests_s[k, 0] != rest_s or rests_s[k, 1] != fallback.longer_s):
            rest_s = rests_s[k, 0]
            set_caps(service, rest_s)
            fallback = Fallback(
                fallback.table,
                fallback.caps,
                fallback.share,
                fallback.window,
                fallback.batches,
                fallback.made,
                rests_s[k, 1],
            )
            service = Service(
                limits, table, varying, lots, hold_s, hop_s, slo_s, rest_s, caps, span, room, cap_slo_s, fallback
            )
        if state.marks[1] > 0:
            part = Queue(times, events, n, base, instants_s[k], entry_s)
            gone += serve_general(part, service, account, state, Tokens(gone_times[gone:], gone_events[gone:]))
        spent_s[k, 0] = spent_s[k, 1] = account.totals[0]
        if profiled_s.size > 0:
            spent_s[k, 1] = 0.0
            for row in range(account.batches.size):
                if account.batches[row] > 0:
                    spent_s[k, 1] += account.batches[row] * profiled_s[row]
                if fallback.batches.size > 0 and fallback.batches[row] > 0:
                    spent_s[k, 1] += fallback.batches[row] * profiled_s[row] * (fallback.table[row] / table[row])
        if state.fates.of.size > 0:
            note_ages(state.fates, state.tally, entry_s, instants_s[k] - DEMAND_AFTER_SLOS * service.slo_s)
        spent_s[k, 2] = np.float64(state.tally[HOPELESS] - state.tally[DEMAND])
        spent_s[k, 3] = np.float64(fallback.window[TOTAL])
    return gone


def note_stays(gone: Tokens, fates: Flags, arrived_s: Floats, stay: Floats, reports: tuple[Floats, FloatTable]) -> None:
    """Note what hopeful events took at a stage, each as `pipeline.deadline_order.Stay.add` does.

    Args:
        gone: departures of the stage, in order.
        fates: of each.
        arrived_s: when each had come.
        stay: (3,) Σ of the stays, of their number, each forgotten since its end, and the last end; written.
        reports: instants, ascending, and (instants, 3), written: the same before each of them.
    """
    until_s, found = reports
    n = 0
    for k in range(until_s.size + 1):
        while n < gone.times.size and (k == until_s.size or gone.times[n] < until_s[k]):
            if fates[n] != WAS:
                kept = math.exp((stay[2] - gone.times[n]) / NEWS_EVERY_S)
                stay[0] = stay[0] * kept + (gone.times[n] - arrived_s[n])
                stay[1] = stay[1] * kept + 1.0
                stay[2] = gone.times[n]
            n += 1
        if k < until_s.size:
            found[k, 0], found[k, 1], found[k, 2] = stay
