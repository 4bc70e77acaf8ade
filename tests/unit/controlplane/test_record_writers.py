from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.controlplane.observe.observation_log import ObservationLog
from inferline_stream.controlplane.records.control_records import (
    DECISIONS_KEPT,
    WANTED_KEY,
    ArrivalTicks,
    decode_stored,
    decode_ticks,
    encode,
    merged,
)
from inferline_stream.controlplane.records.record_writers import ArrivalLog, DecisionLog
from inferline_stream.observability.pipeline_state import DecisionRecord
from inferline_stream.pipeline.names import Names

NAMES = Names("p")


def decision(number: int, *, applied: bool = True) -> DecisionRecord:
    return DecisionRecord(number, "c", 1, 0.0, "scale_up", "backlog", "", {"s": {"cpu": number}}, applied)


def test_what_grew_is_reported_with_the_look_right_before_it() -> None:
    ticks = ArrivalLog(NAMES, "posts")
    for tick in range(30):
        ticks.sampled(tick * 20.0, [5])
    ticks.sampled(600.0, [9])
    written = ticks.take()
    record = decode_ticks(written.value)
    assert (record.previous_ms, record.previous) == (0.0, [5])
    assert list(zip(record.times_ms, record.ends, strict=True)) == [(580.0, [5]), (600.0, [9])]
    assert ticks.take() is None


def test_a_log_that_stands_still_is_reported_once_a_second() -> None:
    ticks = ArrivalLog(NAMES, "posts")
    for tick in range(126):
        ticks.sampled(tick * 20.0, [5])
    assert decode_ticks(ticks.take().value).times_ms == [1000.0, 2000.0]


@pytest.mark.parametrize("known_s", [None, 2.51])
def test_a_replay_sees_each_arrival_of_a_gap_where_it_came_and_not_before_it_was_known(known_s: float | None) -> None:
    ticks, observed = ArrivalLog(NAMES, "posts"), ObservationLog()
    ticks.sampled(1_000.0, [5, 0])
    ticks.asked(1.01, {})
    came = [(1.3, 0), *[(1.9, 1)] * 100, (1.905, 0), (2.495, 1)]
    ticks.came(came, [5, 0], since_s=1.0, until_s=2.5, sample_s=0.02, known_s=known_s)
    ticks.sampled(2_500.0, [7, 101])
    ticks.sampled(2_520.0, [8, 101])
    observed.take(decode_ticks(ticks.take().value))
    arrivals_s, learned_s = observed.observations(0.0, 1.01).arrivals()
    assert np.abs(arrivals_s - [*(at_s for at_s, _ in came), 2.51]).max() < 0.02
    assert (learned_s >= arrivals_s).all()
    assert learned_s[-1] == pytest.approx(2.52)
    if known_s is not None:
        assert learned_s[:-1] == pytest.approx(2.51)


def test_what_grows_after_the_clock_was_set_back_is_reported_and_shows_no_burst() -> None:
    ticks, observed = ArrivalLog(NAMES, "posts"), ObservationLog()
    records, set_back_ms = [], 0.0
    for tick in range(400):  # 50 records a second
        set_back_ms = 3.6e6 if tick >= 200 else 0.0
        ticks.sampled(7.2e6 + tick * 20.0 - set_back_ms, [tick])
        if tick % 5 == 0:
            ticks.asked(7.2e3 + tick * 0.02 - set_back_ms / 1e3, {})
        if tick % 50 == 49 and (written := ticks.take()) is not None:
            records.append(decode_ticks(written.value))
    grown = merged(records, 1)
    assert grown[-1][1] == [399]
    assert max(b[0] - a[0] for (_, a), (_, b) in itertools.pairwise(grown)) <= 2
    for record in records:
        observed.take(record)
    found = observed.observations(7.2e3, 7.2e3)
    assert found.asked_s.size == 80
    assert found.grown[-1] == 399


def test_steps_after_the_last_tick_are_left_for_the_end_of_a_run() -> None:
    ticks, observed = ArrivalLog(NAMES, "posts"), ObservationLog()
    assert ticks.rest() is None
    ticks.sampled(1_000.0, [5])
    ticks.sampled(1_020.0, [9])
    ticks.asked(1.01, {"a": 2.0})
    observed.take(decode_ticks(ticks.take().value))
    ticks.asked(1.11, {"a": 3.0})
    assert ticks.take() is None
    observed.take(ticks.rest())
    found = observed.observations(0.0, 1.01)
    assert found.asked_s.tolist() == [1.01, 1.11]
    assert found.figures.tolist() == [2.0, 3.0]
    assert found.ticks_s.tolist() == [1.0, 1.02]
    assert not ticks.rest().asked_ms, "once"
    ticks.sampled(1_200.0, [10])
    assert decode_ticks(ticks.take().value).previous == [9]


