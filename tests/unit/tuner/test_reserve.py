"""The reserve that people ask for: held whatever the traffic, no more and no less; and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.demand import demands, reserve_of
from inferline_stream.tuner.plan_basis import basis_of
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import Staffing
from inferline_stream.tuner.tuner_state import TunerState, initial_state
from tests.unit.tuner.plans import CATALOGUE, measured, plan, seen

LOW, AT_PLAN = (30, 60, 600), (300, 600, 6000)
TABLE = Staffing((0.1, 1.0, 2.0), {"a": (20.0, 200.0, 400.0), "b": (15.0, 150.0, 300.0)}, 100.0)
KNOBS = PolicySettings(insurance=((2.5, 0.25),))


def tuner(reserve: float | None) -> TunerState:
    begun = initial_state(replace(plan(), reserve=reserve), measured(), CATALOGUE, knobs=KNOBS)
    return replace(begun, basis=replace(begun.basis, staffing=TABLE))


def needed(reserve: float | None, *moments: tuple[float, tuple[int, int, int]]) -> list[float]:
    found, state = [], tuner(reserve)
    for time_s, envelope in moments:
        state, wanted = demands(
            replace(state, time_s=time_s), seen(time_s, envelope, recent=(10,) * 30, watched_s=time_s)
        )
        found.append(wanted["a"].needed)
    return found


def test_it_is_held_from_the_beginning_and_for_ever_in_place_of_what_leaps_ask_for():
    moments = [(0.0, LOW), (100.0, AT_PLAN), (200.0, (900, 1800, 18000)), (1e6, LOW), (1e6 + 60, LOW)]
    assert needed(2.0, *moments) == [400.0, 400.0, 600.0, 400.0, 400.0]
    assert needed(1.0, *moments) == [200.0, 200.0, 600.0, 200.0, 200.0]
    assert needed(0.0, *moments) == [20.0, 200.0, 600.0, 20.0, 20.0]
    assert needed(None, *moments) == [300.0, 200.0, 600.0, 20.0, 20.0], "plan and insurance, in the beginning"


def test_a_decision_for_it_says_so():
    _, wanted = demands(tuner(1.5), seen(0.0, LOW))
    assert wanted["a"].reason is wanted["b"].reason is Reason.INSURANCE
    assert wanted["a"].detail == "replicas for 1.5 times the planned traffic are always held"


def test_without_one_it_is_the_plan_and_what_is_insured_beyond_it():
    """Of $5/h a quarter buys one replica: stage `a`, of two with 100/s each, can carry the least."""
    found = reserve_of(basis_of(plan(), measured(), CATALOGUE, knobs=KNOBS))
    assert (found.always, found.replicas, found.cost_per_hour) == (False, {"a": 3, "b": 3}, 6.0)
    assert found.multiple == 3.0, "300/s at both"


@pytest.mark.parametrize(
    ("reserve", "replicas", "multiple"),
    [(0.0, {"a": 1, "b": 1}, 1.0), (1.0, {"a": 2, "b": 3}, 2.0), (4.0, {"a": 6, "b": 8}, 6.0)],
)
def test_one_that_is_asked_for_grows_with_the_traffic_and_its_room_with_the_root_of_it(reserve, replicas, multiple):
    """At four times the traffic 400 + √4 · 100 of 100/s each at `a`, and 200 + √4 · 100 of 50/s at `b`."""
    found = reserve_of(basis_of(replace(plan(), reserve=reserve), measured(), CATALOGUE))
    assert (found.always, found.replicas) == (True, replicas)
    assert found.cost_per_hour == pytest.approx(sum(replicas.values()))
    assert found.multiple == pytest.approx(multiple)
