"""From throughput needed to replicas of each hardware kind: which to add, which to give back."""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.mixture import following, leaving, mixture
from inferline_stream.tuner.plan_basis import StageBasis

_ROUNDING = 1e-9


class Fit(Struct, frozen=True):
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
    """The replicas held and as few more, in the plan's mixture, as give the supply needed.

    Args:
        stage: the kinds it may run on.
        held: replicas by kind.
        throughputs: µ of one replica by kind, as it is now.
        needed: events per second.
        stock: replicas by kind that can still be added; a kind missing here has no limit.
        maximum: most replicas in all.
    """
    now = {kind.hardware: held.get(kind.hardware, 0) for kind in stage.kinds}
    enough = _enough(stage, throughputs, needed)
    given, left = supply(now, throughputs), dict(stock)
    short: Reason | None = None
    while given < enough:
        if maximum is not None and sum(now.values()) >= maximum:
            short = Reason.LIMIT_CHANGED
            break
        if stage.most_replicas is not None and sum(now.values()) >= stage.most_replicas:
            short = Reason.SERVER_LIMIT
            break
        kinds = [kind for kind in now if left.get(kind, 1) > 0 and throughputs[kind] > 0]
        if not kinds:
            short = Reason.STOCK_EXHAUSTED
            break
        chosen = following(stage.mixture, now, kinds)
        now[chosen] += 1
        given += throughputs[chosen]
        if chosen in left:
            left[chosen] -= 1
    return Fit(now, short)


def fewer(
    stage: StageBasis, held: Mapping[str, int], throughputs: Mapping[str, float], needed: float, minimum: int = 1
) -> dict[str, int]:
    """The replicas held less those, by the plan's mixture, without which the rest still give the supply needed."""
    now = {kind.hardware: held.get(kind.hardware, 0) for kind in stage.kinds}
    enough, given = _enough(stage, throughputs, needed), supply(now, throughputs)
    while sum(now.values()) > minimum:
        kind = _first_to_go(stage, now, throughputs)
        given -= throughputs[kind]
        if given < enough:
            break
        now[kind] -= 1
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
    """The replicas held, brought between the limits that people set, by the plan's mixture.

    Args:
        stage: the kinds it may run on.
        held: replicas by kind.
        throughputs: µ of one replica by kind.
        minimum: fewest replicas; more than there is stock for are not asked for.
        maximum: most replicas; None for no limit.
        stock: replicas by kind that can still be added.
    """
    now, left = dict(held), dict(stock)
    while sum(now.values()) < minimum and (kinds := [kind for kind in now if left.get(kind, 1) > 0]):
        chosen = following(stage.mixture, now, [kind for kind in kinds if throughputs[kind] > 0] or kinds)
        now[chosen] += 1
        if chosen in left:
            left[chosen] -= 1
    while maximum is not None and sum(now.values()) > maximum:
        now[_first_to_go(stage, now, throughputs)] -= 1
    return now


def _enough(stage: StageBasis, throughputs: Mapping[str, float], needed: float) -> float:
    """Supply that the plan's mixture gives with as many replicas as the need takes, each of the mixture's mean.

    So the tables of staffing are counted: their figures are numbers of replicas of the mean.
    """
    if len(stage.kinds) == 1:
        return needed * (1 - _ROUNDING)
    planned = {kind: count for kind, count in stage.mixture.items() if count and throughputs[kind] > 0}
    if len(planned) > 1:
        mean = supply(planned, throughputs) / sum(planned.values())
        needed = supply(mixture(planned, math.ceil(needed / mean * (1 - _ROUNDING))), throughputs)
    return needed * (1 - _ROUNDING)


def _first_to_go(stage: StageBasis, held: Mapping[str, int], throughputs: Mapping[str, float]) -> str:
    """The kind that goes first: one that does nothing just now, else by the plan's mixture."""
    kinds = [kind for kind, count in held.items() if count]
    if len(kinds) == 1:
        return kinds[0]
    return leaving(stage.mixture, held, [kind for kind in kinds if not throughputs[kind]] or kinds)
