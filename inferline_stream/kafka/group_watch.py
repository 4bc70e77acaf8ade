"""Watches consumer groups that run already: ends of their topics, and what their coordinator writes of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.kafka.topic_state import short_topic_id
from inferline_stream.kafka.wire.coordinator_records import (
    TOPIC,
    ClassicGroupRecord,
    CommitRecord,
    MemberRecord,
    partition_of,
    read_record,
)
from inferline_stream.pipeline.consumer_group import ConsumerGroup
from inferline_stream.pipeline.group_look import Assignment, GroupLook, OffsetCommit
from inferline_stream.pipeline.group_profile import RebalanceProtocol

logger = logging.getLogger(__name__)

LOOK_S = 0.02
"""Between two looks at end offsets."""

_POLL_S = 0.25
"""Between two looks at what a group has done, of a share group or where its coordinator's log may not be read."""

_TOPICS_S = 5.0
"""Between two looks at how many partitions the topics have."""

_PAST_S = tuple(1.5**n for n in range(18, -1, -1))
"""How long ago records' timestamps are asked for, when it begins: what waits may have come within the last 25 min."""

_MOST_BEFORE = 2_000_000
"""Records of the log before now that are read, for the members that there are: about 20 s of work."""

_ONE_CLOCK_S = 0.05
"""What is read of a commit so soon after it was made says nothing of the clocks."""


@dataclass(slots=True)
class _Watched:
    """One group: what has come of it since the last look."""

    declared: ConsumerGroup
    topic_id: str
    commits: list[OffsetCommit] = field(default_factory=list)
    assignments: list[Assignment] = field(default_factory=list)
    members: dict[str, frozenset[int]] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    before: dict[int, OffsetCommit] = field(default_factory=dict)
    """By partition, the last commit before it is watched, while the log is read."""
    others: set[str] = field(default_factory=set)
    past: tuple[tuple[float, tuple[int, ...]], ...] = ()
    """For its first look."""
    shares: bool = False
    """Whether it is a share group: it commits nothing, and its coordinator is asked what is left."""

    def assign(self, at_s: float, members: Mapping[str, frozenset[int]], protocol: RebalanceProtocol) -> None:
        """Take in what its members own now."""
        self.members = dict(members)
        self.assignments.append(Assignment(at_s, self.members, protocol))

    def commit(self, at_s: float, partition: int, offset: int) -> None:
        """Take in what it has done by a look; nothing new is left out."""
        if self.committed.get(partition) != offset:
            self.committed[partition] = offset
            self.commits.append(OffsetCommit(at_s, partition, offset))

    def finish(self, at_s: float, partition: int, least: int, most: int) -> None:
        """Take in how many records of a partition a share group has finished: between these bounds.

        It goes back only where it surely has: its offsets were reset.
        """
        before = self.committed.get(partition, least)
        self.commit(at_s, partition, least if most < before else max(before, least))

    def look(self, at_s: float, ends: tuple[int, ...], *, exact: bool) -> GroupLook:
        """Return what has come, and begin again."""
        exact = exact and not self.shares
        found = GroupLook(at_s, ends, tuple(self.commits), tuple(self.assignments), exact, self.past)
        self.commits, self.assignments, self.past = [], [], ()
        return found


