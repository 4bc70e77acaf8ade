"""Bounds that hold at every look: by simulation, by the formula's source, and what follows from them."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.controlplane.decide.version_judge import (
    ALPHA,
    Evidence,
    Tolerance,
    difference_bounds,
    judge,
    share_bounds,
)
from inferline_stream.observability.stage_counts import CanaryCounts, LogTimes


def betaln(a: float, b: float) -> float:
    """The logarithm of Euler's beta function."""
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@given(st.integers(0, 400), st.integers(1, 400), st.sampled_from([0.2, 0.05, 0.001]))
def test_a_share_is_excluded_where_the_mixture_is_above_its_likelihood_by_one_over_alpha(
    hits: int, more: int, alpha: float
) -> None:
    trials = hits + more
    low, high = share_bounds(hits, trials, alpha)
    shares = np.linspace(0.0005, 0.9995, 1999)
    likelihood = hits * np.log(shares) + (trials - hits) * np.log1p(-shares)
    inside = betaln(hits + 0.5, trials - hits + 0.5) - betaln(0.5, 0.5) - likelihood <= -math.log(alpha)
    assert np.array_equal(inside, (shares >= low) & (shares <= high))


@pytest.mark.parametrize("share", [0.005, 0.3])
def test_a_share_is_between_its_bounds_at_every_look_of_most_runs(share: float) -> None:
    rng, alpha, left = np.random.default_rng(3), 0.1, 0
    for _ in range(100):
        hits = np.cumsum(rng.random(1200) < share)
        looks = range(1, 1201, 24)
        left += any(not low <= share <= high for low, high in (share_bounds(int(hits[n - 1]), n, alpha) for n in looks))
    assert left <= 100 * alpha  # a bound for one look would be left in a third of the runs


def times(logs: np.ndarray) -> LogTimes:  # type: ignore[type-arg]
    return LogTimes(logs.size, float(logs.sum()), float(np.square(logs).sum()))


def test_a_difference_of_means_is_between_its_bounds_at_every_look_of_most_runs() -> None:
    rng, alpha, left = np.random.default_rng(5), 0.1, 0
    for _ in range(200):
        own, main = rng.normal(0.03, 0.3, 2000), rng.normal(0.0, 0.2, 6000)
        looks = range(30, 2001, 25)
        bounds = (difference_bounds(times(own[:n]), times(main[: 3 * n]), alpha) for n in looks)
        left += any(not low <= 0.03 <= high for low, high in bounds)
    assert left <= 200 * alpha


def test_bounds_of_a_difference_are_where_the_mixture_sprt_reaches_one_over_alpha() -> None:
    own, main = LogTimes(400, 40.0, 40.0), LogTimes(900, 0.0, 36.0)
    low, high = difference_bounds(own, main, 0.02)
    variance, prior = own.variance / 400 + main.variance / 900, 0.1**2
    for bound in (low, high):  # Λ = normal density of the difference under the mixture over that under the bound
        difference = 0.1 - bound
        mixed = NormalDist(0.0, math.sqrt(variance + prior)).pdf(difference)
        assert mixed / NormalDist(0.0, math.sqrt(variance)).pdf(difference) == pytest.approx(50.0)


def test_nothing_is_said_of_few_batches_and_of_none() -> None:
    assert difference_bounds(LogTimes(29, 9.0, 9.0), LogTimes(500, 0.0, 1.0), 0.1) == (-math.inf, math.inf)
    assert judge(Evidence(CanaryCounts())).verdict == "open"


def counts(
    *, answered: int = 4000, failed: int = 0, slower: float = 1.0, disagreed: int = 0, batches: int = 3000
) -> CanaryCounts:
    own = LogTimes(batches, batches * math.log(slower), batches * (math.log(slower) ** 2 + 0.04))
    main = LogTimes(9 * batches, 0.0, 9 * batches * 0.04)
    return CanaryCounts(answered, 9 * answered, answered, failed, answered, disagreed, own, main)


@pytest.mark.parametrize(
    ("evidence", "verdict", "because"),
    [
        (Evidence(counts()), "alike", ""),
        (Evidence(counts(answered=500)), "open", "events on which it alone fails"),
        (Evidence(counts(failed=80)), "worse", "events on which it alone fails 2.00%"),
        (Evidence(counts(slower=1.2)), "worse", "more service time 20.00%"),
        (Evidence(counts(disagreed=120), mirrored=True), "worse", "other results 3.00%"),
        (Evidence(counts(disagreed=120)), "alike", ""),
        (
            Evidence(counts(), memory_bytes=900 << 20, main_memory_bytes=400 << 20),
            "worse",
            "more memory 125.00%",
        ),
        (Evidence(counts(), memory_bytes=450 << 20, main_memory_bytes=400 << 20), "alike", ""),
    ],
)
def test_a_version_is_judged_by_each_measure_and_the_one_that_decides_is_named(
    evidence: Evidence, verdict: str, because: str
) -> None:
    found = judge(evidence)
    assert found.verdict == verdict
    assert because in found.words
    assert found.error == 1.0 if verdict == "open" else found.error <= ALPHA


def test_a_verdict_is_surer_the_more_was_counted() -> None:
    errors = [judge(Evidence(counts(answered=n, failed=n // 40))).error for n in (2000, 4000, 8000)]
    assert ALPHA >= errors[0] > errors[1] > errors[2]


def test_what_is_tolerated_is_no_reason_to_give_a_version_up() -> None:
    assert judge(Evidence(counts(failed=80, slower=1.2)), Tolerance(failed=0.05, slower=0.5)).verdict == "alike"
