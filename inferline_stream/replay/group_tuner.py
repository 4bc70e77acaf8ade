"""Our policy of consumer groups as `run` has it: a plan for the traffic before, and the slow loop that replaces it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from inferline_stream.calculus.envelope_state import EnvelopeKernel
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.policy_view import View
from inferline_stream.replay.scalers import Tuner, Wish
from inferline_stream.tuner.group_policy import group_step
from inferline_stream.tuner.group_replan import RECENT_S, GroupPlanning, begun, due_after_s, planned, taken_over


class GroupTuner:
    """Decides by a plan of groups, and plans again for the last hour's traffic.

    Args:
        found: the plan that it begins with.
        members: to begin with, by group.
        period_s: how often it decides.
        made_s: when that was made, of what came just before; None where its sample is other traffic.
        kernel: of the envelope.
    """

    name = "groups"

    def __init__(
        self,
        found: GroupPlanning,
        members: Mapping[str, int],
        *,
        period_s: float,
        made_s: float | None,
        kernel: EnvelopeKernel | None = None,
    ) -> None:
        model, sample_s = found.model, found.sample.arrivals_s
        wanted = {name: {model.hardware[name]: count} for name, count in members.items()}
        self.period_s, self._model, self._shortest_window_s = period_s, model, found.shortest_window_s
        self._tuner = Tuner(
            self.name, group_step, begun(found.state, wanted), model.shape, period_s=period_s, kernel=kernel
        )
        before_s = sample_s[:0] if made_s is None else sample_s - sample_s[-1] + made_s
        self._came = [before_s[before_s < 0]]
        self._due_s = due_after_s(0.0) if made_s is None else made_s + due_after_s(found.sample.duration_s)

    def decide(self, view: View) -> Wish | None:
        """One step of the policy, after the plan has been made again where that is due."""
        self._came.append(view.arrivals_s)
        if view.time_s >= self._due_s:
            self._plan(view.time_s)
        return self._tuner.decide(view)

    def _plan(self, now_s: float) -> None:
        came_s = np.concatenate(self._came)
        came_s = came_s[came_s > now_s - RECENT_S]
        self._came = [came_s]
        sample = Trace(came_s - came_s[0]) if came_s.size else Trace(came_s)
        self._due_s = now_s + due_after_s(sample.duration_s)
        if len(sample):
            try:
                state = planned(self._model, sample, shortest_window_s=self._shortest_window_s).state
            except Infeasible:
                return  # the plan in force stays
            self._tuner.state = taken_over(self._tuner.state, state)
