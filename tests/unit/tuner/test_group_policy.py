"""The plan of consumer groups, and when their policy changes the number of members."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from inferline_stream import ConsumerGroup, Pipeline
from inferline_stream.errors import Infeasible, InvalidInput
from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.group_model import GroupModel, group_model
from inferline_stream.pipeline.group_profile import GroupProfile, Learned, Rebalance, Sharing
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.shape import visit_ratios
from inferline_stream.pipeline.trace import Trace, gamma_trace, levels_trace
from inferline_stream.tuner.decision import Action, Reason
from inferline_stream.tuner.group_changes import changes_needed, lost_s, most_wanted
from inferline_stream.tuner.group_plan import plan_groups
from inferline_stream.tuner.group_policy import BRIEF_S, LOOK_BACK_S, QUIET_S, group_state, group_step
from inferline_stream.tuner.group_replan import begun, due_after_s, levelled, planned, taken_over
from inferline_stream.tuner.observation import Limits, Observation, StageObservation, Supply
from inferline_stream.tuner.staffing_table import BRIEF_MULTIPLE, Staffing
from inferline_stream.tuner.tuner_state import TunerState
from tests.support.group_profiles import learned_group

NO_HOLE = Rebalance("cooperative", Learned(0.0, 0.0, 1), 0.0)
EAGER = Rebalance("eager", Learned(3.0, 0.0, 1), 3.0)
KIP848 = Rebalance("kip848", Learned(2.5, 0.0, 1), 5.0)
SAMPLE = gamma_trace(30.0, 1.0, 120.0, np.random.default_rng(1))


def learned(
    group: str, rebalance: Rebalance | None = NO_HOLE, visits: float | None = None, **more: object
) -> GroupProfile:
    ratio = None if visits is None else Learned(visits, 0.01, 100)
    return learned_group(group, 0.03, rebalance, visit_ratio=ratio, **more)


def chain(*names: str, slo: str = "5s") -> Pipeline:
    groups: list[ConsumerGroup] = []
    for name in names:
        groups.append(ConsumerGroup(name, group=f"{name}-v1", topic=f"{name}-in", after=groups[-1:]))
    return Pipeline("shop", slo=slo, stages=groups)


def modelled(slo: str = "5s", rebalance: Rebalance | None = NO_HOLE) -> GroupModel:
    return group_model(chain("a", "b", slo=slo), [learned("a", rebalance), learned("b", rebalance)])


@pytest.mark.parametrize("visits", [(0.4, 0.1), (1.0, 1.0), (2.3, 1.15), (3.0, 7.5), (0.5, 1.25)])
def test_a_model_visits_groups_as_often_as_was_learned(visits: tuple[float, float]) -> None:
    b, c = visits
    model = group_model(chain("a", "b", "c"), [learned("a"), learned("b", visits=b), learned("c", visits=c)])
    ratios = visit_ratios(model.shape, model.measured.paths)
    assert ratios == pytest.approx({"a": 1.0, "b": b, "c": c})


def test_noise_of_a_batch_has_the_spread_that_was_learned() -> None:
    model = group_model(chain("a", slo="60s"), [learned("a", spread=0.5, max_batch_size=1)])
    trace = Trace(np.arange(20_000.0))  # one after another: latency is the service time
    held = {"a": (Allocation("cpu-1", 1, 1),)}
    times_s = simulate(model.shape, held, model.measured, trace).latency_s - 2 * model.measured.hop_overhead_s
    assert times_s.mean() == pytest.approx(0.06, rel=0.02)
    assert times_s.std() / times_s.mean() == pytest.approx(0.5, rel=0.1)


def test_a_group_whose_throughput_is_not_known_is_named() -> None:
    with pytest.raises(InvalidInput, match="group 'b': its throughput is not known yet"):
        group_model(chain("a", "b"), [learned("a"), learned("b", throughput=None)])


def test_the_plan_is_the_cheapest_of_all_useful_numbers() -> None:
    model = modelled("400ms")
    plan = plan_groups(model, SAMPLE)

    def p99_s(counts: tuple[int, ...]) -> float:
        held = {n: (Allocation("cpu-1", 4, count),) for n, count in zip("ab", counts, strict=True)}
        return simulate(model.shape, held, model.measured, SAMPLE, partitions=model.partitions).p99_s

    useful = [1, 2, 3, 4, 5, 6, 8]
    cheapest = min(sum(counts) for counts in itertools.product(useful, useful) if p99_s(counts) <= 0.4)
    found = tuple(plan.allocations[n][0].replicas for n in "ab")
    assert sum(found) == cheapest
    assert plan.predicted_p99_s == pytest.approx(p99_s(found))


def test_too_few_partitions_are_named() -> None:
    model = group_model(chain("a", slo="400ms"), [learned("a", partitions=1)])
    with pytest.raises(Infeasible, match=r"partition of 'a' \(1\) .* add partitions"):
        plan_groups(model, SAMPLE)


def test_late_events_of_a_change_are_those_of_the_fluid() -> None:
    sharing = Sharing(24, KIP848)
    heartbeats = np.linspace(0, 5, 100_001)
    expected = np.maximum(heartbeats - 1.0, 0).mean() / 3 / (1 - 0.6)
    assert lost_s(sharing, 2, 3, utilization=0.6, slack_s=1.0) == pytest.approx(expected, rel=1e-3)
    assert lost_s(Sharing(24, EAGER), 2, 3, utilization=0.6, slack_s=1.0) == pytest.approx(2.0 / 0.4)


@pytest.mark.parametrize("wait_s", [10, 25])
def test_changes_that_traffic_takes_are_its_raises_and_the_falls_that_last(wait_s: int) -> None:
    """Of every beginning of a sample, against the rule second by second. A member does 20/s."""
    table = Staffing((0.001,), {"a": (0.1,)}, 100.0)
    levels = [(90.0, 20.0), (50.0, 20.0), (10.0, 60.0), (70.0, 15.0), (30.0, 45.0)]
    sample = levels_trace(levels, 1.0, np.random.default_rng(6))
    for end_s in range(10, int(sample.arrivals_s[-1])):
        seconds = np.bincount(sample.arrivals_s.astype(int))[:end_s]
        wanted = [math.ceil(float(seconds[at - 5 : at].sum()) / 5 / 20 - 1e-9) for at in range(5, end_s + 1)]
        held, changed, changes = wanted[0], 0, 0
        for now, count in enumerate(wanted):
            most = max(wanted[max(0, now - wait_s) : now + 1])
            if count > held or (most < held and now >= changed + wait_s):
                held, changed, changes = most, now, changes + 1
        window = Trace(np.append(sample.window(0.0, end_s).arrivals_s, end_s))
        assert changes_needed(table, {"a": 20.0}, window, wait_s) == pytest.approx(changes * 3600 / end_s)
    assert changes > 5


def test_the_most_wanted_since_a_moment_counts_what_was_wanted_at_it() -> None:
    lately = ((0.0, 5), (10.0, 2), (20.0, 3))
    assert [most_wanted(lately, since_s) for since_s in (5.0, 10.0, 15.0, 25.0)] == [5, 3, 3, 3]


class Watched:
    """A policy of groups, asked twice a second: what is wanted is there a second later."""

    def __init__(self, rebalance: Rebalance, slo: str = "400ms", held: int | None = None) -> None:
        model = group_model(chain("a", slo=slo), [learned("a", rebalance)])
        plan = plan_groups(model, SAMPLE)
        self.planned = plan.allocations["a"][0].replicas
        self.state: TunerState = begun(group_state(model, plan, SAMPLE), {"a": {"cpu-1": held or self.planned}})
        self.now_s, self.ready = 0.0, held or self.planned
        self.decisions: list[tuple[float, Action, Reason, int]] = []
        self.holds: list[Reason] = []

    def run(
        self,
        rate: float,
        for_s: float,
        *,
        lag: int = 0,
        throughput: float | None = None,
        limits: Limits | None = None,
        arrivals_age_s: float = 0.0,
    ) -> None:
        for _ in range(int(for_s * 2)):
            self.now_s += 0.5
            wanted = self.state.wanted["a"]["cpu-1"]
            if self.decisions and self.now_s - self.decisions[-1][0] >= 1.0:
                self.ready = wanted
            windows_s = self.state.windows_s
            seen = Observation(
                self.now_s,
                tuple(math.ceil(rate * w) for w in windows_s),
                rate,
                rate,
                {
                    "a": StageObservation(
                        {"cpu-1": Supply(self.ready, max(0, wanted - self.ready), throughput)}, partition_lags=(lag,)
                    )
                },
                recent=(round(rate),) * 30,
                limits={} if limits is None else {"a": limits},
                arrivals_age_s=arrivals_age_s,
            )
            self.state, decision = group_step(self.state, seen)
            if decision is not None and decision.action is not Action.HOLD:
                count = decision.replicas["a"]["cpu-1"]
                self.decisions.append((self.now_s, decision.action, decision.reason, count))
            elif decision is not None:
                self.holds.append(decision.reason)


def test_members_are_raised_at_once_and_lowered_in_one_step_after_a_quiet_time() -> None:
    watched = Watched(KIP848)
    watched.run(30.0, 900.0)
    watched.decisions.clear()
    watched.run(90.0, 30.0)
    raised = [count for _, action, _, count in watched.decisions if action is Action.SCALE_UP]
    assert raised
    assert all(Sharing(24).useful(count) == count for count in raised)
    assert watched.decisions[0][0] <= 902.0
    watched.decisions.clear()
    since_s = watched.now_s
    watched.run(20.0, QUIET_S + 120.0)
    (lowered,) = watched.decisions
    assert lowered[1:3] == (Action.SCALE_DOWN, Reason.LOAD_FELL)
    assert lowered[0] >= since_s + QUIET_S
    assert lowered[3] <= watched.planned + 1


def test_what_a_hole_leaves_is_no_demand_and_what_it_shows_no_measurement() -> None:
    """A hole of a minute leaves 1,800 records: as demand, they would ask for another member."""
    watched = Watched(Rebalance("eager", Learned(60.0, 0.0, 1), 60.0), slo="300s")
    watched.run(30.0, 120.0)
    watched.decisions.clear()
    watched.ready -= 1  # a worker died
    watched.run(30.0, 1.0)
    watched.ready += 1
    watched.run(30.0, 30.0, lag=1800, throughput=10.0)
    assert not watched.decisions
    watched.run(30.0, 1.0, lag=4000)  # more than the hole explains
    assert [reason for _, _, reason, _ in watched.decisions] == [Reason.BACKLOG]


def test_what_a_hole_explains_ends_with_what_it_left_and_the_span_of_measurements() -> None:
    """A hole of L seconds leaves λL, which µ works off in Lρ / (1 − ρ)."""
    watched = Watched(Rebalance("eager", Learned(6.0, 0.0, 1), 6.0), slo="300s")
    watched.run(30.0, 120.0)
    watched.decisions.clear()
    watched.ready -= 1
    watched.run(30.0, 1.0)
    watched.ready += 1
    watched.run(30.0, 0.5)
    since_s = watched.now_s
    while not watched.decisions:
        watched.run(30.0, 0.5, throughput=10.0)
    assert watched.decisions[0][2] is Reason.THROUGHPUT_FELL
    load = 30.0 / (watched.ready * watched.state.basis.stages[0].kinds[0].throughput)
    explained_s = 6.0 + 6.0 * load / (1 - load) + LOOK_BACK_S
    assert since_s + explained_s < watched.decisions[0][0] <= since_s + explained_s + 0.5


def test_without_a_hole_a_backlog_is_demand_and_a_slow_member_is_measured() -> None:
    watched = Watched(EAGER, slo="5s")
    watched.run(30.0, 120.0)
    watched.decisions.clear()
    watched.run(30.0, 1.0, lag=80)
    assert not watched.decisions  # it may take a minute
    watched.run(30.0, 1.0, lag=1800)
    assert [reason for _, _, reason, _ in watched.decisions] == [Reason.BACKLOG]
    watched = Watched(EAGER, slo="5s")
    watched.run(30.0, 120.0)
    watched.decisions.clear()
    watched.run(30.0, 1.0, throughput=10.0)
    assert [reason for _, _, reason, _ in watched.decisions] == [Reason.THROUGHPUT_FELL]


def test_what_runs_at_the_beginning_is_not_lowered_before_a_quiet_time_has_passed() -> None:
    watched = Watched(KIP848, held=8)
    watched.run(20.0, QUIET_S - 5.0)
    assert not watched.decisions
    watched.run(20.0, 60.0)
    assert [action for _, action, _, _ in watched.decisions] == [Action.SCALE_DOWN]


def test_what_was_wanted_is_remembered_for_a_quiet_time_and_no_longer() -> None:
    watched = Watched(KIP848)
    watched.run(30.0, 900.0)
    watched.run(90.0, 30.0)
    watched.run(20.0, 2 * QUIET_S)
    memory = watched.state.groups
    assert memory is not None
    assert len(memory.lately["a"]) == 1


def test_what_people_should_know_is_said_where_members_would_be_lowered_in_the_same_step() -> None:
    watched = Watched(KIP848, held=8)
    before, now_s = watched.state, watched.now_s
    while not watched.decisions:
        before, now_s = watched.state, watched.now_s
        watched.run(20.0, 0.5)
    watched.state, watched.now_s = before, now_s
    watched.decisions.clear()
    watched.run(20.0, 0.5, arrivals_age_s=60.0)
    assert watched.holds == [Reason.INPUT_STALE]
    assert not watched.decisions
    watched.run(20.0, 1.0)
    assert watched.holds == [Reason.INPUT_STALE, Reason.INPUT_RESTORED]
    assert [action for _, action, _, _ in watched.decisions] == [Action.SCALE_DOWN]


def test_after_a_clock_that_jumped_a_quiet_time_passes_again() -> None:
    watched = Watched(KIP848)
    watched.run(90.0, 30.0)
    watched.run(20.0, 90.0)
    watched.decisions.clear()
    watched.now_s += 1000.0
    seen_s = watched.now_s + 0.5
    watched.run(20.0, QUIET_S - 5.0)
    assert not watched.decisions
    watched.run(20.0, 30.0)
    assert [(time_s, action) for time_s, action, _, _ in watched.decisions] == [(seen_s + QUIET_S, Action.SCALE_DOWN)]


def test_where_no_change_is_paid_for_the_plans_number_is_held() -> None:
    watched = Watched(EAGER)
    groups = replace(watched.state.basis.groups, changes_per_hour=5.0, needed_per_hour=20.0, quiet_s=3600.0)  # type: ignore[type-var]
    assert groups is not None
    assert groups.holds
    watched.state = structs.replace(watched.state, basis=replace(watched.state.basis, groups=groups))
    for _ in range(5):
        watched.run(10.0, 60.0)
        watched.run(28.0, 60.0)
    assert [count for *_, count in watched.decisions if count < watched.planned] == []
    before = watched.state.wanted
    watched.run(120.0, 5.0)
    assert watched.state.wanted == before  # as long as a forecast errs
    watched.run(120.0, 15.0)
    assert watched.decisions[-1][3] > watched.planned
    assert watched.decisions[-1][2] is Reason.RATE_RISING  # what the default policy said ten seconds before


def test_where_the_plans_number_is_held_fewer_members_at_the_beginning_become_as_many_after_ten_seconds() -> None:
    watched = Watched(EAGER, held=1)
    groups = replace(watched.state.basis.groups, changes_per_hour=5.0, needed_per_hour=20.0)  # type: ignore[type-var]
    watched.state = structs.replace(watched.state, basis=replace(watched.state.basis, groups=groups))
    began_s = watched.now_s + 0.5
    watched.run(28.0, 20.0)
    assert watched.planned > 1
    assert [(time_s, count) for time_s, _, _, count in watched.decisions] == [(began_s + BRIEF_S, watched.planned)]


def test_the_hours_changes_are_no_more_than_are_paid_for_but_for_raises() -> None:
    watched = Watched(KIP848)
    groups = replace(watched.state.basis.groups, changes_per_hour=4.0, needed_per_hour=0.0)  # type: ignore[type-var]
    watched.state = structs.replace(watched.state, basis=replace(watched.state.basis, groups=groups))
    for _ in range(4):
        watched.run(90.0, 30.0)
        watched.run(15.0, QUIET_S + 120.0)
    downs = [action for _, action, _, _ in watched.decisions if action is Action.SCALE_DOWN]
    assert len(downs) <= 2


def test_a_quiet_time_counts_from_the_last_change_and_from_what_was_wanted_before_it() -> None:
    watched = Watched(KIP848, held=8)
    watched.run(20.0, 60.0)
    watched.run(20.0, 0.5, limits=Limits(1, 6))
    assert [count for *_, count in watched.decisions] == [6]
    watched.run(20.0, QUIET_S - 0.5)
    assert len(watched.decisions) == 1
    watched.run(20.0, 0.5)
    assert watched.decisions[1][0] == watched.decisions[0][0] + QUIET_S


def test_limits_of_people_hold_at_once() -> None:
    watched = Watched(KIP848)
    watched.run(90.0, 30.0)
    watched.run(90.0, 1.0, limits=Limits(1, 2))
    assert watched.state.wanted["a"]["cpu-1"] == 2
    watched.run(90.0, 1.0, limits=Limits(7, 7))
    assert watched.state.wanted["a"]["cpu-1"] == 7


def test_a_plan_for_other_traffic_takes_over_members_and_what_is_remembered_of_them() -> None:
    watched = Watched(KIP848, held=8)
    watched.run(40.0, 60.0)
    before, model = watched.state, group_model(chain("a", slo="400ms"), [learned("a", KIP848)])
    busier = planned(model, gamma_trace(90.0, 1.0, 120.0, np.random.default_rng(2)))

    watched.state = taken_over(before, busier.state)
    watched.decisions.clear()
    watched.run(40.0, QUIET_S - 65.0)
    assert not watched.decisions  # neither a beginning's reserve nor fewer before the quiet time has passed
    watched.run(40.0, 70.0)
    assert [action for _, action, _, _ in watched.decisions] == [Action.SCALE_DOWN]
    assert watched.decisions[0][0] <= 30.0 + QUIET_S + 5.0  # of what was wanted before the plan
    assert watched.state.basis.arrival_rate == pytest.approx(90.0, rel=0.1)


def test_a_plan_carries_the_highest_level_that_its_sample_has_kept_up_however_short_that_was() -> None:
    """A rise just now: with an SLO of 5 s a number that cannot carry it has kept the sample in time so far."""
    model, rng = modelled("5s"), np.random.default_rng(3)
    rising = levels_trace([(30.0, 300.0), (100.0, 10.0)], 1.0, rng)
    steady = levels_trace([(100.0, 600.0)], 1.0, rng)
    assert plan_groups(model, rising).cost_per_hour < plan_groups(model, steady).cost_per_hour
    found = planned(model, rising)
    assert found.members == planned(model, steady).members
    assert found.plan.arrival_rate == pytest.approx(100.0, rel=0.15)


def test_levelling_leaves_steady_traffic_as_it_is() -> None:
    steady = gamma_trace(30.0, 1.0, 600.0, np.random.default_rng(4))
    level = levelled(steady, 0.99)
    assert len(level) == len(steady)
    assert level.arrival_rate == pytest.approx(steady.arrival_rate, rel=0.08)


def test_a_plan_is_made_again_once_as_much_was_seen_and_each_ten_minutes_at_least() -> None:
    assert [due_after_s(seen_s) for seen_s in (0.0, 60.0, 300.0, 3600.0)] == [60.0, 60.0, 300.0, 600.0]


def test_each_level_leaves_room_for_what_events_wait_in_the_hole_of_a_change() -> None:
    def latest_s(rebalance: Rebalance) -> float:
        model = modelled("2s", rebalance)
        table = group_state(model, plan_groups(model, SAMPLE), SAMPLE).basis.staffing
        assert table is not None
        found = []
        for multiple in (m for m in table.multiples if m > BRIEF_MULTIPLE):
            held = {n: (Allocation("cpu-1", 4, round(table.needed(n, multiple) * 0.15 / 4)),) for n in "ab"}
            level = SAMPLE.sped_up(multiple)
            found.append(simulate(model.shape, held, model.measured, level, partitions=model.partitions).p99_s)
        return max(found)

    hole = Rebalance("kip848", Learned(1.0, 0.0, 1), 2.0)
    assert latest_s(hole) <= 1.0 < latest_s(NO_HOLE) <= 2.0
