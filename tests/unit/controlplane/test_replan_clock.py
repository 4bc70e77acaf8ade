from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from inferline_stream.controlplane.decide import replan_clock
from inferline_stream.controlplane.decide.replan import ReplanInputs, ReplanResult
from inferline_stream.controlplane.decide.replan_clock import ReplanClock, ReplanOccasions, is_beyond, most_planned
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import Override, Overrides
from inferline_stream.errors import Unreachable
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.settings import Settings
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.traffic import Traffic
from tests.support.emulated_runs import one_stage
from tests.support.virtual_time import run
from tests.unit.controlplane.memory_kafka import MemoryKafka
from tests.unit.controlplane.test_slot_keeper import House

ENVELOPE = ((6.4, 100), (60.0, 300))
PLAN = Plan("p", 0.5, {"a": (Allocation("cpu", 1, 1),)}, 0.1, 0.4, 15.0, ENVELOPE, {"a": 1.0}, {"a": 0.5}, {})


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
    assert most_planned(PLAN, window_s) == pytest.approx(most)


@pytest.mark.parametrize(("lasts_s", "planned_s"), [(20, []), (25, []), (60, [121]), (100, [121, 181])])
def test_a_leap_is_planned_for_while_it_lasts_and_not_once_it_has_passed(lasts_s: int, planned_s: list[int]) -> None:
    """It is beyond the plan from its first second on, which ends at 91 s; after 30 s and 60 more it is planned for."""
    windows_s = (0.1, 6.4, 12.8, 25.6, 60.0)
    traffic = Traffic(windows_s)

    def beyond(second: int) -> bool:
        rate = 60 if 90 <= second - 1 < 90 + lasts_s else 15
        traffic.add(second - 1 + np.arange(rate) / rate)
        return is_beyond(PLAN, windows_s, traffic.envelope(second), traffic.recent(second))

    assert times(ReplanOccasions(300, 30), 290, beyond=beyond) == planned_s


def test_what_people_want_is_planned_for_once_kafka_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka: Any = MemoryKafka("posts", 1, arrived=lambda: 0, done=lambda: 0)
    view = House().view
    view.context = PipelineContext(one_stage(), kafka, Settings())
    slos_s: list[float] = []

    async def planned(_: object, inputs: ReplanInputs) -> ReplanResult:
        slos_s.append(inputs.slo_s)
        return ReplanResult(None, "")

    async def take(proposal: ReplanResult, measured: PipelineProfile) -> None:
        return None

    async def story() -> None:
        overrides = Overrides()
        clock = ReplanClock(view, lambda: overrides, take)
        await clock.step()
        slos_s.clear()
        overrides, kafka.away = overrides.with_record("slo", Override("slo", value=0.1)), True
        with pytest.raises(Unreachable):
            await clock.step()
        kafka.away = False
        await asyncio.sleep(10.0)
        await clock.step()
        assert slos_s == [0.1]

    monkeypatch.setattr(replan_clock, "call_in_subprocess", planned)
    run(story())


@pytest.mark.parametrize("planning", [False, True])
def test_what_people_want_during_a_pause_is_planned_for_at_its_end(
    monkeypatch: pytest.MonkeyPatch, *, planning: bool
) -> None:
    kafka: Any = MemoryKafka("posts", 1, arrived=lambda: 0, done=lambda: 0)
    view = House().view
    view.context = PipelineContext(one_stage(), kafka, Settings())
    overrides, taken_s, begins = Overrides(), list[float](), [Override("pause")] * planning

    async def planned(_: object, inputs: ReplanInputs) -> ReplanResult:
        nonlocal overrides
        if begins:
            overrides = overrides.with_record("pause", begins.pop())
        return ReplanResult(Reason.PLAN_SAVES, "", replace(inputs.plan, slo_s=inputs.slo_s))

    async def take(proposal: ReplanResult, measured: PipelineProfile) -> None:
        assert proposal.plan is not None
        taken_s.append(proposal.plan.slo_s)

    async def story() -> None:
        nonlocal overrides
        clock = ReplanClock(view, lambda: overrides, take)
        clock._occasions.due(0.0, beyond=False, wanted=clock._set_by_people())
        if not planning:
            overrides = overrides.with_record("pause", Override("pause"))
        overrides = overrides.with_record("slo", Override("slo", value=0.1))
        for _ in range(3):
            await clock.step()
        assert taken_s == []
        overrides = overrides.with_record("pause", None)
        await clock.step()
        assert taken_s == [0.1]

    monkeypatch.setattr(replan_clock, "call_in_subprocess", planned)
    run(story())
