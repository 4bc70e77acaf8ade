from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.estimator.quantile import quantile_s


def by_sorting(latency_s: np.ndarray, share: float) -> float:
    known = np.sort(latency_s[~np.isnan(latency_s)])
    return float(known[max(0, math.ceil(round(share * known.size, 9)) - 1)])


@given(
    st.lists(st.floats(0, 1e6) | st.just(math.nan), min_size=1, max_size=50).filter(
        lambda found: not all(map(math.isnan, found))
    ),
    st.sampled_from([0.001, 0.01, 0.29, 0.5, 0.7, 0.9, 0.99, 1.0]),
)
def test_the_quantile_is_the_one_found_by_sorting(latency_s: list[float], share: float) -> None:
    assert quantile_s(np.array(latency_s), share) == by_sorting(np.array(latency_s), share)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.9999, 1.0])
@pytest.mark.parametrize("missing", [0.0, 0.3, 0.999])
def test_many_latencies_give_the_exact_quantile_too(share: float, missing: float) -> None:
    rng = np.random.default_rng(1)
    latency_s = rng.lognormal(size=300_000)
    latency_s[rng.random(latency_s.size) < missing] = math.nan
    assert quantile_s(latency_s, share) == by_sorting(latency_s, share)


def test_a_sample_that_misleads_does_not_change_the_answer() -> None:
    """All that the sample looks at is huge: its bound lies above the answer, and everything is selected from."""
    latency_s = np.random.default_rng(2).random(400_000)
    latency_s[:: 400_000 // 20_000] = 1e9
    assert quantile_s(latency_s, 0.5) == by_sorting(latency_s, 0.5)


def test_ties_and_constant_latencies_are_no_trouble() -> None:
    assert quantile_s(np.full(200_000, 0.25), 0.99) == 0.25


def test_no_latency_at_all_has_no_quantile() -> None:
    assert math.isnan(quantile_s(np.empty(0), 0.99))
    assert math.isnan(quantile_s(np.full(200_001, math.nan), 0.99))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_shares_outside_zero_to_one_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="quantile"):
        quantile_s(np.ones(3), share)
