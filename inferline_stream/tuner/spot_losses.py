"""Spot capacity that goes and comes back: what is still held, and what may be asked for meanwhile. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from inferline_stream.pipeline.spot import Spot, on_demand
from inferline_stream.pipeline.units import count_of, format_duration
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.mixture import mixture
from inferline_stream.tuner.observation import Observation
from inferline_stream.tuner.plan_basis import Replicas
from inferline_stream.tuner.tuner_state import TunerState

AWAY_S = 600.0
"""So long after a notice a spot kind is not asked for again: what is taken away is wanted by others."""

_ROUNDING = 1e-9


class SpotSupply(Struct, frozen=True):
    """What is left of what was asked for.

    Args:
        held: replicas by stage and hardware kind, less those that have got a notice: they work on until they are
            taken, and are replaced now.
        stock: most replicas of a kind, where a loss bounds it.
        why: by stage that loses replicas or gets them back, the reason and its words.
    """

    held: Replicas
    stock: Mapping[str, int] = {}
    why: Mapping[str, tuple[Reason, str]] = {}


def spot_supply(state: TunerState, seen: Observation) -> tuple[TunerState, SpotSupply]:
    """Return what is held beside what has got a notice, and the state that remembers which notices were seen.

    Args:
        state: from the step before.
        seen: the pipeline now.
    """
    if not state.basis.spot:
        return state, SpotSupply(state.wanted)
    now_s, away_s = seen.time_s, dict(state.away_until_s)
    for kind in state.basis.spot.keys() & seen.away_until_s.keys():  # also where no replica of it had the notice
        away_s[kind] = max(seen.away_until_s[kind], away_s.get(kind, 0.0))
    held = {stage: dict(kinds) for stage, kinds in state.wanted.items()}
    noticed, why = {}, {}
    for stage, kinds in held.items():
        for kind in [kind for kind in kinds if kind in state.basis.spot]:
            there = seen.stages[stage].supply.get(kind) if stage in seen.stages else None
            noticed[stage, kind] = leaving = 0 if there is None else there.leaving
            # Notices of replicas that are gone already, or that nobody wants any more, take none away.
            new = min(leaving - state.noticed.get((stage, kind), 0), kinds[kind])
            if new > 0:
                spot = state.basis.spot[kind]
                kinds[kind] -= new
                away_s[kind] = max(now_s + spot.notice_s + AWAY_S, away_s.get(kind, 0.0))
                why[stage] = Reason.SPOT_LOST, _lost(kind, new, spot)
    for kind in [kind for kind, until_s in away_s.items() if until_s <= now_s]:
        del away_s[kind]
        why |= _come_back(state, seen, held, kind)
    counts = sum((Counter(kinds) for kinds in held.values()), Counter[str]())
    stock: dict[str, int] = {}
    for kind in away_s:
        stock[kind] = counts[kind]
        most, price = state.basis.spot[kind].most, _price(state, on_demand(kind))
        if most is not None and price > 0:
            stock[on_demand(kind)] = max(math.floor(most / price + _ROUNDING), counts[on_demand(kind)])
    return replace(state, noticed=noticed, away_until_s=away_s), SpotSupply(held, stock, why)


def _come_back(
    state: TunerState, seen: Observation, held: Mapping[str, dict[str, int]], kind: str
) -> dict[str, tuple[Reason, str]]:
    """Ask for the plan's part of a spot kind again; what stands in for it goes once it is ready.

    No more than there is stock for, nor than people allow beside what stands in: that would have to go at once.
    """
    why = {}
    stock = seen.stock.get(kind, state.basis.stock.get(kind))
    left = math.inf if stock is None else stock - sum(kinds.get(kind, 0) for kinds in held.values())
    for stage in state.basis.stages:
        total = sum(held[stage.name].values())
        if not total or not stage.mixture.get(kind):
            continue
        maximum = seen.limits[stage.name].maximum if stage.name in seen.limits else None
        room = left if maximum is None else min(left, maximum - total)
        missing = int(min(mixture(stage.mixture, total)[kind] - held[stage.name][kind], room))
        if missing > 0:
            held[stage.name][kind] += missing
            left -= missing
            why[stage.name] = Reason.SPOT_BACK, f"{kind} has been away for {format_duration(AWAY_S)}: it is asked again"
    return why


def _lost(kind: str, count: int, spot: Spot) -> str:
    words = f"{count_of(count, 'replica')} of {kind} will be taken within {spot.notice}; others are asked for now"
    return words if spot.most is None else f"{words}, for at most ${spot.most:g}/h of {on_demand(kind)}"


def _price(state: TunerState, hardware: str) -> float:
    prices = [kind.price_per_hour for stage in state.basis.stages for kind in stage.kinds if kind.hardware == hardware]
    return prices[0] if prices else 0.0
