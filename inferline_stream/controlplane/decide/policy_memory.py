"""The policy's memory for the plan in force: made again for a new plan, and after people held decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.pipeline.plan import Plan
from inferline_stream.settings import Settings
from inferline_stream.tuner.decision import Decision
from inferline_stream.tuner.observation import Observation
from inferline_stream.tuner.policy import Policy, TunerState, initial_state
from inferline_stream.tuner.staffing_table import Staffing
from inferline_stream.tuner.tuner_state import staffed

_FEWEST_TICKS = 5
"""Samples of arrivals that the shortest window holds: a tick must not look like a burst."""


def shortest_window_s(settings: Settings) -> float:
    """The shortest window of a traffic envelope that live samples of arrivals can fill."""
    return _FEWEST_TICKS * settings.arrivals_sample_s


def windows_of(plan: Plan, settings: Settings) -> tuple[float, ...]:
    """Windows of the plan's traffic envelope that live samples of arrivals can fill."""
    return tuple(w for w, _ in plan.envelope if w >= shortest_window_s(settings))


@dataclass(slots=True)
class PolicyMemory:
    """Steps a policy.

    Args:
        policy: its step.
        view: whose plan, profiles and prices it knows.
        settings: how often arrivals are sampled.
        held: replicas wanted at the start, by stage and hardware kind.
    """

    policy: Policy
    view: PipelineView
    settings: Settings
    held: Mapping[str, Mapping[str, int]]
    state: TunerState = field(init=False)
    _stepped: TunerState | None = None

    def __post_init__(self) -> None:
        self.again(self.held)

    def again(self, held: Mapping[str, Mapping[str, int]]) -> None:
        """Begin again from the plan in force and these replicas.

        What was remembered of loads is no longer true; how noisy traffic is, and what people have seen, is.
        """
        view, before = self.view, self._stepped
        state = initial_state(
            view.plan,
            view.measured,
            view.catalogue,
            objective=view.objective,
            shortest_window_s=shortest_window_s(self.settings),
            held=held,
        )
        if before is not None:
            state = replace(
                state,
                patience=before.patience,
                leapt_s=before.leapt_s,
                outgrown_s=before.outgrown_s,
                rises=before.rises,
                reported=before.reported,
            )
        self.state = state

    def staffed(self, staffing: Staffing) -> None:
        """Decide by this table from now on; it was made for the plan in force."""
        self.state = staffed(self.state, staffing)

    def step(self, seen: Observation) -> Decision | None:
        """One step of the policy."""
        self.state, decision = self.policy(self.state, seen)
        self._stepped = self.state
        return decision
