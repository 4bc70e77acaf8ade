"""The bootstrap interval of a P99."""

import numpy as np
import pytest

from inferline_stream.estimator.quantile import quantile_s
from inferline_stream.planner.confidence import p99_confidence


def _interval(latency, seed=0, **more):
    arrivals = np.arange(latency.size) * 0.01
    return p99_confidence(latency, arrivals, np.random.default_rng(seed), **more)


def test_equal_latencies_leave_no_doubt():
    found = _interval(np.full(5000, 0.2))
    assert (found.low_s, found.high_s) == (0.2, 0.2)


def test_of_independent_latencies_about_nineteen_in_twenty_intervals_hold_the_true_quantile():
    truth = -np.log(0.01)
    held = 0
    for seed in range(100):
        found = _interval(np.random.default_rng(seed).exponential(size=6_000), seed=seed)
        held += found.low_s <= truth <= found.high_s
    assert 0.87 <= held / 100 <= 0.99


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99, 1.0])
def test_a_single_block_is_the_trace_itself_and_its_quantile_certain(p):
    latency = np.random.default_rng(3).geometric(0.02, 1000) * 1.0
    found = _interval(latency, p=p, blocks=1)
    assert (found.low_s, found.high_s) == (quantile_s(latency, p),) * 2


def test_of_more_latencies_than_are_kept_apart_those_near_the_quantile_are():
    """Of 100,000 the slowest 8,000 are looked at, one in eight of them."""
    found = _interval(np.arange(100_000.0), blocks=1)
    assert found.low_s == found.high_s == pytest.approx(quantile_s(np.arange(100_000.0), 0.99), abs=8)


def test_of_two_blocks_the_slower_decides_unless_it_is_never_drawn():
    # Half of the draws hold either block once and a quarter the faster one twice: P60 is 1, 2 or, mixed, 2.
    latency = np.repeat([1.0, 2.0], 500)
    assert [_interval(latency, p=0.6, blocks=2, confidence=c).low_s for c in (0.4, 0.6)] == [2.0, 1.0]
    assert [_interval(latency, p=0.4, blocks=2, confidence=c).high_s for c in (0.4, 0.6)] == [1.0, 2.0]


def test_latencies_that_come_in_bursts_make_the_interval_wider_than_the_same_ones_shuffled():
    rng = np.random.default_rng(1)
    bursts = np.repeat(rng.exponential(size=60), 200) + rng.random(12_000) * 1e-3
    shuffled = rng.permutation(bursts)
    wide, narrow = _interval(bursts), _interval(shuffled)
    assert wide.high_s - wide.low_s > 3 * (narrow.high_s - narrow.low_s)


def test_stretches_are_counted_from_the_first_arrival_and_by_number_where_all_come_at_once():
    latency = np.repeat([1.0, 2.0], 500)
    two = {"p": 0.4, "blocks": 2, "confidence": 0.6}
    expected = _interval(latency, **two)
    assert (expected.low_s, expected.high_s) == (1.0, 2.0)
    for arrivals in (np.arange(1000) * 0.01 + 1e6, np.full(1000, 7.0)):
        assert p99_confidence(latency, arrivals, np.random.default_rng(0), **two) == expected


def test_events_without_a_latency_are_left_out():
    latency = np.random.default_rng(2).exponential(size=6000)
    with_gaps = np.full(12_000, np.nan)
    with_gaps[::2] = latency
    arrivals = np.arange(12_000) * 0.01
    found = p99_confidence(with_gaps, arrivals, np.random.default_rng(0))
    alone = p99_confidence(latency, arrivals[::2], np.random.default_rng(0))
    assert found == alone


def test_a_trace_without_latencies_is_refused():
    with pytest.raises(ValueError, match="no event has a latency"):
        _interval(np.full(10, np.nan))
