from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from inferline_stream.controlplane.observe.log_growth import LogGrowth
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths, Shape
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.live_observations import LiveObservations, figures_of, with_figures
from inferline_stream.replay.loop import replay
from inferline_stream.replay.scalers import Scheduled, Tuner, Wish
from inferline_stream.tuner.observation import Observation, StageObservation, Supply
from inferline_stream.tuner.policy import initial_state
from inferline_stream.tuner.staffing_table import Staffing

ONE = Shape(("a",), ())
KINDS = {"x": Hardware("x", 1.0)}
PLAN = Plan(
    pipeline="p", slo_s=0.5, allocations={"a": (Allocation("x", 1, 1),)}, cost_per_hour=1.0, predicted_p99_s=0.1,
    arrival_rate=1.0, envelope=((1.0, 1),), visit_ratios={"a": 1.0}, utilization={"a": 0.1},
)  # fmt: skip
MEASURED = PipelineProfile({("a", "x"): Profile("a", "x", (ServiceTime(1, 0.01),), 2.0)}, Paths((0,), (1.0,)))
OBSERVATIONS = LiveObservations(
    asked_s=np.array([-0.5, 0.33, 0.47, 1.0, 2.9]),
    ticks_s=np.array([-1.0, 0.3, 0.5, 2.0]),
    known_s=np.array([-1.0, 0.3, 0.5, 2.0]),
    grown=np.array([7, 8, 11, 12]),
    figures_s=np.array([-0.5, 0.47, 1.0]),
    figures_key=np.array([0, 1, 0]),
    figures=np.array([0.25, 80.0, np.nan]),
    keys=np.array(["a x start_up_s", "a x throughput"]),
    watched_s=4.0,
)


def lived(scaler, observations: LiveObservations = OBSERVATIONS):
    """A replay of a stage's ten arrivals until 2.7 s."""
    trace = Trace(np.arange(10) * 0.3)
    return replay(
        ONE, PLAN.allocations, MEASURED, trace, scaler, catalogue=KINDS, slo_s=0.5, slots={}, observations=observations
    )


class Watching:
    """Keeps every view."""

    name, period_s = "watching", 0.1

    def __init__(self) -> None:
        self.views = []

    def decide(self, view) -> Wish | None:
        self.views.append((view.time_s, view.arrivals_s.tolist(), view.watched_s, dict(view.figures)))


def test_a_policy_is_asked_when_the_live_one_was_and_given_what_had_been_sampled_by_then():
    watching = Watching()
    lived(watching)
    times, arrivals, watched, _ = zip(*watching.views, strict=True)
    assert times == (-0.5, 0.33, 0.47, 1.0, 2.9)  # the last one after the last event, which it sees
    assert list(arrivals) == [[], [-1.0], [], pytest.approx([0.3, 0.3 + 0.2 / 3, 0.3 + 0.4 / 3]), [0.5]]
    assert watched == pytest.approx((4.0, 4.83, 4.97, 5.5, 7.4))


def test_a_policy_is_given_figures_when_the_live_one_was_and_the_newest_of_each_holds():
    watching = Watching()
    lived(watching)
    figures = [view[3] for view in watching.views]
    began, both = {"a x start_up_s": 0.25}, {"a x start_up_s": 0.25, "a x throughput": 80.0}
    none = {"a x start_up_s": None, "a x throughput": 80.0}
    assert figures == [began, began, both, none, none]


def test_a_policy_knows_how_many_events_were_due_and_how_many_of_them_late():
    """A replica serves one event in half a second, five come in the first: brute force over their latencies."""
    slow = PipelineProfile({("a", "x"): Profile("a", "x", (ServiceTime(1, 0.5),), 2.0)}, Paths((0,), (1.0,)))
    trace, counts = Trace(np.array([0.0, 0.1, 0.2, 0.3, 0.4, 6.0, 12.0])), []

    class Counting(Watching):
        def decide(self, view) -> None:
            counts.append((view.now[0].time_s, view.events, view.late))

    found = replay(ONE, PLAN.allocations, slow, trace, Counting(), catalogue=KINDS, slo_s=1.2, slots={})
    assert 0 < found.late < 5
    for time_s, events, late in counts:
        due = found.entry_s + 1.2 <= time_s + 0.5  # looks of the last half second are not reported yet, but counted
        assert events <= due.sum()
        assert late == (found.latency_s[:events] > 1.2).sum()
    assert counts[-1][1:] == (6, found.late)


