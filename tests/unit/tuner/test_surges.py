"""Traffic that leaps is told from traffic that drifts, and only the former is insured against for long."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.tuner.decision import Action
from inferline_stream.tuner.forecast import surged, surges
from inferline_stream.tuner.knobs import Knobs
from inferline_stream.tuner.policy import step
from inferline_stream.tuner.staffing import Staffing
from tests.unit.tuner.plans import seen, state


def seconds(rates: np.ndarray, seed: int) -> list[int]:
    return np.random.default_rng(seed).poisson(rates).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_step_by_a_third_is_a_surge_and_the_same_within_ten_minutes_is_not(seed):
    at_once = np.repeat([150.0, 200.0], 60)
    slowly = np.linspace(150.0, 200.0, 600)
    assert surges(seconds(at_once, seed))
    assert not surges(seconds(slowly, seed))


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_bursts_about_one_rate_are_no_surge(cv):
    trace = gamma_trace(150.0, cv, 600.0, np.random.default_rng(1))
    assert not surges(np.bincount(trace.arrivals_s.astype(int)).tolist())


def test_a_handful_of_events_or_of_seconds_tells_of_none():
    assert not surged([1] * 10 + [5] * 10)
    assert not surged([100] * 5 + [500] * 10)


def totals(*, leaps: bool, minutes: float) -> tuple[int, list[Action]]:
    """Replicas after so many minutes at the planned rate, and what was done."""
    table = Staffing((1.0, 4.0), {"a": (200.0, 800.0), "b": (150.0, 600.0)}, leaps)
    tuner = state(Knobs(insurance=((2.5, 0.25),)))
    tuner = replace(tuner, basis=replace(tuner.basis, staffing=table))
    done = []
    for tick in range(round(minutes * 120)):
        tuner, decision = step(tuner, seen(tick / 2, recent=(100,) * 30, watched_s=tick / 2))
        if decision is not None:
            done.append(decision.action)
    return sum(sum(kinds.values()) for kinds in tuner.wanted.values()), done


def test_what_is_insured_beyond_the_plan_is_held_while_traffic_leaps_and_given_back_half_an_hour_later():
    assert totals(leaps=True, minutes=29) == (6, [Action.SCALE_UP])
    assert totals(leaps=True, minutes=32) == (5, [Action.SCALE_UP, Action.SCALE_DOWN])


def test_traffic_that_does_not_leap_is_insured_for_a_beginning_of_three_minutes():
    assert totals(leaps=False, minutes=2.9) == (6, [Action.SCALE_UP])
    assert totals(leaps=False, minutes=4) == (5, [Action.SCALE_UP, Action.SCALE_DOWN])
