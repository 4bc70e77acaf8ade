"""What is held beyond the plan: how much, since when, and until when."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.demand import demands
from inferline_stream.tuner.forecast import rises
from inferline_stream.tuner.observation import Observation
from inferline_stream.tuner.plan_basis import Kind, StageBasis, insured
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import Staffing
from inferline_stream.tuner.tuner_state import TunerState
from tests.unit.tuner.plans import seen, state

LOW = (30, 60, 600)
AT_PLAN = (300, 600, 6000)
LAYERS = ((2.5, 0.25),)
NEVER = -math.inf
KNOBS = PolicySettings(insurance=LAYERS, plan_memory_s=600.0, calm_memory_s=60.0)


def stage(name: str, *, planned: int, price: float, visits: float = 1.0, **options: int) -> StageBasis:
    return StageBasis(name, (Kind("x", planned, 1, 100.0, 0.01, price, 1.0, 1),), visits, **options)  # type: ignore[arg-type]


def test_the_stage_that_carries_the_least_is_insured_first_as_far_as_the_share_goes():
    """Of $10/h, 30 % are $3: a (300/s of 1) and b (200/s of half) are as tight; b costs less."""
    stages = (stage("a", planned=3, price=2.0), stage("b", planned=2, price=2.0, visits=0.5))
    assert insured(stages, 100.0, ()) == {"a": 300.0, "b": 200.0}
    assert insured(stages, 100.0, ((3.0, 1.0),)) == {"a": 300.0, "b": 200.0}
    assert insured(stages, 100.0, ((4.0, 1.0),)) == {"a": 400.0, "b": 200.0}
    assert insured(stages, 100.0, ((5.0, 1.0),)) == {"a": 500.0, "b": 300.0}
    assert insured(stages, 100.0, ((5.0, 0.3),)) == {"a": 400.0, "b": 200.0}
    assert insured(stages, 100.0, ((5.0, 0.19),)) == {"a": 300.0, "b": 200.0}
    assert insured(stages, 100.0, ((5.0, 0.2), (5.0, 0.2))) == {"a": 500.0, "b": 200.0}


def test_where_the_tightest_is_too_dear_the_next_is_insured():
    stages = (stage("a", planned=1, price=8.0), stage("b", planned=2, price=1.0))
    assert insured(stages, 100.0, ((4.0, 0.5),)) == {"a": 100.0, "b": 400.0}


def test_what_nobody_visits_nobody_planned_or_somebody_else_serves_is_not_insured():
    stages = (
        stage("unvisited", planned=1, price=1.0, visits=0.0),
        stage("unplanned", planned=0, price=1.0),
        stage("theirs", planned=1, price=0.0, most_replicas=1),
    )
    assert insured(stages, 100.0, ((4.0, 9.0),)) == {"unvisited": 100.0, "unplanned": 0.0, "theirs": 100.0}


def tuner(*, surges: bool = False) -> TunerState:
    """Plan and insurance give 300/s at `a`, where 200 are planned."""
    begun = state(KNOBS)
    table = Staffing((0.1, 1.0, 2.0), {"a": (20.0, 200.0, 400.0), "b": (15.0, 150.0, 300.0)}, 100.0, surges)
    return replace(begun, basis=replace(begun.basis, staffing=table))


def after(begun: TunerState, *observations: Observation) -> TunerState:
    for observation in observations:
        begun, _ = demands(replace(begun, time_s=observation.time_s), observation)
    return begun


def calm(time_s: float, envelope: tuple[int, int, int] = LOW) -> Observation:
    return seen(time_s, envelope, recent=(10,) * 30, watched_s=time_s)


def leap(time_s: float, watched_s: float) -> Observation:
    return seen(time_s, LOW, recent=(20,) * 20 + (90,) * 10, watched_s=watched_s)


def since(tuner: TunerState) -> tuple[float, float]:
    return tuner.leapt_s, tuner.outgrown_s


def test_a_beginning_is_insured_for_a_minute_or_for_long_where_the_sample_leaps():
    assert since(after(tuner(), calm(5.0))) == (NEVER, 5.0)
    assert since(after(tuner(surges=True), calm(5.0))) == (5.0, 5.0)
    assert since(after(tuner(), calm(5.0), calm(30.0))) == (NEVER, 5.0)


def test_a_leap_that_was_watched_whole_is_insured_after_for_long():
    begun = after(tuner(), calm(0.0))
    assert since(after(begun, leap(100.0, 30.0))) == (100.0, 0.0)
    assert since(after(begun, leap(100.0, 29.0))) == (NEVER, 0.0)


def test_arrivals_beyond_the_plan_and_its_room_are_insured_after_for_a_minute_and_fewer_are_not():
    begun = after(tuner(), calm(0.0))
    assert since(after(begun, calm(100.0, (331, 600, 6000)))) == (NEVER, 100.0)
    assert since(after(begun, calm(100.0, (330, 600, 6000)))) == (NEVER, 0.0)
    assert since(after(begun, calm(100.0, AT_PLAN))) == (NEVER, 0.0)
    assert since(after(begun, leap(100.0, 30.0), calm(110.0, (331, 600, 6000)))) == (100.0, 110.0)


def wanted(begun: TunerState, *observations: Observation) -> list[tuple[float, Reason]]:
    found = []
    for observation in observations:
        begun, needed = demands(replace(begun, time_s=observation.time_s), observation)
        found.append((round(needed["a"].needed, 3), needed["a"].reason))
    return found


def test_insurance_is_held_while_insured_and_the_plan_until_a_minute_after_it_was_last_needed():
    low = (20.0, Reason.ENVELOPE_EXCEEDED)
    insurance, plan = (300.0, Reason.INSURANCE), (200.0, Reason.INSURANCE)
    assert tuner().basis.floor["a"] == 300.0
    assert wanted(tuner(), *map(calm, (0.0, 59.9, 60.0, 61.0))) == [insurance, insurance, low, low]
    assert wanted(tuner(), calm(0.0), calm(30.0, AT_PLAN), calm(61.0), calm(89.0)) == [insurance, insurance, low, low]
    needed_till = wanted(tuner(), calm(0.0), calm(50.0, (600, 1200, 12000)), calm(111.0), calm(170.9), calm(171.0))
    assert needed_till == [insurance, (400.0, Reason.ENVELOPE_EXCEEDED), plan, plan, low]


def test_traffic_that_has_leapt_keeps_the_plan_for_long():
    begun = after(tuner(), calm(0.0), calm(100.0, (600, 1200, 12000)), leap(130.0, 30.0))
    held = wanted(begun, calm(600.0), calm(729.9), calm(730.0))
    assert held == [(300.0, Reason.INSURANCE), (300.0, Reason.INSURANCE), (20.0, Reason.ENVELOPE_EXCEEDED)]


def test_insurance_is_a_number_of_replicas_whatever_they_do_just_now():
    observed = calm(0.0, AT_PLAN)
    slow = {"x": replace(observed.stages["a"].supply["x"], throughput=50.0)}
    stages = {**observed.stages, "a": replace(observed.stages["a"], supply=slow)}
    _, needed = demands(replace(tuner(), time_s=0.0), replace(observed, stages=stages))
    assert (needed["a"].needed, needed["a"].reason) == (200.0, Reason.THROUGHPUT_FELL)
    assert needed["a"].throughputs == {"x": 50.0}


def test_where_replicas_start_slowly_calm_traffic_keeps_the_plan_for_twice_that_long():
    begun = after(tuner(), starting(calm(0.0), 40.0))
    held = wanted(begun, *[starting(calm(time_s), 40.0) for time_s in (79.9, 80.0)])
    assert held == [(300.0, Reason.INSURANCE), (20.0, Reason.ENVELOPE_EXCEEDED)]
    held = wanted(begun, *[starting(calm(time_s), 29.0) for time_s in (59.9, 60.0)])
    assert held == [(300.0, Reason.INSURANCE), (20.0, Reason.ENVELOPE_EXCEEDED)]
    held = wanted(begun, *[starting(calm(time_s), 400.0) for time_s in (599.9, 600.0)])
    assert held[-1] == (20.0, Reason.ENVELOPE_EXCEEDED), "no longer than traffic that leaps"


SLOW_LEAP = (0.0, 10.0, 36.0, 60.0, 70.0, 100.0)
"""Rises within so many seconds. A replica takes two to start."""


def leaping(rises: tuple[float, ...] = SLOW_LEAP, *, surges: bool = True, **settings: float) -> TunerState:
    begun = tuner()
    supply = {"a": (20.0, 100.0, 200.0), "b": (15.0, 75.0, 150.0)}
    table = Staffing((0.1, 0.5, 1.0), supply, 100.0, surges, rises)
    return replace(begun, basis=replace(begun.basis, staffing=table, knobs=replace(KNOBS, **settings)))


def test_of_a_slow_leap_as_much_is_held_as_comes_within_half_the_start_up_time():
    """A tenth of the plan's traffic comes in any case."""
    everything, half, whole = [[(supply, Reason.INSURANCE)] for supply in (300.0, 100.0, 200.0)]
    assert wanted(leaping(), calm(0.0)) == half, "a tenth of the plan's comes within a second"
    assert wanted(leaping(unanswered_share=1.0), calm(0.0)) == half, "and .36 within two"
    assert wanted(leaping(), calm(0.0, (130, 260, 2600))) == whole, "13/30 and a tenth are more than a half"
    beyond = wanted(leaping(unanswered_share=1.0), calm(0.0, (225, 450, 4500)))
    assert beyond == [(222.0, Reason.INSURANCE)], "3/4 and .36 are more than the plan"
    assert wanted(leaping(unanswered_share=1.0), starting(calm(0.0), 2.1)) == half
    assert wanted(leaping(unanswered_share=1.0), starting(calm(0.0), 2.2)) == whole, "a straight line between seconds"
    assert wanted(leaping(), starting(calm(0.0), 2.5)) == half, "48 of 100 come while a replica starts"
    assert wanted(leaping(), starting(calm(0.0), 2.6)) == everything, "50.4 of 100 are more than a half"
    assert wanted(leaping(sudden_share=0.3), calm(0.0)) == everything
    assert wanted(leaping((0.0, 10.0, 70.0, 100.0)), calm(0.0)) == everything
    assert wanted(leaping((0.0,) * 6), calm(0.0)) == everything