def test_when_the_policy_was_asked_is_reported_with_the_next_tick_and_its_figures_once_they_have_moved() -> None:
    ticks = ArrivalLog(NAMES, "posts")
    ticks.sampled(0.0, [5])
    figures = [("a", 2.0), ("a", 2.001), ("a", 2.1), ("a", None), ("a", None), ("b", 1.0)]
    for step, (key, figure) in enumerate(figures, start=1):
        ticks.asked(0.1 * step, {key: figure})
    assert ticks.take() is None
    ticks.sampled(700.0, [6])
    record = decode_ticks(ticks.take().value)
    assert record.asked_ms == pytest.approx([100.0, 200.0, 300.0, 400.0, 500.0, 600.0])
    times, keys, figures = zip(*record.figures, strict=True)
    assert times == pytest.approx((100.0, 300.0, 400.0, 600.0))
    assert (keys, figures) == (("a", "a", "a", "b"), (2.0, 2.1, None, 1.0))
    ticks.sampled(720.0, [7])
    record = decode_ticks(ticks.take().value)
    assert (record.asked_ms, record.figures) == ([], [])


def test_a_second_writer_and_a_second_reading_add_nothing() -> None:
    one = ArrivalTicks([20.0, 40.0], [[3, 0], [3, 4]], [0, 0], 0.0)
    other = ArrivalTicks([30.0, 50.0], [[3, 2], [3, 4]], [1, 0], 10.0)
    grown = merged([one, other, one], 2)
    assert grown[-1] == (0.05, [3, 4])
    assert [ends for _, ends in grown] == sorted(ends for _, ends in grown)


def test_a_day_of_much_traffic_is_kept_to_its_newest_tick_and_garbage_in_it_is_not() -> None:
    times_ms = [1e3 * second for second in range(10_000)]
    ends = [[20_000 * second] for second in range(10_000)]
    garbage = ArrivalTicks([5e6], [[2**52]], [0], 5e6)
    grown = merged([ArrivalTicks(times_ms, ends, ends[0], times_ms[0]), garbage], 1)
    assert [time_s for time_s, _ in grown] == [float(second) for second in range(10_000)]
    assert [end for _, end in grown] == ends


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40))
def test_merged_ticks_of_any_two_writers_are_the_log_that_both_saw(steps: list[tuple[int, int, int]]) -> None:
    writers, now, ends = (ArrivalLog(NAMES, "posts"), ArrivalLog(NAMES, "posts")), 0, [0, 0]
    records = []
    for writer in writers:
        writer.sampled(0.0, ends)
    for i, (pause, a, b) in enumerate(steps):
        now, ends = now + pause, [ends[0] + a, ends[1] + b]
        writers[i % 2].sampled(float(now), ends)
        if i % 3 == 0 and (record := writers[i % 2].take()) is not None:
            records.append(decode_ticks(record.value))
    records += [decode_ticks(record.value) for writer in writers if (record := writer.take()) is not None]
    grown = merged(records, 2)
    if grown and any(a or b for _, a, b in steps):
        assert grown[-1][1] == ends
    assert all(x <= y for (_, old), (_, new) in itertools.pairwise(grown) for x, y in zip(old, new, strict=True))


def test_the_newest_applied_decision_is_kept_as_what_is_wanted_and_the_oldest_makes_room() -> None:
    book = DecisionLog("decisions")
    book.decision(decision(1))
    book.decision(decision(2, applied=False))
    book.decision(decision(DECISIONS_KEPT + 1))
    written = book.waiting()
    assert [((w.key or b"").decode(), w.value is None) for w in written] == [
        ("decision-1", False),
        (WANTED_KEY, False),
        ("decision-2", False),
        (f"decision-{DECISIONS_KEPT + 1}", False),
        (WANTED_KEY, False),
        ("decision-1", True),
    ]
    assert decode_stored("wanted", written[4].value).replicas == {"s": {"cpu": DECISIONS_KEPT + 1}}
    book.written(5)
    assert [w.key for w in book.waiting()] == [b"decision-1"]


def test_every_record_says_its_version() -> None:
    assert msgspec.json.decode(encode(decision(1)))["version"] == 1
