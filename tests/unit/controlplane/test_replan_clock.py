from __future__ import annotations

import pytest

from inferline_stream.controlplane.decide.replan_clock import ReplanOccasions, most_planned
from inferline_stream.pipeline.plan import Allocation, Plan


def times(
    occasions: ReplanOccasions, until_s: int, *, beyond=lambda s: False, wanted=lambda s: None, first_s: int = 0
) -> list:
    """Seconds at which it is time to plan, asked once a second."""
    return [s for s in range(first_s, until_s) if occasions.due(float(s), beyond=beyond(s), wanted=wanted(s))]


def test_a_plan_is_looked_at_every_so_often_and_not_at_the_start() -> None:
    assert times(ReplanOccasions(300, 30), 1000) == [300, 600, 900]


def test_traffic_that_stays_beyond_the_plan_calls_for_another_look_and_then_ever_more_rarely() -> None:
    assert times(ReplanOccasions(300, 30), 300, beyond=lambda s: s >= 50) == [80, 140, 260]
    assert times(ReplanOccasions(300, 30), 200, beyond=lambda s: 50 <= s < 90 or s >= 100) == [80, 130, 190]


def test_a_burst_beyond_the_plan_does_not() -> None:
    assert times(ReplanOccasions(300, 30), 299, beyond=lambda s: s % 40 < 29) == []


def test_what_people_want_is_planned_for_at_once_and_the_period_begins_again() -> None:
    assert times(ReplanOccasions(300, 30), 500, wanted=lambda s: s >= 70) == [70, 370]


def test_planning_again_can_be_asked_for() -> None:
    occasions = ReplanOccasions(300, 30)
    assert times(occasions, 10) == []
    occasions.again(20.0)
    assert times(occasions, 400, first_s=10) == [20, 320]


@pytest.mark.parametrize(("window_s", "most"), [(6.4, 100 + 30), (60.0, 900 + 90)])
def test_traffic_is_beyond_the_plan_only_where_chance_does_not_explain_it(window_s: float, most: float) -> None:
    """The sample lasted 20 s at 15/s: its 300 arrivals are all that a window of a minute could hold of it."""
    envelope = ((6.4, 100), (60.0, 300))
    plan = Plan("p", 0.5, {"a": (Allocation("cpu", 1, 1),)}, 0.1, 0.4, 15.0, envelope, {"a": 1.0}, {"a": 0.5}, {})
    assert most_planned(plan, window_s) == pytest.approx(most)