AT_ONCE = [200] * 60 + [900] * 40
BY_AND_BY = [200] * 60 + list(range(220, 1020, 20)) + [1000] * 40


def watched(begun: TunerState, counts: list[int], *, every_s: int = 1, until_s: int = 0) -> TunerState:
    """After a leap whose seconds were watched from 200 s on."""
    for end in range(30, until_s or len(counts), every_s):
        time_s = 200.0 + end
        begun = after(begun, seen(time_s, LOW, recent=tuple(counts[end - 30 : end]), watched_s=time_s))
    return begun


def test_how_fast_traffic_leaps_is_learned_where_the_sample_does_not_leap():
    def held(counts: list[int], start_up_s: float) -> list[tuple[float, Reason]]:
        begun = watched(after(leaping((), surges=False), calm(0.0)), counts)
        assert not begun.leap, "it is over"
        return wanted(begun, starting(calm(350.0), start_up_s))

    everything, half = [[(supply, Reason.INSURANCE)] for supply in (300.0, 100.0)]
    assert held(AT_ONCE, 8.0) == everything
    assert held(BY_AND_BY, 16.0) == half, "of 40 s, a fifth comes within eight, less two standard errors"
    begun = watched(after(leaping(surges=False), calm(0.0)), AT_ONCE)
    assert wanted(begun, calm(350.0)) == everything, "all of it comes within one"


