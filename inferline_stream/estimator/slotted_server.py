"""A stage with several dispatchers, being simulated: each has a pool, and the queue of its partitions."""

from __future__ import annotations

from typing import Any

import numpy as np

from inferline_stream.estimator.kernels import Account, Tokens
from inferline_stream.estimator.keyed_server import KeyedServer
from inferline_stream.estimator.server import Server
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload


class SlottedServer:
    """Takes arrivals in order, gives departures in order, up to a horizon that moves on; of equal times by slot.

    Args:
        workload: partitions and keys of the events, overhead of a hop, keys of the draws.
        stage: position in the shape.
        station: what serves it.
        code: the kernels.
    """

    def __init__(self, workload: Workload, stage: int, station: Station, code: Any) -> None:
        serving = KeyedServer if workload.lanes(stage).size or station.levels > 1 else Server
        self._slot_of = workload.partition_of(stage, station.slots, code=code)
        self._pools = [serving(workload, stage, station.of_slot(slot), code) for slot in range(station.slots)]

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

    def receive(self, sent: Tokens) -> None:
        """Records that were sent to the stage, none before any received earlier."""
        slots = self._slot_of[sent.events]
        for slot, pool in enumerate(self._pools):
            own = slots == slot
            pool.receive(Tokens(sent.times[own], sent.events[own]))

    def advance(self, horizon_s: float) -> Tokens:
        """Departures before the horizon that were not given yet; every record that arrives before it was received."""
        gone = [pool.advance(horizon_s) for pool in self._pools]
        times = np.concatenate([tokens.times for tokens in gone])
        events = np.concatenate([tokens.events for tokens in gone])
        order = np.argsort(times, kind="stable")
        return Tokens(times[order], events[order])
