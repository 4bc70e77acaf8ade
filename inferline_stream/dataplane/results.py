"""From outcomes to records: along the arrows, to the sink, to the dead letters and to the completed topic."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from inferline_stream.dataplane.client import Message
from inferline_stream.dataplane.headers import DEAD, DROPPED, LETTERED, REASON, Header, join_headers
from inferline_stream.dataplane.holding import Dead, Event, Expired, Skipped
from inferline_stream.dataplane.partitioning import LessLagged, murmur2
from inferline_stream.dataplane.protocol import ReplicaReport
from inferline_stream.dataplane.sizes import LIMIT_BYTES, record_bytes
from inferline_stream.dataplane.wiring import Wiring
from inferline_stream.dataplane.worker import Done, Failed
from inferline_stream.pipeline.names import ERRORS_PREFIX, EVENT_ID, PARENT, SKIPPED

Outcome = Done | Failed | Skipped | Dead | Expired

_HASHES_REMEMBERED = 65_536


class Records:
    """Collects the records that outcomes make, by topic and partition.

    Args:
        wiring: the stage and its surroundings.
        partitions: of every topic written to.
        rng: chooses partitions for records without a key.
        counts: the replica's report, whose counters it keeps.
        limits: `max.message.bytes` of the topics written to, where it is known.
    """

    def __init__(
        self,
        wiring: Wiring,
        partitions: Mapping[str, int],
        rng: random.Random,
        counts: ReplicaReport,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self._wiring = wiring
        self._partitions = partitions
        self._rng = rng
        self._counts = counts
        self._hashes: dict[bytes, int] = {}
        self._topics = {arrow.child: wiring.topic_of(arrow.child) for arrow in wiring.arrows}
        self._topics.update({stage: wiring.topic_of(stage) for stage in wiring.joins})
        self._less_lagged = {
            stage: LessLagged(partitions[topic], rng)
            for stage, topic in self._topics.items()
            if topic in partitions and stage not in wiring.joins
        }
        self._limits = dict(limits or {})
        if wiring.pipeline.sink.max_bytes is not None:
            self._limits[wiring.sink_topic] = min(self._limit(wiring.sink_topic), wiring.pipeline.sink.max_bytes)
        results = [self._topics[arrow.child] for arrow in wiring.arrows] or [wiring.sink_topic]
        self._result_limit = min(map(self._limit, results))
        self.outgoing: dict[tuple[str, int], list[Message]] = {}

    def _limit(self, topic: str) -> int:
        return self._limits.get(topic, LIMIT_BYTES)

    def lags(self, lags: Mapping[str, Sequence[int]]) -> None:
        """The control plane has published lags of stages' input topics."""
        for stage, of_partitions in lags.items():
            if stage in self._less_lagged:
                self._less_lagged[stage].published(of_partitions)

    def take(self) -> dict[tuple[str, int], list[Message]]:
        """The records collected so far; collecting starts anew."""
        outgoing, self.outgoing = self.outgoing, {}
        return outgoing

    def add(self, event: Event, outcome: Outcome) -> None:
        """Collect what one outcome makes."""
        counts = self._counts
        counts.events += 1
        if type(outcome) is Done:
            size_bytes = record_bytes(event.key, outcome.value, event.headers)
            if size_bytes > self._result_limit:
                why = f"the result has {size_bytes} bytes with its headers, {self._result_limit} are taken"
                self.add(event, Failed("Oversize", why, ""))
                counts.events -= 1
                return
            self._forward(event, outcome)
        elif type(outcome) is Skipped:
            self._pass_by(event)
        elif type(outcome) is Dead:
            if outcome.how == LETTERED:
                self._keep_parts(event)
            self._pass_by(event, dead=outcome.how)
        elif type(outcome) is Failed:
            counts.dead_lettered += 1
            self._dead_letter(event, outcome)
            self._complete(event, "dead_lettered")
            self._pass_by(event, dead=LETTERED)
        elif type(outcome) is Expired:
            counts.expired += 1
            if outcome.to_dead_letters:
                self._dead_letter(event, Failed("Expired", "the event was past its SLO", ""))
            self._complete(event, "expired")
            self._pass_by(event, dead=LETTERED if outcome.to_dead_letters else DROPPED)

    def _forward(self, event: Event, done: Done) -> None:
        wiring, names = self._wiring, self._counts.arrows_taken
        follow = wiring.follow(done.taken)
        if follow.to_sink:
            self._put(wiring.sink_topic, self._sink_partition(event), event.key, done.value, event.headers)
            return
        for send in follow.sends:
            if send.result:
                names[send.stage] = names.get(send.stage, 0) + 1
            if send.stage in wiring.joins:
                parent = wiring.stage.name if send.result else None
                headers = join_headers(event.headers, parent, send.skipped)
                self._to_join(send.stage, event, done.value if send.result else b"", headers)
            else:
                topic = self._topics[send.stage]
                if event.key is None:
                    partition = self._less_lagged[send.stage].choose()
                else:
                    partition = self._hash(event.key) % self._partitions[topic]
                self._put(topic, partition, event.key, done.value, event.headers)
        if follow.completed:
            self._complete(event, "skipped")

    def _pass_by(self, event: Event, *, dead: int = 0) -> None:
        """Tell every join downstream that this event will not come this way."""
        follow = self._wiring.follow(None)
        for send in follow.sends:
            headers = join_headers(event.headers, None, send.skipped, dead=dead)
            self._to_join(send.stage, event, b"", headers)
        if follow.completed and not dead:
            self._complete(event, "skipped")

    def _to_join(self, stage: str, event: Event, value: bytes, headers: list[Header]) -> None:
        topic = self._topics[stage]
        # Every part of an event must meet the others; where a key has an order, those of all its events.
        if stage in self._wiring.ordered and event.key is not None:
            hashed = self._hash(event.key)
        else:
            hashed = murmur2(event.event_id) & 0x7FFFFFFF
        self._put(topic, hashed % self._partitions[topic], event.key, value, headers)

    def _complete(self, event: Event, reason: str) -> None:
        self._counts.completed += 1
        topic = self._wiring.names.completed
        partition = (murmur2(event.event_id) & 0x7FFFFFFF) % self._partitions[topic]
        value = msgspec.json.encode({"reason": reason, "stage": self._wiring.stage.name})
        headers = [*(h for h in event.headers if h[0] not in (SKIPPED, DEAD)), (REASON, reason.encode())]
        self._put(topic, partition, event.event_id, value, headers)

    def _keep_parts(self, event: Event) -> None:
        """What other branches gave for an event that died on one: sent again with it, the join can be completed."""
        parts = [record for record in event.records if any(name == PARENT for name, _ in record.headers)]
        self._letters(event, parts, Failed("DiedUpstream", "the event died on another branch", ""))

    def _dead_letter(self, event: Event, failed: Failed) -> None:
        self._letters(event, event.records, failed)

    def _letters(self, event: Event, records: Iterable[Any], failed: Failed) -> None:
        topic = self._wiring.names.dead_letters(self._wiring.input_topic)
        for record in records:
            own = {name for name, _ in record.headers}
            headers = [
                *record.headers,
                *((name, value) for name, value in event.headers if name == EVENT_ID and name not in own),
                *error_headers(self._wiring.stage.name, record, failed),
            ]
            value, headers = self._cut(topic, record.key, record.value, headers)
            self._put(topic, 0, record.key, value, headers, timestamp_ms=record.timestamp)

    def _cut(
        self, topic: str, key: bytes | None, value: bytes | None, headers: list[Header]
    ) -> tuple[bytes | None, list[Header]]:
        """A letter that its topic takes: without the traceback if need be, and without the value if it must be."""
        if record_bytes(key, value, headers) <= self._limit(topic):
            return value, headers
        headers = [header for header in headers if header[0] != ERRORS_PREFIX + "traceback"]
        if record_bytes(key, value, headers) <= self._limit(topic):
            return value, headers
        return None, [*headers, (ERRORS_PREFIX + "cut_bytes", b"%d" % len(value or b""))]

    def _sink_partition(self, event: Event) -> int:
        partitions = self._partitions[self._wiring.sink_topic]
        if event.key is not None:
            return self._hash(event.key) % partitions
        return int(self._rng.random() * partitions)

    def _hash(self, key: bytes) -> int:
        """Keys repeat, and hashing one costs as much as all else that is done for a record here."""
        known = self._hashes.get(key)
        if known is None:
            if len(self._hashes) >= _HASHES_REMEMBERED:
                self._hashes.clear()
            known = self._hashes[key] = murmur2(key) & 0x7FFFFFFF
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
        message = Message(key, value, headers, timestamp_ms)
        try:
            self.outgoing[topic, partition].append(message)
        except KeyError:
            self.outgoing[topic, partition] = [message]


def error_headers(stage: str, record: object, failed: Failed) -> Iterable[Header]:
    """Why a record became a dead letter, and where it was read."""
    told = {
        "stage": stage,
        "type": failed.type,
        "message": failed.message[:1000],
        "traceback": failed.traceback[-4000:],
        "topic": getattr(record, "topic", ""),
        "partition": str(getattr(record, "partition", "")),
        "offset": str(getattr(record, "offset", "")),
        "time_ms": str(round(time.time() * 1000)),
    }
    return [(ERRORS_PREFIX + name, text.encode("utf-8", "replace")) for name, text in told.items() if text]


def topics_written(wiring: Wiring) -> tuple[str, ...]:
    """Every topic that the stage's replicas may write to."""
    stages = {arrow.child for arrow in wiring.arrows}
    stages.update(send.stage for send in wiring.follow(None).sends)
    topics = {wiring.topic_of(stage) for stage in stages}
    if wiring.is_final:
        topics.add(wiring.sink_topic)
    return (*sorted(topics), wiring.names.completed, wiring.names.dead_letters(wiring.input_topic))
