"""What a consumer group can do, from what Kafka shows of it alone: ends, commits and members.

*Commits while there is lag* reads the arrival rate of a group that is not overloaded. So it is not used. Two other
things are known for certain:

- **A batch that was waiting when its worker finished the one before** took exactly the time between both commits
  (Lindley's recursion: a batch starts when its first record is there and the worker is free). A line through sizes and
  times of such batches is the worker's speed at every size. This needs a commit after each batch, and its exact time.
  Commits on a timer give themselves away: they cover records that came after the batch would have started.
- **A worker that had more lag, at every moment of a span, than it has ever done in such a time** was busy throughout.
  What it did then is its speed, however it commits. Members that take from the same partitions, as in a share group,
  are taken together. The bound does not depend on what the span itself did: that would
  choose the slow ones.

Where neither was seen, the throughput is not known.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from inferline_stream.pipeline.group_look import Assignment, GroupLook, OffsetCommit
from inferline_stream.pipeline.group_profile import UNSEEN_SHARE, GroupProfile, Learned, Rebalance
from inferline_stream.profiler.append_times import AppendTimes
from inferline_stream.profiler.batch_line import BatchLine, batch_line

WINDOW_S = 1800.0
"""How long what was seen counts: code and hardware of workers change."""

_SETTLED_S = 0.25
"""A commit is judged so long after it was made: looks that show its records, and the rest of its batch, are in then."""

_LOOK_S = 0.05
"""A record that came so shortly after a batch's start may still be in it: looks are 20 ms apart, fetches take some."""

_FEWEST_BATCHES, _FEWEST_SPANS = 30, 10

_LARGEST_ERROR = 0.15
"""A throughput that may be farther off than this, as a standard error, is not known yet."""

_SPAN_S, _SPAN_STEP_S = 4.5, 0.25
"""Shorter spans of commits are put together: the most that is ever done in a short one is chance. And how densely a
span's lag is looked at."""

_MARGIN = 1.1
"""A span is surely busy with so many times the work, at every moment, that was ever done in such a time."""

_ONE_CHANGE_S = 5.0
"""Assignments that follow each other so fast belong to one change of members."""

_LONGEST_HOLE_S = 300.0
"""A longer one is an outage."""

_TOGETHER = ""
"""Stands for all members where several take from the same partitions: which has done a record is not seen."""

_SAMPLES = 8
"""Latencies that are taken of one batch's part in a partition."""


@dataclass(slots=True)
class _Span:
    """A worker's commits in a row: from when and which offsets on, and how much is done since."""

    from_s: float
    committed: Mapping[int, int]
    done: int = 0


@dataclass(slots=True)
class _Member:
    """A worker: when it was free last, its span, and since when it has not committed yet."""

    free_s: float | None = None
    span: _Span | None = None
    joined_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Hole:
    """From the last commit before a change, or the first record after it, to the new owner's first commit."""

    change: int
    length_s: float
    size: int


