"""Bit for bit: the compiled kernels, their interpreted source and the event heap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.estimator.evaluation import Departures, arrivals_at, evaluate, latencies_s, simulate_stage
from inferline_stream.estimator.kernels import Varying
from inferline_stream.estimator.numba_kernels import interpreted
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.keys import Keys
from inferline_stream.pipeline.profile import LEVELS
from inferline_stream.pipeline.trace import Trace
from tests.support.event_heap import simulate_with_heap
from tests.support.hypothesis_profiles import examples
from tests.unit.estimator.random_pipelines import RandomPipeline, random_pipeline
from tests.unit.estimator.small import CHAIN, measured

GROUPS = 5
PIPELINES_PER_GROUP = 40
"""As many in all as contain each thing dozens of times, see below. The suite simulates the first few of them."""


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_pipelines_give_the_latencies_of_the_event_heap(group: int) -> None:
    count = examples(PIPELINES_PER_GROUP)
    for seed in range(group * count, (group + 1) * count):
        pipeline = random_pipeline(seed)
        simulated = simulate_with_heap(pipeline.workload, pipeline.stations)
        expected = simulated.latency_s
        for slice_events in (1 if seed % 5 == 0 else 7, 10_000):
            evaluation = evaluate(pipeline.workload, pipeline.stations, slice_events=slice_events)
            found = evaluation.latency_s
            assert found is not None
            assert same(found, expected), f"seed {seed}, slices of {slice_events}"
            assert [each.degraded for each in evaluation.statistics.values()] == simulated.degraded, f"seed {seed}"


def test_pipelines_with_many_results_and_gathers_give_the_latencies_of_the_event_heap() -> None:
    gathered, apart, empty, sources, levels = 0, 0, 0, 0, 0
    for seed in range(3000, 3100):
        pipeline = random_pipeline(seed, events=30, many=True)
        workload = pipeline.workload
        shape = workload.shape
        gathered += any(map(shape.gathers, range(len(shape.stages))))
        apart += workload.last.start > 0
        sources += bool(shape.many) and len(shape.sources) > 1
        levels += len({shape.scopes()[final] for final in shape.finals()}) > 1
        empty += any((np.diff(results.begins) == 0).any() for results in workload.results.values())
        expected = simulate_with_heap(workload, pipeline.stations).latency_s
        for slice_events in (1 if seed % 5 == 0 else 7, 10_000):
            latency_s = evaluate(workload, pipeline.stations, slice_events=slice_events).latency_s
            assert latency_s is not None
            assert same(latency_s, expected), f"seed {seed}, slices of {slice_events}"
    found = (gathered, apart, empty, sources, levels)
    assert min(found) > 10, found


def test_the_random_pipelines_contain_what_they_are_meant_to() -> None:
    pipelines = [random_pipeline(seed) for seed in range(GROUPS * PIPELINES_PER_GROUP)]
    stations = [s for pipeline in pipelines for s in pipeline.stations]
    shapes = [pipeline.workload.shape for pipeline in pipelines]
    assert sum(bool(shape.joins()) for shape in shapes) > 50
    assert sum(bool(shape.beside) for shape in shapes) > 30
    assert sum(len(shape.sources) > 1 for shape in shapes) > 30
    assert sum(any(a.conditional for a in shape.arrows) for shape in shapes) > 50
    assert sum(any(feed.skips for feed in p.workload.feeds) for p in pipelines) > 10
    queues = [s for s in stations if not s.partitions]
    assert sum(s.partitions > s.slots > 1 for s in stations) > 100
    assert sum(0 < s.order_slo_s < np.inf for s in queues) > 100
    assert sum(s.hold_s > 0 and s.limits.size > 1 for s in queues) > 50
    assert sum(s.hold_s > 0 for s in stations) > 100
    assert sum(s.limits.size > 1 for s in stations) > 100
    varying = [s for s in stations if s.varies]
    assert len(varying) > 100
    assert sum(s.limits.max() > 1 and np.unique(s.varying.units).size > 1 for s in varying) > 100
    assert sum(bool(s.varying.largest.any()) for s in varying) > 100
    assert sum(s.partitions > 0 for s in varying) > 50
    assert sum(np.unique(p.workload.entry_s).size < len(p.workload) for p in pipelines) > 20
    assert sum(s.slots > 1 for s in queues) > 50
    assert sum(s.fallback.size > 0 for s in queues) > 50
    assert sum(s.slots > 1 and s.limits.size > 1 for s in queues) > 20
    keyed = [s for p in pipelines for i, s in enumerate(p.stations) if p.workload.lanes(i).any()]
    assert sum(not s.partitions and s.limits.size > 1 for s in keyed) > 50
    assert sum(s.hold_s > 0 for s in keyed) > 50
    assert sum(0 < s.order_slo_s < np.inf for s in keyed) > 50
    assert sum(s.levels > 1 for s in queues) > 50
    assert sum(s.levels > 1 and s.limits.size > 1 for s in queues) > 30
    assert sum(s.levels > 1 and s.varies for s in queues) > 20
    assert sum(s.levels > 1 and s.hold_s > 0 for s in queues) > 15
    assert sum(s.levels > 1 for s in keyed) > 15
    unordered = [replace(p.workload, ordered=frozenset()) for p in pipelines]
    changed = [
        not same(evaluate(p.workload, p.stations).latency_s, evaluate(w, p.stations).latency_s)
        for p, w in zip(pipelines, unordered, strict=True)
    ]
    assert sum(changed) > 50


def test_the_interpreted_source_of_the_kernels_gives_the_same_bits() -> None:
    for seed in range(examples(120)):
        compiled, plain = random_pipeline(seed, events=60), random_pipeline(seed, events=60, code=interpreted)
        assert np.array_equal(compiled.workload.masks, plain.workload.masks)
        with np.errstate(over="ignore"):  # positions wrap around below zero, as in machine code
            expected = evaluate(plain.workload, plain.stations, slice_events=13, code=interpreted)
        found = evaluate(compiled.workload, compiled.stations, slice_events=13)
        assert found.latency_s is not None
        assert expected.latency_s is not None
        assert same(found.latency_s, expected.latency_s), f"seed {seed}"
        for stage, statistics in expected.statistics.items():
            assert np.array_equal(found.statistics[stage].batches, statistics.batches)


@pytest.mark.parametrize("seed", range(20))
def test_events_of_a_key_that_overtook_each_other_before_wait_as_the_event_heap_says(seed: int) -> None:
    """In a lane whose later events entered before its first, at a stage that has far too much to do."""
    rng = np.random.default_rng(seed)
    keys = Keys(tuple((f"k{i}", 0.15) for i in range(6)), ("b",))
    profile = replace(measured(CHAIN, {"a": {1: 1.0}, "b": {1: 1.0}}), keys=keys)
    workload = prepare(CHAIN, profile, Trace(np.cumsum(rng.exponential(0.1, 200))), seed=seed)
    table, factors = np.array([np.nan, 0.5]), np.sort(rng.lognormal(0.0, 1.0, (2, LEVELS)))
    varying = Varying(table, np.zeros(2), factors, np.ones((1, LEVELS)), np.zeros(1, np.uint8))
    mixing = Station(np.array([1]), table, np.zeros(9, np.int64), varying=varying)
    slow = Station(np.array([2]), np.array([np.nan, 0.4, 0.5]), np.zeros(2, np.int64), order_slo_s=np.inf)
    for stations in ([mixing, slow], [mixing, replace(slow, order_slo_s=1.0)]):
        expected = simulate_with_heap(workload, stations).latency_s
        found = evaluate(workload, stations, slice_events=7).latency_s
        assert found is not None
        assert same(found, expected)


def stage_by_stage(pipeline: RandomPipeline) -> dict[int, Departures]:
    gone: dict[int, Departures] = {}
    for stage, serving in enumerate(pipeline.stations):
        arrivals = arrivals_at(pipeline.workload, stage, {s: gone[s] for s in pipeline.workload.needs(stage)})
        departures = simulate_stage(pipeline.workload, stage, arrivals, serving, slice_events=17)
        assert departures is not None
        gone[stage] = departures
    return gone


def test_stages_simulated_one_by_one_give_the_same_departures_as_all_together() -> None:
    for seed in range(2000, 2000 + examples(100)):
        pipeline = random_pipeline(seed, many=seed % 3 == 0)
        together = evaluate(pipeline.workload, pipeline.stations, keep=range(len(pipeline.stations)), slice_events=50)
        for stage, departures in stage_by_stage(pipeline).items():
            expected = together.departures[stage]
            assert same(departures.times_s, expected.times_s), f"seed {seed}, stage {stage}"
            assert np.array_equal(departures.events, expected.events)
            assert same(departures.skipped.times, expected.skipped.times)
            assert np.all(np.diff(departures.times_s) >= 0)


def test_keeping_departures_upstream_of_a_change_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    for seed in range(2100, 2100 + examples(80)):
        pipeline = random_pipeline(seed, many=seed % 3 == 0)
        stages = len(pipeline.stations)
        changed = int(rng.integers(stages))
        first = evaluate(pipeline.workload, pipeline.stations, keep=range(stages))
        other = random_pipeline(seed + 10_000).stations[0]
        stations = [other if s == changed else serving for s, serving in enumerate(pipeline.stations)]
        below = {changed}
        for arrow in sorted(pipeline.workload.shape.arrows, key=lambda a: a.child):
            if arrow.parent in below:
                below.add(arrow.child)
        kept = {s: d for s, d in first.departures.items() if s not in below}
        whole = evaluate(pipeline.workload, stations)
        partial = evaluate(pipeline.workload, stations, kept=kept, slice_events=11)
        assert partial.latency_s is not None
        assert whole.latency_s is not None
        assert same(partial.latency_s, whole.latency_s), f"seed {seed}"
        assert partial.simulated_events <= whole.simulated_events


def test_latencies_come_from_the_final_stage_departures() -> None:
    for seed in range(2200, 2200 + examples(40)):
        pipeline = random_pipeline(seed, many=seed % 3 == 0)
        finals = pipeline.workload.shape.finals()
        evaluation = evaluate(pipeline.workload, pipeline.stations, keep=finals)
        assert evaluation.latency_s is not None
        assert same(latencies_s(pipeline.workload, evaluation.departures), evaluation.latency_s)
