"""The reserve that people ask for: held whatever the traffic, no more and no less; and what it costs."""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.demand import demands
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import Staffing
from inferline_stream.tuner.tuner_state import TunerState, initial_state
from tests.unit.tuner.plans import CATALOGUE, measured, plan, seen

LOW, AT_PLAN = (30, 60, 600), (300, 600, 6000)
TABLE = Staffing((0.1, 1.0, 2.0), {"a": (20.0, 200.0, 400.0), "b": (15.0, 150.0, 300.0)}, 100.0)
KNOBS = PolicySettings(insurance=((2.5, 0.25),))


def tuner(reserve: float | None) -> TunerState:
    begun = initial_state(replace(plan(), reserve=reserve), measured(), CATALOGUE, knobs=KNOBS)
    return structs.replace(begun, basis=replace(begun.basis, staffing=TABLE))


def needed(reserve: float | None, *moments: tuple[float, tuple[int, int, int]]) -> list[float]:
    found, state = [], tuner(reserve)
    for time_s, envelope in moments:
        state, wanted = demands(
            structs.replace(state, time_s=time_s), seen(time_s, envelope, recent=(10,) * 30, watched_s=time_s)
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
