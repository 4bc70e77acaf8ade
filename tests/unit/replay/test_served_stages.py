"""Policies side by side on a pipeline of which a stage runs several batches at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.baselines.coarse import unit
from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.keys import Keys
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import Contention, PipelineProfile, ServiceTime
from inferline_stream.pipeline.trace import levels_trace
from inferline_stream.replay.clairvoyant import work_bound
from inferline_stream.replay.compare import NAMES, NO_TUNER, Comparison, compare
from inferline_stream.replay.contenders import FAMILIES, Contest
from inferline_stream.replay.loop import Conditions
from tests.unit.tuner import plans

CALM = levels_trace([(60.0, 20.0)], 1.0, np.random.default_rng(1))
BURST = levels_trace([(60.0, 5.0), (500.0, 10.0), (60.0, 15.0)], 1.0, np.random.default_rng(2))


def served(concurrency: int, most_replicas: int | None = None) -> tuple[Plan, PipelineProfile]:
    """The plan of two stages, the second of which waits: four batches of a replica take 1.25 times as long each."""
    measured, plan = plans.measured(), plans.plan()
    waits = replace(
        measured.profiles["b", "x"], contention=(Contention(4, (1.25,)),), most_replicas=most_replicas, start_up_s=1.0
    )
    keys = Keys((("busy", 0.05),), ("a", "b"))
    measured = replace(measured, profiles={**measured.profiles, ("b", "x"): waits}, keys=keys)
    held = {**plan.allocations, "b": (Allocation("x", 1, 1, concurrency=concurrency),)}
    return replace(plan, allocations=held), measured


def compared(plan: Plan, measured: PipelineProfile, *policies: str, tune: bool = False) -> Comparison:
    return compare(
        plans.SHAPE, plan, measured, CALM, BURST, catalogue=plans.CATALOGUE, policies=policies or NAMES, tune=tune,
        conditions=Conditions(), kernel=compiled_kernel(),
    )  # fmt: skip


def test_every_policy_serves_it_and_rules_of_others_only_on_our_pools() -> None:
    found = compared(*served(4))
    assert found.without_groups == "b"
    assert [row.policy for row in found.rows] == list(NAMES)
    assert all(row.on_our_pool for row in found.rows)
    for row in found.rows:
        reached = row.outcome.latency_s[~np.isnan(row.outcome.latency_s)]
        assert np.isfinite(reached).all(), row.policy
        assert row.outcome.cost >= found.work_bound, row.policy
    ours, alone = found.row("default").outcome, found.row(NO_TUNER).outcome
    assert ours.miss_rate < alone.miss_rate / 2
    assert ours.changes > 0


def test_every_policy_keeps_a_replica_for_each_dispatcher() -> None:
    plan, measured = served(1)
    held = {**plan.allocations, "b": (Allocation("x", 1, 3),)}
    found = compared(replace(plan, allocations=held, slots={"b": 3}, order="entry"), measured)
    alone = simulate(
        plans.SHAPE, held, measured, BURST, order_slo_s=plan.slo_s, order="entry", slots={"b": 3}
    ).latency_s
    assert np.array_equal(found.row(NO_TUNER).outcome.latency_s, alone, equal_nan=True)
    for row in found.rows:
        asked = [sum(step.replicas["b"].values()) for step in row.outcome.steps if "b" in step.replicas]
        reached = row.outcome.latency_s[~np.isnan(row.outcome.latency_s)]
        assert np.isfinite(reached).all(), row.label
        assert min(asked, default=3) >= 3 or not row.on_our_pool, row.label
    least = {row.label: row.outcome.replica_hours["b", "x"] for row in found.rows}
    assert least["cg-mean"] < 3 * found.row(NO_TUNER).outcome.duration_s / 3600 <= least["cg-mean on our pool"] + 1e-9


def test_a_plan_with_one_batch_at_a_time_is_compared_on_consumer_groups_too() -> None:
    found = compared(*served(1), "keda")
    assert found.without_groups is None
    assert [row.on_our_pool for row in found.rows] == [False, True]


@pytest.mark.parametrize("policy", ["default", "keda", "cg-peak"])
def test_no_policy_has_more_replicas_of_a_stage_than_are_of_use(policy: str) -> None:
    outcome = compared(*served(2, most_replicas=1), policy).row(policy).outcome
    asked = [sum(step.replicas["b"].values()) for step in outcome.steps if "b" in step.replicas]
    assert max(asked, default=1) == 1
    if policy == "keda":
        unbounded = compared(*served(2), policy).row(policy).outcome
        assert unbounded.replica_hours["b", "x"] > outcome.replica_hours["b", "x"]
    assert outcome.replica_hours["b", "x"] == pytest.approx(outcome.duration_s / 3600)


def test_rules_of_others_are_given_what_a_replica_has_in_hand() -> None:
    plan, measured = served(4)
    contest = Contest(plans.SHAPE, plan, measured, CALM, 1.0)
    assert [contest.in_hand(stage) for stage in plans.SHAPE.stages] == [4, 4]
    (ray,) = (family for family in FAMILIES if family.name == "ray")
    assert ray.make(contest, {"ongoing_per_batch": 0.5}).by_stage["b"].target_ongoing == 2.0
    (peak,) = (family for family in FAMILIES if family.name == "cg-peak")
    assert peak.allocations is not None
    assert peak.allocations(contest)["b"][0].concurrency == 4
    one = unit(plans.SHAPE, measured, contest.hardware(), 0.5, contest.at_once())
    assert one.throughput == pytest.approx(min(4 / 0.04, 4 / (0.02 * 1.25)))
    assert one.service_time_s == pytest.approx(0.04 + 0.02 * 1.25)


def test_no_replica_can_do_more_work_than_all_its_batches_as_fast_as_alone() -> None:
    plan, measured = served(4)
    bound = work_bound(plan.allocations, measured, {"a": 0.0, "b": 7200.0}, plans.CATALOGUE, objective=1.0)
    assert bound == pytest.approx(7200 * 0.02 / 4 / 3600)


def test_a_faster_fallback_could_do_all_of_the_work() -> None:
    plan, measured = served(1)
    profile = replace(measured.profiles["b", "x"], fallback=(ServiceTime(1, 0.005),), fallback_share=0.1)
    measured = replace(measured, profiles={**measured.profiles, ("b", "x"): profile})
    bound = work_bound(plan.allocations, measured, {"a": 0.0, "b": 7200.0}, plans.CATALOGUE, objective=1.0)
    assert bound == pytest.approx(7200 * 0.005 / 3600)
