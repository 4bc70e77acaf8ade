"""Traces: arrivals as given, generated, cut, sped up, and read from files."""

import csv
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.errors import InvalidFile
from inferline_stream.pipeline.trace import Trace, busiest, gamma_trace, levels_trace, trace_from_csv

TIMES = st.lists(st.floats(0, 1000, allow_nan=False), max_size=50).map(lambda times: Trace(np.sort(times)))


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([1.0, 0.5], "must ascend"),
        ([0.0, math.nan], "NaN or infinite"),
        ([0.0, math.inf], "NaN or infinite"),
        ([[0.0], [1.0]], "one row of times"),
    ],
)
def test_a_trace_refuses_what_is_no_row_of_times(times: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Trace(np.array(times))


def test_a_trace_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Trace(np.array([0.0, 1.0])).arrivals_s[0] = 5.0


@given(TIMES, st.floats(0, 1000), st.floats(0, 1000))
def test_a_window_holds_what_falls_into_it(trace: Trace, one: float, other: float) -> None:
    start, end = min(one, other), max(one, other)
    inside = [t - start for t in trace.arrivals_s if start <= t < end]
    assert trace.window(start, end).arrivals_s.tolist() == pytest.approx(inside)


@given(TIMES, st.sampled_from([0.5, 2.0, 4.0]))
def test_twice_as_fast_is_half_as_long_and_twice_the_rate(trace: Trace, factor: float) -> None:
    faster = trace.sped_up(factor)
    assert len(faster) == len(trace)
    assert faster.duration_s == pytest.approx(trace.duration_s / factor)
    assert faster.arrival_rate == pytest.approx(trace.arrival_rate * factor, rel=1e-6)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan])
def test_a_speed_up_is_above_zero(factor: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Trace(np.array([0.0])).sped_up(factor)


def test_too_few_arrivals_have_no_rate() -> None:
    assert Trace(np.array([])).arrival_rate == 0
    assert Trace(np.array([3.0])).arrival_rate == 0
    assert Trace(np.array([3.0, 3.0])).arrival_rate == 0


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gaps_have_the_mean_and_cv_asked_for(cv: float) -> None:
    """InferLine §6: CV is σ²/µ² of the gaps."""
    gaps = np.diff(gamma_trace(1000.0, cv, 4000.0, np.random.default_rng(1)).arrivals_s)
    assert float(gaps.mean()) == pytest.approx(1e-3, rel=0.01)
    assert float(gaps.var() / gaps.mean() ** 2) == pytest.approx(cv, rel=0.02)


def test_cv_1_is_poisson() -> None:
    """Counts per second have variance equal to their mean, and gaps follow the exponential distribution."""
    arrivals = gamma_trace(50.0, 1.0, 4000.0, np.random.default_rng(2)).arrivals_s
    counts = np.bincount(arrivals.astype(int), minlength=4000)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.07)  # ± 3 standard errors, √(2/4000)
    gaps = np.sort(np.diff(arrivals))
    steps = np.arange(1, len(gaps) + 1) / len(gaps)
    distance = np.abs(1 - np.exp(-50.0 * gaps) - steps).max()
    assert distance < 1.63 / math.sqrt(len(gaps))  # Kolmogorov–Smirnov at 1 %


def test_cv_0_has_equal_gaps() -> None:
    arrivals = gamma_trace(4.0, 0.0, 2.0, np.random.default_rng(0)).arrivals_s
    assert np.allclose(np.diff(arrivals), 0.25)


@pytest.mark.parametrize(("rate", "cv", "duration_s"), [(0, 1, 1), (1, -1, 1), (1, 1, 0), (math.nan, 1, 1)])
def test_a_generated_trace_needs_a_rate_a_cv_and_a_length(rate: float, cv: float, duration_s: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        gamma_trace(rate, cv, duration_s, np.random.default_rng(0))


def test_the_same_seed_gives_the_same_trace() -> None:
    one, other = (gamma_trace(10.0, 4.0, 60.0, np.random.default_rng(7)).arrivals_s for _ in range(2))
    assert np.array_equal(one, other)


def test_levels_follow_each_other() -> None:
    trace = levels_trace([(100.0, 10.0), (0.0, 5.0), (200.0, 10.0)], 1.0, np.random.default_rng(3))
    counts = [len(trace.window(start, start + length)) for start, length in ((0, 10), (10, 5), (15, 10))]
    assert counts[0] == pytest.approx(1000, abs=100)
    assert counts[1] == 0
    assert counts[2] == pytest.approx(2000, abs=140)
    assert trace.arrivals_s[-1] < 25


@given(TIMES.filter(lambda trace: len(trace) > 0))
def test_timestamps_are_read_back(trace: Trace) -> None:
    text = "arrival_s\n" + "".join(f"{time!r}\n" for time in trace.arrivals_s.tolist())
    expected = trace.arrivals_s - trace.arrivals_s[0]
    assert trace_from_csv(text, "a.csv").arrivals_s.tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    "text",
    [
        "timestamp\n10\n10.5\n12\n",
        "0\n0.5\n2\n",
        "id,TIME \n1,10\n2,10.5\n3,12\n",
        "t\n12\n10\n10.5\n",
        "t\n\n10\n10.5\n\n12\n\n",
        "t\r\n10\r\n10.5\r\n12\r\n",
        "TIMESTAMP,tokens\n2023-11-16 18:15:46.0000000,1\n2023-11-16 18:15:46.5000000,2\n2023-11-16 18:15:48.0000000,3",
        "t\n2023-11-16T18:15:46Z\n2023-11-16T18:15:46.5Z\n2023-11-16T18:15:48+00:00\n",
        "t\n2023-11-16T19:15:46+01:00\n2023-11-16T18:15:46.5Z\n2023-11-16T18:15:48\n",
    ],
)
def test_timestamps_in_the_forms_people_write(text: str) -> None:
    assert trace_from_csv(text, "a.csv").arrivals_s.tolist() == pytest.approx([0.0, 0.5, 2.0])


