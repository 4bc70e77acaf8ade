"""From throughput needed to replicas of each hardware kind: which to add, which to give back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.plan_basis import Kind, StageBasis

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Fit:
    """Replicas of a stage.

    Args:
        replicas: by hardware kind.
        short: why they give less than was needed; None if they suffice.
    """

    replicas: dict[str, int]
    short: Reason | None = None


def supply(replicas: Mapping[str, int], throughputs: Mapping[str, float]) -> float:
    """Events per second that the replicas give."""
    return sum([count * throughputs[hardware] for hardware, count in replicas.items()])


def more(
    stage: StageBasis,
    held: Mapping[str, int],
    throughputs: Mapping[str, float],
    needed: float,
    *,
    stock: Mapping[str, int],
    maximum: int | None = None,
) -> Fit:
    """The replicas held and as few dollars more as give the supply needed.

    Each time the kind is added that would close the gap for the least money.

    Args:
        stage: the kinds it may run on.
        held: replicas by kind.
        throughputs: µ of one replica by kind, as it is now.
        needed: events per second.
        stock: replicas by kind that can still be added; a kind missing here has no limit.
        maximum: most replicas in all.
    """
    now = {kind.hardware: held.get(kind.hardware, 0) for kind in stage.kinds}
    left = dict(stock)
    short: Reason | None = None
    while (given := supply(now, throughputs)) < needed * (1 - _ROUNDING):
        if maximum is not None and sum(now.values()) >= maximum:
            short = Reason.LIMIT_CHANGED
            break
        if stage.most_replicas is not None and sum(now.values()) >= stage.most_replicas:
            short = Reason.SERVER_LIMIT
            break
        kinds = [kind for kind in stage.kinds if left.get(kind.hardware, 1) > 0 and throughputs[kind.hardware] > 0]
        if not kinds:
            short = Reason.STOCK_EXHAUSTED
            break
        gap = needed - given
        chosen = min(kinds, key=lambda k: (k.price_per_hour * math.ceil(gap / throughputs[k.hardware]), -k.throughput))
        now[chosen.hardware] += 1
        if chosen.hardware in left:
            left[chosen.hardware] -= 1
    return Fit(now, short)


def fewer(
    stage: StageBasis, held: Mapping[str, int], throughputs: Mapping[str, float], needed: float, minimum: int = 1
) -> dict[str, int]:
    """The replicas held less those without which the rest still give the supply needed, dearest first."""
    now = {kind.hardware: held.get(kind.hardware, 0) for kind in stage.kinds}
    for kind in _dearest_first(stage, throughputs):
        while now[kind.hardware] > 0 and sum(now.values()) > minimum:
            now[kind.hardware] -= 1
            if supply(now, throughputs) < needed * (1 - _ROUNDING):
                now[kind.hardware] += 1
                break
    return now


def within(
    stage: StageBasis,
    held: Mapping[str, int],
    throughputs: Mapping[str, float],
    *,
    minimum: int,
    maximum: int | None,
    stock: Mapping[str, int],
) -> dict[str, int]:
    """The replicas held, brought between the limits that people set: the cheapest are added, the dearest taken away.

    Args:
        stage: the kinds it may run on.
        held: replicas by kind.
        throughputs: µ of one replica by kind.
        minimum: fewest replicas; more than there is stock for are not asked for.
        maximum: most replicas; None for no limit.
        stock: replicas by kind that can still be added.
    """
    now, left = dict(held), dict(stock)
    dearest = _dearest_first(stage, throughputs)
    for kind in reversed(dearest):
        room = left.get(kind.hardware, minimum)
        now[kind.hardware] += max(min(minimum - sum(now.values()), room), 0)
    for kind in dearest:
        surplus = max(sum(now.values()) - maximum, 0) if maximum is not None else 0
        now[kind.hardware] -= min(surplus, now[kind.hardware])
    return now


def _dearest_first(stage: StageBasis, throughputs: Mapping[str, float]) -> Sequence[Kind]:
    """Kinds by what an event costs on them, the dearest first."""
    if len(stage.kinds) == 1:
        return stage.kinds
    cost = {
        k.hardware: k.price_per_hour / throughputs[k.hardware] if throughputs[k.hardware] else math.inf
        for k in stage.kinds
    }
    return sorted(stage.kinds, key=lambda kind: cost[kind.hardware], reverse=True)
