"""Schedules made in hindsight against all schedules that there are, where those can be counted."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from inferline_stream.calculus.envelope import trace_envelope, windows_s
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan, cost_per_hour
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.replay.clairvoyant import Hindsight, cheapest
from inferline_stream.replay.loop import Conditions, replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Scheduled
from inferline_stream.tuner.policy import initial_state

SLOT_S, SLOTS, MOST = 5.0, 3, 3
ALLOWED = 0.01
TIMES_S = {"fast": 0.02, "slow": 0.05}


def service(stage: str, kind: str, start_up_s: float) -> Profile:
    return Profile(stage, kind, (ServiceTime(1, TIMES_S[kind]), ServiceTime(4, 2.5 * TIMES_S[kind])), start_up_s)


class Small:
    """A trace of a few slots, a plan for its mean, and all that hindsight replays of it.

    Args:
        kinds: prices of the kinds that each stage runs on.
        stages: of the chain.
        start_up_s: of every replica.
        seed: of the arrivals.
        stock: replicas of each kind that there are.
        slots: that the trace takes.
    """

    def __init__(
        self,
        kinds: dict[str, float],
        *,
        stages: int,
        start_up_s: float,
        seed: int,
        stock: int = MOST,
        slots: int = SLOTS,
    ):
        names = ("a", "b")[:stages]
        self.shape = Shape(names, tuple(Arrow(i, i + 1) for i in range(stages - 1)))
        profiles = {(name, kind): service(name, kind, start_up_s) for name in names for kind in kinds}
        self.measured = PipelineProfile(profiles, independent_paths(self.shape, {}))
        self.kinds = {kind: Hardware(kind, price, stock=stages * stock) for kind, price in kinds.items()}
        rng = np.random.default_rng(seed)
        rates = rng.choice([20.0, 60.0, 110.0], slots)
        parts = [gamma_trace(rate, 1.0, SLOT_S, rng).arrivals_s + SLOT_S * i for i, rate in enumerate(rates)]
        self.trace = Trace(np.concatenate(parts))
        held = {name: tuple(Allocation(kind, 4, 1) for kind in kinds) for name in names}
        self.plan = Plan(
            pipeline="small",
            slo_s=0.3,
            allocations=held,
            cost_per_hour=cost_per_hour(held, self.kinds),
            predicted_p99_s=0.1,
            arrival_rate=self.trace.arrival_rate,
            envelope=tuple(trace_envelope(self.trace, windows_s(0.1))),
            visit_ratios=dict.fromkeys(names, 1.0),
            utilization=dict.fromkeys(names, 0.6),
        )
        self.conditions = Conditions()
        self.replayed: list[tuple[Scheduled, Outcome]] = []

    def run(self, schedule: Scheduled) -> Outcome:
        found = replay(
            self.shape,
            self.plan.allocations,
            self.measured,
            self.trace,
            schedule,
            catalogue=self.kinds,
            slo_s=self.plan.slo_s,
            slots={},
            conditions=self.conditions,
        )
        self.replayed.append((schedule, found))
        return found

    def hindsight(self, *, replays: int = 150, start_up_s: float | None = None) -> Outcome:
        basis = initial_state(self.plan, self.measured, self.kinds).basis
        self.conditions = Conditions(start_up_s)
        return cheapest(basis, self.trace, self.run, start_up_s=start_up_s, slot_s=SLOT_S, replays=replays)

    def every(self, most: int = MOST) -> list[Outcome]:
        """All schedules of up to so many replicas of each kind in each slot, of the one stage."""
        held = [
            dict(zip(self.kinds, counts, strict=True))
            for counts in itertools.product(range(most + 1), repeat=len(self.kinds))
            if sum(counts)
        ]
        return [
            self.run(Scheduled("any", [(SLOT_S * i, {"a": wanted}) for i, wanted in enumerate(steps)]))
            for steps in itertools.product(held, repeat=SLOTS)
        ]


def best(outcomes: list[Outcome]) -> Outcome:
    kept = [o for o in outcomes if o.miss_rate <= ALLOWED]
    return min(kept, key=lambda o: o.cost) if kept else min(outcomes, key=lambda o: (o.miss_rate, o.cost))


@pytest.mark.parametrize("start_up_s", [0.0, SLOT_S])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_one_stage_no_schedule_at_all_is_cheaper(seed: int, start_up_s: float):
    small = Small({"fast": 1.0}, stages=1, start_up_s=start_up_s, seed=seed)
    optimum = best(small.every())
    found = small.hindsight()
    assert (found.miss_rate <= ALLOWED) == (optimum.miss_rate <= ALLOWED)
    assert found.cost == pytest.approx(optimum.cost, rel=1e-3)


def test_of_kinds_that_mix_no_schedule_at_all_is_cheaper():
    small = Small({"fast": 1.0, "slow": 0.25}, stages=1, start_up_s=0.0, seed=2, stock=2)
    optimum = best(small.every(2))
    found = small.hindsight(replays=300)
    assert optimum.miss_rate <= ALLOWED
    assert found.miss_rate <= ALLOWED
    assert found.cost == pytest.approx(optimum.cost, rel=1e-3)


@pytest.mark.parametrize("kinds", [{"fast": 1.0}, {"fast": 1.0, "slow": 0.25}])
@pytest.mark.parametrize(("seed", "start_up_s"), [(1, None), (2, 0.0), (3, 7.0)])
def test_hindsight_is_the_best_of_all_that_it_replayed_and_within_stock(kinds, seed: int, start_up_s: float | None):
    small = Small(kinds, stages=2, start_up_s=2.0, seed=seed)
    found = small.hindsight(replays=40, start_up_s=start_up_s)
    assert found is best([outcome for _, outcome in small.replayed])
    for schedule, _ in small.replayed:
        held: dict[tuple[str, str], int] = {}
        for _, wanted in schedule.steps:
            held |= {(stage, kind): n for stage, kinds_of in wanted.items() for kind, n in kinds_of.items()}
            for kind in kinds:
                assert 0 <= sum(n for (_, k), n in held.items() if k == kind) <= 2 * MOST
            for stage in small.shape.stages:
                assert sum(n for (s, _), n in held.items() if s == stage) >= 1


def test_where_nothing_keeps_the_objective_hindsight_misses_least():
    small = Small({"slow": 1.0}, stages=1, start_up_s=0.0, seed=1, stock=1)
    small.trace = Trace(np.arange(0.0, SLOT_S * SLOTS, 0.005))
    found = small.hindsight(replays=20)
    assert found.miss_rate > ALLOWED
    assert found.miss_rate == min(outcome.miss_rate for _, outcome in small.replayed)
    assert math.isclose(found.cost, small.plan.cost_per_hour * found.duration_s / 3600, rel_tol=0.01)


@pytest.mark.parametrize("kinds", [{"fast": 0.0}, {"fast": 0.0, "slow": 0.0}])
def test_where_replicas_cost_nothing_hindsight_misses_least(kinds: dict[str, float]):
    small = Small(kinds, stages=1, start_up_s=0.0, seed=1)
    small.trace = Trace(np.arange(0.0, SLOT_S * SLOTS, 0.005))
    found = small.hindsight(replays=40)
    assert (found.cost, found.miss_rate) == (0.0, min(outcome.miss_rate for _, outcome in small.replayed))
    assert found.miss_rate < small.run(Scheduled("plan", [])).miss_rate


def test_replicas_are_asked_for_as_long_before_they_are_needed_as_they_take_to_start():
    small = Small({"fast": 1.0}, stages=1, start_up_s=2 * SLOT_S - 1.0, seed=1, slots=8)
    basis = initial_state(small.plan, small.measured, small.kinds).basis
    space = Hindsight(basis, small.trace, small.run, start_up_s=None, slot_s=SLOT_S)
    space.tried(np.array([[1, 1, 1, 3, 3, 1, 2, 1, 1]])[:, : space.slots])
    ((schedule, _),) = small.replayed
    asked = [(time_s, wanted["a"]["fast"]) for time_s, wanted in schedule.steps]
    assert asked == [(0.0, 1), (5.0, 3), (25.0, 2), (35.0, 1)]


def test_hindsight_beats_a_search_that_tries_one_change_in_each_replay():
    slots = 40
    small = Small({"fast": 1.0}, stages=2, start_up_s=0.0, seed=4, stock=100, slots=slots)
    found = small.hindsight(replays=80)
    rng, counts = np.random.default_rng(0), np.full((2, slots), 6)
    plain = small.run(by_slot(counts))
    for _ in range(100):
        first, tried = int(rng.integers(slots)), counts.copy()
        tried[rng.integers(2), first : first + int(rng.integers(1, slots))] -= 1
        outcome = small.run(by_slot(np.maximum(tried, 1)))
        if outcome.miss_rate <= ALLOWED and outcome.cost < plain.cost:
            counts, plain = np.maximum(tried, 1), outcome
    assert plain.miss_rate <= ALLOWED
    assert found.miss_rate <= ALLOWED
    assert found.cost < plain.cost
    begun_with = best([outcome for _, outcome in small.replayed[:6]])
    assert found.cost < 0.93 * begun_with.cost


def by_slot(counts: np.ndarray) -> Scheduled:
    steps = [(SLOT_S * i, {"a": {"fast": int(a)}, "b": {"fast": int(b)}}) for i, (a, b) in enumerate(counts.T)]
    return Scheduled("plain", steps)
