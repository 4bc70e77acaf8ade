"""Results by option: what a limit that no batch reached says of larger ones."""

from dataclasses import replace

import pytest

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.planner.option_cache import OptionCache

HELD = Allocation("x", 8, 2, 0.01, concurrency=1)


def test_a_result_holds_for_every_limit_above_the_largest_batch():
    cache: OptionCache[str] = OptionCache()
    cache.add((HELD,), "found", 3)
    for limit, known in ((2, False), (3, False), (4, True), (8, True), (16, True)):
        option = (replace(HELD, max_batch_size=limit),)
        assert (option in cache) == known
        if known:
            assert cache[option] == "found"


def test_a_limit_that_a_batch_reached_says_nothing_of_larger_ones():
    cache: OptionCache[str] = OptionCache()
    cache.add((HELD,), "found", 8)
    assert (HELD,) in cache
    assert (replace(HELD, max_batch_size=16),) not in cache


@pytest.mark.parametrize("other", [{"hardware": "y"}, {"replicas": 3}, {"hold_s": 0.0}, {"concurrency": 2}])
def test_it_says_nothing_of_options_that_differ_in_more_than_the_limit(other):
    cache: OptionCache[str] = OptionCache()
    cache.add((HELD,), "found", 3)
    assert (replace(HELD, max_batch_size=16, **other),) not in cache


def test_of_mixtures_only_the_same_one_is_known():
    cache: OptionCache[str] = OptionCache()
    both = (HELD, Allocation("y", 8, 1))
    cache.add(both, "found", 3)
    assert both in cache
    assert (replace(HELD, max_batch_size=16), both[1]) not in cache
    assert (replace(HELD, max_batch_size=16),) not in cache
