"""How much of a plan may be spot capacity, and what comes of the hour in which it is taken away. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Allocation, Allocations, Plan, cost_per_hour
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape
from inferline_stream.pipeline.spot import is_spot, on_demand
from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.units import count_of, format_duration
from inferline_stream.replay.loop import Conditions, Loss, replay
from inferline_stream.replay.scalers import Tuner
from inferline_stream.tuner.policy import initial_state, step
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.spot_losses import AWAY_S

_HOUR_S = 3600.0
_BEFORE_S, _AFTER_S = 10.0, 60.0
"""Replayed before a notice, and after its replacements work."""

_STEP_S = 0.25
_BARE = PolicySettings(insurance=(), beginning_s=0.0)
"""The plan's replicas alone: a reserve that a beginning holds would cover for what is taken."""


@dataclass(frozen=True, slots=True)
class SpotLoss:
    """What the hour is like in which a spot kind goes at once, at the busiest moment of the sample.

    Args:
        hardware: the kind.
        replicas: of it, over all stages.
        every_h: hours from one such hour to the next, in the mean; infinite where it never goes.
        notice_s: that its replicas get.
        late: share of the hour's events that are late by it.
        cost_per_hour: dollars of that hour, if on-demand replicas stand in for all of it.
    """

    hardware: str
    replicas: int
    every_h: float
    notice_s: float
    late: float
    cost_per_hour: float


@dataclass(frozen=True, slots=True)
class SpotMix:
    """A plan with as much spot capacity as its objective allows.

    Args:
        plan: the plan.
        on_demand_per_hour: dollars per hour of the same replicas without any.
        losses: the hour in which each spot kind goes.
        safer_per_hour: dollars per hour with the next larger part on demand; None where all of it is.
        safer_late: what `SpotLoss.late` would be then, of the worst kind.
    """

    plan: Plan
    on_demand_per_hour: float
    losses: tuple[SpotLoss, ...]
    safer_per_hour: float | None = None
    safer_late: float = 0.0

    def in_words(self) -> str:
        """Say what it saves, and the worst hour."""
        cost = self.plan.cost_per_hour
        saved = 1 - cost / self.on_demand_per_hour if self.on_demand_per_hour else 0.0
        if not self.losses:
            return (
                f"Spot: none, all is on demand for ${cost:.4f}/h. More events would be late in the hour in which spot "
                "goes than the objective allows: replicas start too slowly, or `most` is too little for those needed."
            )
        words = f"Spot: ${cost:.4f}/h, {saved:.0%} less than ${self.on_demand_per_hour:.4f}/h on demand."
        for loss in self.losses:
            often = f"about every {loss.every_h:.3g} h" if math.isfinite(loss.every_h) else "never, as declared"
            words += (
                f" {loss.hardware} ({count_of(loss.replicas, 'replica')}) goes {often}, with "
                f"{format_duration(loss.notice_s)} of notice: {loss.late:.2%} of the events of that hour "
                f"are late by it, and on-demand replicas cost up to ${loss.cost_per_hour:.4f}/h until it is back."
            )
        if self.safer_per_hour is not None:
            words += (
                f" To promise more: ${self.safer_per_hour:.4f}/h with the next part on demand, and "
                f"{self.safer_late:.2%} late."
            )
        return words

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        names = ("on_demand_per_hour", "losses", "safer_per_hour", "safer_late")
        return {name: getattr(self, name) for name in names}


def spot_mix(
    plan: Plan, shape: Shape, measured: PipelineProfile, catalogue: Catalogue, *, trace: Trace, objective: float
) -> SpotMix | None:
    """Move as few spot replicas to on-demand as the objective needs in the hour in which a spot kind goes.

    A kind and its spot capacity are equally fast, so the plan's latencies stay as they are. Replicas of a kind go in
    all stages at once.

    Args:
        plan: with any part of spot.
        shape: the DAG.
        measured: profiles of both.
        catalogue: prices, and how spot goes.
        trace: arrivals; repeated where they are too short.
        objective: share of the hour's events that must meet the SLO.

    Returns:
        The plan, and what comes of it; None where no spot kind is among its hardware.
    """
    kinds = sorted({a.hardware for held in plan.allocations.values() for a in held if is_spot(a.hardware)})
    if not kinds:
        return None
    totals = [n for held in _kept(plan.allocations, 0.0).values() for a in held if (n := a.replicas)]
    parts = sorted({k / n for n in totals for k in range(n + 1)})
    busiest = _Hour(shape, measured, catalogue, trace)
    found: dict[int, tuple[Plan, tuple[SpotLoss, ...]]] = {}

    def tried(at: int) -> tuple[Plan, tuple[SpotLoss, ...]]:
        if at not in found:
            allocations = _kept(plan.allocations, parts[at])
            mixed = replace(plan, allocations=allocations, cost_per_hour=cost_per_hour(allocations, catalogue))
            found[at] = mixed, tuple(busiest.without(mixed, kind) for kind in kinds if _count(mixed, kind))
        return found[at]

    low, high = 0, len(parts) - 1  # with all of it on demand nothing is lost
    while low < high:
        middle = (low + high) // 2
        if max((loss.late for loss in tried(middle)[1]), default=0.0) <= 1 - objective:
            high = middle
        else:
            low = middle + 1
    mixed, losses = tried(low)
    alone = cost_per_hour(_kept(plan.allocations, 1.0), catalogue)
    if low + 1 >= len(parts):
        return SpotMix(mixed, alone, losses)
    safer, then = tried(low + 1)
    return SpotMix(mixed, alone, losses, safer.cost_per_hour, max((loss.late for loss in then), default=0.0))


