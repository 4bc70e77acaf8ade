"""Plans of stages whose replicas run several batches at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.errors import Infeasible
from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import Contention, Overheads, PipelineProfile
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.planner.plan_document import plan_from_bytes, plan_to_bytes
from inferline_stream.planner.plan_explanation import explain
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import SearchSettings, provision
from tests.unit.estimator.small import ONE, measured

KINDS = {"h": Hardware("h", 0.1)}
TRAFFIC: Trace = gamma_trace(100, 1.0, 30, np.random.default_rng(1))


def waiting(*factors: float, most_replicas: int | None = None) -> PipelineProfile:
    """Stage a takes 20 ms; beside 2, 4 and 8 it takes so many times as long."""
    profile = measured(ONE, {"a": {1: 0.02}})
    own = profile.profiles["a", "h"]
    contention = tuple(Contention(n, (factor,)) for n, factor in zip((2, 4, 8), factors, strict=False))
    own = replace(own, contention=contention, most_replicas=most_replicas)
    return replace(profile, profiles={("a", "h"): own})


def problem(profile: PipelineProfile, slo_s: float, traffic: Trace = TRAFFIC) -> Problem:
    return Problem(ONE, profile, (traffic,), slo_s, KINDS)


def test_a_stage_that_only_waits_needs_one_replica_with_many_batches_at_once_instead_of_several() -> None:
    plan = provision(problem(waiting(1.0, 1.0, 1.0), 0.06))
    alone = provision(problem(waiting(), 0.06))
    (held,) = plan.allocations["a"]
    assert (held.replicas, held.concurrency) == (1, 8)
    assert alone.allocations["a"][0].replicas > 2
    assert plan.predicted_p99_s <= 0.06


def test_a_server_that_slows_down_under_load_gets_no_more_at_once_than_it_serves_faster() -> None:
    profile = waiting(1.1, 1.4, 3.0)  # 50, 91, 143 and 133 a second, in 20, 22, 28 and 60 ms
    plan = provision(problem(profile, 0.07))
    (held,) = plan.allocations["a"]
    assert (held.replicas, held.concurrency) == (1, 4)
    found = simulate(ONE, plan.allocations, profile, TRAFFIC, order_slo_s=0.07)
    assert found.p99_s == pytest.approx(plan.predicted_p99_s)


def test_a_concurrency_without_a_gain_is_not_planned() -> None:
    plan = provision(problem(waiting(2.0, 4.0, 8.0), 0.5))
    assert {a.concurrency for a in plan.allocations["a"]} == {1}


def test_a_stage_behind_one_server_has_one_replica_or_no_plan() -> None:
    plan = provision(problem(waiting(1.1, 1.4, 3.0, most_replicas=1), 0.2))
    assert [a.replicas for a in plan.allocations["a"]] == [1]
    with pytest.raises(Infeasible):
        provision(problem(waiting(1.1, 1.4, 3.0, most_replicas=1), 0.2, TRAFFIC.sped_up(2.0)))


def test_a_stage_behind_one_server_has_one_dispatcher_however_many_its_records_would_have() -> None:
    profile = replace(waiting(1.1, 1.4, 3.0, most_replicas=1), overheads=Overheads(30.0))
    plan = provision(problem(profile, 0.2))
    assert ([a.replicas for a in plan.allocations["a"]], plan.slots) == ([1], {})


def test_a_plan_keeps_its_concurrency_in_its_file_and_says_why() -> None:
    profile = waiting(1.1, 1.4, 3.0)
    plan = provision(problem(profile, 0.07))
    assert plan_from_bytes(plan_to_bytes(plan)).allocations == plan.allocations
    why = explain(plan, problem(profile, 0.07)).stages[0]
    assert any("with 4 batches at once each takes 1.4 × as long as alone" in reason for reason in why.reasons)
    assert any("2.9 × as many events" in reason for reason in why.reasons)


def test_the_exact_search_finds_nothing_cheaper() -> None:
    profile = waiting(1.1, 1.4, 3.0)
    quick, exact = (provision(problem(profile, 0.07), SearchSettings(algorithm=a)) for a in ("default", "exact"))
    assert quick.cost_per_hour == pytest.approx(exact.cost_per_hour)
