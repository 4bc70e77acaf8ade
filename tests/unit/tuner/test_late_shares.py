"""What is late of the sample at its own rates is late of rates like them, and what is at other speeds of all others."""

from __future__ import annotations

import numpy as np
import pytest

from inferline_stream.estimator.simulation import Simulation, simulate
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.tuner.late_shares import late_shares, without_waiting
from tests.unit.tuner.plans import SHAPE, measured

SLO_S = 0.2
HELD = {"a": (Allocation("x", 4, 2),), "b": (Allocation("x", 1, 3),)}
"""200/s at `a`, and 150/s of the half that visits `b`."""


def simulated(trace: Trace) -> Simulation:
    return simulate(SHAPE, HELD, measured(), trace, order_slo_s=SLO_S)


def test_a_steady_rate_is_as_late_as_the_sample_at_that_speed():
    sample = gamma_trace(150.0, 1.0, 200.0, np.random.default_rng(2))
    found = late_shares(sample, 1.25, 4 / 3, SLO_S, simulated)
    for speed in (0.8, 1.0, 1.25, 1.3, 1.6, 2.0):
        late = simulated(sample.sped_up(speed)).miss_rate(SLO_S)
        (share,) = found.at(np.array([speed]))
        assert share == pytest.approx(late, abs=max(0.02, 0.25 * late))


def test_rates_that_the_sample_has_are_as_late_as_there_however_far_from_its_mean():
    """On for ten seconds of sixty, at 5.5 times the mean, which is served: 7.5 times is not."""
    on = gamma_trace(180.0, 1.0, 10.0, np.random.default_rng(3)).arrivals_s
    sample = Trace(np.concatenate([on + 60.0 * minute for minute in range(10)]))
    found = late_shares(sample, 1.0, 6.0, SLO_S, simulated)
    on_, more = found.at(np.array([5.5, 7.5]))
    assert on_ < 0.02
    assert more > 0.1
    assert simulated(sample).miss_rate(SLO_S) < 0.02


def test_windows_that_are_half_on_say_little_of_rates_that_are_hardly_above_the_sample() -> None:
    """90/s while it is on, for 2 to 14 s: 110/s are served, and half of a window at 200/s is no such rate."""
    rng = np.random.default_rng(3)
    on = [gamma_trace(90.0, 1.0, float(rng.uniform(2, 14)), rng).arrivals_s + 60.0 * minute for minute in range(10)]
    sample = Trace(np.concatenate(on))
    most = np.convolve(np.bincount(sample.arrivals_s.astype(int)), np.full(5, 0.2), "valid").max() / sample.arrival_rate
    found = late_shares(sample, 1.9, 99.0, SLO_S, simulated)
    assert found.at(most * np.array([1.02, 1.05, 1.1])).max() < 0.01
    assert simulated(sample.sped_up(1.1)).miss_rate(SLO_S) == 0.0


@pytest.mark.parametrize("arrivals_s", [[0.0, 0.4, 0.5], [0.0, 2.0, 7.0, 30.5], [20.2, 20.4]])
def test_of_a_few_events_a_curve_is_made_too(arrivals_s: list[float]) -> None:
    found = late_shares(Trace(arrivals_s), 1.0, 2.0, SLO_S, simulated)
    assert np.all((found.at(np.array([0.01, 1.0, 100.0])) >= 0) & (found.at(np.array([0.01, 1.0, 100.0])) <= 1))


def test_without_waiting_what_exceeds_the_replicas_is_late():
    assert without_waiting(2.0).at(np.array([1.0, 2.0, 4.0])) == pytest.approx([0.0, 0.0, 0.5], abs=0.01)


def test_what_waits_within_a_long_slo_when_the_sample_ends_is_late_all_the_same():
    sample = gamma_trace(150.0, 1.0, 60.0, np.random.default_rng(2))
    found = late_shares(sample, 1.0, 4 / 3, 600.0, simulated)
    assert found.at(np.array([1.0, 2.0, 3.0])) == pytest.approx([0.0, 1 / 3, 5 / 9], abs=0.03)