@dataclass(slots=True)
class GroupLearner:
    """Takes looks in and gives what is known by them; without IO or a clock.

    Args:
        group: the declared name.
    """

    group: str
    assignment: Assignment | None = None
    _logs: list[AppendTimes] = field(default_factory=list)
    _committed: dict[int, int] = field(default_factory=dict)
    _pending: list[tuple[float, int, Assignment | OffsetCommit]] = field(default_factory=list)
    _exact: bool = True
    _now_s: float = 0.0
    _members: dict[str, _Member] = field(default_factory=dict)
    _owner: dict[int, str] = field(default_factory=dict)
    _sharers: int = 1
    """Members whose work is seen together."""
    _moved: dict[int, tuple[int, float]] = field(default_factory=dict)
    _changes: int = 0
    _changed_s: float = -math.inf
    # Of each batch: when, size, time, and whether it was waiting when its worker got free.
    _batches: deque[tuple[float, int, float, bool]] = field(default_factory=lambda: deque(maxlen=50_000))
    _late: deque[bool] = field(default_factory=lambda: deque(maxlen=2_000))
    # Of each span: when, how long, and of one worker what was done, and at which rate there was work at every moment.
    _spans: deque[tuple[float, float, float, float]] = field(default_factory=lambda: deque(maxlen=5_000))
    _latencies: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=50_000))
    _fresh: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=50_000))
    _holes: list[_Hole] = field(default_factory=list)
    _start_ups: list[float] = field(default_factory=list)

    def take(self, look: GroupLook) -> None:
        """Take in a look; later ones have later times."""
        self._exact, self._now_s = look.exact, look.at_s
        for partition, end in enumerate(look.ends):
            if partition >= len(self._logs):
                past = ((at_s, ends[partition]) for at_s, ends in look.past if partition < len(ends))
                self._logs.append(AppendTimes(look.at_s, end, past))
            elif end >= self._logs[partition].end:
                self._logs[partition].look(look.at_s, end)
            else:  # the topic was deleted and created again
                self._logs[partition] = AppendTimes(look.at_s, end)
                self._committed.pop(partition, None)
        if look.commits or look.assignments:
            self._pending += [(each.at_s, 0, each) for each in look.assignments]
            self._pending += [(each.at_s, 1, each) for each in look.commits if each.partition < len(self._logs)]
            self._pending.sort(key=lambda entry: entry[:2])
        settled = 0
        while settled < len(self._pending) and self._pending[settled][0] <= look.at_s - _SETTLED_S:
            settled += 1
        if settled:
            due, self._pending = self._pending[:settled], self._pending[settled:]
            for (at_s, _), entries in groupby(due, key=lambda entry: entry[:2]):
                self._settle(at_s, [entry for *_, entry in entries])

    def _settle(self, at_s: float, entries: Sequence[Assignment | OffsetCommit]) -> None:
        commits: dict[str | None, dict[int, int]] = {}
        for entry in entries:
            if isinstance(entry, Assignment):
                self._assign(entry)
            else:
                commits.setdefault(self._owner.get(entry.partition), {})[entry.partition] = entry.offset
        for owner, offsets in commits.items():
            self._commit(at_s, owner, offsets)

    def _assign(self, new: Assignment) -> None:
        old, self.assignment = self.assignment, new
        before, owners = self._owner, new.owners
        everything = frozenset[int]().union(*owners.values())
        self._sharers = 1
        if sum(map(len, owners.values())) > len(everything):
            self._sharers, owners = len(owners), {_TOGETHER: everything}
        self._owner = {p: member for member, owned in owners.items() for p in owned}
        members = self._members
        self._members = {member: members.get(member) or _Member(joined_s=new.at_s) for member in owners}
        if old is None:
            for each in self._members.values():
                each.joined_s = None  # it was there before anybody looked
            return
        if not new.owners or not old.owners:
            self._moved.clear()  # nobody is left: that is no rebalance
        elif new.at_s > self._changed_s + _ONE_CHANGE_S:
            self._changes += 1
        self._changed_s = new.at_s
        for partition, owner in before.items():
            if new.protocol == "eager" or self._owner.get(partition) != owner:
                free_s = members[owner].free_s if owner in members else None
                if free_s is not None and new.owners:
                    self._moved.setdefault(partition, (self._changes, free_s))
        for each in self._members.values():
            each.span = None
            if new.protocol == "eager":
                each.free_s = None

    def _commit(self, at_s: float, owner: str | None, offsets: Mapping[int, int]) -> None:
        """Take in what one member has committed at one moment."""
        done = {p: (self._committed.get(p), offset) for p, offset in offsets.items()}
        self._committed.update(offsets)
        parts = [(p, since, until) for p, (since, until) in done.items() if since is not None and until > since]
        member = None if owner is None else self._members.get(owner)
        if member is None or owner is None:
            return
        if any(since is None or until < since for since, until in done.values()):
            member.free_s, member.span = at_s, None  # the first that is seen, or set back by hand
        elif parts:
            self._batch(at_s, owner, member, parts)
        needed = {} if member.span is None else member.span.committed
        for partition, until in offsets.items():
            self._logs[partition].forget_before(min(until, needed.get(partition, until)))

    def _batch(self, at_s: float, owner: str, member: _Member, parts: Sequence[tuple[int, int, int]]) -> None:
        size = sum(until - since for _, since, until in parts)
        first_s = min(self._logs[p].appended_s(since) for p, since, _ in parts)
        last_s = max(self._logs[p].appended_s(until - 1) for p, _, until in parts)
        self._note_latencies(at_s, parts)
        if member.joined_s is not None:
            self._start_ups.append(at_s - max(member.joined_s, min(first_s, at_s)))
            member.joined_s = None
        if holes := [self._moved[p] for p, *_ in parts if p in self._moved]:
            change, from_s = max(holes)
            self._note_hole(_Hole(change, at_s - max(from_s, first_s), size))
            self._moved = {p: hole for p, hole in self._moved.items() if self._owner.get(p) != owner}
        elif member.free_s is not None:
            start_s = max(member.free_s, first_s)
            self._late.append(last_s > start_s + _LOOK_S)
            self._batches.append((at_s, size, at_s - start_s, first_s < member.free_s - _LOOK_S / 2))
            self._extend_span(at_s, owner, member, size)
        member.free_s = at_s

    def _note_latencies(self, at_s: float, parts: Iterable[tuple[int, int, int]]) -> None:
        for partition, since, until in parts:
            log, step = self._logs[partition], max(1, (until - since) // _SAMPLES)
            for offset in range(since, until, step):
                self._fresh.append((at_s - log.appended_s(offset), min(step, until - offset)))
                self._latencies.append(self._fresh[-1])

    def _note_hole(self, hole: _Hole) -> None:
        if 0.0 < hole.length_s < _LONGEST_HOLE_S:
            self._holes.append(hole)

    def _extend_span(self, at_s: float, owner: str, member: _Member, size: int) -> None:
        if member.span is not None:
            member.span.done += size
            if at_s - member.span.from_s < _SPAN_S:
                return
            done, rate = (each / self._sharers for each in (member.span.done, self._work_rate(member.span, at_s)))
            self._spans.append((at_s, at_s - member.span.from_s, done, rate))
        owned = (p for p, whose in self._owner.items() if whose == owner and p in self._committed)
        member.span = _Span(at_s, {p: self._committed[p] for p in owned})

    def _work_rate(self, span: _Span, until_s: float) -> float:
        """Return the highest rate that could have been served throughout a span without running out of records."""
        rate, at_s = math.inf, until_s
        while at_s > span.from_s:
            came = sum(max(0, self._logs[p].end_at(at_s) - offset) for p, offset in span.committed.items())
            rate = min(rate, came / (at_s - span.from_s))
            at_s -= _SPAN_STEP_S
        return rate

    @property
    def appended(self) -> int:
        """Records that the topic got since the first look."""
        return sum(log.end - log.first_end for log in self._logs)

    def latencies_s(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Latencies from append to commit, ascending, and how many events each stands for."""
        found = np.array(self._latencies, dtype=np.float64).reshape(-1, 2)
        found = found[np.argsort(found[:, 0], kind="stable")]
        return found[:, 0], found[:, 1]

    def fresh_latencies_s(self) -> Sequence[tuple[float, float]]:
        """Return latencies from append to commit since the last call, and how many events each stands for."""
        found = tuple(self._fresh)
        self._fresh.clear()
        return found

    def profile(self, entered: int | None = None) -> GroupProfile:
        """Return what is known now.

        Args:
            entered: events that entered the pipeline since the first look, for the visit ratio.
        """
        since_s = self._now_s - WINDOW_S
        batches = [each for each in self._batches if each[0] >= since_s]
        line, size = (self._line(batches), self._largest(batches)) if self._commits_batches(batches) else (None, 1)
        throughput = self._busy(since_s) if line is None else line.throughput
        fixed_s, per_event_s, spread = 0.0, 0.0, 0.0
        if line is not None:
            fixed_s, per_event_s, spread = line.fixed_s, line.per_event_s, line.spread
        elif throughput is not None:
            per_event_s = 1.0 / throughput.value
        visits = None
        if entered and self.appended:
            visits = Learned(self.appended / entered, math.sqrt(1 / self.appended + 1 / entered), entered)
        return GroupProfile(
            self.group,
            len(self._logs),
            0 if self.assignment is None else len(self.assignment.owners),
            size,
            fixed_s,
            per_event_s,
            spread,
            throughput,
            None if throughput is None else "busy" if line is None else "commits",
            latency_p99_s=self._p99(),
            start_up_s=_mean(self._start_ups),
            rebalance=self._rebalance(line),
            visit_ratio=visits,
        )

    def _commits_batches(self, batches: Sequence[tuple[float, int, float, bool]]) -> bool:
        """Return whether each commit is a batch's end, as far as can be seen."""
        if not self._exact or sum(each[3] for each in batches) < _FEWEST_BATCHES:
            return False
        if sum(self._late) > 0.1 * len(self._late):
            return False  # a batch holds nothing that came after its start
        low_s, middle_s, high_s = np.quantile([each[2] for each in batches], (0.1, 0.5, 0.9))
        return not (middle_s > 0.9 and high_s - low_s < 0.1 * middle_s)  # as regular as a timer

    @staticmethod
    def _largest(batches: Sequence[tuple[float, int, float, bool]]) -> int:
        """Return the largest size of which there is more than a handful."""
        return sorted((size for _, size, *_ in batches), reverse=True)[min(4, len(batches) - 1)]

    def _line(self, batches: Sequence[tuple[float, int, float, bool]]) -> BatchLine | None:
        sizes, times_s = np.array([(size, s) for _, size, s, waiting in batches if waiting], dtype=np.float64).T
        line = batch_line(sizes, np.maximum(times_s, 1e-4), self._largest(batches))
        return line if line.throughput.error <= _LARGEST_ERROR else None

    def _busy(self, since_s: float) -> Learned | None:
        spans = np.array([each[1:] for each in self._spans if each[0] >= since_s], dtype=np.float64).reshape(-1, 3)
        if not len(spans):
            return None
        length_s, done, work_rate = spans.T
        busy = work_rate > _MARGIN * float(np.max(done / length_s))
        if (count := int(busy.sum())) < _FEWEST_SPANS:
            return None
        rate = float(done[busy].sum() / length_s[busy].sum())
        rest = done[busy] - rate * length_s[busy]
        error = float(np.std(rest, ddof=1) / (math.sqrt(count) * done[busy].mean()))
        return Learned(rate, error, count) if error <= _LARGEST_ERROR else None

    def _p99(self) -> Learned | None:
        latencies_s, weights = self.latencies_s()
        if len(latencies_s) < 100:
            return None
        shares, count = np.cumsum(weights) / weights.sum(), len(latencies_s)
        off = math.sqrt(0.99 * 0.01 / count)
        low, middle, high = (
            latencies_s[min(count - 1, int(np.searchsorted(shares, share)))] for share in (0.99 - off, 0.99, 0.99 + off)
        )
        return Learned(float(middle), float((high - low) / 2 / middle) if middle > 0 else 0.0, count)

    def _rebalance(self, line: BatchLine | None) -> Rebalance | None:
        if not self._holes or self.assignment is None:
            shares = self.assignment is not None and self.assignment.protocol == "share"
            return UNSEEN_SHARE if shares else None
        usual = (lambda size: 0.0) if line is None else line.time_s
        by_change: dict[int, list[float]] = {}
        for hole in self._holes:
            by_change.setdefault(hole.change, []).append(max(0.0, hole.length_s - usual(hole.size)))
        pause = _mean([float(np.mean(each)) for each in by_change.values()])
        assert pause is not None
        return Rebalance(self.assignment.protocol, pause, max(max(each) for each in by_change.values()))


def _mean(values: Sequence[float]) -> Learned | None:
    """Return the mean; of a single value the error is as large as itself."""
    if not values:
        return None
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)) / mean) if len(values) > 1 and mean > 0 else 1.0
    return Learned(mean, error, len(values))
