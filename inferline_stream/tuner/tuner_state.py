"""What a policy remembers from one step to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from msgspec import Struct, field, structs

from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.group_changes import GroupMemory
from inferline_stream.tuner.levels import LevelChoice
from inferline_stream.tuner.odds import TrafficRecord
from inferline_stream.tuner.plan_basis import Basis, Replicas, basis_of
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import Staffing


class TunerState(Struct, frozen=True):
    """Memory of a policy; give back the newest one to the next step.

    Args:
        basis: what is known from the plan.
        wanted: replicas asked for last, by stage and hardware kind; kinds without any are listed with 0.
        time_s: time of the last observation; None before the first.
        changed_s: time of the last change of any stage (of the first observation if none).
        degraded_since_s: by stage, since when its fallback has made more of the events than it is there for.
        fits_since_s: by stage, since when its load has fitted fewer replicas; unseen time moves it on.
        outgrown_s: when arrivals were last beyond the plan and not known by the record, or the beginning: see
            `PolicySettings.beginning_s`.
        leapt_s: when more came than could be foreseen, in the sample or live: see `PolicySettings.leap_memory_s`.
        record: what came of what was expected, in the sample and since; None without a table of staffing.
        expected: the moments of which it is not known yet what comes: when, what was expected, the most that was
            foreseen, and how much more the calendar expected; all in the record's unit.
        choice: the level chosen last; None before the first.
        chosen_s: the second it was chosen in.
        reported: conditions that were reported, and when each was last seen.
        used_s: by stage that may sleep, when it last had something to do.
        woken_s: when a pipeline that slept was last woken: what was expected before says nothing of what comes.
        noticed: by stage and spot kind, how many replicas had got a notice when last seen.
        away_until_s: by spot kind that was taken away, when it is asked for again.
        blind_until_s: nothing is scaled down before this time: what was seen since a gap is too short.
        groups: of consumer groups, what their policy remembers beside this; None of stages.
    """

    basis: Basis
    wanted: Replicas
    time_s: float | None = None
    changed_s: float = -math.inf
    fits_since_s: Mapping[str, float] = field(default_factory=dict)
    degraded_since_s: Mapping[str, float] = field(default_factory=dict)
    outgrown_s: float = -math.inf
    leapt_s: float = -math.inf
    record: TrafficRecord | None = None
    expected: tuple[tuple[float, float, float, float], ...] = ()
    choice: LevelChoice | None = None
    chosen_s: int = -1
    reported: Mapping[tuple[Reason, str], float] = field(default_factory=dict)
    used_s: Mapping[str, float] = field(default_factory=dict)
    woken_s: float = -math.inf
    noticed: Mapping[tuple[str, str], int] = field(default_factory=dict)
    away_until_s: Mapping[str, float] = field(default_factory=dict)
    blind_until_s: float = -math.inf
    groups: GroupMemory | None = None

    @property
    def windows_s(self) -> tuple[float, ...]:
        """Windows that the envelope of an observation must have."""
        return self.basis.windows_s

    @property
    def sleeping(self) -> frozenset[str]:
        """Stages that have no replica since nothing came to them."""
        return frozenset(name for name in self.basis.idle if not any(self.wanted[name].values()))


def staffed(state: TunerState, staffing: Staffing) -> TunerState:
    """The state that decides by this table and its record from now on; it was made for the plan in force."""
    basis = replace(state.basis, staffing=staffing)
    return structs.replace(state, basis=basis, record=staffing.record, expected=(), choice=None)


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
    return TunerState(basis, wanted, record=None if staffing is None else staffing.record)
