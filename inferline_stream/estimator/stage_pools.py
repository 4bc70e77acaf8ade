"""A stage being simulated: each of its dispatchers has a pool, and the queue of its partitions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from inferline_stream.estimator.general_pool import GeneralPool, lanes_of
from inferline_stream.estimator.kernels import Account, Ints, Masks, Tokens
from inferline_stream.estimator.shared_pool import SharedPool
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import NO_KEYS, Workload

Pool = SharedPool | GeneralPool


class StagePools:
    """Takes arrivals in order, gives departures in order, up to a horizon that moves on; of equal times by slot.

    Args:
        workload: partitions and keys of the events, overhead of a hop, keys of the draws.
        stage: position in the shape.
        station: what serves it.
        code: the kernels.
    """

    def __init__(self, workload: Workload, stage: int, station: Station, code: Any) -> None:
        self._slot_of = slot_of(workload, stage, station, code) if station.slots > 1 else NO_KEYS
        lanes = lanes_of(workload, stage, station)
        keeps_order = lanes.lane_of.size > 0
        self._pools: list[Pool] = [
            GeneralPool(workload, stage, station.of_slot(slot), lanes, code)
            if keeps_order or station.levels > 1 or station.limits.size > 1 or workload.class_of.size
            else SharedPool(workload, stage, station.of_slot(slot), code)
            for slot in range(station.slots)
        ]

    @property
    def arrivals(self) -> int:
        """Records received."""
        return sum(pool.arrivals for pool in self._pools)

    @property
    def account(self) -> Account:
        """What all pools did."""
        accounts = [pool.account for pool in self._pools]
        batches, totals = (np.sum([account[k] for account in accounts], axis=0) for k in (0, 1))
        return Account(batches, totals)

    @property
    def largest(self) -> int:
        """See `SharedPool.largest`."""
        return max(pool.largest for pool in self._pools)

    @property
    def degraded(self) -> int:
        """Events that have gone to the fallback."""
        return sum(pool.degraded for pool in self._pools)

    def receive(self, sent: Tokens) -> None:
        """Records that were sent to the stage, none before any received earlier."""
        parts = dealt(sent, self._slot_of[sent.events], len(self._pools)) if len(self._pools) > 1 else [sent]
        for pool, own in zip(self._pools, parts, strict=True):
            pool.receive(own)

    def advance(self, horizon_s: float) -> Tokens:
        """Departures before the horizon that were not given yet; every record that arrives before it was received."""
        return together([pool.advance(horizon_s) for pool in self._pools])


def slot_of(workload: Workload, stage: int, station: Station, code: Any) -> Masks:
    """Slot of every event at a stage."""
    return workload.partition_of(stage, station.partitions or station.slots, code=code) % station.slots


def dealt(sent: Tokens, slot_of: Masks | Ints, slots: int) -> list[Tokens]:
    """Records slot by slot, each slot's in their order; ``slot_of`` is by record."""
    order = np.argsort(slot_of, kind="stable")
    times, events = sent.times[order], sent.events[order]
    ends = np.cumsum(np.bincount(slot_of, minlength=slots)).tolist()
    return [Tokens(times[first:end], events[first:end]) for first, end in itertools.pairwise([0, *ends])]


def together(gone: Sequence[Tokens]) -> Tokens:
    """The tokens of several slots in order of time, of equal times the lower slot's first."""
    if len(gone) == 1:
        return gone[0]
    times = np.concatenate([tokens.times for tokens in gone])
    order = np.argsort(times, kind="stable")
    return Tokens(times[order], np.concatenate([tokens.events for tokens in gone])[order])
