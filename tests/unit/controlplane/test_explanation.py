from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from inferline_stream.controlplane.records.control_records import Override, Overrides, SloRecord
from inferline_stream.controlplane.records.explanation import WORDS, PlanHistory, document, sentences
from inferline_stream.observability.pipeline_state import DecisionRecord, StoredPlan
from inferline_stream.pipeline.plan import Allocation, KeyBound, Plan
from inferline_stream.planner.plan_document import PlanDocument
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.error_budget import ErrorBudget
from inferline_stream.tuner.outlook import HourAhead


def stored(number: int, reason: str, batch: int, detail: str = "") -> StoredPlan:
    plan = Plan(
        pipeline="p",
        slo_s=0.25,
        allocations={"a": (Allocation("cpu-1", batch, 2),), "b": (Allocation("t4", 8, 1), Allocation("cpu-1", 1, 3))},
        cost_per_hour=0.85,
        predicted_p99_s=0.2,
        arrival_rate=41.5,
        envelope=((0.1, 9),),
        visit_ratios={"a": 1.0, "b": 0.5},
        utilization={"a": 0.5, "b": 0.25},
    )
    return StoredPlan("c-1", 3, 1.7e9, reason, detail, PlanDocument(plan=plan), number)


def decision(number: int) -> DecisionRecord:
    return DecisionRecord(
        number,
        "c-1",
        3,
        1.7e9 + number,
        "scale_up",
        "backlog",
        f"stage 'a': detail {number}",
        {"a": {"cpu-1": 4}, "b": {"t4": 1, "cpu-1": 3}},
        True,
        61.25,
        lags={"a": 17, "b": 0},
        ready={"a": 2, "b": 4},
    )


STORY = PlanHistory(
    "p",
    (stored(1, "initial", 4), stored(2, "plan_saves", 8, "700 arrivals")),
    (decision(1), decision(2), decision(3)),
    Overrides({"limits/a": Override("limits", "a", minimum=1, maximum=6, who="eve")}),
    SloRecord(1.7e9, ErrorBudget(0.99, 86_400.0, 7200.0, 50_000, 125)),
)


def test_it_says_what_is_left_of_the_events_that_may_be_late():
    (line,) = [line for line in sentences(STORY, 1) if "late" in line]
    assert line.endswith(
        "125 of 50000 events were late in the 2h of the SLO's window of 24h; 0.01 of them may be: "
        "75% of the late events allowed so far are left"
    )


def of_first(**changed: Any) -> str:
    """What is said of the story's first plan with some of it changed, before its second."""
    first, second = STORY.plans
    document = PlanDocument(plan=replace(first.plan, **changed))
    plans = [msgspec.structs.replace(first, document=document), second]
    return "\n".join(sentences(PlanHistory("p", plans, (), Overrides()), 5))


def test_every_reason_has_its_words() -> None:
    assert WORDS.keys() == set(Reason)


def test_a_plan_is_reported_with_its_reason_its_numbers_and_what_it_changed() -> None:
    reported = "\n".join(sentences(STORY, 10))
    assert "plan 1 (initial) by c-1, term 3: the run began" in reported
    assert "plan 2 (plan_saves) by c-1, term 3: 700 arrivals" in reported
    assert "a: 2 × cpu-1, batches up to 8, 50% utilized (before: 2 × cpu-1, batches up to 4)" in reported
    assert reported.count("b: 1 × t4, batches up to 8 + 3 × cpu-1, batches up to 1, 25% utilized\n") == 2
    assert "SLO 250ms, predicted P99 200ms, $0.8500/h, made for 41.5 events/s" in reported


def test_a_decision_is_reported_with_who_why_and_on_which_numbers() -> None:
    reported = list(sentences(STORY, 10))[-3:]
    assert reported[0].endswith("scale_up (backlog) by c-1, term 3: queued records would have missed the SLO")
    assert reported[1].strip() == "stage 'a': detail 3"
    assert reported[2].strip() == (
        "wanted a 4 × cpu-1, b 1 × t4 + 3 × cpu-1; seen 61.2 events/s, ready a 2, b 4, lag a 17"
    )


def test_what_people_have_set_is_reported() -> None:
    assert "Set by eve: limits/a at least 1, at most 6" in list(sentences(STORY, 10))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (Override("slo", value=0.3), "slo 300ms"),
        (Override("price", "t4", 0.45), "price/t4 $0.45/h"),
        (Override("notice", "t4-spot", 120.0, until_s=2e9), "notice/t4-spot 2m"),
        (Override("traffic", "2027-11-26", 3.0), "traffic/2027-11-26 3 times"),
        (Override("scale", "a", 4), "scale/a 4"),
        (Override("limits", "a", maximum=6), "limits/a at most 6"),
        (Override("pause"), "pause"),
    ],
)
def test_what_people_have_set_is_reported_with_its_unit(override: Override, words: str) -> None:
    said = sentences(PlanHistory("p", STORY.plans, (), Overrides({override.key: override})), 1)
    assert any(line.startswith("Set by somebody") and line.endswith(f": {words}") for line in said)


def test_only_the_newest_are_reported_and_the_first_of_them_still_knows_what_it_changed() -> None:
    reported = "\n".join(sentences(STORY, 1))
    assert "plan 1" not in reported
    assert "(before: 2 × cpu-1, batches up to 4)" in reported
    assert reported.count("scale_up") == 1
    assert [d.number for d in document(STORY, 2)["decisions"]] == [2, 3]


def test_the_hours_ahead_are_said_with_traffic_replicas_cost_and_schedule() -> None:
    hours = (
        HourAhead(1.7e9, None, {"a": 2}, 0.25),
        HourAhead(1.7e9 + 3600, 81.25, {"a": 6}, 0.75, "'mon 09:00-10:00'"),
    )
    reported = list(sentences(replace(STORY, hours=hours, zone="Asia/Tokyo"), 1))[-3:]
    first = "The next 2 hours by the clock of Asia/Tokyo, $1.00 in the plan's mixture before what the policy adds:"
    assert reported[:2] == [first, "    Wed 07:13 no week known; a 2; $0.2500/h"], "Tuesday 22:13 in UTC"
    assert reported[2].endswith("81.2/s in the busiest minute; a 6; $0.7500/h; schedule: 'mon 09:00-10:00'")
    assert document(replace(STORY, hours=hours), 1)["hours"] == hours


def test_nothing_written_down_is_said() -> None:
    assert list(sentences(PlanHistory("p", (), (), Overrides()), 5)) == ["p: no plan and no decision is written down"]


def test_a_key_that_binds_a_stage_is_reported_with_its_remedy() -> None:
    said = of_first(key_bound={"a": KeyBound("anna", 31.0, {"cpu-1": 20.0})})
    assert "a: key_bound: events of key 'anna' come 31 times a second" in said
    assert "cpu-1 20; Stage(ordered=False) lifts that" in said


def test_a_reserve_that_people_ask_for_is_reported() -> None:
    said = of_first(reserve=1.5)
    assert said.count("replicas for 1.5 times that traffic are always held (--reserve)") == 1


def test_several_dispatchers_of_a_stage_are_reported_with_what_it_holds() -> None:
    said = of_first(slots={"a": 2})
    assert "a: 2 × cpu-1, batches up to 4, 2 dispatchers, 50% utilized" in said
