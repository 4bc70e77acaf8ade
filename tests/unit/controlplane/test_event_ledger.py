from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.controlplane.observe.event_ledger import EventLedger
from inferline_stream.dataplane.headers import ENDED_AT, REASON
from inferline_stream.dataplane.lineage import root_of
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.names import ENTRY_TIME, EVENT_ID, OF
from inferline_stream.runs.archive import EventTimes
from inferline_stream.runs.report import miss_rate, quantiles_s


def source(partition: int, offset: int, name: bytes | None = None, *headers: tuple[str, bytes]) -> Record:
    own = [(EVENT_ID, name)] if name else []
    return Record(None, b"{}", [*own, *headers], 0, partition=partition, offset=offset)


def sink(name: bytes, time_ms: int = 1250, entry_us: int = 1_000_000) -> Record:
    return Record(None, b"{}", [(EVENT_ID, name), (ENTRY_TIME, b"%d" % entry_us)], time_ms, offset=0)


def completed(name: bytes, reason: bytes = b"skipped") -> Record:
    return Record(name, None, [(REASON, reason)], 0, offset=0)


def test_an_event_is_lost_that_neither_reached_the_sink_nor_ended() -> None:
    ledger = EventLedger("posts", (10,), (14,))
    for offset in range(10, 14):
        ledger.entered(source(0, offset))
    ledger.out(sink(b"posts/0/10"))
    ledger.ended(completed(b"posts/0/12"))
    ledger.out(sink(b"posts/0/13"))
    assert ledger.lost() == (1, ["posts/0/11"])
    assert (ledger.events_in, ledger.events_out, ledger.duplicated) == (4, 2, 0)
    assert ledger.reasons == Counter({"skipped": 1})


def test_a_run_does_not_answer_for_what_was_finished_above_its_first_offset() -> None:
    ledger = EventLedger("posts", (10,), (16,), finished=(((11, 13), (15, 16)),))
    for offset in range(10, 16):
        ledger.entered(source(0, offset, b"own" if offset == 15 else None))
    for offset in (10, 13):
        ledger.out(sink(b"posts/0/%d" % offset))
    assert ledger.lost() == (1, ["posts/0/14"])
    assert (ledger.events_in, ledger.events_out) == (3, 2)
    later = EventLedger("posts", (20,), (21,), live=(12,), began=(10,), finished=ledger.finished)
    assert (later.earlier_in, later.earlier_backlog) == (7, 1)


def test_a_named_event_that_came_after_what_a_run_answers_for_is_not_lost() -> None:
    ledger = EventLedger("posts", (10,), (11,))
    for offset, name in ((10, b"own"), (11, b"later")):
        ledger.entered(source(0, offset, name))
    ledger.out(sink(b"own"))
    assert (ledger.lost(), ledger.events_in, len(ledger.arrivals_s)) == ((0, []), 1, 1)


def test_an_event_that_is_moved_to_another_class_is_accounted_for_in_both() -> None:
    header, batch = ("priority", b"batch"), EventLedger("batch", (0,), (2,), longer_s=None)
    ledger = EventLedger("posts", (0,), (3,), moved={header}, others={"batch": batch})
    for offset, headers in enumerate([(("priority", b"high"),), (header,), (header,)]):
        ledger.entered(source(0, offset, None, *headers))
    for at, moved in enumerate((1, 2)):
        batch.entered(source(0, at, b"posts/0/%d" % moved))
        ledger.of_completed(completed(b"posts/0/%d" % moved, b"moved"))
    ledger.out(sink(b"posts/0/0"))
    ledger.of(b"posts/0/1").out(sink(b"posts/0/1"))
    ledger.of_completed(completed(b"posts/0/2", b"dead_lettered"))
    assert ledger.lost() == batch.lost() == (0, [])
    assert len(ledger.arrivals_s) == 1, "the others arrive as events of their class"
    assert (ledger.events_in, ledger.events_out, ledger.reasons) == (3, 1, Counter({"moved": 2}))
    assert (batch.events_in, batch.events_out, batch.reasons) == (2, 1, Counter({"dead_lettered": 1}))


