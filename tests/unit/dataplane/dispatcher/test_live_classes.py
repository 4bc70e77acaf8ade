"""Live classes with SLOs of their own in a slot: by slack, late by their own SLO, and a background rate beside them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from inferline_stream.dataplane.frames import Call, Done, Many, Results
from inferline_stream.kafka.records import Record
from inferline_stream.observability.latency_histogram import latency_bounds_s
from inferline_stream.pipeline.event_classes import CLASS_STRIDE
from inferline_stream.pipeline.topology import Topic
from tests.unit.dataplane.dispatcher.doubles import WALL_S, PlayedSlot, routes

PREMIUM, ARCHIVE = CLASS_STRIDE, 2 * CLASS_STRIDE
"""Partition 0 of each further class. The pipeline's SLO is 1 s."""


SOURCES = [
    Topic("in", codec="raw"),
    Topic("premium", codec="raw", slo="200ms"),
    Topic("archive", codec="raw", background=True),
]


class Classed(PlayedSlot):
    """A slot with a second live class and a background one, whose batches of one take 0.1 s."""

    def __init__(self, *, rate: float = 0.0, limit: int = 1, **of_pipeline: object) -> None:
        source = [*SOURCES[:2], Topic("archive", codec="raw", background=True, rate=rate)]
        super().__init__(source=source, limit=limit, **of_pipeline)
        self.plan(limit=limit, service_s={1: 0.1, **({limit: 0.15} if limit > 1 else {})})
        self.entries |= {PREMIUM: (0, ""), ARCHIVE: (0, "")}
        self.begin()
        self._own([PREMIUM])
        self._own([ARCHIVE])
        self._next = {0: 0, PREMIUM: 0, ARCHIVE: 0}

    def comes(self, *values: bytes, partition: int = 0, age_s: float = 0.0, key: bytes | None = None) -> None:
        """Read records that entered so long ago."""
        first, entered_ms = self._next[partition], round(1e3 * (self.now_s + WALL_S - age_s))
        self._next[partition] = first + len(values)
        records = [
            Record(key, value, (), entered_ms, "t", partition % CLASS_STRIDE, first + at)
            for at, value in enumerate(values)
        ]
        self.read({partition: records}, {})

    def served(self, batches: int, *, took_s: float = 0.0) -> list[list[bytes]]:
        """Return what the replica is given, batch by batch."""
        replica, found = self.attached(), []
        for _ in range(batches):
            batch = replica.batch()
            found.append(list(batch.inputs))
            self.advance(took_s)
            replica.answer(batch)
        return found


def test_the_event_with_the_least_time_left_until_its_own_slo_is_served_first() -> None:
    slot = Classed(order="entry")
    slot.comes(b"0.9 s left", age_s=0.1)
    slot.comes(b"0.2 s left", partition=PREMIUM)
    slot.comes(b"0.15 s left", age_s=0.85)
    assert slot.served(3) == [[b"0.15 s left"], [b"0.2 s left"], [b"0.9 s left"]]


def test_an_event_is_hopeless_by_the_slo_of_its_class() -> None:
    slot = Classed()
    slot.comes(b"premium, too late", partition=PREMIUM, age_s=0.15)  # 0.15 + 0.1 > 0.2
    slot.comes(b"in time", age_s=0.15)
    slot.comes(b"premium, in time", partition=PREMIUM, age_s=0.05)
    assert slot.served(3) == [[b"premium, in time"], [b"in time"], [b"premium, too late"]]


@pytest.mark.parametrize(("longest_s", "size"), [(0.15, 8), (0.45, 2)])
def test_a_batch_is_cut_to_what_the_shortest_slo_leaves_time_for(longest_s: float, size: int) -> None:
    slot = Classed(limit=8)
    slot.plan(limit=8, service_s={1: 0.1, 8: longest_s})  # 90 % of 200 ms, of which S(2) of 0.45 takes 150 ms
    slot.comes(*[b"x"] * 20)
    assert [len(batch) for batch in slot.served(1)] == [size]


def test_late_events_are_counted_by_the_slo_of_their_class() -> None:
    slot = Classed()
    slot.comes(b"1", b"2", partition=PREMIUM, age_s=0.3)
    slot.comes(b"3", age_s=0.3)
    slot.comes(b"in time", partition=PREMIUM, age_s=0.05)
    slot.served(4)
    slot.advance(0.01)
    report = slot.report

    def late(topic: str, slo_s: float) -> int:
        bounds = latency_bounds_s(slo_s)
        return sum(report.latencies[topic][bounds.index(slo_s) + 1 :])

    assert (late("premium", 0.2), late("in", 1.0)) == (2, 0)
    assert sum(report.latencies["premium"]) == 3
    bounds = latency_bounds_s(1.0)
    assert sum(report.counts.latency_buckets[bounds.index(1.0) + 1 :]) == 2  # of all, as the pipeline's SLO judges them
    assert (report.counts.records, report.counts.events) == (4, 4)
    assert (report.background["archive"].records, report.background["archive"].events) == (0, 0)


def test_each_of_many_results_is_counted_by_the_slo_of_its_events_class() -> None:
    slot = Classed(stage=replace(routes(source=SOURCES), many=(0,), most=3))
    slot.comes(b"1", partition=PREMIUM, age_s=0.3)
    replica = slot.attached()
    batch = replica.batch()
    many = Many((Done(b"x", 0),) * 3)
    replica.say(Results(batch.epoch, batch.batch, [many], [Call(1, 0.01)], 0.01))
    slot.advance(0.01)
    late = slot.report.latencies["premium"][latency_bounds_s(0.2).index(0.2) + 1 :]
    assert (sum(late), sum(slot.report.latencies["in"])) == (3, 0)
    assert sum(slot.report.counts.latency_buckets) == 3


def test_the_age_of_what_waits_is_its_own() -> None:
    slot = Classed()
    slot.comes(b"1", partition=PREMIUM, age_s=0.1)
    slot.session.fill(slot.report, slot.now_s)
    assert slot.report.oldest_wait_s == pytest.approx(0.1, abs=0.002)


def test_a_key_has_its_order_within_its_class_also_among_live_ones() -> None:
    slot = Classed()
    slot.comes(b"in 1", b"in 2", key=b"k")
    first, second = slot.attached(), slot.attached()
    batch = first.batch()
    slot.comes(b"premium", partition=PREMIUM, key=b"k")
    assert second.batch().inputs == [b"premium"]
    first.answer(batch)
    assert first.batch().inputs == [b"in 2"]


@pytest.mark.parametrize("rate", [0.0, 2.0, 5.0])
def test_a_background_class_has_its_rate_also_where_live_events_wait(rate: float) -> None:
    slot = Classed(rate=rate, order="entry")
    slot.comes(*[b"old"] * 50, partition=ARCHIVE)
    slot.comes(*[b"new"] * 200)
    served = [batch[0] for batch in slot.served(100, took_s=0.1)]  # ten a second, for ten seconds
    assert served.count(b"old") == pytest.approx(10 * rate, abs=2)
