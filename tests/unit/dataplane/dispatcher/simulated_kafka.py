"""A topic, what a slot sends and what its group has committed, without a broker: it checks each step of all three."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from inferline_stream.kafka.offset_metadata import decode_metadata
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_state import TopicState
from inferline_stream.pipeline.names import EVENT_ID, PARENT

Place = tuple[int, int]
"""Partition and offset: what an event is known by."""

TOPIC_IDS = ("abcdefgh", "ijklmnop")


class Kafka:
    """Records that came in, went out, and offsets that were committed."""

    def __init__(self, *, transactional: bool) -> None:
        self.transactional = transactional
        self.topic = TopicState(TOPIC_IDS[0], 2)
        self.entries: dict[int, Any] = dict.fromkeys((0, 1), self.beginning)
        self.log: dict[int, list[Any]] = defaultdict(list)
        self.out: list[Place] = []
        """Where results and letters come from that can be read, in their order."""
        self.key_of: dict[Place, bytes | None] = {}
        self.sending: list[Place] = []
        self.in_transaction: list[Place] = []
        self.acknowledged: set[Place] = set()
        self.letters: set[Place] = set()
        """Events that went to the dead letters, once at least: there is no order between topics."""
        self.may_repeat = False
        self.halted: set[int] = set()
        """Partitions that were: what was sent of them then may be sent again, since no offset says so."""

    @property
    def beginning(self) -> tuple[int, str]:
        """What somebody commits who says that reading starts at the beginning of the topic."""
        return 0, f"i1;t={self.topic.id};c=2"

    def recreate(self) -> None:
        """Delete the topic and create it again; what the group has committed stays, results of old records do not."""
        self.topic = TopicState(TOPIC_IDS[self.topic.id == TOPIC_IDS[0]], 2)
        self.sending, self.in_transaction = [], []
        for kept in (self.log, self.key_of, self.out, self.acknowledged, self.letters, self.halted):
            kept.clear()

    def append(self, partition: int, key: bytes | None, nature: bytes, stamp_s: float) -> None:
        place = (partition, len(self.log[partition]))
        self.key_of[place] = key
        stamp_ms = round(stamp_s * 1000)
        self.log[partition].append(Record(key, nature, (), stamp_ms, "in", *place))

    def begin(self, outgoing: Mapping[tuple[str, int], Any]) -> None:
        assert not self.sending, "two sends at once may overtake each other"
        for (topic, _), messages in outgoing.items():
            for message in messages:
                if topic != "out" and not topic.endswith(".dlq"):
                    continue
                _, partition, number = dict(message.headers)[EVENT_ID].split(b"/")
                place = (int(partition), int(number))
                assert topic != "out" or message.value == b"result", "a forged or earlier result counts"
                if topic == "out" or self.sending[-1:] != [place]:  # a letter for each part of a join's event
                    self.sending.append(place)
                self.letters |= {place} if topic != "out" else set()

    def acknowledge(self) -> None:
        self.acknowledged.update(self.sending)
        (self.in_transaction if self.transactional else self.out).extend(self.sending)
        self.sending = []

    def end(self) -> None:
        """A transaction is committed."""
        self.out += self.in_transaction
        self.in_transaction = []

    def void(self, rng: random.Random) -> None:
        """The dispatcher is gone: what it had under way counts, or not."""
        if self.transactional:
            self.acknowledged.difference_update(self.in_transaction)
        elif rng.random() < 0.5:
            self.out += self.sending
        self.sending, self.in_transaction = [], []
        self.may_repeat = not self.transactional

    def check(self, entries: Mapping[int, Any]) -> None:
        """No commit says of an event that it is complete before Kafka has what it came to."""
        for partition, (offset, metadata) in entries.items():
            found = decode_metadata(offset, metadata)
            complete = {*range(offset), *(each for first, end in found.runs for each in range(first, end))}
            assert offset <= len(self.log[partition])
            for each in complete:
                place = self.event_at(partition, each)
                assert place in self.acknowledged, f"{place} is committed and was not sent"

    def event_at(self, partition: int, offset: int) -> Place:
        """Return the event that a record is of."""
        return partition, offset

    def turn(self, place: Place) -> int:
        """Return what the order of a key goes by."""
        return place[1]

    def events(self) -> set[Place]:
        """Return every event that came."""
        return {(partition, each.offset) for partition, records in self.log.items() for each in records}


class JoinKafka(Kafka):
    """The same of a join, whose events come in two parts: their place is their number in the partition."""

    def __init__(self, *, transactional: bool) -> None:
        super().__init__(transactional=transactional)
        self.owed: list[tuple[int, Record]] = []
        """Parts that have not come yet."""
        self.numbers: Counter[int] = Counter()
        self.firsts: dict[Place, int] = {}
        """Offset of each event's first part."""

    def recreate(self) -> None:
        super().recreate()
        self.owed.clear()
        self.firsts.clear()
        self.numbers.clear()

    def append(self, partition: int, key: bytes | None, nature: bytes, stamp_s: float) -> None:
        place = (partition, self.numbers[partition])
        self.numbers[partition] += 1
        self.key_of[place] = key
        for at, parent in enumerate((b"left", b"right")):
            headers = ((EVENT_ID, b"x/%d/%d" % place), (PARENT, parent))
            record = Record(key, nature, headers, round(stamp_s * 1000), "p.both", partition, 0)
            if at or place[1] % 3 == 0:  # of most events the first part comes at once, and all others later
                self.owed.append((partition, record))
            else:
                self.arrive(partition, record)

    def arrive(self, partition: int, record: Record) -> None:
        log = self.log[partition]
        log.append(Record(record.key, record.value, record.headers, record.timestamp_ms, "p.both", partition, len(log)))
        self.firsts.setdefault(self.event_at(partition, len(log) - 1), len(log) - 1)

    def turn(self, place: Place) -> int:
        return self.firsts[place]

    def event_at(self, partition: int, offset: int) -> Place:
        _, _, number = dict(self.log[partition][offset].headers)[EVENT_ID].split(b"/")
        return partition, int(number)

    def events(self) -> set[Place]:
        return {(partition, number) for partition, count in self.numbers.items() for number in range(count)}
