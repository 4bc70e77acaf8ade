"""Replicas that run several batches at once: cases worked out by hand, and laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.errors import InvalidInput
from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.keys import Keys
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Contention, PipelineProfile
from inferline_stream.pipeline.trace import Trace, gamma_trace
from tests.unit.estimator.small import ONE, close, measured, trace


def contended(profile: PipelineProfile, *factors: tuple[float, ...], hardware: str = "h") -> PipelineProfile:
    """The profile of stage a, with factors by batch size for 2 batches at once, 3 and so on."""
    own = profile.profiles["a", hardware]
    contention = tuple(Contention(n, of) for n, of in enumerate(factors, 2))
    return replace(profile, profiles={**profile.profiles, ("a", hardware): replace(own, contention=contention)})


def held(concurrency: int, replicas: int = 1, limit: int = 1, hardware: str = "h") -> tuple[Allocation, ...]:
    return (Allocation(hardware, limit, replicas, concurrency=concurrency),)


def test_a_batch_takes_what_the_batches_in_hand_at_its_start_make_it_take() -> None:
    profile = contended(measured(ONE, {"a": {1: 2.0}}), (1.5,))
    found = simulate(ONE, {"a": held(2)}, profile, trace(0.0, 1.0, 1.5))
    # 0 to 2 alone; 1 to 4 beside it; the third waits until 2, and runs beside the second until 5.
    assert close(found.latency_s, [2.0, 3.0, 3.5])
    assert found.stages["a"].utilization == pytest.approx((2 + 3 + 3) / (2 * 5))


def test_the_replica_with_the_fewest_batches_in_hand_takes_the_next_one_where_that_is_faster() -> None:
    profile = contended(measured(ONE, {"a": {1: 2.0}}), (3.0,))
    found = simulate(ONE, {"a": held(2, replicas=2)}, profile, trace(0.0, 0.5, 0.6))
    assert close(found.latency_s, [2.0, 2.0, 6.0])


def test_without_contention_places_of_one_replica_are_as_good_as_replicas() -> None:
    profile = contended(measured(ONE, {"a": {1: 0.01, 4: 0.02}}), *[(1.0, 1.0)] * 5)
    events = gamma_trace(300, 4.0, 20, np.random.default_rng(1))
    alone = simulate(ONE, {"a": held(1, replicas=6, limit=4)}, profile, events)
    for replicas, concurrency in ((1, 6), (2, 3), (3, 2)):
        found = simulate(ONE, {"a": held(concurrency, replicas, 4)}, profile, events)
        assert np.array_equal(found.latency_s, alone.latency_s)


def test_events_of_one_key_are_never_in_two_batches_whatever_the_concurrency() -> None:
    profile = contended(measured(ONE, {"a": {1: 1.0}}), (1.0,), (1.0,))
    one_key = replace(profile, keys=Keys((("k", 1.0),), ("a",)))
    found = simulate(ONE, {"a": held(3)}, one_key, trace(0.0, 0.1, 0.2))
    assert close(found.latency_s, [1.0, 1.9, 2.8])


def test_a_saturated_replica_serves_as_many_as_its_profile_says() -> None:
    profile = contended(measured(ONE, {"a": {1: 0.01}}), (1.2,), (1.6,), (2.5,))
    found = simulate(ONE, {"a": held(4)}, profile, Trace(np.zeros(4000)))
    assert 4000 / found.latency_s.max() == pytest.approx(profile.throughput("a", held(4)), rel=0.01)
    assert profile.throughput("a", held(4)) == pytest.approx(4 / 0.025)


def test_a_concurrency_that_was_never_profiled_is_refused_with_the_remedy() -> None:
    profile = contended(measured(ONE, {"a": {1: 0.01}}), (1.2,))
    with pytest.raises(InvalidInput, match=r"concurrency 3 was never profiled \(1 to 2 were\); run"):
        simulate(ONE, {"a": held(3)}, profile, trace(0.0))


@pytest.mark.parametrize(("concurrency", "factor"), [(1, 1.0), (2, 1.5), (3, 1.75), (4, 2.0)])
def test_between_profiled_concurrencies_service_times_are_linear(concurrency: int, factor: float) -> None:
    own = measured(ONE, {"a": {1: 0.01, 3: 0.02}}).profiles["a", "h"]
    own = replace(own, contention=(Contention(2, (1.5, 1.0)), Contention(4, (2.0, 1.0))))
    assert own.service_time_s(1, concurrency) == pytest.approx(0.01 * factor)
    assert own.service_time_s(2, concurrency) == pytest.approx(0.015 * (1 + factor) / 2)
    assert own.beside(concurrency).service_time_s(1) == pytest.approx(0.01 * factor)
