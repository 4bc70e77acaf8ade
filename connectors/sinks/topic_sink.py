"""What every sink does: follow a topic, store its events somewhere, and only then commit."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, Self

import msgspec

from inferline_stream.connectors import sealed_connector
from inferline_stream.connectors.sealed_connector import Seal, done_in_time, stopping, tell
from inferline_stream.dataplane.headers import cut_letter
from inferline_stream.errors import InferlineError, Unreachable, UsageError
from inferline_stream.kafka.fetched_batches import SkippedBatch
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.records import Header, Record
from inferline_stream.kafka.topic_follower import STARTS, Start, TopicFollower
from inferline_stream.pipeline.names import ERRORS_PREFIX, EVENT_ID
from inferline_stream.pipeline.units import count_of

logger = logging.getLogger(__name__)

_GATHER_S = 0.2  # an fsync or a transaction takes milliseconds: at most five a second
_AGAIN_S = 1.0
_AGAIN_AT_MOST_S = 30.0
_LEAVE_S = 5.0
_SHALLOW = 200
"""Levels of nesting that any reader of JSON has room for."""


class SinkCounts(msgspec.Struct):
    """What became of the topic's records."""

    written: int = 0
    """Events written by this process."""
    duplicates: int = 0
    """Records dropped because their event is there already."""
    unreadable: int = 0
    """Batches of records that cannot be unpacked; with `--dead-letters`, their places are among the dead letters."""
    halted: dict[int, str] = {}
    """Partitions that are not read any more, and why."""
    refused: int = 0
    """Events that the other side will never take; they are among the dead letters."""


class Away(Exception):
    """The other side takes nothing now; the same records have to be tried again.

    Args:
        reason: in words.
        after_s: not before, if the other side said so.
    """

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that the other side will never take, and why."""

    record: Record
    reason: str


class Store(Protocol):
    """Where a sink puts events. Storing may be cancelled."""

    counts: SinkCounts

    async def store(self, records: Sequence[Record], ids_from: str) -> list[Refusal]:
        """Make these durable, each event once, however often a record comes; returns those that never will be.

        Args:
            records: of one topic.
            ids_from: what its events' ids begin with; see `event_id`.

        Raises:
            Away: not all could be stored yet; all of them will come again.
        """


def no_json(value: bytes) -> str:
    """Return why a value is not stored as JSON; empty if it is JSON that can be read again."""
    try:
        msgspec.json.decode(value)
        if value.count(b"[") + value.count(b"{") > _SHALLOW:  # a reader may have less stack left than we have here
            msgspec.json.decode(b"[" * _SHALLOW + value + b"]" * _SHALLOW)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"its value is no JSON ({error})"
    except RecursionError:
        return "its value is no JSON that can be read again (it is nested too deep)"
    return ""


def event_id(record: Record, ids_from: str) -> str:
    """The pipeline's id of an event, from its header; its place in the topic for a record without one."""
    given = (record.header(EVENT_ID) or b"").decode(errors="backslashreplace")
    return given or f"{ids_from}/{record.partition}/{record.offset}"