def test_a_second_sink_record_is_a_duplicate_and_its_latency_does_not_count() -> None:
    ledger = EventLedger("posts", (0,), (1,))
    ledger.entered(source(0, 0))
    ledger.out(sink(b"posts/0/0", time_ms=1250))
    ledger.out(sink(b"posts/0/0", time_ms=9000))
    assert ledger.duplicated == 1
    assert list(ledger.latencies_s) == [pytest.approx(0.25)]


def test_a_result_counts_for_the_class_of_its_event() -> None:
    premium = EventLedger("premium", (0,), (2,), longer_s=-0.1)
    ledger = EventLedger("posts", (0,), (1,), others={"premium": premium})
    for of in (ledger, premium):
        of.entered(source(0, 0))
    premium.entered(source(0, 1, b"own"))
    for name, headers in ((b"premium/0/0/0", [(OF, b"2")]), (b"own/0", [(OF, b"1")])):
        record = sink(name)
        record = Record(None, record.value, [*record.headers, *headers], record.timestamp_ms, offset=0)
        ledger.of(root_of(record.headers) or b"").out(record)
    assert (ledger.events_out, premium.events_out, ledger.unknown) == (0, 2, 0)
    assert ledger.lost() == (1, ["posts/0/0"])
    assert premium.lost() == (1, ["premium/0/0: 1/2 of its results"])


def test_results_of_events_that_are_not_looked_up_make_none_of_them_lost() -> None:
    ledger = EventLedger("posts", (5,), (7,), began=(2,))
    ledger.entered(source(0, 5))
    for name, of in ((b"posts/0/1/0", b"2"), (b"posts/0/3/1", b"2"), (b"posts/0/5/0", b"1")):
        record = sink(name)
        ledger.out(Record(None, record.value, [*record.headers, (OF, of)], record.timestamp_ms, offset=0))
    assert (ledger.unknown, ledger.earlier_out, ledger.events_out) == (1, 1, 1)
    assert ledger.lost() == (0, [])


def test_records_of_other_runs_and_other_topics_are_distinguished() -> None:
    ledger = EventLedger("posts", (5,), (7,))
    ledger.entered(source(0, 5))
    ledger.entered(source(0, 6))
    for name in (b"posts/0/4", b"posts/0/7", b"other/0/5", b"posts/1/5", b"nonsense", b""):
        ledger.out(sink(name))
    assert (ledger.unknown, ledger.events_out) == (6, 0)


def test_offsets_without_a_record_are_not_lost_events() -> None:
    ledger = EventLedger("posts", (0,), (3,))  # a transaction's marker holds offset 1
    for offset in (0, 2):
        ledger.entered(source(0, offset))
        ledger.out(sink(b"posts/0/%d" % offset))
    assert ledger.lost() == (0, [])
    assert ledger.events_in == 2


names = st.one_of(st.tuples(st.integers(0, 1), st.integers(0, 9)), st.binary(min_size=1, max_size=3))


@given(st.lists(names, unique=True), st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)))
def test_every_event_is_counted_as_a_plain_list_of_ids_counts_it(
    entered: list[tuple[int, int] | bytes], outs: list[int], ends: list[int]
) -> None:
    ids = [b"t/%d/%d" % name if isinstance(name, tuple) else name for name in entered]
    ledger = EventLedger("t", (0, 0), (10, 10))
    for at, name in enumerate(entered):
        if isinstance(name, tuple):
            ledger.entered(source(*name))
        else:
            ledger.entered(source(0, at % 10, name))
    out = [ids[i] for i in outs if i < len(ids)]
    end = [ids[i] for i in ends if i < len(ids)]
    for name in out:
        ledger.out(sink(name))
    for name in end:
        ledger.ended(completed(name))
    assert ledger.events_in == len(ids)
    assert ledger.events_out == len(set(out))
    assert ledger.duplicated == len(out) - len(set(out))
    count, _ = ledger.lost()
    assert count == len(set(ids) - set(out) - set(end))


