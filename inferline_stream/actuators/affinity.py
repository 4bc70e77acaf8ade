"""Which cores a replica is kept to, in the profile as in a run, so that one of `cpu-1` really has one core."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping


def cores_for(
    wanted: float,
    machine: Collection[int],
    taken: Iterable[tuple[float, Collection[int]]],
    near: Collection[int] = (),
) -> frozenset[int]:
    """Cores to run on; empty where nothing will be fixed.

    A replica gets whole cores of its own; those below one core share a core while their sum fits. One that
    does not fit any more may run anywhere: the machine is oversubscribed, and only the scheduler can be fair.

    Args:
        wanted: cores of the hardware kind; 0 uses none.
        machine: cores of this machine.
        taken: for each running replica the cores wanted and those it was given.
        near: those to take first, if they are free.
    """
    if wanted <= 0:
        return frozenset()
    load = _load(machine, taken)
    share = min(wanted, 1.0)
    free = [core for core in load if load[core] + share <= 1 + 1e-9]
    free.sort(key=lambda core: (core not in near, -load[core], -core))
    needed = math.ceil(wanted)
    return frozenset(free[:needed]) if len(free) >= needed else frozenset()


def _load(machine: Collection[int], taken: Iterable[tuple[float, Collection[int]]]) -> Mapping[int, float]:
    load = dict.fromkeys(sorted(machine), 0.0)
    for cores, given in taken:
        for core in given:
            load[core] = load.get(core, 0.0) + min(cores, 1.0)
    return load
