from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.controlplane.observe.log_growth import LogGrowth, OffsetHistory
from inferline_stream.kafka.offset_metadata import Committed
from tests.support.hypothesis_profiles import examples


def test_growth_between_two_samples_is_spread_evenly_over_the_time_between_them() -> None:
    growth = LogGrowth()
    assert growth.sample(10.0, (5, 7)).size == 0
    np.testing.assert_allclose(growth.sample(10.02, (7, 9)), [10.0, 10.005, 10.01, 10.015])
    assert growth.total == 4


def test_a_late_sample_does_not_look_like_a_burst() -> None:
    growth = LogGrowth()
    growth.sample(0.0, (0,))
    times = growth.sample(0.5, (50,))
    assert np.diff(times).max() == pytest.approx(0.01)


def test_a_topic_made_again_and_a_partition_added_count_what_is_theirs() -> None:
    growth = LogGrowth()
    growth.sample(0.0, (100,))
    assert growth.sample(0.1, (3,)).size == 0
    assert growth.sample(0.2, (5, 4)).size == 2 + 4


def test_two_samples_at_one_instant_lose_nothing() -> None:
    growth = LogGrowth()
    growth.sample(1.0, (0,))
    assert growth.sample(1.0, (3,)).size == 0
    assert growth.sample(1.1, (5,)).size == 5
    assert growth.total == 5


def test_a_gap_between_samples_restarts_the_watch() -> None:
    growth = LogGrowth(gap_s=1.0)
    growth.sample(0.0, (0,))
    growth.sample(0.5, (1,))
    assert growth.watched_since_s == 0.0
    growth.sample(3.0, (9,))
    assert growth.watched_since_s == 3.0


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.floats(0.001, 0.5), st.lists(st.integers(0, 20), min_size=3, max_size=3)), max_size=30))
def test_every_record_is_one_arrival_within_its_tick(ticks: list[tuple[float, list[int]]]) -> None:
    growth, now, ends = LogGrowth(), 0.0, [0, 0, 0]
    growth.sample(now, ends)
    total = 0
    for pause_s, grown in ticks:
        before, now = now, now + pause_s
        ends = [end + more for end, more in zip(ends, grown, strict=True)]
        times = growth.sample(now, ends)
        total += sum(grown)
        assert len(times) == sum(grown)
        assert ((times >= before) & (times < now)).all()
        assert (np.diff(times) >= 0).all()
    assert growth.total == total


def at(*offsets: int) -> list[Committed]:
    return [Committed(offset) for offset in offsets]


def test_lag_counts_from_zero_where_nothing_was_committed() -> None:
    history = OffsetHistory(2)
    history.reached(0.0, (4, 6))
    history.committed(0.0, at(-1, 5))
    assert history.lags() == (4, 1)


def test_what_is_finished_above_the_committed_offset_is_no_lag() -> None:
    history = OffsetHistory(1)
    history.reached(0.0, (100,))
    history.committed(0.0, [Committed(5, ((6, 60), (70, 120)))])
    assert history.lags() == (11,)
    history.reached(10.0, (150,))
    history.committed(10.0, [Committed(5, ((6, 150),))])
    assert history.lags() == (1,)
    assert history.idle_s(10.0) == (10.0,), "the event at offset 5 is stuck all the same"
    assert history.oldest_s(10.0) == 10.0


def test_the_share_that_is_not_committed_counts_what_is_finished_above_it() -> None:
    history = OffsetHistory(1)
    history.reached(0.0, (100,))
    history.begin((0,))
    history.committed(0.0, [Committed(40, ((41, 100),))])
    assert history.uncommitted_share() == pytest.approx(0.6), "the oldest records are deleted first"


def test_offsets_that_seem_to_be_gone_make_no_backlog() -> None:
    history = OffsetHistory(2)
    history.reached(0.0, (400, 6))
    history.committed(0.0, at(390, 5))
    history.committed(0.5, at(-1, 6))
    assert history.lags() == (10, 0)
    history.committed(1.0, at(395, 6))
    assert history.lags() == (5, 0)


def test_the_oldest_record_is_as_old_as_the_sample_that_first_saw_it() -> None:
    history = OffsetHistory(2)
    for tick in range(10):
        history.reached(tick * 0.1, (tick * 2, 0))
    history.committed(0.9, at(7, 0))
    # Offset 7 is the eighth record: the log first held 8 of them at tick 4.
    assert history.oldest_s(1.0) == pytest.approx(1.0 - 0.4)
    history.committed(1.0, at(18, 0))
    assert history.oldest_s(5.0) == 0.0


def test_a_partition_is_idle_only_while_it_has_lag() -> None:
    history = OffsetHistory(2)
    history.reached(0.0, (5, 5))
    history.committed(0.0, at(5, 3))
    history.committed(4.0, at(5, 3))
    assert history.idle_s(6.0) == (0.0, 6.0)
    history.committed(6.0, at(5, 4))
    assert history.idle_s(6.5) == (0.0, 0.5)


def test_rates_are_of_the_last_seconds_and_samples_do_not_pile_up_while_nothing_comes() -> None:
    history = OffsetHistory(1, span_s=30.0)
    for tick in range(600):
        history.reached(tick * 0.1, (10 * min(tick, 300),))
    assert history.rates(60.0, 5.0) == (pytest.approx(0.0),)
    assert history.rates(31.0, 5.0)[0] > 0
    assert len(history._samples) <= 302


def test_a_sample_of_many_partitions_is_kept_as_one_row_of_numbers() -> None:
    history = OffsetHistory(500)
    for tick in range(100):
        history.reached(tick * 0.1, [tick + p for p in range(500)])
    assert sum(row.nbytes for _, row in history._samples) == 100 * 500 * 8


def test_a_record_in_a_partition_that_stands_still_ages_on_while_others_move() -> None:
    history = OffsetHistory(2, span_s=30.0)
    for second in range(100):
        history.reached(float(second), (5, second))
        history.committed(float(second), at(3, second))
    assert history.oldest_s(100.0) == 100.0


def test_a_record_that_was_not_there_at_first_is_no_older_than_itself() -> None:
    history = OffsetHistory(2)
    for second in range(10):
        history.reached(float(second), (0 if second < 6 else 4, second))
    history.committed(9.0, at(-1, 9))
    assert history.oldest_s(10.0) == pytest.approx(4.0)


def test_the_share_that_is_not_committed_is_that_of_the_fullest_partition() -> None:
    history = OffsetHistory(2)
    history.reached(0.0, (100, 50))
    history.committed(0.0, at(40, 45))
    assert history.uncommitted_share() is None, "where the log begins is not known"
    history.begin((20, 40))
    assert history.uncommitted_share() == pytest.approx(60 / 80)
    history.begin((100, 50))
    history.committed(1.0, at(100, 50))
    assert history.uncommitted_share() == 0.0


def test_a_partition_that_is_added_has_a_history_of_its_own() -> None:
    history = OffsetHistory(1)
    history.reached(0.0, (10,))
    history.committed(0.0, at(10))
    history.grow(3)
    history.reached(1.0, (10, 4, 0))
    history.committed(1.0, at(10, 1, -1))
    assert history.lags() == (0, 3, 0)
    assert history.ends == (10, 4, 0)