def test_what_was_there_before_is_accounted_for_and_tells_nothing_of_latency_and_misses() -> None:
    ledger = EventLedger("posts", (10,), (15,), live=(12,))
    for offset in (10, 11, 12):
        ledger.entered(source(0, offset))
    ledger.entered(source(0, 13, name=b"mine"))
    ledger.out(sink(b"posts/0/10", time_ms=90_000))
    ledger.ended(completed(b"posts/0/11", b"dead_lettered"))
    ledger.out(sink(b"posts/0/12", time_ms=1250))
    ledger.out(sink(b"mine", time_ms=1500))
    assert (ledger.events_in, ledger.events_out, ledger.backlog) == (4, 3, 2)
    assert ledger.lost() == (0, [])
    assert list(ledger.latencies_s) == [pytest.approx(0.25), pytest.approx(0.5)]
    assert len(ledger.arrivals_s) == 2
    assert ledger.backlog_done_s == 90.0
    assert ledger.reasons == Counter({"dead_lettered": 1})
    assert miss_rate([ledger], 0.3) == 0.5


def test_an_event_that_was_there_before_and_is_moved_during_the_run_tells_nothing_of_latency_either() -> None:
    header = ("tier", b"premium")
    ledger = EventLedger("posts", (0,), (2,), live=(1,), moved={header})
    ledger.others["premium"] = premium = EventLedger("premium", (0,), (2,), live=(0,), came_from=ledger)
    for offset in range(2):
        ledger.entered(source(0, offset, None, header))
    for offset in range(2):
        premium.entered(source(0, offset, b"posts/0/%d" % offset))
        premium.out(sink(b"posts/0/%d" % offset))
    assert (len(premium.latencies_s), len(premium.arrivals_s), premium.backlog) == (1, 1, 1)
    assert premium.lost() == (0, [])


def test_a_named_event_that_was_there_before_is_known_by_its_record() -> None:
    ledger = EventLedger("posts", (0,), (2,), live=(1,))
    ledger.entered(source(0, 0, name=b"old"))
    ledger.entered(source(0, 1, name=b"new"))
    ledger.out(sink(b"old", time_ms=90_000))
    ledger.out(sink(b"new", time_ms=1250))
    assert list(ledger.latencies_s) == [pytest.approx(0.25)]
    assert (ledger.backlog, ledger.backlog_done_s) == (1, 90.0)


ODD = st.none() | st.binary(max_size=12) | st.sampled_from(
    [b"inf", b"9" * 30, b"9" * 400, b"\xff", "t/²/0".encode(), b"t/0/", b"t/9/0", b"t/0/-1", b"t/\xb2/1", b"/", b""]
)  # fmt: skip


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["entered", "out", "ended"]),
            ODD,
            st.lists(st.tuples(st.sampled_from([EVENT_ID, ENTRY_TIME, REASON]), ODD)),
            st.integers(-(2**63), 2**63 - 1),
        )
    )
)
def test_whatever_records_hold_the_good_one_among_them_is_accounted_for(
    records: list[tuple[str, bytes | None, list[tuple[str, bytes | None]], int]],
) -> None:
    ledger = EventLedger("t", (0,), (100,), (1,))
    ledger.entered(source(0, 99, b"good"))
    for at, (kind, key, headers, time_ms) in enumerate(records[:98]):
        getattr(ledger, kind)(Record(key, b"", headers, time_ms, offset=at))  # type: ignore[arg-type]
    ledger.out(sink(b"good"))
    assert "good" not in ledger.lost(1000)[1]
    assert ledger.events_out >= 1
    miss_rate([ledger], 0.25)


def test_a_latency_is_never_negative() -> None:
    ledger = EventLedger("posts", (0,), (1,))
    ledger.entered(source(0, 0))
    ledger.out(sink(b"posts/0/0", time_ms=1250, entry_us=86_400_000_000))
    assert list(ledger.latencies_s) == [0.0]


