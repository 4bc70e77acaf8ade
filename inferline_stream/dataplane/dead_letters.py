"""Dead letters: records that could not be processed, found, decoded, and sent again to where they failed.

A letter is the record as it was read, in ``<topic>.dlq``, with headers that say why. What was sent again is noted
in the same topic, in the transaction of the records themselves: a letter is never sent twice unless that is asked for.

What a letter holds is its sender's. So a letter goes back to the topic of its own topic of dead letters, whatever its
headers say, and only a record that holds nothing else passes for a note.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inferline_stream.dataplane.codecs import codec
from inferline_stream.dataplane.headers import LATEST_MS, MOST_REPLAYS, REPLAY, RESTORED_MS, SENT_AGAIN, number
from inferline_stream.dataplane.lineage import root_of
from inferline_stream.dataplane.routes import input_topics
from inferline_stream.errors import Unreachable, UsageError
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import record_rules
from inferline_stream.kafka.records import Header, Record, partition_of
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.kafka.writer import Writer
from inferline_stream.pipeline.annotations import types_of
from inferline_stream.pipeline.names import ENTRY_TIME, ERRORS_PREFIX, EVENT_ID, PARENT, Names
from inferline_stream.pipeline.shape import topological
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.version import format_between

_START_S = 10.0

_PLACE = re.compile(rb"\d{1,9}/\d{1,18}")
"""Partition and offset, as a note has them."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A record that could not be processed.

    Args:
        topic: of dead letters.
        partition: there.
        offset: there.
        input_topic: that the stage reads where it died.
        died_ms: when it became a dead letter, ms since the epoch.
        key: the record's own.
        value: as it was, perhaps undecodable.
        headers: those that say why among them.
        sent_again_ms: when it was last sent again; None for never.
    """

    topic: str
    partition: int
    offset: int
    input_topic: str
    died_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[Header]
    sent_again_ms: int | None = None

    @property
    def id(self) -> str:
        """Its place: topic/partition/offset."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    def says(self, name: str) -> str:
        """What an error header says: stage, type, message, traceback, topic, partition, offset, timestamp_ms."""
        return self._header(ERRORS_PREFIX + name)

    @property
    def event_id(self) -> str:
        """The event that it belongs to."""
        return self._header(EVENT_ID)

    @property
    def root(self) -> bytes:
        """The source's event that it comes from: where results are gathered, those of all its letters meet again."""
        return root_of(self.headers) or b""

    @property
    def parent(self) -> str:
        """Where parts wait for each other, the parent whose result it is."""
        return self._header(PARENT)

    @property
    def time_ms(self) -> int | None:
        """The record's own timestamp; None where it had none that can be one."""
        return number(self._bytes(ERRORS_PREFIX + "timestamp_ms"), LATEST_MS)

    @property
    def place(self) -> tuple[int, int] | None:
        """Partition and offset at which the record was read; None where the headers do not say."""
        partition = number(self._bytes(ERRORS_PREFIX + "partition"), 2**31 - 1)
        offset = number(self._bytes(ERRORS_PREFIX + "offset"), 2**63 - 1)
        return None if partition is None or offset is None else (partition, offset)

    @property
    def failed_in(self) -> str:
        """Where the record was read: topic/partition/offset, as far as it is known."""
        return "/".join(map(str, (self.input_topic, *(self.place or ()))))

    @property
    def replays(self) -> int:
        """How often the event had been sent again before it died here."""
        return number(self._bytes(REPLAY), MOST_REPLAYS) or 0

    def _header(self, name: str) -> str:
        return self._bytes(name).decode("utf-8", "replace")

    def _bytes(self, name: str) -> bytes:
        return next((value or b"" for found, value in self.headers if found == name), b"")


async def dead_letters(bootstrap_servers: str, pipeline: Pipeline, prefix: str = "") -> list[Letter]:
    """Every dead letter of a pipeline that Kafka still has, in the order of their deaths.

    Raises:
        Unreachable: Kafka does not answer, or has no topic of dead letters.
    """
    topics = _topics(pipeline, Names(pipeline.name, prefix))
    async with Offsets(bootstrap_servers) as offsets:
        partitions = await offsets.existing(list(topics))
    if not partitions:
        raise Unreachable(
            f"Kafka at {bootstrap_servers} has none of the topics {', '.join(topics)}: "
            "is the pipeline running there, and under this --prefix?"
        )
    letters: list[Letter] = []
    for topic in partitions:
        async with TopicFollower(bootstrap_servers, topic) as follower:
            records = [record async for record in follower.until(await follower.end())]
            letters += noted(topic, topics[topic], records)
    return sorted(letters, key=lambda letter: (letter.died_ms, letter.topic, letter.partition, letter.offset))


