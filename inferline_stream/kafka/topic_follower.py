"""Follows a topic from a place of its own: for controllers and connectors, which are granted no partitions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Literal, Self

from aiokafka.errors import KafkaError

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.connection import answered
from inferline_stream.kafka.fetched_batches import RECORDS_AT_ONCE
from inferline_stream.kafka.offset_metadata import Committed, Entry, decode_metadata, encode_metadata, known_partitions
from inferline_stream.kafka.records import KafkaFailed, Record
from inferline_stream.kafka.topic_reader import TopicReader
from inferline_stream.kafka.topic_state import recreated
from inferline_stream.pipeline.names import event_id_prefix
from inferline_stream.settings import from_environment

logger = logging.getLogger(__name__)

_OFFSETS_KEPT_MS = 10 * 365 * 86_400_000
"""How long Kafka keeps what is committed. Unless a commit says so, it forgets the offsets of a group without members
after `offsets.retention.minutes`, a week by default, and a follower that had nothing to read began at the beginning."""

STARTS = ("committed", "earliest", "latest")

Start = Mapping[int, int] | Literal["committed", "earliest", "latest"] | float


class TopicFollower:
    """Reads every partition of a topic, or those that it is given.

    A gapless one also looks at the topic now and then. It reads partitions that the topic is given, and halts where
    records are gone or stay damaged, or the topic was deleted or created again: `start` says where to go on. Another
    one tries again for ever.

    Args:
        bootstrap_servers: ``host:port``, or several of them, separated by commas.
        topic: full name.
        start: offsets by partition, and no other partition is read then; one of `STARTS`; or seconds since the epoch.
        group: consumer group that holds how far it has come. The follower takes all partitions itself:
            never run two of one group at once. None for a follower that commits nothing.
        gapless: whether a record that is gone matters.
        committed_only: skip records of open and aborted transactions.

    Raises:
        Unreachable: on entering, Kafka does not answer or has no such topic.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        start: Start = "earliest",
        *,
        group: str | None = None,
        gapless: bool = False,
        committed_only: bool = True,
    ) -> None:
        self._where, self._topic, self._start, self._group = bootstrap_servers, topic, start, group
        settings = from_environment()
        self._gapless, self._look_every_s, self._look_at_s = gapless, settings.topic_check_s, 0.0
        self._connect_timeout_s = settings.connect_timeout_s
        self._reader = TopicReader(
            bootstrap_servers,
            topic,
            group,
            gapless=gapless,
            committed_only=committed_only,
            request_timeout_s=40.0 if gapless else 5.0,  # a controller has more to do than to wait
        )

    @property
    def topic_id(self) -> str:
        """The beginning of the topic's id, which no other topic has anywhere; empty where Kafka gives none."""
        return self._reader.topic.id

    @property
    def ids_from(self) -> str:
        """What the ids of the topic's events begin with; see `event_id_prefix`."""
        return event_id_prefix(self._topic, self.topic_id)

    @property
    def positions(self) -> Mapping[int, int]:
        """Next offset to read, by partition that is read.

        It passes over control records of transactions, which have offsets and are never returned.
        """
        return self._reader.positions

    @property
    def halted(self) -> Mapping[int, str]:
        """Partitions that are not read any more, and why."""
        return self._reader.halted

    async def __aenter__(self) -> Self:
        try:
            await self._reader.start(self._connect_timeout_s, patient=False)
            with answered(self._where):
                async with asyncio.timeout(self._connect_timeout_s):
                    self._reader.hold(await self._first_offsets())
        except BaseException as error:
            await self._reader.stop()
            if isinstance(error, KafkaFailed):
                raise Unreachable(str(error)) from error
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.stop()

    async def _first_offsets(self) -> Mapping[int, int]:
        every = range(self._reader.topic.partitions)
        if self._group is not None:
            self._reader.keep_offsets(_OFFSETS_KEPT_MS)
        if isinstance(self._start, Mapping):
            return self._start
        if self._start == "latest":
            return await self._reader.ends(every)
        begins = await self._reader.beginnings(every)
        if self._start == "earliest":
            return begins
        if self._start == "committed":
            # A connector may read a Kafka that knows no stable offsets.
            committed = {} if self._group is None else await self._reader.committed(every, stable=False)
            return self._undoubted(committed, begins)
        return await self._reader.at(self._start, every)

    def _undoubted(self, committed: Mapping[int, Entry], begins: Mapping[int, int]) -> dict[int, int]:
        """Return where to go on, and halt the partitions of which that is not known."""
        known, topic, first = known_partitions(committed.values()), self._reader.topic, {}
        for p, begin in begins.items():
            offset, metadata = committed.get(p, (begin, ""))
            before = decode_metadata(offset, metadata).topic_id
            if p not in committed and p < known:
                self._halt([p], "its group has committed no offset")
            elif topic.replaces(before):
                self._halt([p], recreated(before, topic.id))
            elif offset < begin:
                self._halt([p], f"Kafka no longer has offset {offset}, but {begin} and those after it")
            else:
                first[p] = offset
        return first

    def _halt(self, partitions: Iterable[int], why: str) -> None:
        for partition in list(partitions):
            self._reader.halt([partition], why)
            logger.error(
                "%s/%d is halted: %s; start again%s",
                self._topic, partition, why,
                f" with --start earliest or latest, or set an offset of group {self._group}" if self._group else "",
            )  # fmt: skip

    async def _look_now_and_then(self) -> None:
        """Find out that the topic was created again, or has more partitions."""
        if not self._gapless or time.monotonic() < self._look_at_s:
            return
        self._look_at_s = time.monotonic() + self._look_every_s
        why, added = await self._reader.look_at_topic()
        if why:
            self._halt(self.positions, why)
        elif added:
            self._reader.hold(await self._reader.beginnings(added))

    async def read(self, wait_s: float = 1.0, most: int = 4 * RECORDS_AT_ONCE) -> list[Record]:
        """Records that came since the last call, waiting up to ``wait_s`` for the first; maybe none.

        Raises:
            Unreachable: Kafka reports an error that does not pass, or every partition is halted.
        """
        before = dict(self.positions)
        try:
            await self._look_now_and_then()
            if not self.positions:
                raise Unreachable(f"topic {self._topic!r}: {'; '.join(sorted(set(self.halted.values())))}")
            fetched = await self._reader.fetch((), wait_s, most)
        except (KafkaError, KafkaFailed) as error:
            raise Unreachable(f"topic {self._topic!r} at {self._where}: cannot be read ({error!r})") from error
        for partition, why in fetched.lost.items():
            if not self._gapless:
                self._reader.hold({partition: before[partition]})
                raise Unreachable(f"topic {self._topic!r} at {self._where}: {why}")
            self._halt([partition], why)
        return [record for records in fetched.records.values() for record in records]

    async def end(self) -> dict[int, int]:
        """Return the end offset now of each partition that is read.

        Raises:
            Unreachable: no answer in time.
        """
        with answered(self._where):
            return await self._reader.ends(self.positions)

    async def until(self, end: Mapping[int, int], stalled_s: float = 10.0) -> AsyncIterator[Record]:
        """Every record before these offsets, and those that came along with the last of them.

        Raises:
            Unreachable: nothing came for ``stalled_s`` although there is more.
        """
        heard_s = time.monotonic()
        while any(self.positions.get(p, 0) < offset for p, offset in end.items()):
            records = await self.read(0.2)
            for record in records:
                yield record
            if records:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > stalled_s:
                raise Unreachable(f"topic {self._topic} at {self._where}: offsets {dict(end)} cannot be read")

    async def read_to(self, end: Mapping[int, int]) -> list[Record]:
        """The records of `until`, as a list."""
        return [record async for record in self.until(end)]

    async def commit(self) -> None:
        """Commit everything that `read` has returned so far; while Kafka is away, wait for it.

        Raises:
            Unreachable: Kafka refuses the commit.
        """
        topic = self._reader.topic
        at = {p: Committed(o, topic_id=topic.id, partitions=topic.partitions) for p, o in self.positions.items()}
        if not at:  # every partition is halted
            return
        try:
            await self._reader.commit({p: (each.offset, encode_metadata(each)) for p, each in at.items()})
        except KafkaFailed as error:
            raise Unreachable(f"cannot commit: {error}") from error
