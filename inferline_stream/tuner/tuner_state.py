"""What a policy remembers from one step to the next, and what it has learned of the noise in its traffic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.plan_basis import Basis, Replicas, basis_of
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import Staffing

REVERSAL_S = 60.0
"""A stage whose replicas go the other way within this time has changed its mind."""

FREE = 6.0
"""Reversals of all stages together that change nothing: an hour of calm traffic may cause as many."""

GROWTH, MOST = 4.0, 2.0
"""Each one beyond those makes the wait four times as long, and the second is the last one that does: half a minute
grows to eight. With two minutes a day of web traffic has 80 reversals, with four 40, with eight 16."""

FORGIVEN_S = 8 * 3600.0
"""Within this time a reversal is forgiven: traffic that was noisy in the morning mostly is so at noon."""


@dataclass(frozen=True, slots=True)
class Patience:
    """What the policy has learned of the noise in its traffic.

    Args:
        reversals: of calm traffic, that were not forgiven when the last one came.
        counted_s: when that was.
        moved: by stage, whether its last change was for more replicas, and when that was.
    """

    reversals: float = 0.0
    counted_s: float = 0.0
    moved: Mapping[str, tuple[bool, float]] = field(default_factory=dict)

    def wait_s(self, now_s: float, shortest_s: float) -> float:
        """How long a stage waits now, given how long it waits where there are no reversals."""
        return shortest_s * math.pow(GROWTH, max(self._left(now_s) - FREE, 0.0))

    def after(self, held: Replicas, wanted: Replicas, now_s: float, *, calm: bool) -> Patience:
        """What is known after a decision.

        Args:
            held: replicas wanted before.
            wanted: replicas wanted from now on.
            now_s: the time.
            calm: whether traffic neither leapt nor outgrew the plan lately. Where it did, replicas that come and go
                are no noise.
        """
        moved, reversals = dict(self.moved), 0
        for stage, kinds in wanted.items():
            change = sum(kinds.values()) - sum(held[stage].values())
            if change == 0:
                continue
            grows = change > 0
            grew, moved_s = moved.get(stage, (grows, now_s))
            reversals += grew is not grows and now_s - moved_s < REVERSAL_S
            moved[stage] = grows, now_s
        if not reversals or not calm:
            return Patience(self.reversals, self.counted_s, moved)
        return Patience(min(self._left(now_s) + reversals, FREE + MOST), now_s, moved)

    def _left(self, now_s: float) -> float:
        return max(self.reversals - (now_s - self.counted_s) / FORGIVEN_S, 0.0)


@dataclass(frozen=True, slots=True)
class TunerState:
    """Memory of a policy; give back the newest one to the next step.

    Args:
        basis: what is known from the plan.
        wanted: replicas asked for last, by stage and hardware kind; kinds without any are listed with 0.
        time_s: time of the last observation; None before the first.
        changed_s: time of the last change of any stage (of the first observation if none).
        patience: how long stages wait before they give replicas back.
        fits_since_s: by stage, since when its load has fitted fewer replicas without a break.
        below_since_s: by stage, since when it has needed less than plan and insurance give, without a break.
        leapt_s: when traffic last leapt, in the sample or live: see `PolicySettings.plan_memory_s`.
        outgrown_s: when arrivals were last beyond the plan, or the beginning: see `PolicySettings.calm_memory_s`.
        rises: the largest that were seen when traffic leapt live (`tuner.forecast.rises`); empty before it has.
        leap: arrivals in each second of a leap that goes on, from half a minute before it was seen; empty if none does.
        leap_counted_s: until when they were counted.
        reported: conditions that were reported, and when each was last seen.
        blind_until_s: nothing is scaled down before this time: what was seen since a gap is too short.
    """

    basis: Basis
    wanted: Replicas
    time_s: float | None = None
    changed_s: float = -math.inf
    patience: Patience = field(default_factory=Patience)
    fits_since_s: Mapping[str, float] = field(default_factory=dict)
    below_since_s: Mapping[str, float] = field(default_factory=dict)
    leapt_s: float = -math.inf
    outgrown_s: float = -math.inf
    rises: tuple[float, ...] = ()
    leap: tuple[int, ...] = ()
    leap_counted_s: float = -math.inf
    reported: Mapping[tuple[Reason, str], float] = field(default_factory=dict)
    blind_until_s: float = -math.inf

    @property
    def windows_s(self) -> tuple[float, ...]:
        """Windows that the envelope of an observation must have."""
        return self.basis.windows_s


def staffed(state: TunerState, staffing: Staffing) -> TunerState:
    """The state that decides by this table from now on; it was made for the plan in force."""
    state = replace(state, basis=replace(state.basis, staffing=staffing))
    if staffing.surges and state.time_s is not None:
        state = replace(state, leapt_s=state.time_s)
    return state


def initial_state(
    plan: Plan,
    measured: PipelineProfile,
    catalogue: Catalogue,
    *,
    objective: float = 0.99,
    shortest_window_s: float = 0.0,
    held: Replicas | None = None,
    staffing: Staffing | None = None,
    knobs: PolicySettings | None = None,
) -> TunerState:
    """The state before the first step.

    Args:
        plan: see `basis_of`.
        measured: see `basis_of`.
        catalogue: see `basis_of`.
        objective: see `basis_of`.
        shortest_window_s: see `basis_of`.
        held: replicas wanted at present, where they are not the plan's (after a restart).
        staffing: see `Basis`.
        knobs: see `Basis`.
    """
    basis = basis_of(
        plan,
        measured,
        catalogue,
        objective=objective,
        shortest_window_s=shortest_window_s,
        staffing=staffing,
        knobs=knobs,
    )
    wanted = basis.planned()
    for stage, by_hardware in (held or {}).items():
        for hardware, replicas in by_hardware.items():
            if hardware in wanted.get(stage, {}):
                wanted[stage][hardware] = replicas
    return TunerState(basis, wanted)
