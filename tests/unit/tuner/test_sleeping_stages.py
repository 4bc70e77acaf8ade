"""Stages that sleep: after so long without work, and never while there is any; the first event wakes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from inferline_stream.pipeline.idle import Idle
from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.observation import Limits, Observation, StageObservation, Supply
from inferline_stream.tuner.odds import TrafficRecord
from inferline_stream.tuner.policy import step
from inferline_stream.tuner.staffing_table import Staffing
from inferline_stream.tuner.tuner_state import TunerState, initial_state, staffed
from tests.unit.tuner.plans import CATALOGUE, measured, plan, seen

ALL = {"a": Idle(120.0), "b": Idle(120.0)}
B_ALONE = {"b": Idle(120.0, own=True)}


class Said:
    """A calendar in which people expect traffic."""

    def said(self, lead_s: float, planned_rate: float) -> tuple[float, str]:
        return 1.0, "people expect traffic"

    def growth(self, lead_s: float) -> float:
        return 0.0


def tuner(idle: Mapping[str, Idle] = ALL, held: Mapping[str, int] | None = None) -> TunerState:
    wanted = {stage: {"x": count} for stage, count in (held or {}).items()}
    return initial_state(replace(plan(), idle=idle), measured(), CATALOGUE, held=wanted)


def quiet(time_s: float, state: TunerState, **more: object) -> Observation:
    """Nothing has come for a minute, and every replica that is wanted is ready."""
    ready = tuple(sum(state.wanted[stage].values()) for stage in ("a", "b"))
    return seen(time_s, (0, 0, 0), 0.0, ready, recent=(0,) * 30, **more)  # type: ignore[arg-type]


def with_lag(observed: Observation, stage: str, lag: int = 1) -> Observation:
    return structs.replace(
        observed, stages={**observed.stages, stage: structs.replace(observed.stages[stage], partition_lags=(lag,))}
    )


def until(state: TunerState, from_s: float, to_s: float, **more: object) -> tuple[TunerState, list[Decision]]:
    found, now_s = [], from_s
    while now_s <= to_s:
        state, decision = step(state, quiet(now_s, state, **more))
        found += [decision] if decision is not None else []
        now_s += 1.0
    return state, found


def counts(state: TunerState) -> tuple[int, ...]:
    return tuple(sum(kinds.values()) for kinds in state.wanted.values())


def test_all_stages_sleep_once_nothing_has_come_for_as_long_as_declared_and_not_before() -> None:
    state, _ = until(tuner(), 0.0, 119.0)
    assert min(counts(state)) >= 1
    state, decisions = until(state, 120.0, 120.0)
    assert counts(state) == (0, 0)
    assert not until(state, 121.0, 1000.0)[1]
    assert [(d.action, d.reason) for d in decisions] == [(Action.SCALE_DOWN, Reason.IDLE)]
    assert "no event has come for 2m" in decisions[0].detail
    assert until(tuner({}), 0.0, 1000.0)[0].wanted["a"]["x"] >= 1


def test_the_first_event_wakes_them_all_at_once_with_what_a_beginning_insures() -> None:
    asleep, _ = until(tuner(), 100.0, 700.0)
    state, decision = step(asleep, structs.replace(quiet(701.0, asleep), arrival_rate=0.2, envelope=(1, 1, 1)))
    assert decision is not None
    assert (decision.action, decision.reason) == (Action.SCALE_UP, Reason.WOKEN)
    assert "after 10m without any: its first replica is ready in about 3s" in decision.detail
    assert counts(state) == counts(step(tuner({}), seen(0.0))[0]), "as many as a run begins with"
    assert counts(step(state, quiet(702.0, state))[0]) == counts(state), "and they stay"


@pytest.mark.parametrize("what", ["lag", "background", "limits", "schedule", "stale", "unwatched"])
def test_they_stay_while_there_is_work_or_people_ask_for_them_or_nobody_knows(what: str) -> None:
    state = tuner()
    for now_s in range(1000):
        observed = quiet(float(now_s), state)
        changed = {
            "lag": with_lag(observed, "b"),  # of any stage: the pipeline is not done
            "background": structs.replace(observed, background_left=1),
            "limits": structs.replace(observed, limits={name: Limits(1, awake=True) for name in ("a", "b")}),
            "schedule": structs.replace(observed, calendar=Said()),
            "stale": structs.replace(
                observed, stages={n: structs.replace(s, age_s=9.0) for n, s in observed.stages.items()}
            ),
            "unwatched": structs.replace(observed, watched_s=30.0),
        }[what]
        state, _ = step(state, changed)
    assert min(counts(state)) >= 1


def test_an_event_wakes_them_by_that_reason_also_while_people_expect_traffic() -> None:
    """In a pause nothing but an event wakes them."""
    state = tuner(held={"a": 0, "b": 0})
    for observed, reason in ((quiet(0.0, state), Reason.INSURANCE), (with_lag(quiet(0.0, state), "a"), Reason.WOKEN)):
        _, decision = step(state, structs.replace(observed, calendar=Said()))
        assert decision is not None
        assert decision.reason is reason


def test_a_limit_that_people_did_not_set_as_the_fewest_lets_them_sleep() -> None:
    assert counts(until(tuner(), 0.0, 200.0, limits={"a": Limits(maximum=4)})[0]) == (0, 0)


def test_a_stage_with_a_time_of_its_own_sleeps_and_wakes_by_its_own_records() -> None:
    state = tuner(B_ALONE)
    for now_s in range(200):
        state, _ = step(state, structs.replace(seen(float(now_s), ready=counts(state)), recent=(100,) * 30))
    assert counts(state)[0] >= 2
    assert counts(state)[1] == 0, "although events come to the pipeline"
    before = state.outgrown_s
    state, decision = step(state, with_lag(seen(200.0, ready=counts(state)), "b"))
    assert decision is not None
    assert decision.reason is Reason.WOKEN
    assert decision.replicas["b"]["x"] >= 1
    assert state.outgrown_s == before, "no beginning for the others"


def test_a_controller_that_finds_them_asleep_lets_them_sleep_until_an_event_comes() -> None:
    state, decisions = until(tuner(held={"a": 0, "b": 0}), 0.0, 300.0)
    assert (counts(state), decisions) == ((0, 0), [])
    state, decision = step(state, with_lag(quiet(301.0, state), "a"))
    assert decision is not None
    assert decision.reason is Reason.WOKEN
    assert min(counts(state)) >= 1


def test_a_clock_that_jumps_is_no_time_without_events() -> None:
    state, _ = until(tuner(), 0.0, 60.0)
    state, decision = step(state, quiet(10_000.0, state))
    assert min(counts(state)) >= 1
    assert decision is None or decision.reason is Reason.CLOCK_JUMPED


def test_a_woken_stage_waits_for_nobody_s_replicas() -> None:
    """One without any traffic to speak of gets a replica, by the stock that is left."""
    idle = StageObservation({"x": Supply(0)}, partition_lags=(1,))
    state = tuner(held={"a": 0, "b": 0})
    observed = Observation(0.0, (0, 0, 0), 0.0, 0.0, {"a": idle, "b": idle}, stock={"x": 1})
    state, _ = step(state, observed)
    assert counts(state) == (1, 0)


def test_what_wakes_a_pipeline_is_no_leap_that_nothing_foretold_and_one_in_the_middle_of_traffic_is() -> None:
    """Full traffic comes within a second: after ten minutes asleep, and after as long at a tenth of it."""
    record = TrafficRecord(100.0, *np.full((2, 600), 1.0), np.full(600, -math.inf))
    table = Staffing((0.1, 1.0, 2.0), {"a": (20.0, 200.0, 400.0), "b": (15.0, 150.0, 300.0)}, 100.0, record)
    found = {}
    for before in (0.0, 10.0):
        state = staffed(tuner(), table)
        for second in range(700):
            rate = before if second < 600 else 100.0
            observed = structs.replace(
                quiet(float(second), state), arrival_rate=rate, peak_rate=rate, recent=(int(rate),) * 30
            )
            state, _ = step(state, observed)
        found[before] = state.leapt_s >= 600.0
    assert found == {0.0: False, 10.0: True}


def test_what_wakes_a_pipeline_starts_no_replicas_that_were_of_use_before_it_slept() -> None:
    """Replicas take ten minutes to start: to keep those for twice the traffic would have paid for eleven minutes."""
    record = TrafficRecord(100.0, *np.full((2, 600), 1.0), np.full(600, -math.inf))
    table = Staffing((0.1, 1.0, 2.0), {"a": (20.0, 200.0, 1000.0), "b": (15.0, 150.0, 750.0)}, 100.0, record)
    state = staffed(tuner(), table)
    for second in range(300):
        rate = 200.0 if second < 100 else 0.0 if second < 299 else 1.0
        observed = structs.replace(
            quiet(float(second), state), arrival_rate=rate, peak_rate=rate, recent=(int(rate),) * 30
        )
        stages = {
            name: structs.replace(there, supply={"x": structs.replace(there.supply["x"], start_up_s=600.0)})
            for name, there in observed.stages.items()
        }
        before = counts(state)
        state, _ = step(state, structs.replace(observed, stages=stages))
    assert before == (0, 0)
    assert counts(state) == counts(step(tuner({}), seen(0.0))[0]), "as many as a run begins with"
