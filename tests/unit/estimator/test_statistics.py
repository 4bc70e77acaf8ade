from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.profile import NOISE_PROBABILITIES, PipelineProfile, Profile, ServiceTime, Variation
from inferline_stream.pipeline.shape import Paths
from inferline_stream.pipeline.trace import Trace, gamma_trace
from tests.unit.estimator.small import C_SKIPPED, C_TAKEN, CHAIN, DIAMOND, ONE, allocated, measured, trace


def test_statistics_of_a_stage_are_those_of_the_case_worked_out_by_hand() -> None:
    # Alone until 2, then two together until 5: waits 0, 1 and 0.5.
    found = simulate(ONE, {"a": allocated(1, 2)}, measured(ONE, {"a": {1: 2.0, 2: 3.0}}), trace(0.0, 1.0, 1.5))
    stage = found.stages["a"]
    assert stage.arrivals == 3
    assert stage.batches.tolist() == [0, 1, 1]
    assert stage.mean_batch_size == 1.5
    assert stage.wait_s == pytest.approx(0.5)
    assert stage.service_time_s == pytest.approx((2 + 3 + 3) / 3)
    assert stage.utilization == pytest.approx(1.0)


@pytest.mark.parametrize("queue", [{}, {"order_slo_s": 0.05}])
def test_waits_services_and_hops_of_a_chain_add_up_to_the_latency(queue: dict[str, object]) -> None:
    profile = measured(CHAIN, {"a": {1: 0.01, 4: 0.02}, "b": {1: 0.02, 4: 0.025}}, hop_s=0.003)
    events = gamma_trace(150, 4.0, 60, np.random.default_rng(1))
    found = simulate(CHAIN, {"a": allocated(2, 4), "b": allocated(3, 4)}, profile, events, **queue)  # type: ignore[arg-type]
    total = sum(stage.wait_s + stage.service_time_s for stage in found.stages.values()) + 3 * 0.003
    assert found.latency_s.mean() == pytest.approx(total, rel=1e-9)


def test_stages_see_the_share_of_events_that_their_paths_give_them() -> None:
    profile = measured(DIAMOND, {s: {1: 0.001} for s in DIAMOND.stages}, paths=Paths((C_TAKEN, C_SKIPPED), (0.3, 0.7)))
    found = simulate(DIAMOND, {s: allocated() for s in DIAMOND.stages}, profile, Trace(np.arange(50_000) * 0.01))
    assert found.stages["c"].arrivals / 50_000 == pytest.approx(0.3, abs=0.01)
    assert found.stages["d"].arrivals == 50_000


LOGNORMAL = tuple(NormalDist().inv_cdf(min(max(p, 1e-3), 1 - 1e-3)) for p in NOISE_PROBABILITIES)


def profiled(variation: Variation, *times: ServiceTime) -> PipelineProfile:
    return PipelineProfile({("a", "h"): Profile("a", "h", times, variation=variation)}, Paths((0,), (1.0,)))


def alone(profile: PipelineProfile, *, seed: int = 0, replicas: int = 1, events: int = 50_000) -> np.ndarray:
    """Service times of events that never meet."""
    return simulate(ONE, {"a": allocated(replicas)}, profile, Trace(np.arange(events) * 100.0), seed=seed).latency_s


def test_times_drawn_have_the_mean_and_the_spread_of_the_profile() -> None:
    found = alone(profiled(Variation(noise=LOGNORMAL), ServiceTime(1, 0.01, spread=0.5)), seed=3)
    assert found.mean() == pytest.approx(0.01, rel=0.01)
    assert np.log(found).std() == pytest.approx(0.5, rel=0.02)
    assert np.quantile(found, 0.99) / np.median(found) == pytest.approx(math.exp(0.5 * 2.326), rel=0.03)


def test_two_classes_take_the_times_of_their_class() -> None:
    """Of a mean of 18 ms, of which 9 ms are fixed, the large quarter takes 9 + 5 · 9/2 ms."""
    variation = Variation(((1.0, 192), (5.0, 64)))
    found = alone(profiled(variation, ServiceTime(1, 0.018, fixed_s=0.009)))
    slow = found > 0.018
    assert slow.mean() == pytest.approx(0.25, abs=0.01)
    assert found[~slow] == pytest.approx(0.009 + 0.009 / 2)
    assert found[slow] == pytest.approx(0.009 + 5 * 0.009 / 2)


@pytest.mark.parametrize("largest", [False, True])
def test_a_batch_takes_as_long_as_its_mean_or_its_largest_event_asks(largest: bool) -> None:
    """Whatever the law, batches of four random events take S(4) on average."""
    variation = Variation(((1.0, 192), (5.0, 64)), largest=largest)
    profile = profiled(variation, ServiceTime(1, 0.01), ServiceTime(4, 0.03))
    events = Trace(np.repeat(np.arange(20_000) * 100.0, 4))
    found = simulate(ONE, {"a": allocated(1, 4)}, profile, events).latency_s[::4]
    assert found.mean() == pytest.approx(0.03, rel=0.01)
    distinct = np.unique(np.round(found, 9))
    assert len(distinct) == (2 if largest else 5)
    assert distinct[-1] / distinct[0] == pytest.approx(5.0)


def test_two_plans_are_compared_on_the_same_luck() -> None:
    """With replicas to spare nobody waits: each event's draw is its own, whatever the number of replicas."""
    profile = profiled(Variation(((1.0, 128), (3.0, 128)), noise=LOGNORMAL), ServiceTime(1, 0.01, spread=0.5))
    assert np.array_equal(alone(profile, replicas=2), alone(profile, replicas=7))


def test_another_seed_is_another_luck() -> None:
    profile = profiled(Variation(noise=LOGNORMAL), ServiceTime(1, 0.01, spread=0.5))
    assert not np.array_equal(alone(profile, seed=1), alone(profile, seed=2))


def test_a_steady_profile_serves_in_its_mean() -> None:
    profile = profiled(Variation(noise=LOGNORMAL), ServiceTime(1, 0.5, spread=0.5)).steady()
    assert np.allclose(alone(profile, events=10), 0.5)
