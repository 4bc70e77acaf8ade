"""From replicas wanted to what the actuator is asked: which replicas leave, and what all of them cost. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Allocations

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


def leaving(
    replicas: Sequence[ObservedReplica], wanted: int, partitions: Mapping[str, int], draining: Collection[str]
) -> tuple[str, ...]:
    """Which replicas of one stage and hardware kind leave so that ``wanted`` stay.

    Each partition that moves costs a handover, so those with the fewest leave first, and among equals the
    youngest, which has done least to warm up. Waiting for a restart holds nothing and leaves before all.

    Args:
        replicas: of that stage and kind, oldest first.
        wanted: how many stay.
        partitions: how many each replica is to hold; a replica missing here holds none.
        draining: replicas that leave already; they do not count.
    """
    staying = [r for r in replicas if r.state != "retiring" and r.replica not in draining]
    order = sorted(staying, key=lambda r: (r.state != "waiting", partitions.get(r.replica, 0), -r.started_s))
    return tuple(r.replica for r in order[: max(0, len(staying) - wanted)])


def cost_per_hour(replicas: Sequence[ObservedReplica], catalogue: Catalogue) -> float:
    """Dollars per hour of every replica held: starting and leaving ones too, but no empty slot."""
    return sum(catalogue[r.hardware].price_per_hour for r in replicas if r.state != "waiting")