def _kept(allocations: Allocations, part: float) -> dict[str, tuple[Allocation, ...]]:
    """Such a part of each kind's replicas, its spot capacity among them, on demand: rounded up."""
    found: dict[str, tuple[Allocation, ...]] = {}
    for stage, held in allocations.items():
        by_kind = {a.hardware: a for a in held}
        for spot in [a for a in held if is_spot(a.hardware)]:
            base = by_kind.get(on_demand(spot.hardware), replace(spot, hardware=on_demand(spot.hardware), replicas=0))
            total = base.replicas + spot.replicas
            kept = math.ceil(part * total - 1e-9)
            by_kind[base.hardware] = replace(base, replicas=kept, hold_s=spot.hold_s)
            by_kind[spot.hardware] = replace(spot, replicas=total - kept)
        found[stage] = tuple(by_kind.values())
    return found


def _count(plan: Plan, kind: str) -> int:
    return sum(a.replicas for held in plan.allocations.values() for a in held if a.hardware == kind)


class _Hour:
    """The sample's busiest moment, in which a spot kind goes."""

    def __init__(self, shape: Shape, measured: PipelineProfile, catalogue: Catalogue, trace: Trace) -> None:
        self._shape, self._measured, self._catalogue, self._trace = shape, measured, catalogue, trace
        self._late_anyhow: dict[str, int] = {}
        """By spot kind, events late around its loss if it stays: as many whichever part of it is on demand."""

    def without(self, plan: Plan, kind: str) -> SpotLoss:
        spot = self._catalogue[kind].spot
        assert spot is not None, "it is a spot kind"
        start_up_s = max(
            self._measured.profiles[stage, on_demand(kind)].start_up_s
            for stage, held in plan.allocations.items()
            if any(a.hardware == kind for a in held)
        )
        lead_s = start_up_s + _BARE.reaction_s
        notice_s = min(spot.notice_s, lead_s + 1.0)  # what it is longer by changes nothing
        # Where people bound what stands in, it may be too little for as long as spot is away.
        after_s = lead_s + (_AFTER_S if spot.most is None else AWAY_S)
        trace, taken_s = _around(self._trace, max(lead_s - notice_s, 1.0), _BEFORE_S + notice_s, after_s)
        loss = Loss(taken_s - notice_s, kind, notice_s, away_s=_HOUR_S)
        if kind not in self._late_anyhow:
            self._late_anyhow[kind] = self._late(plan, trace, [])
        late = self._late(plan, trace, [loss]) - self._late_anyhow[kind]
        events = max(self._trace.arrival_rate * _HOUR_S, 1.0)
        price, own = self._catalogue[on_demand(kind)].price_per_hour, _count(plan, on_demand(kind))
        instead = _count(plan, kind) * price
        if spot.most is not None:
            instead = min(instead, max(0.0, spot.most - own * price))
        dear = plan.cost_per_hour - _count(plan, kind) * self._catalogue[kind].price_per_hour + instead
        every_h = 1 / spot.losses_per_hour if spot.losses_per_hour else math.inf
        return SpotLoss(kind, _count(plan, kind), every_h, spot.notice_s, max(late, 0) / events, dear)

    def _late(self, plan: Plan, trace: Trace, losses: Sequence[Loss]) -> int:
        state = initial_state(plan, self._measured, self._catalogue, knobs=_BARE)
        tuner = Tuner("tuner", step, state, self._shape, period_s=_STEP_S)
        return replay(
            self._shape, plan.allocations, self._measured, trace, tuner, catalogue=self._catalogue, slo_s=plan.slo_s,
            slots=plan.slots, order=plan.order, planned_rate=plan.arrival_rate, conditions=Conditions(step_s=_STEP_S),
            losses=losses,
        ).late  # fmt: skip


def _around(trace: Trace, gap_s: float, before_s: float, after_s: float) -> tuple[Trace, float]:
    """Arrivals around the busiest gap of a trace that is repeated for ever, and when that gap begins in them."""
    period_s = max(trace.duration_s + 1 / max(trace.arrival_rate, 1e-9), 1e-3)
    own = trace.arrivals_s - trace.arrivals_s[0]
    times = math.ceil((before_s + gap_s + after_s) / period_s) + 1
    whole = np.concatenate([own + k * period_s for k in range(-times, times + 1)])
    counts = np.searchsorted(whole, own + gap_s, side="left") - np.searchsorted(whole, own, side="left")
    begins_s = float(own[int(np.argmax(counts))])
    piece = whole[(whole >= begins_s - before_s) & (whole < begins_s + gap_s + after_s)]
    return Trace(piece - (begins_s - before_s)), before_s
