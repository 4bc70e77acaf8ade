"""Profiles: what was measured, between the sizes measured, and what is of use to a plan."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.pipeline.profile import (
    NOISE_PROBABILITIES,
    PROBABILITIES,
    Overheads,
    PipelineProfile,
    Profile,
    ServiceTime,
    Variation,
)
from inferline_stream.pipeline.shape import Paths

POSITIVE = st.floats(1e-4, 10.0)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    sizes = [1, *sorted(draw(st.sets(st.integers(2, 64), max_size=5)))]
    times = []
    for size in sizes:
        quantiles = tuple(sorted(draw(st.lists(POSITIVE, min_size=9, max_size=9))))
        mean_s = draw(POSITIVE)
        times.append(ServiceTime(size, mean_s, quantiles, mean_s * draw(st.floats(0, 1)), draw(st.floats(0, 2))))
    return Profile("stage", "cpu-1", tuple(times), draw(st.floats(0, 10)))


@given(profiles())
def test_measured_sizes_are_returned_as_measured(profile: Profile) -> None:
    for entry in profile.service_times:
        assert profile.service_time_s(entry.batch_size) == entry.mean_s
        assert profile.fixed_s(entry.batch_size) == entry.fixed_s
        assert profile.spread(entry.batch_size) == entry.spread
        assert profile.throughput(entry.batch_size) == pytest.approx(entry.throughput)


@given(profiles(), st.data())
def test_between_two_sizes_the_service_time_lies_on_their_line(profile: Profile, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, profile.batch_sizes[-1]))
    below = max((s for s in profile.service_times if s.batch_size <= size), key=lambda s: s.batch_size)
    above = min((s for s in profile.service_times if s.batch_size >= size), key=lambda s: s.batch_size)
    span = above.batch_size - below.batch_size
    share = (size - below.batch_size) / span if span else 0.0
    assert profile.service_time_s(size) == pytest.approx(below.mean_s * (1 - share) + above.mean_s * share)
    assert profile.fixed_s(size) == pytest.approx(below.fixed_s * (1 - share) + above.fixed_s * share)
    assert profile.spread(size) == pytest.approx(below.spread * (1 - share) + above.spread * share)


@pytest.mark.parametrize("size", [0, -1, 65])
def test_a_size_that_was_never_profiled_is_refused_with_the_remedy(size: int) -> None:
    profile = Profile("toxicity", "cpu-1", (ServiceTime(1, 0.1), ServiceTime(64, 0.2)))
    with pytest.raises(ValueError, match=f"batch size {size} was never profiled.*run `inferline-stream profile`"):
        profile.service_time_s(size)


@given(profiles())
def test_useful_sizes_are_those_that_beat_every_smaller_one(profile: Profile) -> None:
    """InferLine §4.1 prunes the rest, so that throughput is monotone in the batch size."""
    by_size = {entry.batch_size: entry.throughput for entry in profile.service_times}
    expected = tuple(size for size in by_size if all(by_size[size] > by_size[s] for s in by_size if s < size))
    assert profile.useful_batch_sizes == expected
    throughputs = [by_size[size] for size in profile.useful_batch_sizes]
    assert throughputs == sorted(set(throughputs))


def test_without_quantiles_a_service_time_is_always_its_mean() -> None:
    entry = ServiceTime(4, 0.2)
    assert (entry.p50_s, entry.p99_s) == (0.2, 0.2)
    assert entry.throughput == pytest.approx(20.0)


def test_percentiles_are_found_at_their_levels() -> None:
    entry = ServiceTime(1, 0.5, tuple(p + 0.01 for p in PROBABILITIES))
    assert entry.p50_s == pytest.approx(0.51)
    assert entry.p99_s == pytest.approx(1.0)


@pytest.mark.parametrize("mean_s", [0.0, 1e-308, -1.0, 1e308, math.nan, math.inf])
def test_a_service_time_is_one_that_a_batch_can_take(mean_s: float) -> None:
    with pytest.raises(ValueError, match=r"must be 1e-09 to 1e\+09 s"):
        ServiceTime(1, mean_s)


@pytest.mark.parametrize(
    ("quantiles", "said"),
    [((0.1,), "need 9"), ((0.1,) * 8 + (0.05,), "must ascend"), ((0.0,) + (0.1,) * 8, "must be 1e-09 to")],
)
def test_quantiles_are_a_distribution(quantiles: tuple[float, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServiceTime(1, 0.1, quantiles)


@pytest.mark.parametrize(
    ("times", "start_up_s", "said"),
    [
        ((), 0.0, "batch size 1 is missing"),
        ((ServiceTime(2, 0.1),), 0.0, "batch size 1 is missing"),
        ((ServiceTime(1, 0.1), ServiceTime(1, 0.1)), 0.0, "must ascend without repeats"),
        ((ServiceTime(1, 0.1),), -1.0, "must be 0 or more"),
        ((ServiceTime(1, 0.1),), math.nan, "must be 0 or more"),
    ],
)
def test_a_profile_starts_at_one_and_ascends(times: tuple[ServiceTime, ...], start_up_s: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Profile("s", "k", times, start_up_s)


def test_a_pipelines_profile_knows_the_hardware_of_each_stage() -> None:
    one = (ServiceTime(1, 0.1),)
    profiles = {(stage, kind): Profile(stage, kind, one) for stage, kind in (("a", "x"), ("b", "x"), ("a", "y"))}
    measured = PipelineProfile(profiles, Paths((0,), (1.0,)))
    assert measured.hardware_of("a") == ("x", "y")
    assert measured.hardware_of("nobody") == ()


def test_a_stage_needs_as_many_dispatchers_as_its_rate_takes_and_one_at_least():
    assert [Overheads(9_000.0).slots(rate) for rate in (0.0, 9_000.0, 9_001.0, 1e6)] == [1, 1, 2, 112]


@pytest.mark.parametrize(
    ("units", "said"),
    [
        (((1.0, 255),), "256 together"),
        (((1.0, 256), (2.0, 0)), "1 or more"),
        (((2.0, 128), (1.0, 128)), "must ascend"),
        (((-1.0, 128), (1.0, 128)), "0 or more"),
        (((0.0, 256),), "not all 0"),
        (((float("nan"), 256),), "must be finite"),
    ],
)
def test_units_are_a_distribution(units: tuple[tuple[float, int], ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Variation(units)


@pytest.mark.parametrize("noise", [(1.0,), (0.0,) * 18 + (-1.0,), (float("inf"),) * len(NOISE_PROBABILITIES)])
def test_noise_is_a_distribution(noise: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="noise"):
        Variation(noise=noise)


@pytest.mark.parametrize(("fixed_s", "spread"), [(-0.1, 0.0), (1.1, 0.0), (0.0, -1.0), (0.0, float("nan"))])
def test_parts_of_a_service_time_are_within_it(fixed_s: float, spread: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        ServiceTime(1, 1.0, fixed_s=fixed_s, spread=spread)
