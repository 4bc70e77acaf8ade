"""Rungs of a partition count, and the count that a topic is advised to have."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.planner.partitions import advise_partitions, rung_above, rung_below, rungs, unevenness


def test_rungs_of_a_prime_count_are_more_than_its_divisors():
    assert rungs(31) == (1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 31)


@given(st.integers(1, 300))
def test_between_two_rungs_a_replica_more_takes_nothing_off_the_busiest(partitions):
    busiest = {r: max(len(range(i, partitions, r)) for i in range(r)) for r in range(1, partitions + 1)}
    falls = tuple(r for r in busiest if r == 1 or busiest[r] < busiest[r - 1])
    assert rungs(partitions) == falls


def test_the_neighbouring_rungs_are_found_from_anywhere_and_end_at_the_partition_count():
    assert (rung_above(31, 8), rung_above(31, 9), rung_above(31, 31)) == (11, 11, None)
    assert (rung_below(31, 31), rung_below(31, 30), rung_below(31, 1)) == (16, 16, None)


def test_a_topic_without_partitions_is_refused():
    with pytest.raises(ValueError, match="0 partitions"):
        rungs(0)


@given(st.integers(1, 60), st.sampled_from([1.0, 1.5, 3.0]))
def test_the_advised_count_feeds_the_peak_and_shares_evenly_at_the_planned_replicas(replicas, peak):
    advice = advise_partitions(replicas, peak=peak, growth=2.0, tolerance=0.15)
    assert advice.partitions >= advice.peak_replicas >= replicas * peak * 2
    assert unevenness(advice.partitions, replicas) <= 0.15


@given(st.integers(1, 60))
def test_from_planned_to_peak_the_next_rung_is_one_replica_or_thirty_percent_away(replicas):
    advice = advise_partitions(replicas, growth=2.0, tolerance=0.15)
    steps = [r for r in rungs(advice.partitions) if r >= replicas]
    for lower, upper in itertools.pairwise(steps):
        assert upper <= max(lower + 1, 1.3 * lower) or lower >= advice.peak_replicas


def test_a_partition_that_carries_half_of_the_records_lets_only_two_replicas_help():
    advice = advise_partitions(4, shares=[5, 1, 2, 2])
    assert advice.useful_replicas == 2
    assert "50%" in advice.reason


def test_even_shares_are_no_skew():
    assert advise_partitions(4, shares=[1] * 12).useful_replicas == 12


def test_advice_needs_replicas_and_factors_that_can_be():
    with pytest.raises(ValueError, match="replicas 0"):
        advise_partitions(0)
    with pytest.raises(ValueError, match=r"growth 0\.5"):
        advise_partitions(1, growth=0.5)