def test_a_fraction_of_seven_digits_is_kept() -> None:
    text = "t\n2023-11-16 18:15:46.6805900\n2023-11-16 18:15:46.6805977\n"
    assert trace_from_csv(text, "a.csv").arrivals_s[1] == pytest.approx(7.7e-6, abs=5e-7)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=20).filter(any), st.sampled_from([1.0, 60.0]))
def test_counts_are_spread_over_their_period(counts: list[int], period_s: float) -> None:
    text = "time,count\n" + "".join(f"{i * period_s},{n}\n" for i, n in enumerate(counts))
    arrivals = trace_from_csv(text, "a.csv").arrivals_s
    found = np.bincount((arrivals // period_s).astype(int), minlength=len(counts))
    assert found.tolist() == counts


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=2, max_size=20).filter(
        lambda lines: len({minute for minute, _ in lines}) > 1 and any(count for _, count in lines)
    )
)
def test_lines_of_one_period_add_up_in_whichever_order_they_come(lines: list[tuple[int, int]]) -> None:
    """As in a table that has a line for each region, or an hour twice where clocks go back."""
    text = "time,count\n" + "".join(f"{minute * 60},{count}\n" for minute, count in lines)
    first, times = min(minute for minute, _ in lines), sorted({minute for minute, _ in lines})
    period_s = float(np.median(np.diff(times))) * 60
    expected = [(minute - first) * 60 + period_s * (i + 0.5) / count for minute, count in lines for i in range(count)]
    assert trace_from_csv(text, "a.csv").arrivals_s.tolist() == pytest.approx(sorted(expected))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no arrivals"),
        ("t\n", "holds no arrivals"),
        ("size\n1\n", "no time column among ['size']"),
        ("t\n1\nsoon\n", "a.csv:3: 'soon' is no arrival (neither a number of seconds nor a date and time)"),
        ("t\n1\n\nsoon\n", "a.csv:4: 'soon' is no arrival"),
        ("1\n2\nsoon\n", "a.csv:3: 'soon' is no arrival"),
        ("t\n1\rsoon\r", "a.csv:3: 'soon' is no arrival"),
        (f"t\n{'1' * 140_000}\n", "a.csv:2: is no CSV (field larger than field limit (131072))"),
        ("t\n2023-13-45\n", "a.csv:2: '2023-13-45' is no arrival"),
        ("t\n1\ninf\n", "a.csv:3: times must be finite"),
        ("t\n0\n1e12\n", "a.csv: its times span 1.157e+07 days, at most 366 are replayed; give them in seconds"),
        ("t\n-1e308\n1e308\n", "a.csv: its times span inf days"),
        ("t,count\n1,2\n2\n", "a.csv:3: '2' is no arrival"),
        ("t,count\n1,2\n2,many\n", "a.csv:3: '2,many' is no arrival"),
        ("t,count\n1,2\n2,-1\n", "a.csv:3: times must be finite and counts 0 or more"),
        ("t,count\n1,2\n", "needs two different times"),
        ("t,count\n1,2\n1,3\n", "needs two different times"),
        ("t,count\n1,0\n2,0\n", "every count is 0"),
    ],
)
def test_a_bad_file_is_reported_with_its_line(text: str, said: str) -> None:
    csv.field_size_limit(131_072)  # the default; the connector of files raises it for its own process
    with pytest.raises(InvalidFile) as raised:
        trace_from_csv(text, "a.csv")
    assert said in str(raised.value)


def test_the_busiest_stretch_is_as_many_arrivals_as_come_fastest():
    times = np.concatenate([np.arange(0.0, 10.0, 1.0), np.arange(10.0, 11.0, 0.1), np.arange(11.0, 20.0, 1.0)])
    stretch = busiest(Trace(times), 10)
    assert len(stretch) == 10
    assert stretch.arrivals_s.tolist() == pytest.approx(np.arange(0.0, 0.95, 0.1).tolist())


@pytest.mark.parametrize("events", [9, 10])
def test_a_trace_that_is_no_longer_than_the_piece_asked_for_is_its_busiest(events):
    trace = Trace(np.arange(5.0, 14.0))
    assert busiest(trace, events) is trace
