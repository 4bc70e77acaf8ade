"""What must hold of every run, read off the event heap's own log."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.estimator.evaluation import evaluate, fastest_rest_s
from inferline_stream.estimator.kernels import draw
from tests.support.event_heap import Happening, HeapSimulation, simulate_with_heap
from tests.support.hypothesis_profiles import examples
from tests.unit.estimator.random_pipelines import RandomPipeline, random_pipeline

SEEDS = st.integers(0, 10**6)


def number_in_stage(run: HeapSimulation, stage: int) -> float:
    """∫ N(t) dt: events that have arrived at the stage and not left it, over time."""
    total, present, last_s = 0.0, 0, 0.0
    for entry in run.log:
        if entry.stage == stage and entry.what != "starts":
            total += present * (entry.time_s - last_s)
            last_s = entry.time_s
            present += 1 if entry.what == "arrives" else -1
    assert present == 0
    return total


@settings(max_examples=examples(60))
@given(SEEDS)
def test_littles_law_holds_of_every_stage(seed: int) -> None:
    """L·T = n·W, with L integrated from the heap's log and W from the statistics of the compiled simulation."""
    pipeline = random_pipeline(seed)
    run = simulate_with_heap(pipeline.workload, pipeline.stations)
    for stage, statistics in evaluate(pipeline.workload, pipeline.stations, latencies=False).statistics.items():
        if statistics.arrivals:
            in_stage_s = statistics.wait_s + statistics.service_time_s
            scale = max(1.0, abs(float(pipeline.workload.entry_s[-1])))
            found = number_in_stage(run, stage) / statistics.arrivals
            assert abs(found - in_stage_s) <= 1e-9 * scale * max(1.0, in_stage_s)


@settings(max_examples=examples(60))
@given(SEEDS)
def test_a_whole_batch_ends_together_and_holds_no_more_than_the_limit(seed: int) -> None:
    pipeline = random_pipeline(seed)
    run = simulate_with_heap(pipeline.workload, pipeline.stations)
    batches: dict[tuple[int, int], list[Happening]] = defaultdict(list)
    for entry in run.log:
        if entry.what == "ends":
            batches[entry.stage, entry.batch].append(entry)
    gone = evaluate(pipeline.workload, pipeline.stations, keep=range(len(pipeline.stations))).departures
    left_s = {(s, e): t for s, d in gone.items() for e, t in zip(d.events.tolist(), d.times_s.tolist(), strict=True)}
    for (stage, _), entries in batches.items():
        station = pipeline.stations[stage]
        assert len(entries) <= station.limits[station.kinds[entries[0].replica]]
        assert len({entry.time_s for entry in entries}) == 1
        for entry in entries:
            assert left_s[stage, entry.event] == entry.time_s + hop_extra_s(pipeline, stage, entry.event)


def hop_extra_s(pipeline: RandomPipeline, stage: int, event: int) -> float:
    extra_s = pipeline.workload.hop_extra_s
    return float(extra_s[draw(event, pipeline.workload.key("hop", stage)) >> 24]) if extra_s.size else 0.0


@settings(max_examples=examples(60))
@given(SEEDS)
def test_no_event_waits_while_a_replica_that_may_take_it_is_free(seed: int) -> None:
    """Work conservation, at stages of one slot, that wait neither for fuller batches, faster replicas nor keys."""
    pipeline = random_pipeline(seed)
    run = simulate_with_heap(pipeline.workload, pipeline.stations)
    for stage, station in enumerate(pipeline.stations):
        log = [entry for entry in run.log if entry.stage == stage]
        if station.hold_s > 0 or station.limits.size > 1 or pipeline.workload.lanes(stage).any():
            continue
        if station.partitions:  # of a member's own partitions, no event waits while it is free
            taker = {entry.event: entry.replica for entry in log if entry.what == "starts"}
            for member in set(taker.values()):
                assert busy_while_waiting([entry for entry in log if taker[entry.event] == member], 1)
        elif station.slots == 1:
            assert busy_while_waiting(log, station.replicas)


@settings(max_examples=examples(60))
@given(SEEDS)
def test_events_of_one_key_leave_in_the_order_in_which_they_arrived_and_no_two_batches_of_them_overlap(
    seed: int,
) -> None:
    pipeline = random_pipeline(seed)
    run = simulate_with_heap(pipeline.workload, pipeline.stations)
    for stage, station in enumerate(pipeline.stations):
        lanes = pipeline.workload.lanes(stage)
        for key in set(lanes.tolist()) - {0} if not station.partitions else ():
            log = [entry for entry in run.log if entry.stage == stage and lanes[entry.event] == key]
            arrived, left = ([e.event for e in log if e.what == what] for what in ("arrives", "ends"))
            assert left == arrived
            in_hand = set[int]()
            for entry in log:
                if entry.what == "starts":
                    in_hand.add(entry.batch)
                    assert len(in_hand) == 1
                elif entry.what == "ends":
                    in_hand.discard(entry.batch)


def busy_while_waiting(log: list[Happening], replicas: int) -> bool:
    """Whether all replicas are at work after every instant after which some event still waits."""
    waiting, at_work = 0, set[int]()
    for i, entry in enumerate(log):
        waiting += {"arrives": 1, "starts": -1, "ends": 0}[entry.what]
        if entry.what == "starts":
            at_work.add(entry.replica)
        elif entry.what == "ends":
            at_work.discard(entry.replica)
        last_of_instant = i + 1 == len(log) or log[i + 1].time_s > entry.time_s
        if last_of_instant and waiting > 0 and len(at_work) < replicas:
            return False
    return True


@settings(max_examples=examples(40))
@given(SEEDS)
def test_the_same_seed_gives_the_same_bytes(seed: int) -> None:
    def run() -> bytes:
        pipeline: RandomPipeline = random_pipeline(seed)
        latency_s = evaluate(pipeline.workload, pipeline.stations).latency_s
        assert latency_s is not None
        return latency_s.tobytes()

    assert run() == run()


@settings(max_examples=examples(40))
@given(SEEDS)
def test_an_event_is_never_faster_than_its_services_and_hops(seed: int) -> None:
    """Latency ≥ the longest path over the stages visited, each in its shortest service time."""
    pipeline = random_pipeline(seed)
    workload = pipeline.workload
    latency_s = evaluate(workload, pipeline.stations).latency_s
    assert latency_s is not None
    fastest_s = {s: station.fastest_s for s, station in enumerate(pipeline.stations)}
    rest_s = fastest_rest_s(workload, fastest_s)
    for s in workload.shape.entries():
        bound_s = workload.hop_s + fastest_s[s] + rest_s[s][workload.masks]
        known = ~np.isnan(latency_s)
        assert (latency_s[known] >= bound_s[known] * (1 - 1e-6) - 1e-6).all()