class TopicSink:
    """Follows a topic and stores its events; connected while entered.

    While the store takes nothing, nothing is committed: that is said once, and the same records are tried again,
    at first after a second and later every half minute. While Kafka is away it waits. Once it has to leave, it gives
    the store five seconds more; what is not stored by then is not committed and comes again.

    Args:
        bootstrap_servers: ``host:port``, or several of them, separated by commas.
        topic: the topic as Kafka knows it; it must exist.
        store: where to.
        what: the store's name, for messages.
        group: consumer group that holds how far the store has come; one group per store.
        dead_letters: topic for refused events; without one, a refused event ends the sink.
        again_at_most_s: longest pause between two attempts, where the store does not say when to come again.
        start: where to begin; see `TopicFollower`.

    Raises:
        Unreachable: on entering, Kafka does not answer or has no such topic.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        topic: str,
        store: Store,
        what: str,
        group: str,
        dead_letters: str = "",
        again_at_most_s: float = _AGAIN_AT_MOST_S,
        start: Start = "committed",
    ) -> None:
        self._topic = topic
        self._store, self.counts = store, store.counts
        self._what = what
        self._again_at_most_s = again_at_most_s
        self._follower = TopicFollower(bootstrap_servers, topic, start, group=group, gapless=True)
        self._dead_letters = dead_letters
        self._producer = RecordProducer(bootstrap_servers, dead_letters) if dead_letters else None
        self._connected = contextlib.AsyncExitStack()
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as connected:
            await connected.enter_async_context(self._follower)
            if self._producer is not None:
                await connected.enter_async_context(self._producer)
            self._connected = connected.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connected.aclose()

    async def follow(self, stop: asyncio.Event) -> None:
        """Move records until stopped; then store what was read, and commit it.

        Raises:
            Unreachable: Kafka failed, or what was read could not be stored.
        """
        self._stop, loop = stop, asyncio.get_running_loop()
        await self._commit()  # where it begins: before its first record, the next start would begin elsewhere
        while not stop.is_set():
            until = loop.time() + _GATHER_S
            records = []
            while (left_s := until - loop.time()) > 0 and not stop.is_set():
                records += await self._follower.read(left_s)
            if records:
                await self._refuse(await self._keep_on(await self._readable(records)))
                await self._commit()
            self.counts.halted = dict(self._follower.halted)

    async def _readable(self, records: list[Record]) -> list[Record]:
        """Put aside the notes on batches that could not be unpacked; no store has a place for them."""
        readable = []
        for record in records:
            if not isinstance(record.value, SkippedBatch):
                readable.append(record)
                continue
            logger.error("%s leaves out %s/%d: %s", self._what, self._topic, record.partition, record.value.reason)
            if self._producer is not None:
                await self._deliver(record._replace(value=None), self._error_headers(record, record.value.reason))
            self.counts.unreadable += 1
        return readable

    async def _keep_on(self, records: list[Record]) -> list[Refusal]:
        """Store for as long as it takes; stopped meanwhile, the records are left uncommitted."""
        pause_s, said = _AGAIN_S, False
        while True:
            before = self.counts.written
            storing = asyncio.create_task(self._store.store(records, self._follower.ids_from))
            if not await done_in_time(storing, self._stop, _LEAVE_S):
                waiting = count_of(len(records), "record")
                raise Unreachable(f"{self._what}: {waiting} not written in time; to be read again")
            try:
                return storing.result()
            except Away as away:
                if self._stop.is_set():
                    raise Unreachable(f"{self._what}: {count_of(len(records), 'record')} not written: {away}") from None
                if not said:
                    logger.warning("%s: %s; trying again until it can be written", self._what, away)
                said = True
                after_s = away.after_s
            if self.counts.written > before:  # it takes some
                pause_s = _AGAIN_S
            usual_s = min(self._again_at_most_s, pause_s) * random.uniform(0.8, 1.0)  # noqa: S311  not many at once
            await self._pause(max(usual_s, after_s))
            pause_s *= 2

    async def _refuse(self, refusals: list[Refusal]) -> None:
        for refusal in refusals:
            record, reason = refusal.record, refusal.reason
            known = event_id(record, self._follower.ids_from)
            if self._producer is None:
                raise InferlineError(
                    f"{self._what} refuses event {known!r}: {reason}; fix it and start again, or give --dead-letters"
                )
            logger.warning("%s refuses event %r: %s", self._what, known, reason)
            await self._deliver(record, self._error_headers(record, reason))
            self.counts.refused += 1

    def _error_headers(self, record: Record, reason: str) -> list[Header]:
        headers: list[Header] = [(name, value) for name, value in record.headers if not name.startswith(ERRORS_PREFIX)]
        headers.append((f"{ERRORS_PREFIX}message", reason.encode("utf-8", "replace")))
        headers.append((f"{ERRORS_PREFIX}timestamp_ms", b"%d" % record.time_ms))
        if record.header(EVENT_ID) is None:
            headers.append((EVENT_ID, event_id(record, self._follower.ids_from).encode()))
        return headers

    async def _deliver(self, record: Record, headers: list[Header]) -> None:
        assert self._producer is not None
        limit_bytes = self._producer.limit_bytes(self._dead_letters)
        key, value, headers = cut_letter(record.key, record.value, headers, limit_bytes)
        while not self._stop.is_set():
            with contextlib.suppress(Unreachable):
                return await self._producer.deliver(
                    self._dead_letters,
                    value,
                    key=key,
                    headers=headers,  # no timestamp: a letter is as old as the refusal
                )
            await self._pause(_AGAIN_S)
        raise Unreachable(f"topic {self._dead_letters!r}: a refused event could not be kept; it will come again")

    async def _commit(self) -> None:
        """Commit while Kafka lets us; stopped meanwhile, what was stored will come again, and be known."""
        committing = asyncio.create_task(self._follower.commit())
        if not await done_in_time(committing, self._stop, _AGAIN_S):
            raise Unreachable(f"topic {self._topic!r}: Kafka does not take the commit of what was written")
        committing.result()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()


def parser_of(module: str, description: str, usual_group: str) -> argparse.ArgumentParser:
    """A parser of a sink's command, with the options that every sink has."""
    parser = sealed_connector.parser_of(module, description)
    parser.add_argument("--topic", required=True, help="to follow; must exist")
    parser.add_argument(
        "--start",
        choices=STARTS,
        default="committed",
        help="where to begin: where the group stands, or, for once, at the beginning or the end of the topic",
    )
    parser.add_argument("--dead-letters", default="", metavar="TOPIC", help="for events that are refused for good")
    parser.add_argument("--group", help=f"consumer group (default: {usual_group})")
    return parser


async def run(
    options: argparse.Namespace,
    store: AbstractAsyncContextManager[Store],
    seal: Seal,
    *,
    what: str,
    usual_group: str,
    again_at_most_s: float = _AGAIN_AT_MOST_S,
) -> None:
    """Enter a store, connect, seal the process, and move records until SIGINT or SIGTERM; then print counts as JSON.

    Args:
        options: of a command.
        store: where to.
        seal: of this process.
        what: see `TopicSink`.
        usual_group: the consumer group, unless the options name one.
        again_at_most_s: see `TopicSink`.

    Raises:
        UsageError: its dead letters would come back to it.
        InferlineError: why it ended before, or which partitions it has halted.
    """
    if options.dead_letters == options.topic:
        raise UsageError(f"--dead-letters {options.topic}: the sink reads that topic; give another one")
    stop, counts = stopping(), SinkCounts()
    async with contextlib.AsyncExitStack() as stack:

        async def connected() -> TopicSink:
            opened = await stack.enter_async_context(store)
            sink = TopicSink(
                options.bootstrap_servers,
                topic=options.topic,
                store=opened,
                what=what,
                group=options.group or usual_group,
                dead_letters=options.dead_letters,
                again_at_most_s=again_at_most_s,
                start=options.start,
            )
            return await stack.enter_async_context(sink)

        connecting = asyncio.create_task(connected())
        if await done_in_time(connecting, stop, 0.0):
            sink = connecting.result()
            seal()
            await sink.follow(stop)
            counts = sink.counts
    tell(counts)
    sealed_connector.end_if_halted(counts.halted, "written")
