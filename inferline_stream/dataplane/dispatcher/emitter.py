"""From outcomes to records: along the edges, to the sink, to the dead letters and to the completed topic."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import structs

from inferline_stream.dataplane.dispatcher.event import Dead, Event, Expired, Late, Moved, Outcome, Requeued, Skipped
from inferline_stream.dataplane.dispatcher.report_counts import counts_of_classes
from inferline_stream.dataplane.frames import MANY_BYTES, Done, Failed, Many
from inferline_stream.dataplane.headers import (
    CUT_BYTES,
    DEAD,
    DROPPED,
    ENDED_AT,
    LETTERED,
    MOVED,
    MOVED_TO_CLASS,
    REASON,
    RESTORED_MS,
    cut_letter,
    join_headers,
    letter_headers,
    our_headers,
)
from inferline_stream.dataplane.lineage import no_part_headers, part_headers, results_headers, with_own
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.dataplane.routes import Routes
from inferline_stream.kafka.fetched_batches import SkippedBatch
from inferline_stream.kafka.pipeline_topics import RecordRules
from inferline_stream.kafka.records import LIMIT_BYTES, Header, Record, murmur2, record_bytes
from inferline_stream.pipeline.event_classes import CLASS_STRIDE
from inferline_stream.pipeline.names import ERRORS_PREFIX, HEADER_PREFIX
from inferline_stream.pipeline.units import count_of

_HASHES_REMEMBERED = 65_536

_KEY_REMEMBERED_BYTES = 128
"""Of a longer key the hash is not remembered: anyone may send as many of a megabyte."""


class Emitter:
    """Collects the records that outcomes cause, by topic and partition.

    Args:
        routes: of the stage.
        partitions: of every topic written to.
        rng: chooses partitions for records without a key.
        report: the dispatcher's, whose counters it keeps, by the class of events.
        rules: what the topics written to take, where it is known.
    """

    def __init__(
        self,
        routes: Routes,
        partitions: Mapping[str, int],
        rng: random.Random,
        report: PoolReport,
        rules: RecordRules | None = None,
    ) -> None:
        self._routes = routes
        self._partitions = partitions
        self._rng = rng
        self._counts = counts_of_classes(report, routes)
        self._hashes: dict[bytes, int] = {}
        self._topics = [{stage: of.topic_of(stage) for stage in of.stages} for of in routes.classes]
        """Input topics by the class of events and the stage."""
        rules = rules or RecordRules({})
        self._limits = dict(rules.limits)
        self._need_key = rules.compacted
        """Tables, which take no record without a key. No run begins on such a topic of our own."""
        if routes.sink and routes.sink_max_bytes is not None:
            self._limits[routes.sink_topic] = min(self._limit(routes.sink_topic), routes.sink_max_bytes)
        joining = record_bytes(None, None, join_headers([], routes.stage, routes.stages)) - record_bytes(None, None, ())
        inner = [
            self._limit(topics[child]) - (joining if child in routes.joins else 0)
            for topics in self._topics
            for child in routes.children
        ]
        self.result_bytes = min([*inner, self._limit(routes.sink_topic)] if routes.sink else inner)
        """Largest result that can be sent on."""
        self._sticky = 0
        self._outgoing: dict[tuple[str, int], list[Record]] = {}

    def _limit(self, topic: str) -> int:
        return self._limits.get(topic, LIMIT_BYTES)

    def take(self) -> dict[tuple[str, int], list[Record]]:
        """Return the records collected so far and begin with none."""
        outgoing, self._outgoing = self._outgoing, {}
        # Records without a key go to one partition per send: fewer, larger batches, and a pool has one queue anyway.
        self._sticky = int(self._rng.random() * 1_000_003)
        return outgoing

    def add(self, event: Event, outcome: Outcome) -> None:
        """Collect what one outcome causes."""
        counts = self._counts[event.partition // CLASS_STRIDE]
        kind = type(outcome)
        counts.events += kind is not Requeued and kind is not Late and kind is not Moved
        if isinstance(outcome, Done | Many):
            self._give(event, outcome)
        elif isinstance(outcome, Skipped):
            self._pass_by(event)
        elif isinstance(outcome, Dead):
            if outcome.how == LETTERED:
                self._keep_parts(event)
            if self._routes.gathers:
                self._end(event, "dead_lettered" if outcome.how == LETTERED else "expired")
            self._pass_by(event, dead=outcome.how)
        elif isinstance(outcome, Failed):
            self._fail(event, outcome)
        elif isinstance(outcome, Expired):
            counts.expired += 1
            if outcome.to_dead_letters:
                self._letters(event, event.records, Failed("Expired", "the event was past its SLO", ""))
            self._end(event, "expired")
            self._pass_by(event, dead=LETTERED if outcome.to_dead_letters else DROPPED)
        elif isinstance(outcome, Late):
            self._letters(event, event.records, Failed("IncompleteJoin", outcome.why, ""))
        elif isinstance(outcome, Moved):
            self._move(event, outcome.class_number)
        elif isinstance(outcome, Requeued):
            for record in event.records:
                headers = [header for header in record.headers if header[0] != MOVED]
                headers.append((MOVED, b"%d" % outcome.moved))
                topic = self._topics[event.partition // CLASS_STRIDE][self._routes.stage]
                self._put(topic, record.partition, record.key, record.value, headers, timestamp_ms=record.timestamp_ms)

    def _move(self, event: Event, class_number: int) -> None:
        """Append an event to the topic of its class, by the first of the stages at which it enters.

        No stage hears of it as one of the class that it leaves: each at which it enters moves it.
        """
        routes = self._routes
        if routes.stages.index(routes.stage) != min(routes.entries):
            return
        topic, record = self._topics[class_number][routes.stage], event.records[0]
        size_bytes = record_bytes(record.key, record.value, event.headers)
        if size_bytes > self._limit(topic):
            why = f"the record has {size_bytes} bytes with its headers, topic {topic} takes {self._limit(topic)}"
            self._dies(event, Failed("Oversize", why, ""), routes.finals)
        elif record.key is None and topic in self._need_key:
            self._dies(event, _no_key(topic), routes.finals)
        else:
            partition, age_ms = self._partition(topic, record.key), event.taken_ms - event.entered_us // 1000
            entry_ms = event.entry_us // 1000 if age_ms <= RESTORED_MS else None
            self._put(topic, partition, record.key, record.value, event.headers, timestamp_ms=entry_ms)
            self._counts[0].moved += 1
            self._complete(event, MOVED_TO_CLASS, routes.finals)

    def _fail(self, event: Event, failed: Failed) -> None:
        """Make a dead letter of an event: its stage failed on it, or no topic takes its result."""
        self._dies(event, failed, self._routes.ends_at)
        self._pass_by(event, dead=LETTERED)

    def _dies(self, event: Event, failed: Failed, ended: Sequence[str]) -> None:
        """Make a dead letter of an event, of which the sinks of these stages get nothing."""
        self._counts[event.partition // CLASS_STRIDE].dead_lettered += 1
        self._letters(event, event.records, failed)
        self._complete(event, "dead_lettered", ended)

    def _give(self, event: Event, outcome: Done | Many) -> None:
        """Send on what the stage has given an event, all of it or nothing."""
        results = self._results_of(event, outcome)
        if results and results[0][0] is event and results[0][1] is outcome:  # the usual case
            failed = self._refused_one(*results[0])
        else:
            failed = self._refused(event, outcome, results)
        if failed is not None:
            self._fail(event, failed)
            return
        for of, done in results:
            self._forward(of, done.value, done.edges)
        self._counts[event.partition // CLASS_STRIDE].results += len(results)
        if not results:
            self._filtered(event)

    def refused(self, event: Event, outcome: Done | Many) -> Failed | None:
        """Return why what a stage has given an event cannot be sent on, if so."""
        return self._refused(event, outcome, self._results_of(event, outcome))

    def _refused(self, event: Event, outcome: Done | Many, results: Sequence[tuple[Event, Done]]) -> Failed | None:
        most, limit_bytes = self._routes.most, MANY_BYTES * self.result_bytes
        if isinstance(outcome, Many):
            if len(results) > most:
                what = f"{count_of(len(results), 'result')} for an event of a stage that may give {max(1, most)}"
                return Failed("TooManyResults", what, "")
            if sum(len(done.value) for done in outcome.results) > limit_bytes:
                return Failed("Oversize", f"more than {limit_bytes} bytes of results", "")
        if self._routes.key_is_fixed and (other := [of.key for of, _ in results if of.key != event.key]):
            why = (
                f"the result has the key {other[0]!r}, and an ordered join finds the event's other parts by its own, "
                f"{event.key!r}; set the key where the branches begin, or leave it out"
            )
            return Failed("OtherKey", why, "")
        return next((refused for of, done in results if (refused := self._refused_one(of, done)) is not None), None)

    def _results_of(self, event: Event, outcome: Done | Many) -> Sequence[tuple[Event, Done]]:
        """Return each result with the event that it is."""
        if isinstance(outcome, Done):
            if outcome.key is None and not outcome.headers and not self._routes.most:
                return ((event, outcome),)
            outcome = Many((outcome,))
        found = outcome.results
        if self._routes.most and len(found) <= self._routes.most:
            names = results_headers(event.event_id, event.headers, len(found))
            events = [structs.replace(event, event_id=name, headers=headers) for name, headers in names]
        else:
            events = [event] * len(found)
        return [(_with_own(of, done), done) for of, done in zip(events, found, strict=True)]

    def _refused_one(self, event: Event, done: Done) -> Failed | None:
        """Return why a result cannot be sent on."""
        if event.key is None and self._routes.sink and self._routes.sink_topic in self._need_key:
            return _no_key(self._routes.sink_topic)
        # An event's size is counted generously, so that most results need no exact count.
        if done.headers or done.key is not None or len(done.value) + event.size_bytes > self.result_bytes:
            size_bytes = record_bytes(event.key, done.value, event.headers)
            if size_bytes > self.result_bytes:
                why = f"the result has {size_bytes} bytes with its headers, {self.result_bytes} are taken"
                return Failed("Oversize", why, "")
        return None

    def _filtered(self, event: Event) -> None:
        """Let an event end that the stage has given no result."""
        self._counts[event.partition // CLASS_STRIDE].filtered += 1
        if not self._routes.most:
            self._pass_by(event, reason="filtered")
            return
        follow = self._routes.follow_none
        for send in follow.sends:
            headers = join_headers(event.headers, None, send.skipped)
            if send.stage in self._routes.gatherers:
                headers = no_part_headers(headers)
            self._to_join(send.stage, event, b"", headers, event.event_id)
        self._complete(event, "filtered", follow.ended)

    def _forward(self, event: Event, value: bytes, edges: int) -> None:
        routes = self._routes
        follow = routes.follow(edges)
        if follow.to_sink:
            topic = routes.sink_topic
            self._put(topic, self._partition(topic, event.key), event.key, value, event.headers)
        class_number = event.partition // CLASS_STRIDE
        taken, topics = self._counts[class_number].edges_taken, self._topics[class_number]
        for send in follow.sends:
            if send.result:
                taken[send.stage] = taken.get(send.stage, 0) + 1
            if send.stage in routes.joins:
                parent = routes.stage if send.result else None
                headers = join_headers(event.headers, parent, send.skipped)
                self._to_join(send.stage, event, value if send.result else b"", *self._part(send.stage, event, headers))
            else:
                topic = topics[send.stage]
                self._put(topic, self._partition(topic, event.key), event.key, value, event.headers)
        self._complete(event, "skipped", follow.ended)

    def _part(self, stage: str, event: Event, headers: list[Header]) -> tuple[list[Header], bytes]:
        """Return the headers of a record to a join, and the id by which it meets the others."""
        if stage not in self._routes.gatherers:
            return headers, event.event_id
        event_id, headers = part_headers(event.event_id, headers)
        return headers, event_id

    def _pass_by(self, event: Event, *, dead: int = 0, reason: str = "skipped") -> None:
        """Send every join downstream the marker that this event will not come this way."""
        follow = self._routes.follow(None)
        for send in follow.sends:
            headers = join_headers(event.headers, None, send.skipped, dead=dead)
            self._to_join(send.stage, event, b"", *self._part(send.stage, event, headers))
        if not dead:
            self._complete(event, reason, follow.ended)

    def _end(self, event: Event, reason: str) -> None:
        """Note that an event has ended, unless it is a part of one that ends where it is gathered."""
        self._complete(event, reason, self._routes.ends_at)

    def _to_join(self, stage: str, event: Event, value: bytes, headers: list[Header], event_id: bytes) -> None:
        topic, key = self._topics[event.partition // CLASS_STRIDE][stage], event.key
        if not value and record_bytes(key, value, headers) > self._limit(topic):
            # A marker has to come through: the event's neighbours wait for it where a key has an order.
            headers = our_headers(headers)
            key = key if record_bytes(key, value, headers) <= self._limit(topic) else None
        # Every part of an event must meet the others; where a key has an order, those of all its events.
        if stage in self._routes.ordered and event.key is not None:
            hashed = self._hash(event.key)
        else:
            hashed = murmur2(event_id) & 0x7FFFFFFF
        self._put(topic, hashed % self._partitions[topic], key, value, headers)

    def _complete(self, event: Event, reason: str, ended: Sequence[str]) -> None:
        """Note that the sinks of these stages get nothing of an event."""
        if not ended:
            return
        self._counts[event.partition // CLASS_STRIDE].completed += 1
        topic = self._routes.names.completed
        partition = (murmur2(event.event_id) & 0x7FFFFFFF) % self._partitions[topic]
        value = msgspec.json.encode({"reason": reason, "stage": self._routes.stage})
        headers = [*event.headers, (REASON, reason.encode())]
        if len(self._routes.finals) > 1:
            headers.append((ENDED_AT, ",".join(ended).encode()))
        if record_bytes(event.event_id, value, headers) > self._limit(topic):
            headers = our_headers(headers)
        self._put(topic, partition, event.event_id, value, headers)

    def _keep_parts(self, event: Event) -> None:
        """Keep what others gave for an event that died on one branch, and what was skipped on another: sent again, the
        join can be completed.
        """
        parts = [record for record in event.records if all(name != DEAD for name, _ in record.headers)]
        self._letters(event, parts, Failed("DiedUpstream", "the event died on another branch", ""))

    def _letters(self, event: Event, records: Iterable[Record], failed: Failed) -> None:
        topic = self._routes.names.dead_letters(self._topics[event.partition // CLASS_STRIDE][self._routes.stage])
        for record in records:
            headers = [
                *letter_headers(record.headers, event.event_id, entry=self._routes.is_entry),
                *error_headers(self._routes.stage, record, failed),
            ]
            value = record.value
            if type(value) is SkippedBatch:
                headers.append((CUT_BYTES, b"%d" % value.fetched_bytes))
                value = None
            # No timestamp: a letter is as old as the death. By its event's time, retention could delete it at once.
            self._put(topic, 0, *cut_letter(record.key, value, headers, self._limit(topic)))

    def _partition(self, topic: str, key: bytes | None) -> int:
        return (self._sticky if key is None else self._hash(key)) % self._partitions[topic]

    def _hash(self, key: bytes) -> int:
        """Keys repeat, and hashing one costs as much as all else that is done for a record here."""
        known = self._hashes.get(key)
        if known is None:
            known = murmur2(key) & 0x7FFFFFFF
            if len(key) <= _KEY_REMEMBERED_BYTES:
                if len(self._hashes) >= _HASHES_REMEMBERED:
                    self._hashes.clear()
                self._hashes[key] = known
        return known

    def _put(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: list[Header],
        *,
        timestamp_ms: int | None = None,
    ) -> None:
        message = Record(key, value, headers, timestamp_ms)
        try:
            self._outgoing[topic, partition].append(message)
        except KeyError:
            self._outgoing[topic, partition] = [message]


def _no_key(topic: str) -> Failed:
    return Failed("NoKey", f"topic {topic} is compacted: it takes no record without a key", "")


def _with_own(event: Event, done: Done) -> Event:
    """Return the event with what its result has of its own. No replica says what a header of ours does."""
    own = [header for header in done.headers if not header[0].startswith(HEADER_PREFIX)]
    if done.key is None and not own:
        return event
    key = event.key if done.key is None else done.key
    return structs.replace(event, key=key, headers=with_own(event.headers, own))


def error_headers(stage: str, record: object, failed: Failed) -> Iterable[Header]:
    """Why a record became a dead letter, where it was read, and the record's own time."""
    texts = {
        "stage": stage,
        "type": failed.type,
        "message": failed.message,
        "traceback": failed.traceback,
        "topic": getattr(record, "topic", ""),
        "partition": str(getattr(record, "partition", "")),
        "offset": str(getattr(record, "offset", "")),
        "timestamp_ms": str(getattr(record, "timestamp_ms", "")),
    }
    return [(ERRORS_PREFIX + name, text.encode("utf-8", "replace")) for name, text in texts.items() if text]
