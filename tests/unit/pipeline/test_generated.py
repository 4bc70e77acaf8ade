"""Traffic described in one line."""

from __future__ import annotations

import numpy as np
import pytest

from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.generated import FORMS, generated_trace, is_generated
from inferline_stream.pipeline.trace import gamma_trace, trace_from_csv


def made(text: str, seed: int = 0) -> np.ndarray:
    return generated_trace(text, np.random.default_rng(seed)).arrivals_s


def test_gamma_is_the_gamma_trace_of_that_rate_cv_and_length() -> None:
    wanted = gamma_trace(150.0, 4.0, 600.0, np.random.default_rng(3)).arrivals_s
    assert np.array_equal(made("gamma:rate=150,cv=4,for=10m", 3), wanted)


def test_a_ramp_rises_steadily_and_then_stays() -> None:
    times = made("ramp:from=100,to=300,over=100s,for=150s")
    counts = np.histogram(times, bins=[0, 50, 100, 150])[0]
    assert counts == pytest.approx([50 * 150, 50 * 250, 50 * 300], rel=0.05)


def test_a_ramp_of_a_year_is_made_of_no_more_levels_than_one_of_an_hour() -> None:
    assert np.unique(made("ramp:from=0.001,to=0.001,over=366d,cv=0")).size == pytest.approx(366 * 86.4, rel=0.15)


def test_levels_follow_each_other_and_may_be_silent() -> None:
    times = made("levels:100x60s,0x30s,200x60s,cv=0")
    assert np.histogram(times, bins=[0, 60, 90, 150])[0] == pytest.approx([6000, 0, 12000], abs=2)


@pytest.mark.parametrize("text", FORMS)
def test_every_form_that_is_named_as_an_example_is_one(text: str) -> None:
    assert is_generated(text)
    assert made(text).size > 1000


@pytest.mark.parametrize("text", ["arrivals.csv", "C:/traces/gamma.csv", "gamma", "topic"])
def test_names_of_files_and_topics_describe_no_traffic(text: str) -> None:
    assert not is_generated(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gamma:cv=1", "lacks rate"),
        ("gamma:rate=nan", "rate nan"),
        ("gamma:rate=0", "rate must be above 0"),
        ("gamma:rate=10,cv=-1", "cv -1"),
        ("gamma:rate=10,cv=1e300", "cv 1e300 must be 0 to 1000"),
        ("ramp:from=1,to=2,over=36500d", "'36500d' must be above 0 and at most 366d"),
        ("gamma:rate=10,for=0s", "must be above 0"),
        ("gamma:rate=10,for=10", "unit"),
        ("gamma:rate=10,size=3", "unknown part 'size=3'"),
        ("ramp:from=1,to=inf,over=1m", "to inf"),
        ("levels:", "lacks levels"),
        ("levels:0x1m", "holds no arrivals"),
    ],
)
def test_what_describes_no_traffic_is_refused_with_the_forms(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(text)


def refuse(events: int) -> None:
    raise InvalidTopology(f"{events} are too many")


@pytest.mark.parametrize("text", ["gamma:rate=1e9,for=24h", "ramp:from=0,to=1e12,over=1h", "levels:1e300x1h"])
def test_more_than_fits_in_memory_is_refused_before_memory_is_taken(text: str) -> None:
    with pytest.raises(InvalidTopology, match="are too many"):
        generated_trace(text, np.random.default_rng(0), refuse)


def test_counts_that_do_not_fit_in_memory_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(InvalidTopology, match="2000000000001 are too many"):
        trace_from_csv("time,count\n0,2000000000000\n60,1\n", "t.csv", refuse)
