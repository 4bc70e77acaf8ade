"""The estimator's written rules, each on a case worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.simulation import Simulation, simulate
from inferline_stream.estimator.station import station
from inferline_stream.estimator.workload import Recorded, prepare
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.shape import Arrow, FanOut, Paths, Shape
from tests.unit.estimator.small import C_SKIPPED, C_TAKEN, CHAIN, DIAMOND, ONE, allocated, close, measured, trace


def one_stage(times: tuple[float, ...], service_s: dict[int, float], **options: object) -> Simulation:
    hop_s = float(options.pop("hop_s", 0.0))  # type: ignore[arg-type]
    replicas = options.pop("replicas", 1)
    limit = options.pop("limit", max(service_s))
    held_s = options.pop("hold_s", 0.0)
    return simulate(
        ONE,
        {"a": allocated(replicas, limit, hold_s=held_s)},  # type: ignore[arg-type]
        measured(ONE, {"a": service_s}, hop_s=hop_s),
        trace(*times),
        **options,  # type: ignore[arg-type]
    )


def test_one_replica_serves_one_event_after_another() -> None:
    assert close(one_stage((0.0, 0.5, 5.0), {1: 1.0}).latency_s, [1.0, 1.5, 1.0])


def test_a_free_replica_takes_what_waits_up_to_the_limit_and_the_batch_ends_together() -> None:
    # 0 alone until 1.0; then 0.1 and 0.2 together until 3.0, because the limit is 2; then 0.3 alone.
    found = one_stage((0.0, 0.1, 0.2, 0.3), {1: 1.0, 2: 2.0})
    assert close(found.latency_s, [1.0, 2.9, 2.8, 3.7])
    assert found.stages["a"].batches.tolist() == [0, 2, 1]


def test_an_event_that_arrives_at_the_instant_of_dispatch_is_in_the_batch() -> None:
    assert close(one_stage((0.0, 0.5, 1.0), {1: 1.0, 2: 1.5}).latency_s, [1.0, 2.0, 1.5])


def test_events_of_one_instant_start_together() -> None:
    assert close(one_stage((2.0, 2.0, 2.0), {1: 1.0, 2: 1.25}, replicas=2).latency_s, [1.25, 1.25, 1.0])


def test_every_hop_adds_its_overhead_into_the_entry_stage_between_stages_and_into_the_sink() -> None:
    found = simulate(
        CHAIN,
        {"a": allocated(), "b": allocated()},
        measured(CHAIN, {"a": {1: 1.0}, "b": {1: 2.0}}, hop_s=0.25),
        trace(0.0),
    )
    assert close(found.latency_s, [1.0 + 2.0 + 3 * 0.25])


def test_waiting_for_a_fuller_batch_ends_when_it_is_full() -> None:
    assert close(one_stage((0.0, 1.0), {1: 1.0, 2: 1.5}, hold_s=5.0).latency_s, [2.5, 1.5])


def test_waiting_for_a_fuller_batch_ends_when_the_oldest_has_waited_long_enough() -> None:
    found = one_stage((0.0, 1.0, 9.0), {1: 1.0, 2: 1.5, 3: 2.0}, hold_s=5.0)
    assert close(found.latency_s, [6.5, 5.5, 6.0])


@pytest.mark.parametrize("queue", [{}, {"order_slo_s": 2.0, "order": "entry"}, {"order_slo_s": np.inf}])
def test_a_hold_means_the_same_in_every_order(queue: dict[str, object]) -> None:
    found = one_stage((0.0, 1.0, 9.0, 9.5, 9.6, 9.7), {1: 1.0, 2: 1.5, 3: 2.0}, hold_s=5.0, **queue)
    assert close(found.latency_s, [6.5, 5.5, 2.6, 2.1, 2.0, 6.0])


def mixed(times: tuple[float, ...], order: tuple[str, ...], replicas: int = 1) -> np.ndarray:
    allocations = {"a": tuple(Allocation(hardware, 1, replicas) for hardware in order)}
    return simulate(ONE, allocations, measured(ONE, {"a.slow": {1: 3.0}, "a.fast": {1: 1.0}}), trace(*times)).latency_s


def test_of_free_replicas_the_one_whose_batch_would_end_first_is_taken() -> None:
    for order in (("slow", "fast"), ("fast", "slow")):
        assert close(mixed((0.0, 4.0, 5.5), order), [1.0, 1.0, 1.0])


def test_a_slower_replica_leaves_an_event_that_a_busy_faster_one_would_end_sooner() -> None:
    assert close(mixed((0.0, 0.0), ("slow", "fast")), [1.0, 2.0])


def test_a_slower_replica_takes_an_event_where_a_faster_one_could_not_end_all_that_wait_sooner() -> None:
    assert close(mixed((0.0, 0.0, 0.0), ("slow", "fast")), [1.0, 3.0, 2.0])


def test_of_kinds_that_would_end_at_one_instant_the_first_allocated_is_taken() -> None:
    profile = measured(ONE, {"a.x": {1: 1.0}, "a.y": {1: 1.0, 2: 5.0}})
    one_each = {"a": (Allocation("x", 1, 1), Allocation("y", 2, 1))}
    assert close(simulate(ONE, one_each, profile, trace(0.0, 0.1, 0.2)).latency_s, [1.0, 1.0, 1.8])


def diamond(path: int, *, hop_s: float = 0.0, c_s: float = 4.0, times: tuple[float, ...] = (0.0,)) -> Simulation:
    service_s = {"a": {1: 1.0}, "b": {1: 2.0}, "c": {1: c_s}, "d": {1: 0.5}}
    return simulate(
        DIAMOND,
        {name: allocated() for name in DIAMOND.stages},
        measured(DIAMOND, service_s, paths=Paths((path,), (1.0,)), hop_s=hop_s),
        trace(*times),
    )


def test_a_join_waits_for_the_slowest_branch_that_is_taken() -> None:
    assert close(diamond(C_TAKEN).latency_s, [1.0 + 4.0 + 0.5])


def test_a_join_does_not_wait_for_a_branch_that_is_skipped() -> None:
    found = diamond(C_SKIPPED)
    assert close(found.latency_s, [1.0 + 2.0 + 0.5])
    assert found.stages["c"].arrivals == 0


def test_a_skip_marker_takes_a_hop_too() -> None:
    """The only branch taken is over at once: the join is complete when the marker arrives, not before."""
    shape = Shape(("slow", "fast", "join"), (Arrow(0, 2, conditional=True), Arrow(1, 2)))
    found = simulate(
        shape,
        {name: allocated() for name in shape.stages},
        measured(
            shape, {"slow": {1: 7.0}, "fast": {1: 1.0}, "join": {1: 0.5}}, paths=Paths((0b10,), (1.0,)), hop_s=1.0
        ),
        trace(0.0),
    )
    # Both enter at 1 (first hop). "slow" ends at 8 without a record for the join; its marker arrives at 9.
    assert close(found.latency_s, [9.0 + 0.5 + 1.0])


def test_events_that_skip_the_final_stage_have_no_latency_and_do_not_count() -> None:
    shape = Shape(("a", "b"), (Arrow(0, 1, conditional=True),))
    profile = measured(shape, {"a": {1: 0.001}, "b": {1: 1.0}}, paths=Paths((0, 1), (0.5, 0.5)))
    found = simulate(shape, {"a": allocated(), "b": allocated(200)}, profile, trace(*(float(i) for i in range(200))))
    reached = ~np.isnan(found.latency_s)
    assert 60 < reached.sum() < 140
    assert found.stages["b"].arrivals == reached.sum()
    assert found.p99_s == pytest.approx(1.001)
    assert found.miss_rate(1.0) == 1.0
    assert found.miss_rate(1.1) == 0.0


def by_way_of_a_slow_branch(slo_s: float) -> np.ndarray:
    """Event 0 reaches "d" at 5.001 by way of "b", when event 3 waits there; the others come straight from "a"."""
    shape = Shape(("a", "b", "d"), (Arrow(0, 1, conditional=True), Arrow(0, 2), Arrow(1, 2)))
    profile = measured(shape, {"a": {1: 0.001}, "b": {1: 5.0}, "d": {1: 4.0}}, paths=Paths((0b111, 0b010), (0.5, 0.5)))
    events = trace(0.0, 0.01, 0.02, 0.03)
    seed = next(s for s in range(100) if prepare(shape, profile, events, seed=s).masks.tolist() == [0, 1, 1, 1])
    allocations = {name: allocated() for name in shape.stages}
    # "d" is busy with event 1 from 0.011 and with event 2 until 8.011.
    return simulate(shape, allocations, profile, events, seed=seed, order_slo_s=slo_s).latency_s


@pytest.mark.parametrize("slo_s", [4.98, np.inf])
def test_an_event_that_entered_earlier_goes_before_those_that_wait(slo_s: float) -> None:
    assert close(by_way_of_a_slow_branch(slo_s), [12.011, 4.001, 7.991, 15.981])


@pytest.mark.parametrize("slo_s", [0.0, 4.96])
def test_an_event_that_is_past_its_slo_does_not_overtake_those_that_are_not(slo_s: float) -> None:
    """With an SLO of 4.96 s event 0 counts as entered at 0.041 when it comes, after event 3."""
    assert close(by_way_of_a_slow_branch(slo_s), [16.011, 4.001, 7.991, 11.981])


def test_results_that_were_recorded_take_the_place_of_those_drawn() -> None:
    shape = Shape(("split", "read", "join"), (Arrow(0, 1), Arrow(1, 2, gathers=True)), many=(0,))
    times = {"split": {1: 1.0}, "read": {1: 2.0}, "join": {1: 0.5}}
    paths = Paths((0,), (1.0,), (FanOut(0, (1, 9), (0.5, 0.5), (0b11,), (1.0,)),))
    profile = measured(shape, times, paths=paths)
    stations = [station(profile, name, allocated()) for name in shape.stages]
    entered = trace(0.0, 100.0, 200.0)
    counts = np.array([3, 0, 7])
    found = evaluate(prepare(shape, profile, entered, recorded=Recorded(np.zeros(3, int), {0: counts})), stations)
    assert found.latency_s is not None
    assert close(found.latency_s[:3], 1.5 + 2.0 * counts)
    with pytest.raises(ValueError, match="results recorded of 2 events, stage 'split' has 3"):
        prepare(shape, profile, entered, recorded=Recorded(np.zeros(3, int), {0: counts[:2]}))
