"""Replicas as numbers: what a plan asks for, what a machine carries, what all of them cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.pipeline.hardware import Catalogue, share_gpus
from inferline_stream.pipeline.plan import Allocations, Plan

_ROUNDING = 1e-9

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


def cores_held(replicas: Replicas, catalogue: Catalogue) -> float:
    """Cores of all replicas together."""
    return sum(count * catalogue[kind].cores for (_, kind), count in replicas.items())


def stock_of_cores(held: Replicas, catalogue: Catalogue, cores: float) -> dict[str, int]:
    """Most replicas of each kind that takes cores, if only that kind grows: those held, and what the rest has room for.

    Args:
        held: replicas wanted now. They stay allowed, however many.
        catalogue: hardware kinds.
        cores: most that all replicas together may have.
    """
    if math.isinf(cores):
        return {}
    left = max(0.0, cores - cores_held(held, catalogue))
    counts: dict[str, int] = {}
    for (_, kind), count in held.items():
        counts[kind] = counts.get(kind, 0) + count
    found = {
        name: counts.get(name, 0) + math.floor(left / kind.cores + _ROUNDING)
        for name, kind in catalogue.items()
        if kind.cores > 0
    }
    return {
        name: most if (stock := catalogue[name].stock) is None else min(most, stock) for name, most in found.items()
    }


def stock_of_gpus(held: Replicas, catalogue: Catalogue) -> dict[str, int]:
    """Most replicas of each kind that takes GPUs which others may have, too, if only that kind grows.

    Args:
        held: replicas wanted now. They stay allowed, however many.
        catalogue: hardware kinds.
    """
    counts: dict[str, int] = {}
    for (_, name), count in held.items():
        counts[name] = counts.get(name, 0) + count
    found = {}
    for name, kind in catalogue.items():
        if kind.gpu_stock is not None:
            sharing = [c for c in counts if share_gpus(catalogue[c].gpu_model, kind.gpu_model)]
            left = max(0.0, kind.gpu_stock - sum(counts[c] * catalogue[c].gpus for c in sharing))
            most = counts.get(name, 0) + math.floor(left / kind.gpus + _ROUNDING)
            found[name] = most if kind.stock is None else min(most, kind.stock)
    return found


def within_cores(wanted: Replicas, before: Replicas, catalogue: Catalogue, cores: float) -> dict[tuple[str, str], int]:
    """Replicas wanted, less so many of those that are new that all of them fit.

    Args:
        wanted: by a decision.
        before: that were wanted until now.
        catalogue: hardware kinds.
        cores: most that all replicas together may have.
    """
    found = dict(wanted)
    while cores_held(found, catalogue) > cores + _ROUNDING:
        new = {key: count - before.get(key, 0) for key, count in found.items() if catalogue[key[1]].cores > 0}
        most = max(new, key=lambda key: new[key], default=None)
        if most is None or new[most] <= 0:
            break
        found[most] -= 1
    return found


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
