"""A join against a log: whatever comes when, is put aside, moved, or read by another owner, nothing is lost."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.dataplane.dispatcher import completion
from inferline_stream.dataplane.dispatcher.completion import Partition
from inferline_stream.dataplane.dispatcher.event import Late, Requeued
from inferline_stream.dataplane.dispatcher.intake import Intake
from inferline_stream.dataplane.dispatcher.join import PLACES_BYTES, Join
from inferline_stream.dataplane.frames import Failed
from inferline_stream.dataplane.headers import MOVED
from inferline_stream.kafka.offset_metadata import decode_metadata
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.names import EVENT_ID, PARENT
from tests.support.hypothesis_profiles import examples
from tests.unit.dataplane.dispatcher.test_intake_and_emitter import pipeline, routes_of

LIMIT_BYTES = 3_000.0
EVENTS = 4


class Owners:
    """A join's partition and those that own it, one after another."""

    def __init__(self, *, ordered: bool) -> None:
        self.log: list[Any] = []
        self.ordered = ordered
        self.entry = (0, "")
        self.out: list[tuple[int, dict[str, bytes]]] = []
        self.letters: list[Any] = []
        self.queued: list[Any] = []
        self.begin()

    def begin(self) -> None:
        """Another owner reads from what is committed, and what came before, to know finished events."""
        join = Join(("left", "right"), ordered=self.ordered)
        self.partition = Partition(0, decode_metadata(*self.entry), "me", join)
        self.queued, self.read = [], 0
        self.intake = Intake(routes_of(pipeline(), "both"), self.queued.append, self.ends)

    def ends(self, event: Any, outcome: Any) -> None:
        if isinstance(outcome, Requeued):
            for record in event.records:
                self.append(record.key, record.value, (*record.headers[:2], (MOVED, b"%d" % outcome.moved)))
            self.partition.moving -= len(event.offsets)
        else:
            assert isinstance(outcome, Failed | Late)
            self.letters += event.records
        self.complete(event)

    def complete(self, event: Any) -> None:
        for offset in event.offsets:
            self.partition.completion.complete(offset)

    def append(self, key: bytes, value: bytes, headers: Any) -> None:
        self.log.append(Record(key, value, tuple(headers), 1, "p.both", 0, len(self.log)))

    def part(self, number: int, parent: str) -> None:
        headers = ((EVENT_ID, b"%d" % number), (PARENT, parent.encode()))
        self.append(b"k%d" % (number % 2), b"%s %d" % (parent.encode(), number), headers)

    def fetch(self, most: int) -> None:
        for record in self.log[self.read : self.read + most]:
            self.intake.take_in(self.partition, record)
        self.read = min(len(self.log), self.read + most)
        join = self.partition.join
        join.fit(LIMIT_BYTES)
        assert join.size_bytes + join.finished_bytes <= max(LIMIT_BYTES, LIMIT_BYTES / 4 + PLACES_BYTES * len(join))

    def read_again(self) -> None:
        self.intake.read_again(self.partition, len(self.partition.unread), dict(enumerate(self.log)))

    def serve(self) -> None:
        """A replica takes what has gone on; its results and offsets are committed."""
        queued, self.queued[:] = [*self.queued], []
        for event in queued:
            self.out.append((int(event.event_id), event.payload))
            self.complete(event)
        self.intake.release(self.partition)
        self.entry = self.partition.entry()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("part"), st.integers(0, EVENTS - 1), st.sampled_from(["left", "right"])),
        st.tuples(st.just("fetch"), st.sampled_from([1, 2, 9])),
        st.sampled_from([("read again",), ("serve",), ("move",), ("another owner",), ("no room",), ("room",)]),
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=examples(300))
@given(steps, st.booleans())
def test_whatever_happens_to_a_join_every_event_comes_out_once_whole_and_in_its_order(happens, ordered):
    owners, sent = Owners(ordered=ordered), set()
    with patch.object(completion, "RUNS_LEFT", 1), patch.object(completion.Completion, "has_room") as has_room:
        for what, *given_ in happens:
            if what == "part":
                sent.add(tuple(given_))
                owners.part(*given_)
            elif what == "fetch":
                owners.fetch(*given_)
            elif what == "read again":
                owners.read_again()
            elif what == "serve":
                owners.serve()
            elif what == "move" and not ordered:
                owners.intake.move_to_end(owners.partition)
            elif what == "another owner":
                owners.begin()
            elif what in ("room", "no room"):
                has_room.return_value = what == "room"
        has_room.return_value = True
        for number in range(EVENTS):
            for parent in {"left", "right"} - {given for at, given in sent if at == number}:
                owners.part(number, parent)
        while owners.read < len(owners.log) or owners.partition.unread or owners.queued:
            owners.fetch(10)
            owners.read_again()
            owners.serve()
    assert Counter(number for number, _ in owners.out) == Counter(range(EVENTS))
    assert all(
        payload == {"left": b"left %d" % number, "right": b"right %d" % number} for number, payload in owners.out
    )
    assert owners.letters == []
    assert owners.partition.completion.watermark == len(owners.log)
    if ordered:
        firsts = dict.fromkeys(int(dict(record.headers)[EVENT_ID]) for record in owners.log)
        for key in range(2):
            assert [n for n, _ in owners.out if n % 2 == key] == [n for n in firsts if n % 2 == key]
