"""A join's slot: what waits, goes on, moves and ends there, over a log in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from inferline_stream.dataplane.dispatcher import completion as completion_module
from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.dispatcher.completion import Partition
from inferline_stream.dataplane.dispatcher.join import Gathered, Join
from inferline_stream.dataplane.headers import MOVED
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.kafka.offset_metadata import METADATA_LIMIT_BYTES, Committed, decode_metadata
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.names import EVENT_ID, PARENT, SKIPPED
from inferline_stream.settings import Settings
from tests.unit.dataplane.dispatcher.doubles import PlayedSlot
from tests.unit.dataplane.dispatcher.test_intake_and_emitter import pipeline


def join_routes(*, ordered: bool) -> Any:
    return routes_of(pipeline(ordered=ordered), "both")


class JoinSlot:
    """A slot of one partition that reads what is appended to its log, by itself too."""

    def __init__(self, *, ordered: bool = False, **settings: float) -> None:
        self.slot = PlayedSlot({0: (0, "")}, stage=join_routes(ordered=ordered), settings=Settings(**settings))
        self.log, self.read, self.letters = self.slot.log, 0, []
        self.results: list[int] = []
        self.slot.produced = self.produced

    def produced(self, outgoing: Any) -> None:
        for (topic, _), messages in outgoing.items():
            for message in messages:
                if topic == "p.both":
                    self.append(message.key, message.value, message.headers)
                elif topic == "p.both.dlq":
                    self.letters.append(message)
                elif topic == "out":
                    self.results.append(int(dict(message.headers)[EVENT_ID]))

    def append(self, key: bytes, value: bytes, headers: Any) -> None:
        self.log.append(Record(key, value, tuple(headers), 1, "p.both", 0, len(self.log)))

    def part(self, number: int, *parents: str, value: bytes = b"1") -> None:
        """Append what the first of these parents gives; the others were skipped."""
        headers = [(EVENT_ID, b"%d" % number), (PARENT, parents[0].encode())]
        headers += [(SKIPPED, b",".join(p.encode() for p in parents[1:]))] if parents[1:] else []
        self.append(b"k%d" % (number % 1000), value, headers)

    def fetch(self, most: int = 500) -> None:
        """Read what is new, once or more often."""
        session = self.slot.session
        while True:
            self.slot.advance(0.001)
            records = self.log[self.read : self.read + most]
            assert session.full() == frozenset(), "the parts that are missing may be in what is not read"
            self.read += len(records)
            self.slot.read({0: records} if records else {}, {0: self.read})
            self.serve()
            if not records:
                return

    def serve(self) -> None:
        while events := self.slot.hand_out(64):
            self.slot.answer(events)

    def until(self, holds: Any, what: str) -> None:
        def again() -> bool:
            self.fetch()
            return bool(holds())

        self.slot.until(again, what)

    @property
    def report(self) -> Any:
        return self.slot.report


def test_events_that_are_overdue_are_given_up_once_a_grant_says_that_no_part_is_to_come():
    join = JoinSlot(join_age_s=0.0)
    with join.slot.running():
        for number in range(3):
            join.part(number, "left")
        join.fetch()
        assert (join.report.join_events, join.report.join_overdue) == (3, True)
        join.slot.settled = {0: (2, 4)}
        join.fetch()
        assert join.report.join_events == 3, "parts up to offset 4 were not read yet"
        join.part(3, "left")
        join.until(lambda: len(join.letters) == 2, "two are given up")
        join.part(0, "right")
        join.until(lambda: len(join.letters) == 3, "a late part is kept with the others")
    assert [dict(letter.headers)[EVENT_ID] for letter in join.letters] == [b"0", b"1", b"0"]
    assert (join.report.counts.dead_lettered, join.report.join_events, join.results) == (2, 2, [])


@pytest.mark.parametrize("ordered", [False, True])
def test_a_join_whose_bytes_fill_reads_on_keeps_places_and_loses_nothing(ordered):
    join = JoinSlot(ordered=ordered, join_age_s=0.0, join_bytes=50_000.0)
    with join.slot.running():
        for number in range(200):
            join.part(number, "left", value=b"x" * 1000)
        join.fetch()
        assert join.report.join_events == 200
        assert join.report.join_bytes <= 200 * 600 + 20_000
        for number in range(200):
            join.part(number, "right")
        join.until(lambda: join.slot.offset() == 400, "every event comes out and is committed")
    assert sorted(join.results) == [*range(200)]
    assert join.letters == []
    assert len(join.slot.again) > 100


def test_events_of_a_partition_that_is_halted_while_their_parts_are_read_again_go_nowhere():
    join = JoinSlot(join_age_s=0.0, join_bytes=0.0)
    with join.slot.running() as session:
        join.part(0, "left")
        join.part(0, "right")
        join.part(1, "left")
        join.fetch()
        join.part(1, "right")
        join.slot.acknowledges = False
        join.fetch()
        assert join.slot.again, "parts are read again"
        join.slot.feed(on.TopicGone("the topic was deleted"))
        join.slot.acknowledge()
        assert len(session.queue) == 0


@pytest.mark.parametrize("ordered", [False, True])
def test_where_complete_offsets_no_longer_fit_a_commit_events_move_or_wait_and_none_is_given_up(ordered, monkeypatch):
    limit_bytes = METADATA_LIMIT_BYTES // 8  # and as many records less
    monkeypatch.setattr(completion_module, "METADATA_LIMIT_BYTES", limit_bytes)
    monkeypatch.setattr(completion_module, "CLEAR_BYTES", limit_bytes // 4)
    for name in ("CROWDED_BYTES", "RUNS_LEFT"):
        monkeypatch.setattr(completion_module, name, getattr(completion_module, name) // 8)
    join, many = JoinSlot(ordered=ordered, join_age_s=0.0), 4_000
    sizes = []
    with join.slot.running() as session:
        for number in range(0, many, 2):
            join.part(number, "left")
            join.part(number + 1, "right", "left")  # complete by itself
            if number % 100 == 0:
                join.fetch()
                join.slot.advance(0.001)  # what is finished is sent
                sizes.append(len(session.partitions[0].entry()[1]))
        offset, metadata = session.partitions[0].entry()
        assert decode_metadata(offset, metadata).runs == session.partitions[0].completion.runs()
        moved = sum(any(name == MOVED for name, _ in record.headers) for record in join.log)
        assert max(sizes) <= limit_bytes
        assert (moved > 0) is not ordered
        if ordered:
            assert session.partitions[0].join.holds
        else:
            join.until(lambda: len(join.results) == many // 2, "nothing holds up what is complete")
        for number in range(0, many, 2):
            join.part(number, "right")
        join.until(lambda: len(join.results) == many, "every event comes out")
        join.until(lambda: join.slot.offset() == len(join.log), "all is committed")
    assert sorted(join.results) == [*range(many)]
    assert join.letters == []
    assert moved < many


@pytest.mark.parametrize("ordered", [False, True])
def test_only_where_keys_keep_their_order_does_an_event_go_on_that_a_commit_has_no_room_for(ordered):
    partition = Partition(0, Committed(0), "owner", Join(["left", "right"], ordered=ordered))
    assert partition.join is not None
    for offset in range(40_000):
        partition.completion.read(offset)
    for offset in range(10_000, 40_000, 19):
        partition.completion.complete(offset)
    partition.join.parts = partition.completion.open_count - 2
    assert METADATA_LIMIT_BYTES - 8 < len(partition.entry()[1]) <= METADATA_LIMIT_BYTES
    for first in (0, 1):
        complete: Any = [SimpleNamespace(offset=first), SimpleNamespace(offset=39_999)]
        assert partition.has_room(Gathered(b"1", 0.0, records=complete)) is ordered


def test_parts_that_come_late_between_those_that_wait_leave_room_in_a_commit():
    join, many = JoinSlot(join_age_s=0.0), 30_000
    with join.slot.running() as session:
        for number in range(50):
            join.part(number, "left")
        join.fetch()
        join.slot.settled = {0: (50, 50)}
        join.until(lambda: len(join.letters) == 50, "all are given up")
        for number in range(many):
            join.part(1_000 + number, "left")
            if number % 10 == 0:
                join.part(number % 50, "right")
        join.until(lambda: len(join.letters) == 50 + many // 10, "each late part is a letter")
        join.until(lambda: not session.partitions[0].moving, "nothing moves")
        offset, metadata = session.partitions[0].entry()
        assert decode_metadata(offset, metadata).runs == session.partitions[0].completion.runs()