@pytest.mark.parametrize("every_s", [1, 3])
def test_how_fast_is_learned_once_a_leap_is_over_from_all_of_its_seconds(every_s):
    begun = after(leaping((), surges=False), calm(0.0))
    under_way = watched(begun, BY_AND_BY, every_s=every_s, until_s=90)
    assert under_way.leap
    assert not under_way.rises, "of what has come of it, most would have come within no time"
    assert watched(begun, BY_AND_BY, every_s=every_s).rises[:41] == pytest.approx(rises(BY_AND_BY)[:41])
    blind = seen(300.0, LOW, recent=tuple(BY_AND_BY[60:90]), watched_s=29.0)
    assert not after(under_way, blind).leap


def test_a_leap_is_counted_no_further_back_than_a_rise_may_take():
    slowly = [int(200 * 1.02**second) for second in range(230)]
    under_way = watched(after(leaping((), surges=False), calm(0.0)), slowly)
    assert under_way.leap == tuple(slowly[229 - 140 : 229])


def test_where_leaps_are_over_before_replicas_help_a_trend_leads_nowhere_unless_nothing_is_known_of_them():
    def expected(*rises: float, surges: bool = True) -> float:
        climbing = seen(60.0, recent=tuple(100 + 30 * second for second in range(30)), watched_s=29.0)
        begun = replace(leaping(rises, surges=surges), time_s=60.0, leapt_s=50.0, outgrown_s=0.0)
        _, needed = demands(begun, starting(climbing, 6.0))
        return needed["a"].needed

    sudden = expected(0.0, 80.0, 90.0, 100.0)
    assert 0.9 * 985 * 2 < sudden < 985 * 2, "985/s is where the line ends; at 100/s, 200/s are needed"
    assert sudden + 2 * 6 * 30 < expected(0.0, 10.0, 20.0, 40.0, 80.0, 90.0, 100.0) == expected(0.0, 0.0) == expected()
    noise = expected(0.0, 80.0, 90.0, 100.0, surges=False)
    assert noise == expected(), "the rises of a sample that does not leap are noise"


def test_what_was_learned_of_leaps_is_the_most_of_them_all():
    higher = [2 * count for count in BY_AND_BY]
    seen_both = watched(watched(after(tuner(), calm(0.0)), AT_ONCE), higher)
    at_once, by_and_by = rises(AT_ONCE), rises(higher)
    assert seen_both.rises[:3] == at_once[:3] > by_and_by[:3]
    assert seen_both.rises[40] == by_and_by[40] > at_once[40]


def starting(observed: Observation, start_up_s: float) -> Observation:
    """With replicas of stage `b` that have taken so long to start."""
    slow = {"x": replace(observed.stages["b"].supply["x"], start_up_s=start_up_s)}
    return replace(observed, stages={**observed.stages, "b": replace(observed.stages["b"], supply=slow)})


@pytest.mark.parametrize("knobs", [{"plan_memory_s": 0.0}, {"calm_memory_s": 0.0, "calm_start_ups": 0.0}])
def test_without_memory_nothing_is_kept(knobs):
    begun = state(replace(KNOBS, **knobs))
    assert wanted(begun, calm(5.0))[0][1] is Reason.ENVELOPE_EXCEEDED