def noted(topic: str, input_topic: str, records: Sequence[Record]) -> Iterable[Letter]:
    """Return the letters of one topic, with what the notes among its records say of them.

    Args:
        topic: of dead letters.
        input_topic: whose records they were.
        records: all of the topic's.
    """
    places = [_noted_place(record) for record in records]
    sent_again = {place: record.time_ms for place, record in zip(places, records, strict=True) if place is not None}
    for place, record in zip(places, records, strict=True):
        if place is None:
            again_ms = sent_again.get(b"%d/%d" % (record.partition, record.offset))
            at = (topic, record.partition, record.offset, input_topic, record.time_ms)
            yield Letter(*at, record.key, record.value, tuple(record.headers), again_ms)


def _noted_place(record: Record) -> bytes | None:
    """Return which letter a note is about; None for what is no note: a letter has a reason among its headers."""
    if record.value is None and len(record.headers) == 1:
        ((name, value),) = record.headers
        if name == SENT_AGAIN and _PLACE.fullmatch(value or b""):
            return value
    return None


def chosen(letters: Iterable[Letter], ids: Collection[str], stage: str | None = None) -> list[Letter]:
    """Letters by their ids or event ids, and by the stage that they died at.

    Raises:
        UsageError: an id that no letter has.
    """
    known = list(letters)
    for wanted in ids:
        if not any(wanted in (letter.id, letter.event_id) for letter in known):
            raise UsageError(f"no dead letter has the id or event id {wanted!r}; `dlq ls` lists them")
    return [
        letter
        for letter in known
        if (not ids or letter.id in ids or letter.event_id in ids) and stage in (None, letter.says("stage"))
    ]


def decoded(letter: Letter, pipeline: Pipeline, prefix: str = "") -> Any:
    """The value as its producer meant it.

    Raises:
        ValueError: it is no such value; that may be why it died.
    """
    names = Names(pipeline.name, prefix)
    try:
        stage = next(s for s in pipeline.stages if letter.input_topic in input_topics(pipeline, names, s.name))
        name = pipeline.codec_of(stage)
        if stage.after:
            parent = letter.parent or stage.after[0].parent.name
            name = format_between(types_of(pipeline.stage(parent)).returns)
        return codec(name).decoder(Any)(letter.value or b"")
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class SentAgain:
    """What a replay did.

    Args:
        sent: letters that were sent again; those of an event's other branches among them.
        before: letters that had been sent again before; left alone, unless ``again`` was asked for.
        cut: letters without their value, which was too large for the dead letters; left alone.
    """

    sent: Sequence[Letter]
    before: Sequence[Letter]
    cut: Sequence[Letter]


async def send_again(
    bootstrap_servers: str,
    pipeline: Pipeline,
    prefix: str = "",
    *,
    ids: Collection[str] = (),
    stage: str | None = None,
    again: bool = False,
) -> SentAgain:
    """Put letters back on the topics that they failed in, with their own key, headers, timestamp and event id.

    A letter goes to the topic whose topic of dead letters it is in, whatever its headers say.

    All letters of a source's event go together: a join, or a stage that gathers, needs every part. Records and notes
    are one transaction: all of it happened, or nothing did. Only one replay of a pipeline runs at a time; a second one
    ends the first.

    Args:
        bootstrap_servers: of the cluster.
        pipeline: whose letters.
        prefix: of its names.
        ids: of letters or events; all of them by default.
        stage: only those that died there.
        again: also those that have been sent again before.

    Raises:
        UsageError: an id that no letter has.
        Unreachable: Kafka does not answer.
        Fenced: another replay has begun.
    """
    names = Names(pipeline.name, prefix)
    sender = Writer(bootstrap_servers, "inferline-dlq", names.transactional_id("dlq"))
    await sender.start(_START_S)  # first: from here on no other replay can write, and what it wrote can be read
    try:
        letters = await dead_letters(bootstrap_servers, pipeline, prefix)
        wanted = chosen(letters, ids, stage)
        events = {letter.root for letter in wanted if letter.root}
        wanted = [letter for letter in letters if letter.root in events or letter in wanted]
        cut = [letter for letter in wanted if letter.says("cut_bytes")]
        sent = [letter for letter in wanted if letter not in cut and (again or letter.sent_again_ms is None)]
        if sent:
            topics = {topic for letter in sent for topic in (letter.topic, letter.input_topic)}
            sender.limits = (await record_rules(bootstrap_servers, topics)).limits
            await _send(sender, sent, pipeline, names)
        return SentAgain(sent, [letter for letter in wanted if letter.sent_again_ms is not None], cut)
    finally:
        await sender.stop()


