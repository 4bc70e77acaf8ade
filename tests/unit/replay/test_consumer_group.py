"""Ordinary consumer groups against the Estimator, and against queues worked out event by event."""

from __future__ import annotations

import numpy as np
import pytest

from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.simulation import simulate
from inferline_stream.estimator.station import station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.group_profile import UNSEEN_SHARE, Sharing
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import independent_paths
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.loop import Conditions
from inferline_stream.replay.scalers import Fixed, Scheduled
from tests.unit.estimator.random_pipelines import random_shape, random_spread_s
from tests.unit.replay.test_loop import KINDS, ONE, SLO_S, one_stage, run


def shared(partitions, shape=ONE):
    return dict.fromkeys(shape.stages, Sharing(partitions))


@pytest.mark.parametrize("seed", range(12))
def test_members_with_a_partition_each_are_the_estimators_slots_of_one_replica_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    shape = random_shape(rng)
    conditional = {(shape.stages[w.parent], shape.stages[w.child]): 0.6 for w in shape.arrows if w.conditional}
    members = int(rng.integers(1, 5))
    profiles, held = {}, {}
    for stage in shape.stages:
        times = tuple(ServiceTime(2**i, t) for i, t in enumerate(rng.uniform(0.01, 0.2, 4)))
        profiles[stage, "x"] = Profile(stage, "x", times)
        held[stage] = (Allocation("x", int(rng.choice([1, 2, 8])), members),)
    paths, hop_s = independent_paths(shape, conditional), float(rng.choice([0.0, 0.003]))
    measured = PipelineProfile(profiles, paths, hop_s, hop_spread_s=random_spread_s(seed, 0.0))
    trace = Trace(np.cumsum(rng.gamma(0.25, 0.2, 300)))
    idle = Fixed()
    idle.period_s = 0.7
    found = run(measured, held, trace, idle, shape=shape, seed=seed, sharing=shared(members, shape))
    stations = [station(measured, name, held[name], partitions=members) for name in shape.stages]
    expected = evaluate(prepare(shape, measured, trace, seed=seed), stations).latency_s
    assert found.latency_s.tobytes() == expected.tobytes()


def test_a_partition_moves_with_what_waits_in_it_once_its_owner_has_done_what_it_has_in_hand():
    """Two partitions, batches of 1; the second one goes to a member that is there from 2.35 s to 6.15 s."""
    trace = Trace(np.arange(40) * 0.2)
    service_s = 0.35
    measured = one_stage(service_s, start_up_s=0.35)
    changes = [(2.0, {"a": {"x": 2}}), (6.0, {"a": {"x": 1}})]
    found = run(
        measured,
        {"a": (Allocation("x", 1, 1),)},
        trace,
        Scheduled("by the clock", changes),
        conditions=Conditions(statistics_delay_s=0.0),
        sharing=shared(2),
    )
    workload = prepare(ONE, measured, trace)
    partition = workload.partition_of(0, 2)
    expected = _by_hand(trace.arrivals_s, partition, service_s, joins_s=2.35, leaves_s=6.0)
    np.testing.assert_allclose(found.latency_s, expected)
    assert found.peak_replicas == 2


def _by_hand(arrivals_s, partition, service_s, *, joins_s, leaves_s):
    waits = [[i for i in range(arrivals_s.size) if partition[i] == p] for p in (0, 1)]
    free_s, latency_s = [0.0, joins_s], np.zeros(arrivals_s.size)
    came_s = arrivals_s.copy()

    def serve(owners, until_s):
        while True:
            starts = []
            for p, owner in enumerate(owners):
                if waits[p]:
                    event = waits[p][0]
                    # Of one owner's partitions the one whose first event came first is served.
                    starts.append((max(came_s[event], free_s[owner]), event, p, owner))
            if not starts or min(starts)[0] >= until_s:
                return
            start_s, event, p, owner = min(starts)
            waits[p].pop(0)
            free_s[owner] = start_s + service_s
            latency_s[event] = free_s[owner] - arrivals_s[event]

    def moves(p, from_owner, now_s):
        for event in waits[p]:
            if arrivals_s[event] < now_s:
                came_s[event] = max(came_s[event], free_s[from_owner], now_s)

    serve((0, 0), joins_s)
    moves(1, 0, joins_s)
    serve((0, 1), leaves_s)
    moves(1, 1, leaves_s)
    serve((0, 0), np.inf)
    return latency_s


@pytest.mark.parametrize("seed", range(4))
def test_a_share_group_with_more_members_than_partitions_is_the_estimators_one_queue(seed):
    rng = np.random.default_rng(seed)
    held = {"a": (Allocation("x", 4, int(rng.integers(3, 8))),)}
    measured, trace = one_stage(0.05, 0.06, 0.08, start_up_s=0.4), Trace(np.cumsum(rng.exponential(0.02, 800)))
    sharing = {"a": Sharing(2, UNSEEN_SHARE)}
    found = run(measured, held, trace, Fixed(), seed=seed, sharing=sharing)
    assert found.latency_s.tobytes() == simulate(ONE, held, measured, trace, seed=seed).latency_s.tobytes()


@pytest.mark.parametrize("sharing", [Sharing(7), Sharing(3, UNSEEN_SHARE)], ids=["partitions", "share"])
@pytest.mark.parametrize("seed", range(4))
def test_no_event_is_lost_or_served_twice_however_members_come_and_go(seed, sharing):
    rng = np.random.default_rng(seed)
    trace = Trace(np.cumsum(rng.exponential(0.02, 2000)))
    steps = [(t, {"a": {"x": int(rng.integers(0, 7))}}) for t in np.arange(1.0, 38.0, 0.7)]
    steps.append((38.5, {"a": {"x": 5}}))
    scaler = Scheduled("by the clock", steps)
    found = run(
        one_stage(0.05, 0.06, 0.08, start_up_s=0.4),
        {"a": (Allocation("x", 4, 3),)},
        trace,
        scaler,
        sharing={"a": sharing},
    )
    assert np.isfinite(found.latency_s).all()
    assert (found.latency_s >= 0.05 - 1e-9).all()
    assert found.latency_s.max() > SLO_S
    assert found.cost <= found.peak_replicas * KINDS["x"].price_per_hour * found.duration_s / 3600 + 1e-9
