"""How long stages wait before they give replicas back, after replicas that came and went."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferline_stream.tuner.decision import Action
from inferline_stream.tuner.observation import Observation
from inferline_stream.tuner.policy import step
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.tuner_state import Patience, TunerState
from tests.unit.tuner.plans import seen, state

HOUR_S = 3600.0


def waits_s(patience: Patience, now_s: float) -> float:
    return patience.wait_s(now_s, 30.0)


def changed(patience: Patience, *changes: tuple[float, int], calm: bool = True) -> Patience:
    """Patience after a stage had so many replicas at each of these times; 2 before."""
    held = 2
    for now_s, replicas in changes:
        before, wanted = ({"a": {"x": count}, "b": {"x": 1}} for count in (held, replicas))
        patience = patience.after(before, wanted, now_s, calm=calm)
        held = replicas
    return patience


def up_and_down(reversals: int, every_s: float = 40.0) -> Patience:
    """After so many changes of a stage the other way, the first change at 0 s."""
    return changed(Patience(), *[(every_s * n, 3 if n % 2 == 0 else 2) for n in range(reversals + 1)])


@pytest.mark.parametrize(("reversals", "wait_s"), [(0, 30.0), (6, 30.0), (7, 120.0), (8, 480.0), (20, 480.0)])
def test_six_reversals_change_nothing_and_each_of_the_next_two_makes_the_wait_four_times_as_long(reversals, wait_s):
    assert waits_s(up_and_down(reversals), 40.0 * reversals) == pytest.approx(wait_s, rel=0.02)


def test_a_change_the_same_way_is_no_reversal_and_neither_is_one_a_minute_later():
    assert changed(Patience(), (0.0, 3), (1.0, 4), (2.0, 5)).reversals == 0
    assert changed(Patience(), (0.0, 3), (60.0, 2)).reversals == 0
    assert changed(Patience(), (0.0, 3), (59.9, 2)).reversals == 1
    assert changed(Patience(), (0.0, 1), (59.9, 2)).reversals == 1


def test_reversals_count_by_the_last_change_of_the_same_stage_and_of_all_stages_together():
    one = {"a": {"x": 2, "y": 0}, "b": {"x": 2, "y": 0}}
    grown = {"a": {"x": 3, "y": 0}, "b": {"x": 2, "y": 0}}
    patience = Patience().after(one, grown, 0.0, calm=True)
    other = {"a": {"x": 3, "y": 0}, "b": {"x": 1, "y": 0}}
    assert patience.after(grown, other, 10.0, calm=True).reversals == 0
    both = {"a": {"x": 2, "y": 0}, "b": {"x": 2, "y": 0}}
    assert patience.after(grown, other, 10.0, calm=True).after(other, both, 20.0, calm=True).reversals == 2


def test_another_kind_of_hardware_in_place_of_one_is_no_change():
    patience = Patience().after({"a": {"x": 2, "y": 0}}, {"a": {"x": 1, "y": 1}}, 0.0, calm=True)
    assert patience.moved == {}


def test_a_reversal_is_forgiven_in_eight_hours():
    noisy = Patience(8.0, 100.0)
    assert [waits_s(noisy, 100.0 + hours * HOUR_S) for hours in (0, 4, 8, 16, 400)] == [480.0, 240.0, 120.0, 30.0, 30.0]


def test_one_more_reversal_adds_to_those_that_were_not_forgiven():
    noisy = changed(up_and_down(8), (9 * HOUR_S, 3), (9 * HOUR_S + 1, 2))
    assert noisy.reversals == pytest.approx(8.0, abs=0.2)
    noisy = changed(up_and_down(7), (8 * HOUR_S + 280.0, 3), (8 * HOUR_S + 281.0, 2))
    assert noisy.reversals == pytest.approx(7.0, abs=0.01)


def test_where_traffic_leaps_or_outgrows_the_plan_replicas_that_come_and_go_are_no_noise():
    assert changed(Patience(), (0.0, 3), (40.0, 2), calm=False) == Patience(moved={"a": (False, 40.0)})


PLAIN = PolicySettings(insurance=(), plan_memory_s=0.0)
LOW, HIGH = (60, 120, 1200), (600, 1200, 12000)


def at(time_s: float, envelope: tuple[int, int, int]) -> Observation:
    return seen(time_s, envelope, peak_rate=20.0, recent=(20,) * 30)


def given_back(tuner: TunerState, first_s: int, last_s: int) -> tuple[TunerState, float | None, str]:
    """The state after little traffic, when replicas were given back, and what was said."""
    for second in range(first_s, last_s):
        tuner, decision = step(tuner, at(float(second), LOW))
        if decision is not None and decision.action is Action.SCALE_DOWN:
            return tuner, float(second), decision.detail
    return tuner, None, ""


def test_the_policy_waits_longer_after_reversals_and_says_so():
    def at_last(patience: Patience) -> tuple[float | None, str]:
        tuner, _ = step(replace(state(PLAIN), patience=patience), at(0.0, HIGH))
        _, down_s, detail = given_back(tuner, 1, 600)
        return down_s, detail

    assert at_last(Patience(6.0)) == (31.0, at_last(Patience())[1])
    down_s, detail = at_last(Patience(8.0))
    assert down_s == pytest.approx(475.0, abs=6.0)
    assert detail.endswith(" s rather than 30 s: replicas came and went")


@pytest.mark.parametrize(("outgrown_s", "counted"), [(40.0, 2.0), (40.1, 0.0)])
def test_reversals_count_while_nothing_is_insured(outgrown_s, counted):
    """Both stages grow again soon after both gave replicas back; their records wait, and no more of them arrive."""
    tuner = replace(state(replace(PLAIN, plan_memory_s=60.0)), outgrown_s=outgrown_s)
    moved = {"a": (False, 90.0), "b": (False, 90.0)}
    now = at(100.0, LOW)
    stages = {name: replace(s, partition_lags=(9000,), partition_idle_s=(0.0,)) for name, s in now.stages.items()}
    tuner = replace(tuner, time_s=99.9, patience=Patience(moved=moved))
    tuner, decision = step(tuner, replace(now, stages=stages))
    assert decision is not None
    assert decision.action is Action.SCALE_UP
    assert tuner.patience.reversals == counted