def test_of_several_sinks_the_last_record_counts_and_each_sink_has_to_get_its_own() -> None:
    ledger = EventLedger("posts", (0,), (5,))
    ledger.reaches(("alerts", "out"))
    for offset in range(5):
        ledger.entered(source(0, offset))
    for offset in range(4):
        ledger.out(sink(b"posts/0/%d" % offset, time_ms=1250), "out")
    ledger.out(sink(b"posts/0/0", time_ms=1750), "alerts")
    for offset, reason in ((1, b"skipped"), (2, b"dead_lettered")):
        record = completed(b"posts/0/%d" % offset, reason)
        ledger.ended(Record(record.key, None, [*record.headers, (ENDED_AT, b"alerts")], 0, offset=0))
    ledger.ended(completed(b"posts/0/4", b"filtered"))
    assert ledger.lost() == (1, ["posts/0/3 (in the sink of stage alerts)"])
    assert (ledger.events_out, ledger.duplicated) == (4, 0)
    assert ledger.reasons == Counter({"dead_lettered": 1, "filtered": 1})
    assert list(ledger.latencies_s) == pytest.approx([0.75, 0.25, math.inf, 0.25])
    assert miss_rate([ledger], 0.5) == 3 / 5  # 0 is late, 2 died on its way to one sink, 3 is lost
    assert quantiles_s(ledger.judged_s(), (0.5, 1.0)) == (0.25, 0.75)
    assert sorted(EventTimes.of(ledger, None).latency_s) == [0.25, 0.25, 0.75]


def test_an_event_has_one_reason_at_however_many_sinks_it_ends() -> None:
    """One that a stage has filtered is skipped by others, whichever of them is first to say so."""
    ledger = EventLedger("posts", (0,), (4,))
    ledger.reaches(("alerts", "out"))
    filtered = ((b"skipped", b"filtered"), (b"filtered", b"skipped"))
    endings = ((b"dead_lettered", b"dead_lettered"), *filtered, (b"dead_lettered", b"skipped"))
    for offset, reasons in enumerate(endings):
        ledger.entered(source(0, offset))
        for stage, reason in zip((b"alerts", b"out"), reasons, strict=True):
            record = completed(b"posts/0/%d" % offset, reason)
            ledger.ended(Record(record.key, None, [*record.headers, (ENDED_AT, stage)], 0, offset=0))
    assert ledger.reasons == Counter({"dead_lettered": 2, "filtered": 2})
    assert (ledger.lost(), miss_rate([ledger], 0.5)) == ((0, []), 1.0)


def test_of_sinks_of_lines_and_of_pages_a_page_counts_once_by_its_last_record() -> None:
    ledger = EventLedger("pages", (0,), (3,))
    ledger.reaches(("lines", "out"))
    for offset in range(3):
        ledger.entered(source(0, offset))
    for name, time_ms in ((b"pages/0/0/0", 1250), (b"pages/0/0/1", 3000), (b"pages/0/1/0", 1500)):
        line = sink(name, time_ms=time_ms)
        ledger.out(Record(line.key, line.value, [*line.headers, (OF, b"2")], time_ms, offset=0), "lines")
    for page in (0, 1):
        ledger.out(sink(b"pages/0/%d" % page, time_ms=2000), "out")
    for name, at in ((b"pages/0/1/1", b"lines"), (b"pages/0/2/0", b"lines"), (b"pages/0/2/1", b"lines")):
        record = completed(name, b"dead_lettered")
        ledger.ended(Record(record.key, None, [*record.headers, (OF, b"2"), (ENDED_AT, at)], 0, offset=0))
    record = completed(b"pages/0/2", b"dead_lettered")
    ledger.ended(Record(record.key, None, [*record.headers, (ENDED_AT, b"out")], 0, offset=0))
    assert ledger.lost() == (0, [])
    assert list(ledger.latencies_s) == pytest.approx([2.0, math.inf])  # a line of the second died
    assert ledger.reasons == Counter({"dead_lettered": 2})
    assert miss_rate([ledger], 2.5) == 2 / 3


def test_events_of_two_classes_may_have_one_id() -> None:
    second = EventLedger("second", (0,), (1,))
    ledger = EventLedger("posts", (0,), (1,), others={"second": second})
    ledger.reaches(("scores",))
    second.reaches(("out",))
    for of in (ledger, second):
        of.entered(source(0, 0, b"same"))
    for at in ("scores", "out"):
        ledger.of(b"same", at).out(sink(b"same"), at)
    assert (ledger.events_out, second.events_out) == (1, 1)
    second.out(sink(b"same"), "scores")  # of whatever came there before
    assert second.unknown == 1
