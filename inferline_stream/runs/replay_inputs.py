"""What a policy is tried on in simulated time: a plan with profiles and arrivals, a finished run's among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.controlplane.observe.observation_log import read_observations
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.group_model import GroupModel
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Allocations, Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.group_tuner import GroupTuner
from inferline_stream.replay.live_observations import LiveObservations
from inferline_stream.replay.loop import Conditions, replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Fixed, Scaler, Tuner
from inferline_stream.runs.archive import RunRecord, read_events, read_record
from inferline_stream.settings import from_environment
from inferline_stream.tuner.calendar import Calendar
from inferline_stream.tuner.group_replan import planned
from inferline_stream.tuner.policy import POLICIES, initial_state
from inferline_stream.tuner.staffing_table import staffing


@dataclass(frozen=True, slots=True)
class ReplayInputs:
    """What policies are tried on."""

    name: str
    shape: Shape
    plan: Plan
    measured: PipelineProfile
    sample: Trace
    trace: Trace
    kinds: Catalogue
    objective: float
    slo_window_s: float
    observations: LiveObservations | None = None
    """Of the run's own policy."""
    calendar: Calendar | None = None
    """What was known of the time ahead when the trace begins; None where nobody knows when that is."""
    held: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Replicas that the run's traffic found, by stage and hardware kind, where they were not the plan's."""
    groups: GroupModel | None = None
    """Of a run on consumer groups that run already."""
    partitions: Mapping[str, int] = field(default_factory=dict)
    """Of the input topics of stages, where they are known."""

    @property
    def begun(self) -> Allocations:
        """The plan's allocations with the replicas that traffic finds."""
        return {
            stage: tuple(replace(a, replicas=self.held.get(stage, {}).get(a.hardware, a.replicas)) for a in kinds)
            for stage, kinds in self.plan.allocations.items()
        }

    def replayed(
        self,
        policy: str = "default",
        *,
        conditions: Conditions | None = None,
        seed: int = 0,
        progress: Callable[[float, float], None] | None = None,
    ) -> Outcome:
        """Run one of our policies on the arrivals, or "none", which leaves the plan as it is.

        Consumer groups are planned again for what was learned of them by the end of their run.

        Args:
            policy: of `POLICIES`, or "none".
            conditions: how the world answers.
            seed: of every draw.
            progress: called with how much of the trace has passed: seconds of seconds.

        Raises:
            Infeasible: no number of members of consumer groups keeps the SLO on the sample.
            UsageError: consumer groups are not scaled by that policy.
        """
        scaler: Scaler = Fixed("none") if policy == "none" else self._tuner(policy)
        return replay(
            self.shape,
            self.plan.allocations if policy == "none" else self.begun,
            self.measured,
            self.trace,
            scaler,
            catalogue=self.kinds,
            slo_s=self.plan.slo_s,
            order=self.plan.order,
            planned_rate=self.plan.arrival_rate,
            conditions=conditions,
            slots=self.plan.slots,
            partitions=self.partitions,
            seed=seed,
            observations=self.observations,
            sharing=None if self.groups is None else self.groups.sharing,
            progress=progress,
        )

    def _tuner(self, policy: str) -> Tuner | GroupTuner:
        if self.groups is not None:
            return self._group_tuner(policy, self.groups)
        state = initial_state(
            self.plan,
            self.measured,
            self.kinds,
            objective=self.objective,
            shortest_window_s=from_environment().shortest_window_s,
            held=self.held,
        )
        later, staffed_s = None, -math.inf if self.observations is None else self.observations.staffed_s
        if policy == "default" and not math.isnan(staffed_s):
            prices = {name: kind.price_per_hour for name, kind in self.kinds.items()}
            table = staffing(self.shape, self.plan, self.measured, self.sample, prices, objective=self.objective)
            later = staffed_s, table
        return Tuner(
            policy, POLICIES[policy], state, self.shape,
            slo_window_s=self.slo_window_s, later=later, kernel=compiled_kernel(),
            calendar=self.calendar,
        )  # fmt: skip

    def _group_tuner(self, policy: str, model: GroupModel) -> GroupTuner:
        if policy != "default":
            raise UsageError(f"--policy {policy}: consumer groups that run already have a policy of their own, default")
        members = {name: sum(kinds.values()) for name, kinds in self.held.items()}
        settings, made_s = from_environment(), None if self.sample is self.trace else 0.0
        found = planned(model, self.sample, shortest_window_s=settings.shortest_window_s)
        return GroupTuner(found, members, period_s=settings.tuner_step_s, made_s=made_s, kernel=compiled_kernel())


def inputs_of_run(
    folder: Path, *, trace: Trace | None = None, plan: Plan | None = None, begins_s: float | None = None
) -> ReplayInputs:
    """Return what a finished run was given: its plan, its profiles with the start-up times it had, its arrivals.

    Args:
        folder: of the run.
        trace: arrivals in place of the run's. The run's observations are then of no use.
        plan: in place of the run's first.
        begins_s: when the arrivals begin, in seconds since the epoch, where not when the run's did.

    Raises:
        InvalidFile: it is no record of a run.
        UsageError: no event came.
    """
    record, events = read_record(folder), read_events(folder)
    sample, came = events.traces(record.shape)
    arrivals = came if trace is None else trace
    if not len(arrivals):
        raise UsageError(f"{folder}: no event came in this run; give --trace")
    begins_s = begins_s if begins_s is not None or trace is not None else events.began_s
    observations = read_observations(folder) if trace is None else None
    if observations is not None:
        held = _held(record, events.began_s + float(observations.asked_s[0]))
    else:
        held = {} if record.groups is None else record.groups.members
    return ReplayInputs(
        record.report.pipeline,
        record.shape,
        plan or record.plans[0].plan,
        record.as_it_ran,
        sample if events.sample_s.size else arrivals,
        arrivals,
        record.kinds,
        record.objective,
        record.slo_window_s,
        observations,
        None if begins_s is None else record.calendar_at(begins_s),
        held,
        record.group_model,
        record.partitions,
    )


def _held(record: RunRecord, asked_s: float) -> Mapping[str, Mapping[str, int]]:
    """Replicas by what was decided before traffic, on what was known to come; empty where nothing was."""
    before = [d.replicas for d in record.decisions if d.applied and d.action != "hold" and d.time_s < asked_s]
    return before[-1] if before else {}
