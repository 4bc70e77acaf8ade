"""The slow loop of consumer groups: a plan for the last hour's traffic takes the place of the one before.

A first plan is made of a minute. What comes later is hardly ever like it: the table, the odds and what changes the
objective pays for are made again of what has come since. `run` and replay plan by these functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from inferline_stream.pipeline.group_model import GroupModel
from inferline_stream.pipeline.plan import Plan, replicas_of
from inferline_stream.pipeline.trace import Trace
from inferline_stream.tuner.group_changes import HOUR_S, GroupMemory
from inferline_stream.tuner.group_plan import LEAST_TRAFFIC_S, plan_groups
from inferline_stream.tuner.group_policy import group_state
from inferline_stream.tuner.plan_basis import Replicas
from inferline_stream.tuner.tuner_state import TunerState

RECENT_S = HOUR_S
"""Arrivals that a plan is made for: of the last hour."""

PLAN_AGAIN_S = 600.0
"""How often a plan is made again, at the least."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupPlanning:
    """A plan of groups, and what it was made of.

    Args:
        model: what was learned of the groups.
        sample: traffic.
        plan: for it.
        state: of the policy before its first step by that plan.
    """

    model: GroupModel
    sample: Trace
    plan: Plan
    state: TunerState

    @property
    def members(self) -> dict[str, int]:
        """That the plan has, by group."""
        return {name: replicas_of(held) for name, held in self.plan.allocations.items()}

    @property
    def holds(self) -> bool:
        """Whether these members are held; see `GroupBasis.holds`."""
        return self.state.basis.groups is not None and self.state.basis.groups.holds


def planned(model: GroupModel, sample: Trace, *, shortest_window_s: float = 0.0) -> GroupPlanning:
    """Plan groups for a sample; takes seconds of a core.

    Args:
        model: what was learned of the groups.
        sample: the newest traffic, with at least one event.
        shortest_window_s: see `plan_basis.basis_of`.

    Raises:
        Infeasible: no number of members meets the SLO.
    """
    plan = plan_groups(model, sample)
    return GroupPlanning(model, sample, plan, group_state(model, plan, sample, shortest_window_s=shortest_window_s))


def due_after_s(seen_s: float) -> float:
    """Return in how long to plan again: once as much again was seen as the plan was made of, and soon enough.

    Args:
        seen_s: length of that sample.
    """
    return min(max(seen_s, LEAST_TRAFFIC_S), PLAN_AGAIN_S)


def taken_over(before: TunerState, now: TunerState) -> TunerState:
    """Return the state of a new plan that goes on from the one before: members and what was seen of them stay.

    What came of what was expected is in the new plan's sample.
    """
    return replace(
        now,
        wanted=before.wanted,
        groups=before.groups,
        time_s=before.time_s,
        changed_s=before.changed_s,
        fits_since_s=before.fits_since_s,
        outgrown_s=before.outgrown_s,
        leapt_s=before.leapt_s,
        reported=before.reported,
        blind_until_s=before.blind_until_s,
    )


def begun(state: TunerState, held: Replicas) -> TunerState:
    """Return the state of a plan before its first step, from these members on."""
    return replace(state, wanted=held, groups=GroupMemory(held))
