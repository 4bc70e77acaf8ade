"""The end of a run as long as it likes: the newest events by their ids, the others by counts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from inferline_stream.controlplane.observe.end_offsets import VERIFIED, EndOffsets, LedgerBegin
from inferline_stream.controlplane.observe.event_ledger import EventLedger, ledger_begin, read_ledger
from inferline_stream.dataplane.headers import REASON
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.kafka.records import Record
from inferline_stream.observability.latency_histogram import LatencyHistogram
from inferline_stream.observability.pipeline_state import PipelineState
from inferline_stream.observability.stage_counts import StageCounts
from inferline_stream.pipeline.names import ENTRY_TIME, EVENT_ID, Names
from inferline_stream.runs.report import RunReport, endings, run_report
from tests.unit.observability.states import SLO_S, a_state

NAMES = Names("p")
START = LedgerBegin((0, 0), {"work": (0,)}, (0,), live=(0, 0))


class Topics:
    """Source (two partitions), sink and completed topic of a run; what is not read of them is never made."""

    def __init__(self, events: int, lost: frozenset[int] = frozenset(), own_ids: bool = False) -> None:
        self.events, self.lost, self.own_ids, self.read = events, lost, own_ids, 0

    def ends(self, entered: int, done: int) -> tuple[list[int], list[int], list[int]]:
        """Ends of the three once so many had entered, and so many of them were done: each tenth has no result."""
        gone = sum(n < done for n in self.lost)
        return [(entered + 1) // 2, entered // 2], [done - (done + 9) // 10 - gone], [(done + 9) // 10]

    def _id(self, n: int) -> bytes:
        return b"order-%d" % n if self.own_ids else b"posts@id/%d/%d" % (n % 2, n // 2)

    def records(self, topic: str, first: Mapping[int, int]) -> list[Record]:
        if topic == "posts":
            headers = lambda n: [(EVENT_ID, self._id(n))] if self.own_ids else []  # noqa: E731
            return [
                Record(None, b"", headers(2 * at + p), 1000, partition=p, offset=at)
                for p, start in first.items()
                for at in range(start, self.ends(self.events, 0)[0][p])
            ]
        if topic == "out":
            left = first[0]
            numbers = [n for n in range(self._after(left), self.events) if n % 10 and n not in self.lost]
            return [
                Record(None, b"", [(EVENT_ID, self._id(n)), (ENTRY_TIME, b"1000000")], 1250, offset=n) for n in numbers
            ]
        return [
            Record(self._id(n), b"", [(REASON, b"skipped")], 1250, offset=n)
            for n in range(10 * first[0], self.events, 10)
        ]

    def _after(self, results: int) -> int:
        return next(n for n in range(results, 2 * results + 2) if self.ends(0, n)[1][0] >= results)

    def follower(self, topic: str, first: Mapping[int, int]) -> Any:
        topics = self

        class Follower:
            async def __aenter__(self) -> Follower:
                return self

            async def __aexit__(self, *of: object) -> None:
                pass

            async def until(self, end: Mapping[int, int]) -> AsyncIterator[Record]:
                for record in topics.records(topic, first):
                    topics.read += 1
                    yield record

        return Follower()


def report_of(topics: Topics, *, marks: EndOffsets, every: int) -> tuple[RunReport, EventLedger]:
    for entered in range(0, topics.events + 1, every):
        source, sink, completed = topics.ends(entered, max(0, entered - 50))  # fifty are always under way
        marks.look(source, {"work": sink}, completed)
    whole = topics.ends(topics.events, topics.events)

    async def ends(wanted: object) -> dict[str, tuple[int, ...]]:
        return {"posts": tuple(whole[0]), "out": tuple(whole[1]), NAMES.completed: tuple(whole[2])}

    async def topic_id(topic: str) -> str:
        return "id"

    kafka = SimpleNamespace(follow=topics.follower)
    context: Any = SimpleNamespace(
        source="posts",
        sinks={"work": "out"},
        names=NAMES,
        kafka=kafka,
        others=(),
        live={},
        pipeline=SimpleNamespace(moved={}),
        sinks_of=lambda of: ["work"],
        levels_of=lambda of: 0,
    )
    offsets: Any = SimpleNamespace(ends=ends, topic_id=topic_id)
    ledger = asyncio.run(read_ledger(offsets, context, START, begin=marks.begin))
    return run_report(
        ledger, quiet(), started_s=0.0, duration_s=1.0, replicas_most={}, lag={}, exits=[], emulated=False,
        advisory=False, lateness_p99_s=None,
    ), ledger  # fmt: skip


def quiet() -> PipelineState:
    counted = LatencyHistogram((SLO_S / 2, SLO_S), (9900, 90, 10), 100.0)
    return replace(a_state(), stages=(), latency=counted, late_events=10, decisions=(), backgrounds=())


@pytest.mark.parametrize("own_ids", [False, True])
@pytest.mark.parametrize("events", [0, 999, 1000, 1001, 20_011])
def test_a_long_run_is_verified_at_its_end_and_counted_before(events: int, own_ids: bool) -> None:
    topics = Topics(events, own_ids=own_ids)
    report, ledger = report_of(topics, marks=EndOffsets(1000, 60), every=25)
    assert (report.lost, report.unaccounted, report.duplicated, report.unknown) == (0, 0, 0, 0)
    assert report.events_in == events
    assert report.events_out + sum(report.completed.values()) == events
    assert report.verified == events if events <= 1000 else 900 <= report.verified <= 1000
    assert topics.read < 2 * 1000 + 300
    if ledger.began:
        assert report.slo_miss_rate == 10 / 10_000
        assert report.p99_s is not None
        assert SLO_S / 2 <= report.p99_s <= SLO_S


def test_what_was_lost_is_found_by_id_at_the_end_and_by_counts_before() -> None:
    late = Topics(20_011, lost=frozenset({19_991}))
    report, _ = report_of(late, marks=EndOffsets(1000, 60), every=25)
    assert (report.lost, report.lost_ids, report.unaccounted) == (1, ["posts@id/1/9995"], 0)
    early = Topics(20_011, lost=frozenset(range(5001, 5010)))
    report, _ = report_of(early, marks=EndOffsets(1000, 60), every=25)
    assert (report.lost, report.unaccounted) == (0, 9)


def test_endings_that_are_counted_have_the_reasons_that_the_stages_counted() -> None:
    ledger = EventLedger("posts", (5,), (5,), began=(0,))
    ledger.reasons["filtered"], ledger.earlier_ended = 2, 10
    stage = replace(a_state().stages[0], total=StageCounts(filtered=8, dead_lettered=1, moved=2))
    found = endings(ledger, replace(quiet(), stages=(stage,)))
    assert found == {"filtered": 8, "dead_lettered": 1, "moved": 2, "skipped": 1}


def test_an_event_that_has_reached_one_of_several_sinks_has_not_ended_at_the_others() -> None:
    ledger = EventLedger("posts", (50,), (50,), began=(0,))  # 50 events: 45 in one sink, 5 filtered, and an alert of 9
    ledger.earlier_out, ledger.earlier_most, ledger.earlier_ended = 54, 45, 41 + 5 + 1
    stage = replace(a_state().stages[0], total=StageCounts(filtered=5, dead_lettered=1))
    assert endings(ledger, replace(quiet(), stages=(stage,))) == {"filtered": 5, "dead_lettered": 1}


def test_what_is_counted_of_every_class_is_accounted_for() -> None:
    premium = EventLedger("premium", (5,), (9,), began=(0,), longer_s=0.1)
    ledger = EventLedger("posts", (5,), (9,), began=(0,), others={"premium": premium})
    ledger.earlier_out, ledger.earlier_ended = 5, 1  # by the growth of the topics
    for n in range(4):  # of events that were under way
        name = b"premium/0/%d" % n
        of = ledger.of(name)
        if n:
            of.out(Record(None, b"", [(EVENT_ID, name), (ENTRY_TIME, b"1000000")], 1250, offset=n))
        else:
            of.ended(Record(name, b"", [(REASON, b"skipped")], 1250, offset=n))
    found = run_report(
        ledger, quiet(), started_s=0.0, duration_s=1.0, replicas_most={}, lag={}, exits=[], emulated=False,
        advisory=False, lateness_p99_s=None,
    )  # fmt: skip
    assert (found.events_in, found.events_out, found.completed, found.unaccounted) == (10, 8, {"skipped": 2}, 0)


def test_what_was_worked_off_before_the_run_began_took_it_no_time() -> None:
    ledger = EventLedger("posts", (0,), (1,), live=(1,))
    ledger.entered(Record(None, b"", [], 1000, offset=0))
    ledger.out(Record(None, b"", [(EVENT_ID, b"posts/0/0"), (ENTRY_TIME, b"1000000")], 1250, offset=0))
    found = run_report(
        ledger, quiet(), started_s=1.5, duration_s=1.0, replicas_most={}, lag={}, exits=[], emulated=False,
        advisory=False, lateness_p99_s=None,
    )  # fmt: skip
    assert (found.backlog, found.backlog_done_s) == (1, 0.0)


def test_a_burst_that_nobody_looked_at_in_between_is_verified_to_the_same_bound() -> None:
    topics = Topics(20_011)
    report, _ = report_of(topics, marks=EndOffsets(1000, 60), every=19_000)
    assert 900 <= report.verified <= 1000
    assert (report.lost, report.unaccounted) == (0, 0)


def test_marks_and_ledger_stay_within_their_bound_however_long_the_run() -> None:
    marks = EndOffsets()
    for n in range(0, 10_000_000, 500):
        marks.look((n,), {"work": (n,)}, (0,))
    assert len(marks._marks) <= 17
    end = 10_000_000
    begin = marks.begin(LedgerBegin((0,), {"work": (0,)}, (0,), (0,)), (end,))
    assert VERIFIED * 0.9 < end - begin.source[0] <= VERIFIED
    ledger = EventLedger("posts", begin.source, (end,), began=(0,))
    for n in range(begin.source[0], end):
        name = (b"%d" % n) * 500  # a producer's own, as long as it likes
        ledger.entered(Record(None, b"", [(EVENT_ID, name)], 0, offset=n))
    names = sum(map(sys.getsizeof, ledger._named))
    assert names + sys.getsizeof(ledger._named) < 32e6


async def test_a_run_that_begins_while_dispatchers_go_on_answers_for_no_event_whose_result_it_does_not_see() -> None:
    done = 0

    async def partitions(topic: str) -> int:
        return 1

    async def ends(wanted: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        nonlocal done
        done += 10  # events enter, and are finished, while each answer is on its way
        return {topic: (done,) for topic in wanted}

    async def committed(group: str, topic: str, partitions: int) -> tuple[Committed, ...]:
        nonlocal done
        done += 10
        return (Committed(done),)

    context: Any = SimpleNamespace(
        source="posts", sinks={"work": "out"}, names=NAMES, others=(), live={}, entries_of=lambda of: ["work"]
    )
    offsets: Any = SimpleNamespace(partitions=partitions, ends=ends, committed=committed)
    since = await ledger_begin(offsets, context)
    assert since.source >= since.sinks["work"]
    assert since.source >= since.completed