def test_without_samples_arrivals_are_known_at_once():
    watching = Watching()
    lived(watching, replace(OBSERVATIONS, ticks_s=np.empty(0), known_s=np.empty(0), grown=np.empty(0, np.int64)))
    assert [len(view[1]) for view in watching.views] == [0, 2, 0, 2, 6]


def test_costs_count_from_time_0_whenever_the_policy_was_first_asked():
    found = lived(Scheduled("early", [(-0.5, {"a": {"x": 2}})]))
    assert found.replica_hours["a", "x"] * 3600 == pytest.approx(2 * 2.7)
    assert found.steps[0].time_s == -0.5


def test_what_became_known_only_after_the_last_event_had_entered_is_decided_on_and_costs_nothing():
    """The feed of a busy machine catches up at its end: the last burst is sampled when nothing more enters."""
    ticks_s = np.array([-1.0, 2.6, 2.8])
    late = replace(OBSERVATIONS, ticks_s=ticks_s, known_s=ticks_s, grown=np.array([0, 1, 10]))

    class Answering(Watching):
        def decide(self, view) -> Wish | None:
            super().decide(view)
            return Wish({"a": {"x": 9}}) if len(view.arrivals_s) == 10 else None

    found = lived(Answering(), late)
    assert [(step.time_s, step.replicas) for step in found.steps] == [(2.9, {"a": {"x": 9}})]
    assert found.replica_hours["a", "x"] * 3600 == pytest.approx(2.7)


@given(st.lists(st.tuples(st.floats(0.001, 0.5), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_arrivals_are_spread_between_samples_as_the_control_plane_spreads_them(samples):
    growth, time_s, ends = LogGrowth(), 0.0, [3, 5]
    growth.sample(time_s, ends)
    seen, ticks_s, grown = [], [time_s], [sum(ends)]
    for pause_s, a, b in samples:
        time_s, ends = time_s + pause_s, [ends[0] + a, ends[1] + b]
        seen += [(at_s, time_s) for at_s in growth.sample(time_s, ends)]
        ticks_s.append(time_s)
        grown.append(sum(ends))
    ticks = np.array(ticks_s)
    at_s, known_s = replace(OBSERVATIONS, ticks_s=ticks, known_s=ticks, grown=np.array(grown)).arrivals()
    assert at_s == pytest.approx([at for at, _ in seen])
    assert known_s.tolist() == [known for _, known in seen]


def test_figures_of_one_observation_take_the_place_of_anothers():
    def seen(throughput: float | None, start_up_s: float | None, visit_ratio: float | None) -> Observation:
        supply = {"x": Supply(1, 0, throughput, start_up_s)}
        return Observation(0.0, (1,), 1.0, 1.0, {"a": StageObservation(supply, visit_ratio=visit_ratio)})

    live, simulated = (
        structs.replace(seen(90.0, None, 0.4), late_share=0.02),
        structs.replace(seen(None, 3.0, 0.5), late_share=0.01),
    )
    assert with_figures(simulated, figures_of(live)) == live
    assert with_figures(simulated, {}) == simulated


def test_the_policy_sees_the_figures_that_it_is_given():
    seen = []

    def step(state, observation):
        seen.append(observation.stages["a"].supply["x"])
        return state, None

    lived(Tuner("live", step, initial_state(PLAN, MEASURED, KINDS), ONE))
    assert [(supply.start_up_s, supply.throughput) for supply in seen] == [(0.25, None)] * 2 + [
        (0.25, 80.0),
        (None, 80.0),
        (None, 80.0),
    ]


def test_a_table_of_staffing_is_decided_by_from_when_on_it_was_there():
    tables = []

    def step(state, observation):
        tables.append(state.basis.staffing)
        return state, None

    table = Staffing((1.0,), {"a": (1.0,)}, 1.0)
    lived(Tuner("later", step, initial_state(PLAN, MEASURED, KINDS), ONE, later=(0.4, table)))
    assert tables == [None, None, table, table, table]
