"""Stages with several dispatchers: replicas that come and go are dealt to their slots as in a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Variation
from inferline_stream.pipeline.replica_slots import ReplicaSlots
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.scalers import Scheduled
from tests.unit.replay.test_changing_replicas import Watching, waiting
from tests.unit.replay.test_loop import ONE, run


def dealt(slots: int, replicas: int) -> tuple[ReplicaSlots, list[str]]:
    """A stage as a supervisor begins with it, and the names of its replicas."""
    pool, names = ReplicaSlots(), [f"r-{i}" for i in range(replicas)]
    pool.deal(range(slots))
    for name in names:
        pool.add(name)
    return pool, names


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_each_slot_serves_its_events_with_the_replicas_that_a_supervisor_would_deal_to_it(at_once, seed):
    """Every replica that leaves has left before the next change; of each slot the same is replayed by itself."""
    rng, slots, most = np.random.default_rng(seed), 3, 9
    measured = waiting(0.02)
    trace = Trace(np.cumsum(rng.exponential(0.008, 3000)))
    changes = [(float(t), int(rng.integers(slots, most + 1))) for t in np.arange(1.0, 18.0, 0.75)]
    held = {"a": (Allocation("x", 4, 4, concurrency=at_once),)}
    plan = Scheduled("by the clock", [(t, {"a": {"x": count}}) for t, count in changes])
    together = run(measured, held, trace, plan, slots={"a": slots}, seed=seed)
    assert together.changes > 15

    pool, names = dealt(slots, 4)
    first, counts = [len(pool.of(slot)) for slot in range(slots)], []
    for number, (time_s, count) in enumerate(changes):
        while len(names) > count:
            pool.remove(names.pop())
        while len(names) < count:
            names.append(f"later-{number}-{len(names)}")
            pool.add(names[-1])
        counts.append((time_s, [len(pool.of(slot)) for slot in range(slots)]))
    slot_of = prepare(ONE, measured, trace, seed=seed).partition_of(0, slots)
    for slot in range(slots):
        own = slot_of == slot
        steps = [(time_s, {"a": {"x": of_slots[slot]}}) for time_s, of_slots in counts]
        alone = run(
            measured,
            {"a": (Allocation("x", 4, first[slot], concurrency=at_once),)},
            Trace(trace.arrivals_s[own]),
            Scheduled("by the clock", steps),
        )
        assert together.latency_s[own].tobytes() == alone.latency_s.tobytes()


@pytest.mark.parametrize("asked_s", [1.0, 3.0])
def test_a_replica_that_leaves_does_not_count_in_its_slot(asked_s):
    """Of four that are busy until 2 s, the last one leaves at 0.5 s; another one comes while it is there, or later."""
    trace = Trace(np.concatenate([np.zeros(20), np.full(60, 100.0)]))
    steps = [(0.5, {"a": {"x": 3}}), (asked_s, {"a": {"x": 4}})]
    plan = Scheduled("less and more", steps)
    found = run(waiting(1.6), {"a": (Allocation("x", 1, 4),)}, trace, plan, slots={"a": 2})
    slot_of = prepare(ONE, waiting(1.6), trace).partition_of(0, 2)
    at_once = (trace.arrivals_s == 100.0) & (np.abs(found.latency_s - 2.0) < 1e-9)
    assert [int((at_once & (slot_of == slot)).sum()) for slot in (0, 1)] == [2, 2]


def test_a_slot_whose_last_replica_leaves_gets_one_in_place_of_one_of_a_fuller_slot():
    """Slot 1 has the only one of kind y; once that leaves, another of kind x starts there before one leaves slot 0."""
    trace = Trace(np.arange(0.0, 20.0, 0.25))
    steps = [(1.0, {"a": {"x": 2}}), (10.0, {"a": {"y": 0}})]
    held = {"a": (Allocation("x", 1, 1), Allocation("y", 1, 1))}
    measured = waiting(0.02, kinds="xy", start_up_s=2.0)
    found = run(measured, held, trace, Scheduled("no y", steps), slots={"a": 2})
    assert np.isfinite(found.latency_s).all()
    late = found.latency_s > 0.3
    assert late.any(), "it starts meanwhile"
    assert (trace.arrivals_s[late] >= 10.0 - 0.25).all()
    assert (trace.arrivals_s[late] <= 12.0).all()
    of_x_s = found.replica_hours["a", "x"] * 3600
    assert of_x_s == pytest.approx(found.duration_s + (12.0 - 1.0) + (found.duration_s - 10.0), abs=0.1)


def test_a_slot_keeps_its_last_replica_while_another_one_has_two():
    """The youngest of three of kind x is alone in slot 1, once the one of kind y has left."""
    trace = Trace(np.arange(0.0, 20.0, 0.25))
    steps = [(1.0, {"a": {"x": 3}}), (4.0, {"a": {"y": 0}}), (10.0, {"a": {"x": 2}})]
    held = {"a": (Allocation("x", 1, 1), Allocation("y", 1, 1))}
    measured = waiting(0.02, kinds="xy", start_up_s=2.0)
    found = run(measured, held, trace, Scheduled("less", steps), slots={"a": 2})
    assert found.latency_s.max() < 0.3
    assert found.replica_hours["a", "x"] * 3600 == pytest.approx(2 * found.duration_s - 1.0 + 10.0 - 1.0, abs=0.1)


@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_policy_sees_all_slots_of_a_stage_as_one(at_once, varies):
    """Batches of one event, of 2 s alone."""
    watching, measured = Watching(), waiting(1.6)
    if varies:
        units = Variation(((1.0, 200), (4.0, 56)))
        measured.profiles["a", "x"] = replace(measured.profiles["a", "x"], variation=units)
    trace = Trace(np.sort(np.random.default_rng(5).uniform(0.0, 60.0, 60)))
    held = {"a": (Allocation("x", 1, 3, concurrency=at_once),)}
    found = run(measured, held, trace, watching, slots={"a": 3})
    gone_s = trace.arrivals_s + found.latency_s
    assert len(watching.seen) > 100
    for seen in watching.seen:
        arrived, left = trace.arrivals_s < seen.time_s, gone_s < seen.time_s
        waits = trace.arrivals_s[arrived & ~left]
        assert (seen.arrived, seen.completed, seen.lag) == (arrived.sum(), left.sum(), waits.size)
        assert seen.oldest_s == (waits[0] if waits.size else None)
        assert (seen.ready, seen.places) == ((3,), 3 * at_once)
        if at_once == 1:
            assert 2.0 * seen.completed <= seen.nominal_s <= 2.0 * seen.arrived
            assert varies or seen.busy_s == pytest.approx(2.0 * (gone_s - 2.0 < seen.time_s).sum())
        assert varies or seen.busy_s == seen.nominal_s
    assert not varies or seen.busy_s != seen.nominal_s


@pytest.mark.parametrize("at_once", [1, 2])
def test_nothing_is_lost_however_replicas_of_two_kinds_come_and_go(at_once):
    rng = np.random.default_rng(7)
    measured = waiting(0.02, kinds="xy", start_up_s=0.35)
    trace = Trace(np.cumsum(rng.exponential(0.02, 2000)))
    steps = [
        (t, {"a": {"x": int(rng.integers(0, 5)), "y": int(rng.integers(0, 9))}}) for t in np.arange(1.0, 38.0, 0.7)
    ]
    steps.append((38.5, {"a": {"x": 6, "y": 6}}))
    held = {"a": tuple(Allocation(kind, 4, 1, 0.05, at_once) for kind in "xy")}
    found = run(measured, held, trace, Scheduled("by the clock", steps), slots={"a": 2})
    assert np.isfinite(found.latency_s).all()
    assert found.latency_s.min() >= 0.02 * 1.25 - 1e-9
