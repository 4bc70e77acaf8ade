"""Records in partitions that stay with their replicas, as in ordinary consumer groups: one replica after another.

What a replica does depends on its own partitions alone. So the arrivals are dealt out to the replicas, each replica
serves its own up to the horizon, and the departures are merged. It obeys the rules of `estimator.kernels`.

A replica takes the earliest-entered of the heads of its partitions. As long as what waits has arrived in order of
entry, that is the order of arrival. Otherwise the waiting records are kept sorted by a key: the latest entry among the
records waiting in the same partition up to this one. A record that entered before its predecessor in the partition
follows it directly that way, as it does when heads are compared.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from inferline_stream.estimator.batch_order import Batches, Sorting, sort_by_tree, sort_in_buckets
from inferline_stream.estimator.kernels import (
    EIGHT,
    ONE,
    ZERO,
    Account,
    Events,
    Flags,
    Floats,
    Index,
    Ints,
    Masks,
    Members,
    Service,
    Tokens,
    drawn_s,
)


class Task(NamedTuple):
    """How far to go, how batches are served, and what was done."""

    horizon_s: float
    service: Service
    account: Account


class Bound(NamedTuple):
    """Replicas, and what is theirs between calls.

    Args:
        partition_of: by event.
        owner: (partitions,) replica.
        kind_of: (replicas,) kind.
        free_s: (replicas,) end of the last batch.
        flight_start: (replicas,) start of the batch that ends at ``free_s``, if it was not emitted yet.
        flight_size: (replicas,) its events; 0 if it was.
        members: (replicas, most) which.
        left_times: (capacity,) arrivals that were not served, replica after replica.
        left_events: (capacity,) whose they are.
        left_begin: (replicas + 1,) where each replica's begin.
    """

    partition_of: Masks
    owner: Ints
    kind_of: Ints
    free_s: Floats
    flight_start: Floats
    flight_size: Ints
    members: Members
    left_times: Floats
    left_events: Events
    left_begin: Ints


class Line(NamedTuple):
    """Arrivals, replica after replica, of no meaning between calls.

    Args:
        times: (capacity,) when they arrive.
        events: (2 · capacity + replicas · most,) whose they are; behind them, what was taken in another order.
        begin: (replicas + 1,) where each replica's begin.
        replica_of: (capacity,) of the new ones.
    """

    times: Floats
    events: Events
    begin: Ints
    replica_of: Ints


class Waiting(NamedTuple):
    """Records of one replica that wait out of order, of no meaning between calls: (capacity,) unless said otherwise.

    Args:
        keys: what they are sorted by.
        places: their places in the line.
        last_key: (partitions,) the latest key.
        counts: (partitions,) how many wait; all 0.
        is_left: whether a record of the line was not served; all 0.
    """

    keys: Events
    places: Ints
    last_key: Events
    counts: Ints
    is_left: Flags


class Desk(NamedTuple):
    """Room to work in."""

    line: Line
    batches: Batches
    waiting: Waiting
    sorting: Sorting


def deal(arrived: Tokens, hop_s: float, bound: Bound, line: Line) -> None:
    """Give each replica what it had left and what is new, in order of arrival."""
    replicas = bound.kind_of.size
    begin, left_begin = line.begin, bound.left_begin
    for r in range(replicas + 1):
        begin[r] = 0
    if replicas == 1:
        begin[0] = arrived.events.size
        for i in range(arrived.events.size):
            line.replica_of[i] = 0
    else:
        for i in range(arrived.events.size):
            r = bound.owner[Index(bound.partition_of[Index(arrived.events[i])])]
            line.replica_of[i] = r
            begin[Index(r)] += 1
    at = 0
    for r in range(replicas):  # where the new ones go: behind those left
        first = left_begin[r]
        count = left_begin[r + 1] - first
        for k in range(count):
            line.times[Index(at + k)] = bound.left_times[Index(first + k)]
            line.events[Index(at + k)] = bound.left_events[Index(first + k)]
        new = begin[r]
        begin[r] = at + count
        at += count + new
    for i in range(arrived.events.size):
        r = line.replica_of[i]
        place = Index(begin[Index(r)])
        line.times[place] = arrived.times[i] + hop_s
        line.events[place] = arrived.events[i]
        begin[Index(r)] += 1
    for r in range(replicas, 0, -1):  # each now stands where the next begins
        begin[r] = begin[r - 1]
    begin[0] = 0


def serve_replica(r: int, task: Task, bound: Bound, desk: Desk) -> None:
    """One replica's batches up to the horizon, and what it leaves."""
    horizon_s, account = task.horizon_s, task.account
    limits, table, varying, lots, _, _, _ = task.service
    times, events = desk.line.times, desk.line.events
    partition_of = bound.partition_of
    keys, places, last_key, counts, is_left = desk.waiting
    finish, start, sizes, first_taken, batch_begin, batch_end = desk.batches
    kind = bound.kind_of[r]
    first_row = Index(kind * (table.shape[0] // limits.size))
    limit = Index(limits[kind])
    begin = Index(desk.line.begin[r])
    end = Index(desk.line.begin[r + 1])
    most = Index(bound.members.shape[1])
    out = Index(times.size) + begin + Index(r) * most  # where it lists what it takes in another order
    batch = begin + Index(r)
    batch_begin[r] = np.int64(batch)
    free_s = bound.free_s[r]
    flight = Index(bound.flight_size[r])
    if flight > ZERO:
        finish[batch] = free_s
        start[batch] = bound.flight_start[r]
        sizes[batch] = np.int64(flight)
        first_taken[batch] = np.int64(out)
        batch += ONE
        for k in range(flight):
            events[out] = bound.members[r, k]
            out += ONE
    means = lots.size == 0
    busy_s, served_s = account.totals
    i = begin  # next arrival that is not among the sorted ones
    ordered = i  # arrivals before this one, from i on, are in order of entry
    front = ZERO
    back = ZERO
    while True:
        sorting = bool(front < back)
        if not sorting:
            if i == end:
                break
            t = max(times[i], free_s)
            if t >= horizon_s:
                break
            if ordered == i:
                ordered += ONE
            while ordered < end and times[ordered] <= t and events[ordered] > events[ordered - ONE]:
                ordered += ONE
            if ordered < end and times[ordered] <= t:
                sorting = True
                front = ZERO
                back = ZERO
            else:
                size = min(limit, ordered - i)
                first = i
                i += size
        else:
            t = free_s
            if t >= horizon_s:
                break
        if sorting:
            while i < end and times[i] <= t:
                event = events[i]
                p = Index(partition_of[Index(event)])
                rank = event
                if counts[p] > 0:
                    rank = max(rank, last_key[p])
                counts[p] += 1
                last_key[p] = rank
                slot = back
                while slot > front and keys[slot - ONE] > rank:
                    keys[slot] = keys[slot - ONE]
                    places[slot] = places[slot - ONE]
                    slot -= ONE
                keys[slot] = rank
                places[slot] = np.int64(i)
                back += ONE
                i += ONE
            size = min(limit, back - front)
            first = out
            for k in range(size):
                event = events[Index(places[front + Index(k)])]
                events[out + Index(k)] = event
                counts[Index(partition_of[Index(event)])] -= 1
            out += size
            front += size
            # Those that stood behind the last one taken because of its key have no one before them now.
            old = keys[front - ONE]
            slot = front
            rank = np.int32(-1)
            while slot < back and keys[slot] == old:
                rank = max(rank, events[Index(places[slot])])
                keys[slot] = rank
                slot += ONE
            if slot > front:
                p = Index(partition_of[Index(events[Index(places[front])])])
                if last_key[p] == old:
                    last_key[p] = rank
            ordered = i
        row = first_row + size
        service_s = table[row] if means else drawn_s(varying, lots, events, (first, size, Index(kind), row))
        account.batches[row] += 1
        busy_s += service_s
        served_s += service_s * np.float64(size)
        free_s = t + service_s
        finish[batch] = free_s
        start[batch] = t
        sizes[batch] = np.int64(size)
        first_taken[batch] = np.int64(first)
        batch += ONE
    account.totals[0] = busy_s
    account.totals[1] = served_s
    # A batch that ends at the horizon or later, the last if any, is not emitted yet.
    bound.free_s[r] = free_s
    bound.flight_size[r] = 0
    if Index(batch_begin[r]) < batch and free_s >= horizon_s:
        batch -= ONE
        size = Index(sizes[batch])
        bound.flight_start[r] = start[batch]
        bound.flight_size[r] = np.int64(size)
        for k in range(size):
            bound.members[r, k] = events[Index(first_taken[batch]) + Index(k)]
    batch_end[r] = np.int64(batch)
    # What is left, in order of arrival.
    place = begin if front < back else i
    while front < back:
        is_left[Index(places[front])] = 1
        counts[Index(partition_of[Index(events[Index(places[front])])])] = 0
        front += ONE
    to = Index(bound.left_begin[r])
    while place < end:
        if place >= i or is_left[place]:
            is_left[place] = 0
            bound.left_times[to] = times[place]
            bound.left_events[to] = events[place]
            to += ONE
        place += ONE
    bound.left_begin[r + 1] = np.int64(to)


def serve_bound(arrived: Tokens, task: Task, bound: Bound, desk: Desk, out: Tokens) -> np.int64:
    """Let every replica serve until the horizon. Returns how many departures were written.

    Args:
        arrived: records sent since the last call; those to arrive before the horizon are all there.
        task: how far, and how batches are served.
        bound: replicas.
        desk: room to work in.
        out: departures, written.
    """
    deal(arrived, task.service.hop_s, bound, desk.line)
    for r in range(bound.kind_of.size):
        serve_replica(r, task, bound, desk)
    batches = -1
    if bound.kind_of.size > 4:
        batches = sort_in_buckets(bound.kind_of.size, desk.batches, desk.sorting)
    if batches < 0:
        batches = sort_by_tree(bound.kind_of.size, desk.batches, desk.sorting)
    finish, _, size, first, _, _ = desk.batches
    events = desk.line.events
    room = Index(out.times.size)
    held = Index(events.size)
    gone = ZERO
    for i in range(batches):
        batch = Index(desk.sorting.order[i])
        k = Index(first[batch])
        end = gone + Index(size[batch])
        end_s = finish[batch]
        if end > gone + ONE and end + EIGHT <= room and k + (end - gone) + EIGHT <= held:
            # Eight at a time, whatever is too much is overwritten: how large a batch was cannot be predicted.
            while gone < end:
                for q in range(8):
                    out.times[gone + Index(q)] = end_s
                    out.events[gone + Index(q)] = events[k + Index(q)]
                gone += EIGHT
                k += EIGHT
            gone = end
        while gone < end:
            out.times[gone] = end_s
            out.events[gone] = events[k]
            gone += ONE
            k += ONE
    return np.int64(gone)
