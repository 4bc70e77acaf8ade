"""What is held beyond the plan in a beginning, of which no odds are known: how much, since when, until when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.demand import demands
from inferline_stream.tuner.plan_basis import Kind, StageBasis, insured
from inferline_stream.tuner.policy_settings import PolicySettings
from tests.unit.tuner.plans import seen, state

LOW, AT_PLAN = (30, 60, 600), (300, 600, 6000)
KNOBS = PolicySettings(insurance=((2.5, 0.25),))


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


def held(*moments: tuple[float, tuple[int, int, int]], start_up_s: float = 2.0, **settings: float) -> list[float]:
    """What stage `a` needs at each of these moments: 200/s are planned, and $1.25 of $5 insure another 100/s."""
    tuner, found = state(replace(KNOBS, **settings)), []
    for time_s, envelope in moments:
        now = seen(time_s, envelope)
        supply = {"x": structs.replace(now.stages["b"].supply["x"], start_up_s=start_up_s)}
        now = structs.replace(now, stages={**now.stages, "b": structs.replace(now.stages["b"], supply=supply)})
        tuner, needed = demands(tuner, now)
        found.append(needed["a"].needed)
        assert (needed["a"].reason is Reason.INSURANCE) == (needed["a"].needed == 300.0)
    return found


def test_a_beginning_is_insured_for_a_minute_and_so_is_traffic_beyond_the_plan_and_its_room():
    low = pytest.approx(10.0 + 100 * 0.1**0.5)
    assert held((0.0, LOW), (59.9, LOW), (60.0, LOW)) == [300.0, 300.0, low]
    beyond, within = (331, 600, 6000), (329, 600, 6000)
    assert held((0.0, LOW), (90.0, beyond), (149.9, LOW), (150.0, LOW))[2:] == [300.0, low]
    assert held((0.0, LOW), (90.0, within), (149.9, LOW))[2:] == [low]


def test_where_replicas_start_slowly_it_lasts_for_twice_that_long():
    assert held((0.0, LOW), (89.9, LOW), (90.1, LOW), start_up_s=45.0)[1:] == [300.0, pytest.approx(41.6, abs=0.1)]


def test_without_beginnings_nothing_is_held_whatever_the_traffic():
    assert held((0.0, LOW), beginning_s=0.0) == [pytest.approx(41.6, abs=0.1)]
