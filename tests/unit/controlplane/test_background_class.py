"""How far a class of background events has come, when it will be done, and which stages should wait."""

from __future__ import annotations

import pytest

from inferline_stream.controlplane.observe.background_class import MOST_AHEAD, BackgroundClass
from inferline_stream.controlplane.observe.event_ledger import EventLedger, LedgerBegin
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.names import ENTRY_TIME, EVENT_ID
from inferline_stream.pipeline.shape import Arrow, Shape

SHAPE = Shape(("a", "b", "join"), (Arrow(0, 2), Arrow(1, 2)))
"""Two first stages, and a join of both."""


def seen(time_s: float, ends: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...], of: BackgroundClass) -> None:
    for stage, committed in (("a", a), ("b", b)):
        of.offsets[stage].reached(time_s, ends)
        of.offsets[stage].committed(time_s, [Committed(offset) for offset in committed])
    of.look(time_s)


def test_it_is_done_when_the_slowest_first_stage_is_at_the_rate_of_the_last_minutes() -> None:
    of = BackgroundClass(SHAPE, {"a": 2, "b": 2, "join": 1})
    assert (of.rate, of.done_in_s, of.left) == (None, 0.0, 0)
    seen(0.0, (1000, 500), (0, 0), (0, 0), of)
    assert (of.rate, of.done_in_s, of.left) == (None, None, 1500)
    seen(10.0, (1000, 500), (300, 200), (60, 40), of)
    assert (of.rate, of.left) == (pytest.approx(10.0), 1400)
    assert of.done_in_s == pytest.approx(140.0)
    seen(20.0, (1000, 900), (300, 200), (60, 40), of)  # the archive grows: that is no progress
    assert (of.rate, of.left) == (pytest.approx(5.0), 1800)
    seen(400.0, (1000, 900), (1000, 900), (1000, 900), of)
    assert (of.left, of.done_in_s) == (0, 0.0)


def test_a_first_stage_waits_for_one_that_is_far_behind() -> None:
    of = BackgroundClass(SHAPE, {"a": 1, "b": 1, "join": 1})
    seen(0.0, (100_000,), (MOST_AHEAD,), (0,), of)
    assert not of.is_ahead("a")
    seen(1.0, (100_000,), (MOST_AHEAD + 1,), (0,), of)
    assert [of.is_ahead(stage) for stage in SHAPE.stages] == [True, False, False]


def test_an_event_is_counted_in_the_ledger_of_its_class() -> None:
    since = LedgerBegin((5, 7, 0), (0,), (0,), (9, 9, 0), partitions={"": 1, "archive": 2})
    assert since.of_class(since.source) == (5,)
    assert since.of_class(since.source, "archive") == (7, 0)
    live = EventLedger("posts@1", (5,), (7,))
    live.backgrounds["archive"] = archive = EventLedger("archive@2", (7, 0), (9, 1))
    for ledger, topic, partition, offset in (
        (live, "posts", 0, 5),
        (archive, "archive", 0, 7),
        (archive, "archive", 1, 0),
    ):
        ledger.entered(Record(None, b"", (), 1000, topic, partition, offset))
    archive.entered(Record(None, b"", ((EVENT_ID, b"order-1"),), 1000, "archive", 0, 8))
    for name in (b"posts@1/0/5", b"archive@2/0/7", b"order-1", b"elsewhere/0/1"):
        live.of(name).out(Record(None, b"", ((EVENT_ID, name), (ENTRY_TIME, b"1000000")), 2000))
    assert (live.events_out, live.unknown, len(live.latencies_s)) == (1, 1, 1)
    assert (archive.events_out, archive.unknown) == (2, 0)
    assert archive.lost() == (1, ["archive@2/1/0"])
