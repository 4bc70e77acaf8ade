"""The closed loop against the Estimator, a naive queue, and numbers worked out by hand."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.estimator.simulation import simulate
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.keys import Keys
from inferline_stream.pipeline.live_classes import LiveClass
from inferline_stream.pipeline.plan import Allocation, cost_per_hour
from inferline_stream.pipeline.profile import (
    HOP_PROBABILITIES,
    NOISE_PROBABILITIES,
    Contention,
    PipelineProfile,
    Profile,
    ServiceTime,
    Variation,
)
from inferline_stream.pipeline.shape import Arrow, FanOut, Paths, Shape, independent_paths
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay import loop
from inferline_stream.replay.loop import Conditions, Slowdown, replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.policy_view import Glimpse, View
from inferline_stream.replay.scalers import Fixed, Scheduled, Wish
from tests.support.hypothesis_profiles import examples
from tests.unit.estimator.random_pipelines import (
    random_keys,
    random_shape,
    random_spread_s,
    random_tree,
    with_fan_outs,
    with_sinks,
    with_sources,
)

ONE = Shape(("a",), ())
CHAIN = Shape(("a", "b"), (Arrow(0, 1),))
KINDS = {"x": Hardware("x", 1.0), "y": Hardware("y", 2.0)}
SLO_S = 0.5


def one_stage(*times_s: float, start_up_s: float = 0.0) -> PipelineProfile:
    """Service times of batches of 1, 2, 4 …"""
    times = tuple(ServiceTime(2**i, t) for i, t in enumerate(times_s))
    return PipelineProfile({("a", "x"): Profile("a", "x", times, start_up_s)}, Paths((0,), (1.0,)))


def run(measured, held, trace, scaler=None, *, shape=ONE, slots=None, **more):
    return replay(
        shape,
        held,
        measured,
        trace,
        scaler or Fixed(),
        catalogue=KINDS,
        slots=slots or {},
        **{"order": "entry", "slo_s": SLO_S, **more},
    )


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.7, 60.0]))
def test_a_plan_that_stays_is_the_estimators_bit_for_bit(seed, period_s):
    """Half of them on a grid of exact binary fractions, where nearly everything happens at the same instants."""
    rng = np.random.default_rng(seed)
    grid_s = float(rng.choice([0.0, 1 / 64]))

    def on_grid(times_s: np.ndarray) -> np.ndarray:
        return np.ceil(times_s / grid_s) * grid_s if grid_s else times_s

    many = seed % 3 == 0
    shape = with_sources(with_sinks(random_tree(seed) if many else random_shape(rng), seed), seed)
    conditional = {(shape.stages[w.parent], shape.stages[w.child]): 0.6 for w in shape.arrows if w.conditional}
    profiles, held = {}, {}
    several = rng.random() < 0.5
    noise = tuple(np.linspace(-2, 3, len(NOISE_PROBABILITIES)).tolist())
    units = ((1.0, 200), (4.0, 56))
    variations = (None, Variation(units), Variation(units, largest=True, noise=noise), Variation(noise=noise))
    for stage in shape.stages:
        kinds = ["x", "y"][: int(rng.integers(1, 3))]
        for kind in kinds:
            times = tuple(ServiceTime(2**i, t, spread=0.4) for i, t in enumerate(on_grid(rng.uniform(0.01, 0.2, 4))))
            slower = tuple(Contention(c, tuple(rng.uniform(1.0, c, 4).tolist())) for c in (2, 4))
            variation = variations[int(rng.integers(4))]
            profiles[stage, kind] = Profile(stage, kind, times, variation=variation, contention=slower)
        hold_s = float(on_grid(rng.choice([0.0, 0.02, 0.3])))
        held[stage] = tuple(
            Allocation(
                *(kind, int(rng.choice([1, 2, 8])), int(rng.integers(1, 4)), hold_s),
                concurrency=int(rng.choice([1, 1, 2, 3, 4])) if several else 1,
            )
            for kind in kinds
        )
    paths = with_fan_outs(shape, seed) if many else independent_paths(shape, conditional)
    hop_s = float(on_grid(rng.choice([0.0, 0.003])))
    keys, spread_s = random_keys(shape, seed), random_spread_s(seed, grid_s)
    measured = PipelineProfile(profiles, paths, hop_s, keys=keys, hop_spread_s=spread_s)
    slots = {name: int(rng.integers(1, 1 + min(3, sum(a.replicas for a in held[name])))) for name in shape.stages}
    trace = Trace(on_grid(np.cumsum(rng.gamma(0.25, 4 * rng.choice([0.01, 0.05]), 300))))
    idle = Fixed()
    idle.period_s = period_s
    found = run(measured, held, trace, idle, shape=shape, seed=seed, slots=slots)
    expected = simulate(shape, held, measured, trace, order_slo_s=SLO_S, order="entry", slots=slots, seed=seed)
    assert found.latency_s.tobytes() == expected.latency_s.tobytes()
    assert found.cost == pytest.approx(cost_per_hour(held, KINDS) * float(trace.arrivals_s[-1]) / 3600)


def naive(times_s, service_s, limit, changes):
    """One queue and replicas that come and go, event by event. ``changes``: (time, replicas that are ready then)."""
    free: list[float] = []
    latency, i = np.empty(len(times_s)), 0
    coming = list(changes)

    def apply(until_s):
        while coming and coming[0][0] <= until_s:
            time_s, more = coming.pop(0)
            for _ in range(more):
                heapq.heappush(free, time_s)

    while i < len(times_s):
        apply(times_s[i])
        start_s = max(free[0], times_s[i])
        apply(start_s)
        start_s = max(heapq.heappop(free), times_s[i])
        size = 1
        while size < limit and i + size < len(times_s) and times_s[i + size] <= start_s:
            size += 1
        heapq.heappush(free, start_s + service_s[size])
        latency[i : i + size] = start_s + service_s[size] - times_s[i : i + size]
        i += size
    return latency


@pytest.mark.parametrize("limit", [1, 4])
@pytest.mark.parametrize("start_up_s", [0.0, 2.35])
def test_replicas_work_once_they_have_started_up_and_cost_from_the_moment_they_are_asked_for(limit, start_up_s):
    rng = np.random.default_rng(3)
    trace = Trace(np.sort(rng.uniform(0.0, 20.0, 600)))
    by_size = {1: 0.05, 2: 0.06, 3: 0.07, 4: 0.08}
    measured = one_stage(by_size[1], by_size[2], by_size[4], start_up_s=start_up_s)
    held = {"a": (Allocation("x", limit, 1),)}
    plan = Scheduled("steps", [(4.0, {"a": {"x": 3}}), (9.0, {"a": {"x": 4}})])
    found = run(measured, held, trace, plan)
    expected = naive(trace.arrivals_s, by_size, limit, [(-1.0, 1), (4.0 + start_up_s, 2), (9.0 + start_up_s, 1)])
    assert found.latency_s == pytest.approx(expected, abs=1e-12)
    end_s = float(trace.arrivals_s[-1])
    assert found.replica_hours["a", "x"] == pytest.approx((end_s + 2 * (end_s - 4) + (end_s - 9)) / 3600)
    assert (found.changes, found.peak_replicas) == (2, 4)


def test_a_replica_that_leaves_ends_its_batch_and_takes_no_other():
    """Two replicas of 1 s; one is given back at 0.5 s while both work. What comes later has one of them."""
    trace = Trace(np.array([0.0, 0.0, 0.1, 0.2, 9.0]))
    plan = Scheduled("less", [(0.5, {"a": {"x": 1}})])
    found = run(one_stage(1.0), {"a": (Allocation("x", 1, 2),)}, trace, plan)
    assert found.latency_s == pytest.approx([1.0, 1.0, 1.9, 2.8, 1.0])
    assert found.replica_hours["a", "x"] == pytest.approx((9.0 + 1.0) / 3600)


def test_a_replica_that_comes_and_leaves_idle_is_gone_at_once_while_another_one_finishes():
    """Batches of 4 s. One leaves at 0.5 s in the middle of its batch; another comes at 1 s and leaves idle at 1.5 s."""
    steps = [(time_s, {"a": {"x": count}}) for time_s, count in ((0.5, 0), (1.0, 1), (1.5, 0), (8.0, 1))]
    plan = Scheduled("in and out", steps)
    held, trace = {"a": (Allocation("x", 1, 1),)}, Trace(np.array([0.0, 9.0]))
    found = run(one_stage(4.0), held, trace, plan, conditions=Conditions(start_up_s=0.0))
    assert found.latency_s == pytest.approx([4.0, 4.0])
    assert found.replica_hours["a", "x"] == pytest.approx((4.0 + 0.5 + 1.0) / 3600)


@dataclass
class Watching:
    """Notes what it is shown."""

    name: str = "watching"
    period_s: float = 0.1
    views: list[tuple[float, float, int, int]] = field(default_factory=list)
    entered: int = 0
    stages: tuple[Glimpse, ...] = ()

    def decide(self, view: View) -> Wish | None:
        stage, self.stages = view.now[0], view.now
        self.entered += len(view.arrivals_s)
        self.views.append((view.time_s, stage.time_s, stage.arrived, self.entered))
        return None


@pytest.mark.parametrize("delay_s", [0.0, 0.04, 0.5])
def test_stages_are_seen_as_late_as_their_statistics_and_arrivals_at_once(delay_s):
    rng = np.random.default_rng(4)
    trace = Trace(np.sort(rng.uniform(0.0, 8.0, 400)))
    watching = Watching()
    conditions = Conditions(statistics_delay_s=delay_s)
    run(one_stage(0.001), {"a": (Allocation("x", 1, 1),)}, trace, watching, conditions=conditions)
    for now_s, seen_s, arrived, entered in watching.views:
        assert entered == int((trace.arrivals_s < now_s).sum())
        if now_s > delay_s + 0.1:
            assert seen_s == pytest.approx(now_s - delay_s)
            assert arrived == int((trace.arrivals_s < seen_s).sum())


@pytest.mark.parametrize("units", [(), ((1.0, 128), (3.0, 128))])
def test_a_stage_that_slows_down_serves_from_then_on_at_its_new_speed(units):
    """Whether service times vary or not, and policies see by how much."""
    trace, held, watching = Trace(np.arange(0.0, 10.0, 1.0)), {"a": (Allocation("x", 1, 1),)}, Watching()
    profile = replace(one_stage(0.2).profiles["a", "x"], variation=Variation(units))
    measured = replace(one_stage(0.2), profiles={("a", "x"): profile})
    slower = (Slowdown(time_s=4.5, stage="a", factor=3.0),)
    found = run(measured, held, trace, watching, slowdowns=slower).latency_s
    assert found == pytest.approx(run(measured, held, trace).latency_s * ([1] * 5 + [3] * 5))
    assert watching.stages[0].busy_s == pytest.approx(found[:9].sum())
    assert watching.stages[0].nominal_s == pytest.approx(0.2 * 9)


def test_without_an_slo_no_event_is_hopeless_and_the_order_is_that_of_entry():
    """Four times more than one replica serves: all but the first would go last."""
    trace, held = Trace(np.arange(0.0, 5.0, 0.05)), {"a": (Allocation("x", 1, 1),)}
    found, entry = (run(one_stage(0.2), held, trace, order=order, slo_s=np.inf) for order in ("deadline", "entry"))
    assert found.latency_s.tolist() == entry.latency_s.tolist()


def test_a_start_that_is_taken_back_is_paid_for_all_the_same():
    """Asked for at 1 s with a start of 2 s, given back at 1.5 s: two seconds of a replica, of use to nobody."""
    plan = Scheduled("wavering", [(1.0, {"a": {"x": 2}}), (1.5, {"a": {"x": 1}})])
    trace = Trace(np.arange(0.0, 10.1, 1.0))
    found = run(one_stage(0.1, start_up_s=2.0), {"a": (Allocation("x", 1, 1),)}, trace, plan)
    assert found.replica_hours["a", "x"] == pytest.approx((10.0 + 2.0) / 3600)


@pytest.mark.parametrize("most", [200, 300, 1200])
def test_any_number_of_replicas_serves_at_once(most):
    """As many events at one instant as replicas: none waits, though all but one replica came later."""
    trace = Trace(np.concatenate([np.arange(0.0, 6.0, 2.0), np.full(most, 8.0), [20.0]]))
    plan = Scheduled("many", [(3.0, {"a": {"x": most}}), (9.0, {"a": {"x": 1}})])
    found = run(one_stage(1.5), {"a": (Allocation("x", 1, 1),)}, trace, plan)
    assert found.latency_s == pytest.approx(1.5)
    assert found.peak_replicas == most


@pytest.mark.parametrize("keys", [Keys(), Keys((("rare", 1e-9),), ("a", "b"))])
def test_hops_are_the_same_however_replicas_come_and_go(keys):
    """None ever waits: some replicas leave while they are busy, and what they have in hand goes its way, too."""
    profiles = {(stage, "x"): Profile(stage, "x", (ServiceTime(1, 0.03),)) for stage in CHAIN.stages}
    spread_s = tuple(np.linspace(-0.004, 0.4, len(HOP_PROBABILITIES)).tolist())
    measured = PipelineProfile(profiles, Paths((1,), (1.0,)), 0.005, keys=keys, hop_spread_s=spread_s)
    trace = Trace(np.arange(0.0, 40.0, 0.02))
    steps = [(t, {"a": {"x": 40 + i % 7}, "b": {"x": 50 - i % 5}}) for i, t in enumerate(np.arange(0.51, 39.0, 0.17))]
    held = {stage: (Allocation("x", 1, 44),) for stage in CHAIN.stages}
    changing = run(measured, held, trace, Scheduled("by the clock", steps), shape=CHAIN)
    expected = simulate(CHAIN, held, measured, trace, order_slo_s=SLO_S, order="entry")
    assert changing.changes > 100
    assert changing.latency_s.tobytes() == expected.latency_s.tobytes()


def test_a_stage_that_no_event_visits_gets_none():
    """Of two final stages the slow one is never visited."""
    shape = Shape(("a", "b", "c"), (Arrow(0, 1, conditional=True), Arrow(0, 2)))
    profiles = {(stage, "x"): Profile(stage, "x", (ServiceTime(1, 0.1),)) for stage in shape.stages}
    profiles["b", "x"] = Profile("b", "x", (ServiceTime(1, 5.0),))
    measured = PipelineProfile(profiles, independent_paths(shape, {("a", "b"): 0.0}))
    held = {stage: (Allocation("x", 1, 1),) for stage in shape.stages}
    watching = Watching()
    found = run(measured, held, Trace(np.arange(9.0)), watching, shape=shape)
    assert found.latency_s == pytest.approx(0.2)
    assert [glimpse.arrived for glimpse in watching.stages] == [8, 0, 8]


def test_a_device_that_replicas_share_is_paid_as_a_whole_while_any_of_them_is_there() -> None:
    half = Hardware("gpu", 2.0, gpus=1).shared(2)
    profiles = {(stage, half.name): Profile(stage, half.name, (ServiceTime(1, 0.02),)) for stage in CHAIN.stages}
    measured = PipelineProfile(profiles, independent_paths(CHAIN, {}))
    held = {stage: (Allocation(half.name, 1, 1),) for stage in CHAIN.stages}
    scaler = Scheduled("third", [(10.0, {"a": {half.name: 1}, "b": {half.name: 2}})])
    trace = Trace(tuple(np.arange(20.0)))
    found = replay(CHAIN, held, measured, trace, scaler, catalogue={half.name: half}, slo_s=SLO_S, slots={})
    assert found.cost == pytest.approx((10.0 * 1 + (found.duration_s - 10.0) * 2) * 2.0 / 3600)


def test_results_of_an_event_that_a_fallback_made_are_degraded() -> None:
    """The first event takes 0.3 s; all that came meanwhile would be late with as much, and are on time with 0.01 s."""
    slow = Profile("a", "x", (ServiceTime(1, 0.3),), fallback=(ServiceTime(1, 0.01),), fallback_share=1.0)
    after = Profile("b", "x", (ServiceTime(1, 0.001),))
    paths = Paths((0,), (1.0,), (FanOut(0, (2,), (1.0,), (1,), (1.0,)),))
    measured = PipelineProfile({("a", "x"): slow, ("b", "x"): after}, paths)
    held = {"a": (Allocation("x", 1, 1),), "b": (Allocation("x", 1, 1),)}
    shape = Shape(("a", "b"), (Arrow(0, 1),), many=(0,))
    found = run(measured, held, Trace(np.arange(10) / 100), shape=shape, order="deadline")
    assert found.degraded is not None
    assert found.degraded.tolist() == [0, 0, *[1] * 18]
    assert found.degraded_share == 0.9


@dataclass
class Onlooker(Fixed):
    """Decides nothing, and remembers what it saw."""

    seen: list[Glimpse] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.period_s = 1.0

    def decide(self, view: View) -> Wish | None:
        self.seen.append(view.now[0])
        return None


def test_hopeless_events_are_hidden_until_they_are_old_by_the_slo_of_their_own_class() -> None:
    """A hundred come within a second and one a second is served: too late, but for those that have 30 s longer."""
    measured = replace(one_stage(1.0), classes=(LiveClass("patient", 0.5, 30.0),))
    trace, onlooker = Trace(np.append(np.arange(100) / 100, 70.0)), Onlooker()
    found = run(measured, {"a": (Allocation("x", 1, 1),)}, trace, onlooker, order="deadline")
    patient = prepare(ONE, measured, trace).class_of == 1
    began_s = found.entry_s + found.latency_s - 1.0

    def hidden(now_s: float) -> int:
        (glimpse,) = (each for each in onlooker.seen if each.time_s == now_s)
        return glimpse.hidden

    assert hidden(20.5) == np.count_nonzero(~patient[:100] & (began_s[:100] > 20.5)) > 20
    assert hidden(40.5) == np.count_nonzero(patient[:100] & (began_s[:100] > 40.5)) > 5
    assert hidden(65.5) == 0


def test_hopeless_events_go_first_the_sooner_the_fewer_partitions_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth more than a replica serves: with its offsets in one partition they go first after that span."""
    monkeypatch.setattr(loop, "OFFSETS_SPAN", 100)
    trace = Trace(np.arange(2000) * 0.008 / 9)

    def lived(partitions: int | None) -> Outcome:
        of = None if partitions is None else {"a": partitions}
        return run(
            one_stage(0.001), {"a": (Allocation("x", 1, 1),)}, trace, order="deadline", slo_s=0.05, partitions=of
        )

    one, two, eight, unknown = map(lived, (1, 2, 8, None))
    assert one.late > two.late > eight.late > 0
    assert one.latency_s.max() < two.latency_s.max() < eight.latency_s.max()
    assert np.array_equal(eight.latency_s, unknown.latency_s), "as many as a topic has by default"
