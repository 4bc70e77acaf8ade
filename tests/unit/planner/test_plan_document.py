"""Plans as JSON, and what changes between two of them."""

import dataclasses
import json

import msgspec
import pytest

from inferline_stream.errors import InvalidFile
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.plan import Allocation, Plan, in_words
from inferline_stream.planner.plan_diff import difference
from inferline_stream.planner.plan_document import plan_from_bytes, plan_to_bytes

PLAN = Plan(
    pipeline="moderation",
    slo_s=0.25,
    allocations={
        "parse": (Allocation("cpu-1", 1, 2),),
        "score": (Allocation("t4", 16, 1, 0.01), Allocation("cpu-4", 8, 3, 0.01)),
    },
    cost_per_hour=0.1 + 0.2,
    predicted_p99_s=0.231,
    arrival_rate=99.7,
    envelope=((0.1, 31), (0.2, 44), (60.0, 6321)),
    visit_ratios={"parse": 1.0, "score": 0.4},
    utilization={"parse": 0.7, "score": 0.5},
    algorithm="default",
)


def test_a_plan_read_back_is_the_plan_that_was_written():
    held = dataclasses.replace(PLAN, reserve=1.5)
    assert plan_from_bytes(plan_to_bytes(held)) == held != PLAN
    assert plan_from_bytes(plan_to_bytes(PLAN)) == PLAN


def test_a_doubt_about_the_p99_is_written_and_a_reader_of_plans_skips_it():
    doubted = plan_to_bytes(PLAN, not_credible="it takes 3 cores of 2")
    assert json.loads(doubted)["not_credible"] == "it takes 3 cores of 2"
    assert plan_from_bytes(doubted) == PLAN
    assert json.loads(plan_to_bytes(PLAN, planned_without="t4"))["planned_without"] == "t4"
    assert "not_credible" not in msgspec.json.decode(plan_to_bytes(PLAN))


def test_the_same_plan_gives_the_same_bytes_in_the_plan_s_own_order_of_stages():
    assert plan_to_bytes(PLAN) == plan_to_bytes(plan_from_bytes(plan_to_bytes(PLAN)))
    assert list(plan_from_bytes(plan_to_bytes(PLAN)).allocations) == ["parse", "score"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "plan version 99"),
        ({"plan": {"slo_s": 0.1}}, "missing required field"),
        ({"extra": 1}, "unknown field"),
    ],
)
def test_a_document_of_another_kind_is_refused_with_the_file_s_name(change, message):
    with pytest.raises(InvalidFile, match=f"p.json: .*{message}"):
        plan_from_bytes(msgspec.json.encode(msgspec.json.decode(plan_to_bytes(PLAN)) | change), "p.json")


def test_bytes_that_are_no_json_are_refused():
    for data in (b"cost: 3", b"", b'{"version": 2, "plan": ' + b"[" * 100_000):
        with pytest.raises(InvalidFile, match=r"p\.json: is no plan"):
            plan_from_bytes(data, "p.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("allocations", {"parse": (Allocation("cpu-1", 1, 0),)}, "'parse' has no replicas"),
        ("allocations", {"parse": (Allocation("a", 1, 1, 0.01), Allocation("b", 1, 1))}, "has the holds 0us, 10ms"),
        ("utilization", {"parse": 0.7}, "utilization lacks stage score"),
        ("envelope", ((0.2, 3), (0.1, 2)), "must ascend"),
        ("envelope", ((0.0, 3),), "windows must ascend, above 0 s"),
        ("envelope", ((1e9, 3),), "windows must ascend, above 0 s and up to 60 s"),
        ("envelope", ((1.0, 10**39),), "counts must be 0 to"),
        ("slo_s", -1.0, "must be above 0"),
        ("reserve", -0.5, r"reserve -0\.5 must be 0 to 1e\+10"),
        ("arrival_rate", 1e300, r"arrival_rate 1e\+300 must be 0 to"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(field, value, message):
    broken = plan_to_bytes(dataclasses.replace(PLAN, **{field: value}))
    with pytest.raises(InvalidFile, match=message):
        plan_from_bytes(broken)


def test_a_batch_limit_of_zero_is_refused_on_reading():
    with pytest.raises(InvalidFile, match="max_batch_size must be 1 or more"):
        plan_from_bytes(plan_to_bytes(PLAN).replace(b'"max_batch_size": 16', b'"max_batch_size": 0'))


def test_a_difference_names_each_stage_s_change_and_adds_up_to_the_cost_of_all():
    after = dataclasses.replace(
        PLAN,
        allocations={
            "parse": PLAN.allocations["parse"],
            "score": (Allocation("t4", 16, 3),),
            "audit": (Allocation("cpu-1", 1, 1),),
        },
        slo_s=0.2,
    )
    found = difference(PLAN, after, catalogue())
    changes = {stage.stage: stage.cost_change_per_hour for stage in found.stages if not stage.unchanged}
    assert changes == pytest.approx({"score": 2 * 0.526 - 3 * 4 * 0.0665, "audit": 0.0665})
    assert found.cost_change_per_hour == pytest.approx(sum(changes.values()))
    assert found.slo_change_s == pytest.approx(-0.05)
    assert not found.unchanged


def test_another_reserve_is_a_difference():
    held = dataclasses.replace(PLAN, reserve=2.0)
    found = difference(PLAN, held, catalogue())
    assert (found.unchanged, found.reserve_before, found.reserve_after) == (False, None, 2.0)
    assert difference(held, held, catalogue()).unchanged


def test_another_hold_is_a_difference_and_has_its_words():
    eager = {"parse": PLAN.allocations["parse"], "score": (Allocation("t4", 16, 1), Allocation("cpu-4", 8, 3))}
    found = difference(PLAN, dataclasses.replace(PLAN, allocations=eager), catalogue())
    assert [stage.stage for stage in found.stages if not stage.unchanged] == ["score"]
    assert in_words(PLAN.allocations["score"]) == "1 × t4, batches up to 16 + 3 × cpu-4, batches up to 8, held 10ms"
    assert in_words(eager["score"]) == "1 × t4, batches up to 16 + 3 × cpu-4, batches up to 8"


def test_a_plan_does_not_differ_from_itself_with_its_mixed_allocations_listed_the_other_way():
    swapped = {"parse": PLAN.allocations["parse"], "score": PLAN.allocations["score"][::-1]}
    assert difference(PLAN, dataclasses.replace(PLAN, allocations=swapped), catalogue()).unchanged