class GroupWatch:
    """Yields looks at groups, and changes nothing.

    Of `__consumer_offsets` it reads the partitions that hold these groups, without records of open or aborted
    transactions. Where it may not, it asks for committed offsets and members four times a second; `exact` says which.
    Of a share group it always asks: for its members, and for what each partition has left.

    Args:
        bootstrap_servers: host:port, comma separated.
        groups: as they are declared.

    Raises:
        Unreachable: on entering, Kafka does not answer or has no such topic; by `looks`, it has gone away.
    """

    def __init__(self, bootstrap_servers: str, groups: Iterable[ConsumerGroup]) -> None:
        self._where, self._groups = bootstrap_servers, tuple(groups)
        self._offsets = Offsets(bootstrap_servers)
        self._watched: dict[str, _Watched] = {}
        self._partitions: dict[str, int] = {}
        self._log: TopicFollower | None = None
        self._ahead_s = 0.0
        """What the clock of looks and commits is ahead of the event loop's: this host's as it was on entering. Another
        one would date commits away from looks where it is set while they are watched."""
        self._least_delay_s = _ONE_CLOCK_S
        self._live = False
        self._closing = AsyncExitStack()
        self.exact = False
        """Whether the coordinator's log is read."""

    async def __aenter__(self) -> Self:
        self._ahead_s = time.time() - asyncio.get_running_loop().time()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._offsets)
            for group in self._groups:
                state = await self._offsets.state(group.topic)
                self._partitions[group.topic] = state.partitions
                self._watched[group.group] = _Watched(group, state.id, past=await self._past(group.topic))
            self._log = await self._open_log(stack)
            self._closing = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    async def _past(self, topic: str) -> tuple[tuple[float, tuple[int, ...]], ...]:
        """Return earlier times and the ends of a topic then, by its records' timestamps, ascending."""
        partitions = {topic: self._partitions[topic]}
        ends, found, now_s = (await self._offsets.ends(partitions))[topic], [], self._now_s()
        for ago_s in _PAST_S:
            since = await self._offsets.first_since(partitions, int((now_s - ago_s) * 1e3))
            first = {tp.partition: at.offset for tp, at in since.items()}
            found.append((now_s - ago_s, tuple(first.get(p, end) for p, end in enumerate(ends))))
        return tuple(found)

    def other_topics(self, group: str) -> frozenset[str]:
        """Return further topics that a group, by its id, has committed offsets of."""
        return frozenset(self._watched[group].others)

    async def _open_log(self, stack: AsyncExitStack) -> TopicFollower | None:
        """Follow the groups' partitions of the log, once what is there is read; None where that is refused."""
        try:
            state = await self._offsets.state(TOPIC)
            mine = {partition_of(group, state.partitions) for group in self._watched}
            begins = (await self._offsets.begins({TOPIC: state.partitions}))[TOPIC]
            ends = (await self._offsets.ends({TOPIC: state.partitions}))[TOPIC]
            start = {p: max(begins[p], ends[p] - _MOST_BEFORE) for p in mine}
            log = await stack.enter_async_context(TopicFollower(self._where, TOPIC, start))
            async for record in log.until(await log.end()):
                self._take(record)
            for watched in self._watched.values():
                watched.commits = list(watched.before.values())
                watched.before.clear()
        except Unreachable as error:
            logger.warning(
                "%s cannot be read (%s); throughput is learned only from overload. Where Kafka has it, `topics "
                "--print` has the right that is missing",
                TOPIC, error,
            )  # fmt: skip
            return None
        self.exact, self._live = True, True
        return log

    def _take(self, record: Record) -> None:
        """Take in one record of the log."""
        found = read_record(record.key, record.value)
        watched = None if found is None else self._watched.get(found.group)
        if found is None or watched is None:
            return
        at_s = (record.timestamp_ms or 0) / 1e3
        if isinstance(found, CommitRecord):
            self._committed(watched, found)
        elif isinstance(found, ClassicGroupRecord):
            protocol: RebalanceProtocol = "cooperative" if "cooperative" in found.protocol else "eager"
            topic = watched.declared.topic
            owned = {member: topics.get(topic, frozenset()) for member, topics in found.members.items()}
            watched.assign(at_s + self._shift_s, owned, protocol)
        elif isinstance(found, MemberRecord):
            members = {member: owned for member, owned in watched.members.items() if member != found.member}
            if found.owned is not None:
                by_id = {short_topic_id(topic_id): partitions for topic_id, partitions in found.owned.items()}
                members[found.member] = by_id.get(watched.topic_id, frozenset())
            watched.assign(at_s + self._shift_s, members, "kip848")
        if not self._live:
            del watched.assignments[:-1]

    def _committed(self, watched: _Watched, found: CommitRecord) -> None:
        if found.topic != watched.declared.topic:
            if found.offset is not None:
                watched.others.add(found.topic)
            else:  # the topic is deleted, or nobody has read it for long
                watched.others.discard(found.topic)
            return
        if found.offset is None:
            return
        made_s = found.time_ms / 1e3
        if self._live:
            self._least_delay_s = min(self._least_delay_s, self._now_s() - made_s)
            watched.commits.append(OffsetCommit(made_s + self._shift_s, found.partition, found.offset))
        else:
            watched.before[found.partition] = OffsetCommit(made_s, found.partition, found.offset)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() + self._ahead_s

    @property
    def _shift_s(self) -> float:
        """What our clock is ahead of the broker's: at least what no commit was ever read sooner after."""
        return self._least_delay_s if not 0.0 <= self._least_delay_s <= _ONE_CLOCK_S else 0.0

    async def looks(self) -> AsyncIterator[Mapping[str, GroupLook]]:
        """Yield a look at every group, by its declared name, each 20 ms; on time where the caller is."""
        reading = None if self._log is None else asyncio.create_task(self._read(self._log))
        loop = asyncio.get_running_loop()
        due_s = polled_s = counted_s = loop.time()
        try:
            while True:
                if loop.time() >= counted_s:
                    counted_s += _TOPICS_S
                    found = await self._offsets.existing(self._partitions)
                    self._partitions = {topic: max(n, found.get(topic, 0)) for topic, n in self._partitions.items()}
                ends = await self._offsets.ends(self._partitions)
                at_s = self._now_s()
                if loop.time() >= polled_s:
                    polled_s = max(polled_s + _POLL_S, loop.time())
                    await self._poll(ends, logged=reading is not None)
                if reading is not None and reading.done():
                    reading.result()
                yield {
                    watched.declared.name: watched.look(at_s, ends[watched.declared.topic], exact=self.exact)
                    for watched in self._watched.values()
                }
                due_s = max(due_s + LOOK_S, loop.time())
                await asyncio.sleep(due_s - loop.time())
        finally:
            if reading is not None:
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError, Unreachable):
                    await reading

    async def _read(self, log: TopicFollower) -> None:
        while True:
            for record in await log.read(1.0):
                self._take(record)

    async def _poll(self, ends: Mapping[str, tuple[int, ...]], *, logged: bool) -> None:
        """Ask who is in the groups that the log does not show, and what they have done."""
        for group, watched in self._watched.items():
            unseen = not watched.members and not watched.committed and not watched.commits
            shared = await self._offsets.share_members(group) if watched.shares or unseen else None
            watched.shares = watched.shares or shared is not None
            if shared is not None:
                await self._poll_shared(watched, ends[watched.declared.topic], shared)
            elif not logged and not watched.shares:
                await self._poll_committed(watched)

    async def _poll_committed(self, watched: _Watched) -> None:
        group, topic = watched.declared.group, watched.declared.topic
        entries = await self._offsets.entries(group, topic, range(self._partitions[topic]))
        at_s = self._now_s()
        for partition, (offset, _) in entries.items():
            watched.commit(at_s, partition, offset)
        protocol, members = await self._offsets.members(group)
        owned = {member: topics.get(topic, frozenset()) for member, topics in members.items()}
        if owned != watched.members:
            watched.assign(at_s, owned, "cooperative" if "cooperative" in protocol else "eager")

    async def _poll_shared(
        self,
        watched: _Watched,
        ends: tuple[int, ...],
        members: Mapping[str, Mapping[str, frozenset[int]]],
    ) -> None:
        """Ask what a share group has left; its lag counts records that its members have in hand."""
        topic = watched.declared.topic
        lags = await self._offsets.share_lags(watched.declared.group, topic, range(len(ends)))
        after = (await self._offsets.ends({topic: len(ends)}))[topic]
        at_s = self._now_s()
        for partition, lag in lags.items():
            watched.finish(at_s, partition, ends[partition] - lag, after[partition] - lag)
        watched.others = {of for topics in members.values() for of in topics} - {topic}
        owned = {member: topics.get(topic, frozenset()) for member, topics in members.items()}
        if owned != watched.members:
            watched.assign(at_s, owned, "share")


async def groups_of(offsets: Offsets, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return partitions of each topic that groups have members on or have committed offsets of, by group."""
    found: dict[str, dict[str, int]] = {}
    for name in names:
        members = await offsets.share_members(name) or (await offsets.members(name))[1]
        topics = {topic for owned in members.values() for topic in owned} | set(await offsets.committed_topics(name))
        found[name] = await offsets.existing(topics) if topics else {}
    return found
