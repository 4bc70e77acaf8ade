"""Replicas as numbers: what a plan asks for, what a machine carries, what all of them cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Allocations, Plan

Replicas = Mapping[tuple[str, str], int]
"""(stage, hardware kind) → replicas."""


def replicas_of_plan(allocations: Allocations) -> dict[tuple[str, str], int]:
    """Replicas that a plan asks for."""
    wanted: dict[tuple[str, str], int] = {}
    for stage, kinds in allocations.items():
        for allocation in kinds:
            key = (stage, allocation.hardware)
            wanted[key] = wanted.get(key, 0) + allocation.replicas
    return wanted


def going_over(wanted: Replicas, plan: Plan) -> dict[str, dict[str, int]]:
    """Replicas to ask for when a plan comes into force, by stage and hardware kind.

    At least the plan's, and no fewer than now of a kind that stays: the Tuner gives back what the load does not need.
    """
    return {
        stage: {a.hardware: max(a.replicas, wanted.get((stage, a.hardware), 0)) for a in held}
        for stage, held in plan.allocations.items()
    }


def local_stock(allocations: Allocations, catalogue: Catalogue, cores: int) -> dict[str, int]:
    """Most replicas of each CPU kind without a stock of its own that one machine carries.

    More processes than cores only make each other slower. What the plan asks for is always allowed.

    Args:
        allocations: the plan's.
        catalogue: hardware kinds.
        cores: of the machine.
    """
    planned: dict[str, int] = {}
    for (_, kind), count in replicas_of_plan(allocations).items():
        planned[kind] = planned.get(kind, 0) + count
    return {
        name: max(planned.get(name, 0), int(cores / kind.cores))
        for name, kind in catalogue.items()
        if kind.stock is None and kind.cores > 0 and not kind.gpus
    }


def within(stock: Mapping[str, int], room: Mapping[str, int], catalogue: Catalogue) -> dict[str, int]:
    """Most replicas of each hardware kind, by what this place carries and by what it has room for now.

    Args:
        stock: of this place, where it differs from the catalogue's.
        room: places for replicas now, those taken included.
        catalogue: hardware kinds.
    """
    found = dict(stock)
    for kind, places in room.items():
        limits = [stock[kind]] if kind in stock else [catalogue[kind].stock] if kind in catalogue else []
        found[kind] = min([places, *(limit for limit in limits if limit is not None)])
    return found


def cost_per_hour(replicas: Sequence[ObservedReplica], catalogue: Catalogue) -> float:
    """Dollars per hour of every replica held: starting and leaving ones too, but no empty slot."""
    return sum(catalogue[r.hardware].price_per_hour for r in replicas if r.state != "waiting")
