"""A plan keeps the SLO of each live class for its own events, by an evaluation that owes nothing to the planner."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.estimator.simulation import simulate
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.live_classes import LiveClass
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.planner.plan_explanation import explain
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import SearchSettings, provision
from tests.unit.estimator.small import ONE, measured
from tests.unit.planner.problems import prices

SLO_S = 0.4
PREMIUM = LiveClass("premium", 0.5, -0.3)


def problem(*classes: LiveClass) -> Problem:
    times = {"a.slow": {1: 0.06}, "a.fast": {1: 0.02}}
    profile = replace(measured(ONE, times), classes=classes)
    trace = gamma_trace(60.0, 4.0, 60.0, np.random.default_rng(7))
    return Problem(ONE, profile, (trace,), SLO_S, prices(), order="entry")


def late_by_class(of: Problem, replicas_s: list[float]) -> list[float]:
    """Share of each class's events that are late where a free replica takes the event with the least slack."""
    (trace,) = of.traces
    class_of = prepare(of.shape, of.measured, trace).class_of
    own_s = np.array([SLO_S, *(SLO_S + each.longer_s for each in of.measured.classes)])[class_of]
    waiting: list[tuple[float, int]] = []
    free = [(0.0, i) for i in range(len(replicas_s))]
    late, coming, now_s = np.zeros(len(trace), bool), 0, 0.0
    while coming < len(trace) or waiting:
        now_s = max(free[0][0], now_s)
        if not waiting:
            now_s = max(now_s, float(trace.arrivals_s[coming]))
        while coming < len(trace) and trace.arrivals_s[coming] <= now_s:
            heapq.heappush(waiting, (max(trace.arrivals_s[coming] + own_s[coming], trace.arrivals_s[coming]), coming))
            coming += 1
        _, replica = heapq.heappop(free)
        _, event = heapq.heappop(waiting)
        heapq.heappush(free, (now_s + replicas_s[replica], replica))
        late[event] = now_s + replicas_s[replica] - trace.arrivals_s[event] > own_s[event]
    return [float(late[class_of == number].mean()) for number in range(len(of.measured.classes) + 1)]


@pytest.mark.parametrize("algorithm", ["default", "inferline"])
def test_each_class_keeps_its_own_slo(algorithm: str) -> None:
    with_premium = problem(PREMIUM)
    plan = provision(with_premium, SearchSettings(algorithm=algorithm))
    service_s = {"slow": 0.06, "fast": 0.02}
    (held,) = plan.allocations["a"]
    shares = late_by_class(with_premium, [service_s[held.hardware]] * held.replicas)
    assert max(shares) <= 0.01
    alone = provision(problem(), SearchSettings(algorithm=algorithm))
    assert plan.cost_per_hour > alone.cost_per_hour
    (cheaper,) = alone.allocations["a"]
    late = late_by_class(with_premium, [service_s[cheaper.hardware]] * cheaper.replicas)
    assert late[1] > 0.01, "the plan without the class would not have kept it"
    assert plan.predicted_p99_s <= SLO_S


def test_events_that_have_more_time_make_the_plan_cheaper() -> None:
    """No bound may rule out a plan for what is late only by the pipeline's own SLO."""
    patient = problem(LiveClass("patient", 0.98, 4.0))
    plan = provision(patient)
    assert plan.cost_per_hour < provision(problem()).cost_per_hour
    (held,) = plan.allocations["a"]
    assert max(late_by_class(patient, [{"slow": 0.06, "fast": 0.02}[held.hardware]] * held.replicas)) <= 0.01


def test_the_miss_rate_judges_each_event_by_its_class() -> None:
    of = problem(PREMIUM)
    (trace,) = of.traces
    held = provision(of).allocations
    found = simulate(of.shape, held, of.measured, trace, order_slo_s=SLO_S, order="entry")
    own_s = np.where(found.workload.class_of == 1, SLO_S + PREMIUM.longer_s, SLO_S)
    assert found.miss_rate(SLO_S) == np.count_nonzero(found.latency_s > own_s) / len(trace)


def test_how_sure_a_p99_is_is_said_of_the_class_that_decides_it() -> None:
    of = problem(PREMIUM)
    plan = provision(of)
    sure = explain(plan, of).p99
    assert sure.low_s <= plan.predicted_p99_s <= sure.high_s