async def _send(sender: Writer, letters: Sequence[Letter], pipeline: Pipeline, names: Names) -> None:
    replays = {letter.root: 0 for letter in letters}
    for letter in letters:
        replays[letter.root] = min(MOST_REPLAYS, max(replays[letter.root], letter.replays + 1))
    joins = [s.name for s in pipeline.stages if s.is_join and not s.ordered]
    by_event = {topic for join in joins for topic in input_topics(pipeline, names, join)}
    partitions = {topic: await sender.partitions_of(topic) for topic in {letter.input_topic for letter in letters}}
    outgoing: dict[tuple[str, int], list[Record]] = {}
    known: set[tuple[str, object, str]] = set()
    for letter in letters:
        topic = letter.input_topic
        # A topic that was created again has records of other events at the same places.
        record = (topic, letter.place or letter.id, letter.event_id)
        if record not in known:  # a replica that died at the wrong moment has left two letters of one record
            partition = _partition(letter, partitions[topic], by_event=topic in by_event)
            message = _as_it_was(letter, replays[letter.root])
            outgoing.setdefault((topic, partition), []).append(message)
        known.add(record)
        place = f"{letter.partition}/{letter.offset}".encode()
        note = Record(letter.key, None, [(SENT_AGAIN, place)], round(time.time() * 1000))
        outgoing.setdefault((letter.topic, letter.partition), []).append(note)
    await sender.begin()
    # A part is in a join only after what its others come from is there: else the join could give it up without them.
    inputs = [topic for stage in topological(pipeline.stages) for topic in input_topics(pipeline, names, stage.name)]
    for topic in dict.fromkeys([*inputs, *(topic for topic, _ in outgoing)]):
        if records := {place: messages for place, messages in outgoing.items() if place[0] == topic}:
            await sender.send(records)
    await sender.commit({})


def _as_it_was(letter: Letter, replay: int) -> Record:
    headers = [(name, value) for name, value in letter.headers if not name.startswith(ERRORS_PREFIX) and name != REPLAY]
    now_ms, own_ms = round(time.time() * 1000), letter.time_ms
    if own_ms is not None and all(name != ENTRY_TIME for name, _ in headers):
        headers.append((ENTRY_TIME, b"%d" % (own_ms * 1000)))
    # By an old timestamp, retention could delete the record before it is read; brokers refuse one that is far ahead.
    time_ms = own_ms if own_ms is not None and now_ms - RESTORED_MS <= own_ms <= now_ms else now_ms
    return Record(letter.key, letter.value, [*headers, (REPLAY, b"%d" % replay)], time_ms)


def _partition(letter: Letter, partitions: int, *, by_event: bool) -> int:
    """Where it was; where the topic has fewer partitions now, or that is unknown, what its key or event gives."""
    if letter.place is not None and letter.place[0] < partitions:
        return letter.place[0]
    hashed = letter.key if letter.key is not None and not by_event else letter.event_id.encode()
    return partition_of(hashed, partitions)


def shown_bytes(data: bytes | None) -> str | None:
    """Bytes as text where they are text, else in hexadecimal digits."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"0x{data.hex()}"


def _topics(pipeline: Pipeline, names: Names) -> dict[str, str]:
    """Return every topic of dead letters, and the topic whose records it holds."""
    every = [topic for stage in pipeline.stages for topic in input_topics(pipeline, names, stage.name)]
    return {names.dead_letters(topic): topic for topic in every}
