"""Replicas as numbers: what a plan asks for, what a machine carries, what all of them cost. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.pipeline.hardware import Catalogue, dollars_per_hour, share_gpus
from inferline_stream.pipeline.plan import Allocations, Plan
from inferline_stream.pipeline.spot import on_demand
from inferline_stream.tuner.plan_basis import Replicas

_ROUNDING = 1e-9


def replicas_of_plan(allocations: Allocations) -> dict[str, dict[str, int]]:
    """Replicas that a plan asks for."""
    wanted: dict[str, dict[str, int]] = {stage: {} for stage in allocations}
    for stage, kinds in allocations.items():
        for allocation in kinds:
            wanted[stage][allocation.hardware] = wanted[stage].get(allocation.hardware, 0) + allocation.replicas
    return wanted


def copied(replicas: Replicas) -> dict[str, dict[str, int]]:
    """The same replicas, to be changed."""
    return {stage: dict(kinds) for stage, kinds in replicas.items()}


def of_kinds(replicas: Replicas) -> Counter[str]:
    """Replicas of each hardware kind, of all stages."""
    counts: Counter[str] = Counter()
    for kinds in replicas.values():
        counts.update(kinds)
    return counts


def going_over(wanted: Replicas, plan: Plan, away: Collection[str] = ()) -> dict[str, dict[str, int]]:
    """Replicas to ask for when a plan comes into force, by stage and hardware kind.

    At least the plan's, and no fewer than now of a kind that stays: the Tuner gives back what the load does not need.
    On-demand replicas stand in for the plan's of spot kinds that are away.
    """
    found = {}
    for stage, held in plan.allocations.items():
        planned = {a.hardware: a.replicas for a in held}
        for kind in planned.keys() & set(away):
            planned[on_demand(kind)] = planned.get(on_demand(kind), 0) + planned[kind]
            planned[kind] = 0
        found[stage] = {kind: max(count, wanted.get(stage, {}).get(kind, 0)) for kind, count in planned.items()}
    return found


def cores_held(replicas: Replicas, catalogue: Catalogue) -> float:
    """Cores of all replicas together."""
    return sum(count * catalogue[kind].cores for kind, count in of_kinds(replicas).items())


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
    counts = of_kinds(held)
    found = {
        name: counts[name] + math.floor(left / kind.cores + _ROUNDING)
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
    counts, found = of_kinds(held), {}
    for name, kind in catalogue.items():
        if kind.gpu_stock is not None:
            sharing = [c for c in counts if share_gpus(catalogue[c].gpu_model, kind.gpu_model)]
            left = max(0.0, kind.gpu_stock - sum(catalogue[c].gpus_of(counts[c]) for c in sharing))
            # The rest of a device that is shared is for its own kind.
            places = math.ceil(counts[name] / kind.parts) + math.floor(left / kind.gpus_of(1) + _ROUNDING)
            most = places * kind.parts
            found[name] = most if kind.stock is None else min(most, kind.stock)
    return found


def within_cores(wanted: Replicas, before: Replicas, catalogue: Catalogue, cores: float) -> dict[str, dict[str, int]]:
    """Replicas wanted, less so many of those that are new that all of them fit.

    Args:
        wanted: by a decision.
        before: that were wanted until now.
        catalogue: hardware kinds.
        cores: most that all replicas together may have.
    """
    found = copied(wanted)
    while cores_held(found, catalogue) > cores + _ROUNDING:
        new = [
            (count - before.get(stage, {}).get(kind, 0), stage, kind)
            for stage, kinds in found.items()
            for kind, count in kinds.items()
            if catalogue[kind].cores > 0
        ]
        most, stage, kind = max(new, key=lambda each: each[0], default=(0, "", ""))
        if most <= 0:
            break
        found[stage][kind] -= 1
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
    return dollars_per_hour(Counter(r.hardware for r in replicas if r.state != "waiting"), catalogue)
