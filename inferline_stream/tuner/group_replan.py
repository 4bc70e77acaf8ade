"""The slow loop of consumer groups: a plan for the last hour's traffic takes the place of the one before.

A first plan is made of a minute. What comes later is hardly ever like it: the table, the odds and what changes the
objective pays for are made again of what has come since. `run` and replay plan by these functions.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.group_model import GroupModel
from inferline_stream.pipeline.plan import Plan, replicas_of
from inferline_stream.pipeline.trace import Trace
from inferline_stream.tuner.group_changes import HOUR_S, GroupMemory
from inferline_stream.tuner.group_plan import LEAST_TRAFFIC_S, plan_groups
from inferline_stream.tuner.group_policy import group_state
from inferline_stream.tuner.plan_basis import Replicas
from inferline_stream.tuner.staffing_table import surely_kept_up
from inferline_stream.tuner.tuner_state import TunerState

RECENT_S = HOUR_S
"""Arrivals that a plan is made for: of the last hour."""

PLAN_AGAIN_S = 600.0
"""How often a plan is made again, at the least."""

LEVEL_S = 30.0
"""Changes of the rate that are slower are levels, faster ones belong to the traffic at each level."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupPlanning:
    """A plan of groups, and what it was made of.

    Args:
        model: what was learned of the groups.
        sample: traffic.
        plan: for it.
        state: of the policy before its first step by that plan.
        shortest_window_s: of the envelope; every later plan has to have the same.
    """

    model: GroupModel
    sample: Trace
    plan: Plan
    state: TunerState
    shortest_window_s: float

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
    with suppress(Infeasible):  # all members may have carried a level for a while that they cannot carry for ever
        level = levelled(sample, model.objective)
        plan = plan_groups(model, level)
        state = group_state(model, plan, level, history=sample, shortest_window_s=shortest_window_s)
        found = GroupPlanning(model, sample, plan, state, shortest_window_s)
        if not found.holds:
            return found
    # What is held all the time has to keep the SLO over all of the sample, not at its highest level.
    plan = plan_groups(model, sample)
    state = group_state(model, plan, sample, shortest_window_s=shortest_window_s)
    return GroupPlanning(model, sample, plan, state, shortest_window_s)


def levelled(sample: Trace, objective: float) -> Trace:
    """Return a sample's arrivals as they would be if the highest rate that it has kept up had lasted.

    Numbers of members are compared with rates that may last. On the sample itself a number may keep the SLO that cannot
    carry its highest level, where that was short: events may wait as long as the SLO, and some of them may be late.
    Within spans of `LEVEL_S` arrivals stay as they came.

    Args:
        sample: with at least one event.
        objective: share of the seconds that the rate is not above.
    """
    length_s = float(sample.arrivals_s[-1])
    spans = max(1, round(length_s / LEVEL_S))
    if length_s < 2 * LEVEL_S:
        return sample
    highest = surely_kept_up(sample, objective)
    edges_s = np.linspace(0.0, length_s, spans + 1)
    came = np.searchsorted(sample.arrivals_s, edges_s[1:], side="right")
    level_s = np.concatenate([[0.0], came]) / max(highest, sample.arrival_rate)
    return Trace(np.interp(sample.arrivals_s, edges_s, level_s))


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
        before, basis=now.basis, record=now.record, expected=now.expected, choice=now.choice, chosen_s=now.chosen_s
    )


def begun(state: TunerState, held: Replicas) -> TunerState:
    """Return the state of a plan before its first step, from these members on."""
    return replace(state, wanted=held, groups=GroupMemory(held))
