"""Stopping early: never wrongly, and for the planner's sake early."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inferline_stream.estimator.evaluation import (
    arrivals_at,
    count_late,
    evaluate,
    fastest_rest_s,
    simulate_stage,
)
from inferline_stream.estimator.kernels import Floats
from inferline_stream.estimator.station import station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.shape import Paths
from inferline_stream.pipeline.trace import gamma_trace
from tests.unit.estimator.random_pipelines import random_pipeline
from tests.unit.estimator.small import C_SKIPPED, C_TAKEN, DIAMOND, ONE, allocated, measured


def an_slo(judged_s: Floats, share: float) -> tuple[float, int]:
    """One that about this share keeps and that no event has just as its latency, and how many are above it."""
    found = np.unique(judged_s[~np.isnan(judged_s)])
    place = int(share * (found.size - 1))
    slo_s = float(found[place : place + 2].mean())
    return slo_s, int((judged_s > slo_s).sum())


def test_events_counted_as_late_are_as_many_as_latencies_above_the_slo() -> None:
    for seed in range(60):
        pipeline = random_pipeline(seed, many=seed % 3 == 0)
        latency_s = evaluate(pipeline.workload, pipeline.stations).latency_s
        assert latency_s is not None
        if np.isnan(latency_s).all():
            continue
        slo_s, exact = an_slo(pipeline.workload.judged_s(latency_s), 0.5)
        assert evaluate(pipeline.workload, pipeline.stations, slo_s=slo_s).late == exact
        early = evaluate(pipeline.workload, pipeline.stations, slo_s=slo_s, allowed=len(latency_s), latencies=False)
        assert early.late == exact, f"seed {seed}"
        assert early.latency_s is None


def test_it_aborts_exactly_when_more_events_are_late_than_allowed() -> None:
    for seed in range(60, 110):
        pipeline = random_pipeline(seed, many=seed % 3 == 0)
        latency_s = evaluate(pipeline.workload, pipeline.stations).latency_s
        assert latency_s is not None
        if np.isnan(latency_s).all():
            continue
        slo_s, exact = an_slo(pipeline.workload.judged_s(latency_s), 0.8)
        for allowed in {0, max(0, exact - 1), exact, exact + 1}:
            found = evaluate(pipeline.workload, pipeline.stations, slo_s=slo_s, allowed=allowed, slice_events=5)
            assert found.aborted == (exact > allowed), f"seed {seed}, {allowed} allowed, {exact} late"


def test_a_hopeless_plan_is_given_up_after_a_small_part_of_the_trace() -> None:
    profile = measured(ONE, {"a": {1: 0.1}})
    workload = prepare(ONE, profile, gamma_trace(100, 1.0, 1000, np.random.default_rng(0)))
    overloaded = [station(profile, "a", allocated())]
    allowed, served = len(workload) // 100, list[int]()
    found = evaluate(workload, overloaded, slo_s=0.5, allowed=allowed, slice_events=1000)
    assert found.aborted
    assert found.simulated_events < len(workload) // 20
    asked = {"late_s": 0.5, "slice_events": 1000, "report": lambda arrived, largest: served.append(arrived)}
    arrivals = arrivals_at(workload, 0, {})
    assert simulate_stage(workload, 0, arrivals, overloaded[0], allowed=allowed, **asked) is None
    assert simulate_stage(workload, 0, arrivals, overloaded[0], allowed=len(workload), **asked) is not None
    assert served == [found.simulated_events, len(workload)]


def test_events_are_doomed_before_the_last_stage_when_the_rest_cannot_be_fast_enough() -> None:
    profile = measured(DIAMOND, {s: {1: 1.0} for s in DIAMOND.stages}, paths=Paths((C_TAKEN,), (1.0,)), hop_s=0.1)
    workload = prepare(DIAMOND, profile, gamma_trace(0.1, 0.0, 100, np.random.default_rng(0)))
    rest_s = fastest_rest_s(workload, {0: 1.0, 1: 2.0, 2: 4.0, 3: 8.0})
    assert rest_s[:, 0] == pytest.approx([0.1 + 4.0 + 0.1 + 8.0 + 0.1, 0.1 + 8.0 + 0.1, 0.1 + 8.0 + 0.1, 0.1])


def test_the_fastest_rest_depends_on_the_path() -> None:
    paths = Paths((C_TAKEN, C_SKIPPED), (0.5, 0.5))
    profile = measured(DIAMOND, {s: {1: 1.0} for s in DIAMOND.stages}, paths=paths)
    workload = prepare(DIAMOND, profile, gamma_trace(1, 1.0, 10, np.random.default_rng(0)))
    rest_s = fastest_rest_s(workload, {0: 1.0, 1: 2.0, 2: 4.0, 3: 8.0})
    assert rest_s[0] == pytest.approx([12.0, 10.0])
    assert rest_s[2, 1] == -math.inf


def test_one_stage_gives_up_once_more_events_are_late_than_allowed() -> None:
    profile = measured(ONE, {"a": {1: 0.02}}, hop_s=0.001)
    workload = prepare(ONE, profile, gamma_trace(40, 1.0, 100, np.random.default_rng(0)))
    serving = station(profile, "a", allocated())
    arrivals = arrivals_at(workload, 0, {})
    whole = simulate_stage(workload, 0, arrivals, serving)
    assert whole is not None
    late_s = 0.1
    late = int((whole.times_s - workload.entry_s[whole.events] > late_s).sum())
    assert late > 10
    assert simulate_stage(workload, 0, arrivals, serving, late_s=late_s, allowed=late - 1) is None
    assert simulate_stage(workload, 0, arrivals, serving, late_s=late_s, allowed=late) is not None
    assert count_late(workload, whole, late_s + workload.hop_s) == pytest.approx(late, abs=1)


def test_events_that_skip_a_stage_are_never_late_there() -> None:
    paths = Paths((C_TAKEN, C_SKIPPED), (0.3, 0.7))
    profile = measured(DIAMOND, {s: {1: 0.002} for s in DIAMOND.stages}, paths=paths)
    workload = prepare(DIAMOND, profile, gamma_trace(20, 1.0, 60, np.random.default_rng(0)))
    serving = station(profile, "c", allocated())
    entered = evaluate(workload, [serving] * 4, keep=[0], latencies=False).departures
    arrivals = arrivals_at(workload, 2, entered)
    at_c = simulate_stage(workload, 2, arrivals, serving)
    assert at_c is not None
    assert at_c.events.size == int((workload.masks == 0).sum())
    ages_s = at_c.times_s - workload.entry_s[at_c.events]
    late_s = float(np.quantile(ages_s, 0.9))
    late = int((ages_s > late_s).sum())
    assert late > 5
    for slice_events in (7, 100_000):
        asked = {"late_s": late_s, "slice_events": slice_events}
        assert simulate_stage(workload, 2, arrivals, serving, allowed=late, **asked) is not None
        assert simulate_stage(workload, 2, arrivals, serving, allowed=late - 1, **asked) is None


def test_at_one_stage_an_event_is_late_once_its_age_and_the_rest_of_its_own_way_are_too_long() -> None:
    paths = Paths((C_TAKEN, C_SKIPPED), (0.3, 0.7))
    profile = measured(DIAMOND, {s: {1: 0.02} for s in DIAMOND.stages}, paths=paths)
    workload = prepare(DIAMOND, profile, gamma_trace(30, 1.0, 60, np.random.default_rng(0)))
    serving = station(profile, "a", allocated())
    rest_s = np.array([0.5, 0.1])
    arrivals = arrivals_at(workload, 0, {})
    at_a = simulate_stage(workload, 0, arrivals, serving)
    assert at_a is not None
    whole_s = at_a.times_s - workload.entry_s[at_a.events] + rest_s[workload.masks[at_a.events]]
    for late_s in (0.15, 0.53):
        late = int((whole_s > late_s).sum())
        assert late > 5
        for slice_events in (7, 100_000):
            asked = {"late_s": late_s, "rest_s": rest_s, "slice_events": slice_events}
            assert simulate_stage(workload, 0, arrivals, serving, allowed=late, **asked) is not None
            assert simulate_stage(workload, 0, arrivals, serving, allowed=late - 1, **asked) is None
