from __future__ import annotations

import numpy as np
import pytest

from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.profile import PROBABILITIES, PipelineProfile, Profile, ServiceTime
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


@pytest.mark.parametrize("queue", [{}, {"order_slo_s": 0.05}, {"partitions": {"a": 4, "b": 4}}])
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


def spread(mean_s: float) -> ServiceTime:
    quantiles = np.array([0.5, 0.7, 0.8, 0.9, 1.1, 1.4, 1.6, 2.0, 2.2]) * mean_s
    return ServiceTime(1, mean_s, tuple(quantiles.tolist()))


def test_service_times_drawn_from_quantiles_have_the_measured_distribution() -> None:
    entry = spread(0.01)
    profile = PipelineProfile({("a", "h"): Profile("a", "h", (entry,))}, Paths((0,), (1.0,)))
    events = Trace(np.arange(200_000) * 1.0)
    found = np.sort(simulate(ONE, {"a": allocated()}, profile, events, service="quantiles", seed=3).latency_s)
    at = np.quantile(found, PROBABILITIES)
    assert at[1:-1] == pytest.approx(entry.quantiles_s[1:-1], rel=0.01)
    assert found[0] >= entry.quantiles_s[0] * (1 - 1e-6)
    assert found[-1] <= entry.quantiles_s[-1] * (1 + 1e-6)


def test_two_plans_are_compared_on_the_same_luck() -> None:
    """With replicas to spare nobody waits: each event's draw is its own, whatever the number of replicas."""
    profile = PipelineProfile({("a", "h"): Profile("a", "h", (spread(0.01),))}, Paths((0,), (1.0,)))
    events = Trace(np.arange(1000) * 1.0)
    found = [simulate(ONE, {"a": allocated(n)}, profile, events, service="quantiles").latency_s for n in (2, 7)]
    assert np.array_equal(*found)


def test_another_seed_is_another_luck() -> None:
    profile = PipelineProfile({("a", "h"): Profile("a", "h", (spread(0.01),))}, Paths((0,), (1.0,)))
    events = Trace(np.arange(100) * 1.0)
    found = [simulate(ONE, {"a": allocated()}, profile, events, service="quantiles", seed=s).latency_s for s in (1, 2)]
    assert not np.array_equal(*found)


def test_a_profile_without_quantiles_serves_in_its_mean() -> None:
    profile = measured(ONE, {"a": {1: 0.5}})
    found = simulate(ONE, {"a": allocated()}, profile, trace(0.0, 1.0), service="quantiles")
    assert found.latency_s.tolist() == [0.5, 0.5]
