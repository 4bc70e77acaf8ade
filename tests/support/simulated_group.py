"""A consumer group in simulated time, as Kafka would show it: the truth that learning is compared with."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from inferline_stream.calculus.envelope_state import Times
from inferline_stream.pipeline.group_look import Assignment, GroupLook, OffsetCommit
from inferline_stream.pipeline.group_profile import RebalanceProtocol

LOOK_S = 0.02


@dataclass(frozen=True)
class Worker:
    """A batch of b takes ``fixed_s + per_event_s · b`` in the mean, lognormal with this coefficient of variation."""

    fixed_s: float
    per_event_s: float
    cv: float
    most: int
    commit_every_s: float | None = None
    commit_jitter: float = 0.0

    def throughput(self, size: int) -> float:
        return size / (self.fixed_s + self.per_event_s * size)

    def time_s(self, size: int, rng: np.random.Generator) -> float:
        sigma = math.sqrt(math.log1p(self.cv**2))
        return (self.fixed_s + self.per_event_s * size) * rng.lognormal(-(sigma**2) / 2, sigma)


def arrivals(rate: Callable[[float], float], duration_s: float, rng: np.random.Generator) -> Times:
    """Poisson, with a rate that may depend on the time."""
    most = max(rate(t) for t in np.linspace(0, duration_s, 1000))
    times = np.sort(rng.uniform(0, duration_s, rng.poisson(most * duration_s)))
    return times[rng.uniform(0, most, times.size) < np.array([rate(t) for t in times])]


def looks(
    worker: Worker,
    times: Times,
    duration_s: float,
    rng: np.random.Generator,
    *,
    members: Sequence[tuple[float, int]] = ((0.0, 3),),
    pause_s: float = 0.0,
    start_up_s: float = 0.0,
    protocol: RebalanceProtocol = "eager",
    partitions: int = 12,
) -> Iterator[GroupLook]:
    """Looks each 20 ms at a group that serves the arrivals.

    Args:
        members: from when on there are how many; partitions are dealt evenly, and eager members all stop.
        pause_s: from a change until it is served again.
        start_up_s: from a later member's join until it takes its first batch.
    """
    where = rng.integers(partitions, size=times.size)
    appended = [times[where == p] for p in range(partitions)]
    position, commits, assignments = [0] * partitions, [], []
    taken = [0] * partitions
    free: dict[str, float] = {}
    bounds = [*(at for at, _ in members), duration_s]
    for (at_s, count), until_s in zip(members, bounds[1:], strict=True):
        owners = {f"member-{m}": frozenset(range(m, partitions, count)) for m in range(count)}
        begin_s = max(at_s, *free.values(), 0.0) + (pause_s + 0.001 if at_s else 0.0)  # batches in hand end first
        assignments.append(Assignment(begin_s, owners, protocol))
        for member, owned in owners.items():
            now_s = max(begin_s, free.get(member, 0.0 if at_s == 0 else begin_s + start_up_s))
            auto_s = begin_s + rng.uniform(0, worker.commit_every_s or 1.0)
            committed = {p: position[p] for p in owned}
            heads = [(appended[p][position[p]], p) for p in owned if position[p] < len(appended[p])]
            heapify(heads)
            while heads:
                start_s = max(now_s, heads[0][0])
                if start_s >= until_s:
                    break
                batch: list[int] = []
                while heads and heads[0][0] <= start_s and len(batch) < worker.most:
                    _, p = heappop(heads)
                    batch.append(p)
                    if (following := taken[p] + 1) < len(appended[p]):
                        heappush(heads, (appended[p][following], p))
                    taken[p] = following
                done_s = start_s + worker.time_s(len(batch), rng)
                while worker.commit_every_s and auto_s < done_s:
                    commits += [
                        OffsetCommit(auto_s, p, position[p]) for p in sorted(owned) if position[p] > committed[p]
                    ]
                    committed = {p: position[p] for p in owned}
                    auto_s += worker.commit_every_s * rng.uniform(1 - worker.commit_jitter, 1 + worker.commit_jitter)
                for p in batch:
                    position[p] += 1
                if not worker.commit_every_s:
                    commits += [OffsetCommit(done_s, p, position[p]) for p in sorted(set(batch))]
                now_s = done_s
            free[member] = now_s
    commits.sort(key=lambda each: each.at_s)
    yield from _looked(appended, commits, assignments, duration_s, partitions)


def _looked(
    appended: Sequence[Times],
    commits: list[OffsetCommit],
    assignments: list[Assignment],
    duration_s: float,
    partitions: int,
) -> Iterator[GroupLook]:
    logs = [list(each) for each in appended]
    commits = [OffsetCommit(0.0, p, 0) for p in range(partitions)] + commits
    next_commit = next_assignment = 0
    for step in range(1, int(duration_s / LOOK_S) + 1):
        at_s = step * LOOK_S
        first_commit, first_assignment = next_commit, next_assignment
        while next_commit < len(commits) and commits[next_commit].at_s <= at_s:
            next_commit += 1
        while next_assignment < len(assignments) and assignments[next_assignment].at_s <= at_s:
            next_assignment += 1
        yield GroupLook(
            at_s,
            tuple(bisect_right(each, at_s) for each in logs),
            tuple(commits[first_commit:next_commit]),
            tuple(assignments[first_assignment:next_assignment]),
        )


def shared_looks(
    worker: Worker,
    times: Times,
    duration_s: float,
    rng: np.random.Generator,
    *,
    members: int,
    partitions: int,
    poll_s: float = 0.25,
) -> Iterator[GroupLook]:
    """Looks at a share group with more members than partitions: all take from one queue, and what is done is polled."""
    where = rng.integers(partitions, size=times.size)
    appended = [times[where == p].tolist() for p in range(partitions)]
    free, first, done = [0.0] * members, 0, list[tuple[float, int]]()
    while first < times.size:
        start_s = max(heappop(free), times[first])
        last = min(bisect_right(times, start_s), first + worker.most)
        ends_s = start_s + worker.time_s(last - first, rng)
        heappush(free, ends_s)
        done += [(ends_s, int(p)) for p in where[first:last]]
        first = last
    finished = [sorted(at_s for at_s, p in done if p == partition) for partition in range(partitions)]
    owners = {f"member-{m}": frozenset({m % partitions, (m + 1) % partitions}) for m in range(members)}
    for step in range(1, int(duration_s / LOOK_S) + 1):
        at_s = step * LOOK_S
        polled = step % round(poll_s / LOOK_S) == 0
        counts = [bisect_right(finished[p], at_s) for p in range(partitions)] if polled else []
        yield GroupLook(
            at_s,
            tuple(bisect_right(each, at_s) for each in appended),
            tuple(OffsetCommit(at_s, p, count) for p, count in enumerate(counts)),
            (Assignment(at_s, owners, "share"),) if step == 1 else (),
            exact=False,
        )
