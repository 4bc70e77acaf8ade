"""From throughput needed to replicas of each hardware kind: which to add, which to give back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferline_stream.pipeline.assignment import even_replicas
from inferline_stream.tuner.basis import Kind, StageBasis
from inferline_stream.tuner.decision import Reason

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


def supply(stage: StageBasis, replicas: Mapping[str, int], throughputs: Mapping[str, float]) -> float:
    """Events per second that the replicas give, each holding whole partitions."""
    total, given = 0, 0.0
    for hardware, count in replicas.items():
        total += count
        given += count * throughputs[hardware]
    if stage.partitions is None or not total:
        return given
    return given * even_replicas(stage.partitions, total) / total


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

    Each time the kind is added that would close the gap for the least money. With partitions, replicas
    are added until the busiest one holds fewer of them (its rungs): between those counts they would cost and
    not help.

    Args:
        stage: the kinds it may run on.
        held: replicas by kind.
        throughputs: µ of one replica by kind, as it is now.
        needed: events per second.
        stock: replicas by kind that can still be added; a kind missing here has no limit.
        maximum: most replicas in all.
    """
    now = {kind.hardware: held.get(kind.hardware, 0) for kind in stage.kinds}
    useful = dict(now)
    left = dict(stock)
    short: Reason | None = None
    while (given := supply(stage, now, throughputs)) < needed * (1 - _ROUNDING):
        total = sum(now.values())
        if maximum is not None and total >= maximum:
            short = Reason.LIMIT_CHANGED
            break
        if stage.partitions is not None and total >= stage.partitions:
            short = Reason.PARTITIONS_EXHAUSTED
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
        if supply(stage, now, throughputs) > supply(stage, useful, throughputs) * (1 + _ROUNDING):
            useful = dict(now)
    return Fit(useful if short else now, short)


def fewer(
    stage: StageBasis, held: Mapping[str, int], throughputs: Mapping[str, float], needed: float, minimum: int = 1
) -> dict[str, int]:
    """The replicas held less those without which the rest still give the supply needed, dearest first."""
    now = {kind.hardware: held.get(kind.hardware, 0) for kind in stage.kinds}
    for kind in _dearest_first(stage, throughputs):
        while now[kind.hardware] > 0 and sum(now.values()) > minimum:
            now[kind.hardware] -= 1
            if supply(stage, now, throughputs) < needed * (1 - _ROUNDING):
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
        minimum: fewest replicas; more than there are partitions or stock for are not asked for.
        maximum: most replicas; None for no limit.
        stock: replicas by kind that can still be added.
    """
    now, left = dict(held), dict(stock)
    dearest = _dearest_first(stage, throughputs)
    for kind in reversed(dearest):
        room = left.get(kind.hardware, minimum)
        now[kind.hardware] += max(min(min(minimum, stage.partitions or minimum) - sum(now.values()), room), 0)
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
