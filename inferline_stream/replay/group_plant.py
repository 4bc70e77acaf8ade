"""The pipeline under control as ordinary consumer groups run it: each replica serves the partitions that it owns.

The Estimator's own kernels for bound partitions serve the queues up to a horizon that moves on. When a member comes or
leaves, partitions are dealt out evenly again. Only those that move wait, and no longer than for the batch that their
old owner has in hand, as with cooperative rebalancing; the seconds that a group needs to agree are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from inferline_stream.estimator.delay import Delay
from inferline_stream.estimator.fixed_owner_server import BoundServer
from inferline_stream.estimator.join_arrivals import Merger
from inferline_stream.estimator.kernels import Floats, Tokens
from inferline_stream.estimator.numba_kernels import compiled
from inferline_stream.estimator.station import Station, station
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.replay.tables import Seen, StageSetup


class GroupPlant:
    """As `plant.Plant`, with a queue for each replica.

    Args:
        workload: events and their paths.
        measured: service times.
        stages: in the shape's order, each of one kind.
        partitions: of each stage's input topic.
    """

    def __init__(
        self,
        workload: Workload,
        measured: PipelineProfile,
        stages: Sequence[StageSetup],
        *,
        partitions: int,
    ) -> None:
        self.now_s = float("-inf")
        self.latency_s: Floats = np.full(len(workload), np.nan)
        self._workload = workload
        self._code = code = compiled()
        self._entered = 0
        self._groups = []
        for s, setup in enumerate(stages):
            (kind,) = setup.kinds
            one = (Allocation(kind.hardware, kind.max_batch_size, 1),)
            self._groups.append(
                _StageGroup(workload, s, station(measured, setup.name, one, partitions=partitions), code)
            )
        self._mergers = {s: Merger(workload, s, code) for s in range(len(stages)) if workload.shape.parents(s)}
        self._hops: dict[tuple[str, int], Delay] = {}
        if workload.hop_extra_s.size:
            entries = set(range(len(stages))) - self._mergers.keys()
            ways = [*(("hop in", s) for s in entries), *(("hop", s) for s in range(len(stages)))]
            self._hops = {(hop, s): Delay(workload, hop, s, code) for hop, s in ways}

    def advance(self, until_s: float) -> None:
        """Let everything happen that happens before ``until_s``."""
        workload = self._workload
        first, self._entered = self._entered, int(np.searchsorted(workload.entry_s, until_s, side="left"))
        entered = Tokens(workload.entry_s[first : self._entered], np.arange(first, self._entered, dtype=np.int32))
        gone: list[Tokens] = []
        skipped: dict[int, Tokens] = {}
        for s, group in enumerate(self._groups):
            if s in self._mergers:
                sources = self._mergers[s].feed.sources
                given = [skipped[parent] if skips else gone[parent] for parent, skips in sources]
                arrived, skipped[s] = self._mergers[s].take(given, until_s)
            else:
                arrived = self._as_sent("hop in", s, entered, until_s)
            gone.append(self._as_sent("hop", s, group.advance(arrived, until_s), until_s))
        for s in workload.shape.finals():
            self._code.record_latencies(gone[s], workload.entry_s, workload.hop_s, self.latency_s)
        self.now_s = until_s

    def _as_sent(self, hop: str, s: int, tokens: Tokens, until_s: float) -> Tokens:
        return self._hops[hop, s].take(tokens, until_s) if self._hops else tokens

    def add(self, s: int, slot: int, kind: int) -> None:
        """A member that is ready now."""
        self._groups[s].add(self.now_s)

    def leave(self, s: int, slot: int, kind: int) -> float:
        """The member that came last gives up its partitions. Returns when it has done what it has in hand."""
        return max(self._groups[s].server.leave(self.now_s), self.now_s)

    def slow(self, s: int, factor: float) -> None:
        """Not for groups: rules of others are compared on profiles as they are."""
        raise NotImplementedError

    def seen(self, s: int) -> Seen:
        """What can be counted of a stage. The oldest record is not known, and no rule asks for it."""
        group = self._groups[s]
        busy_s = float(group.server.account.totals[0])  # which never differs from the profile
        return Seen(group.server.arrivals, group.completed, None, busy_s, busy_s)


class _StageGroup:
    """One stage's members."""

    def __init__(self, workload: Workload, s: int, one: Station, code: Any) -> None:
        self.server = BoundServer(workload, s, one, code)
        self.completed = 0
        self._begun = False

    def advance(self, arrived: Tokens, until_s: float) -> Tokens:
        self.server.receive(arrived)
        gone = self.server.advance(until_s)
        self.completed += gone.times.size
        return gone

    def add(self, now_s: float) -> None:
        if self._begun:  # the first member is there from the beginning
            self.server.join(now_s)
        self._begun = True
