"""Arrivals by the timestamps of the source's own records: where its offsets also count what is no event.

A producer that writes in transactions ends each with a record of its own in the log, and what it aborts stays there.
This reads every record, so it costs with their size; elsewhere log growth tells the same for next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from inferline_stream.calculus.envelope import Times
from inferline_stream.controlplane.records import decode_ticks, merged
from inferline_stream.controlplane.recovery import TRAFFIC_S
from inferline_stream.controlplane.running import Running
from inferline_stream.dataplane.control import Followed, TopicFollower


class Stamps:
    """Follows the committed records of the source topic, from a minute and a half ago.

    Args:
        running: names.
        partitions: of the source topic.

    Raises:
        Unreachable: on entering, Kafka does not answer.
    """

    def __init__(self, running: Running, partitions: int) -> None:
        self._running, self._partitions = running, partitions
        self.counts = [0] * partitions
        """Records by partition, counted on from what an earlier controller has written down."""
        self._known_until_s = 0.0
        self._history = np.empty(0)
        self._follower = TopicFollower(
            running.bootstrap_servers, running.source, time.time() - TRAFFIC_S, partitions=partitions
        )

    async def __aenter__(self) -> Self:
        servers, since_s = self._running.bootstrap_servers, time.time() - TRAFFIC_S
        async with TopicFollower(servers, self._running.names.arrivals, since_s) as follower:
            records = await follower.read_to(await follower.end())
        ticks = [t for t in merged(decode_ticks(r.value) for r in records if r.value) if len(t[1]) == self._partitions]
        if ticks:
            self._known_until_s, self.counts = ticks[-1][0], list(ticks[-1][1])
        await self._follower.__aenter__()
        self._history = self._take(await self._follower.read_to(await self._follower.end()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._follower.__aexit__(kind, error, trace)

    async def read(self, timeout_s: float) -> Times:
        """Times of the records that came since the last call, ascending, in seconds since the epoch; maybe none."""
        if self._history.size:
            times, self._history = self._history, np.empty(0)
            return times
        return self._take(await self._follower.read(timeout_s))

    def _take(self, records: Sequence[Followed]) -> Times:
        for record in records:
            if record.time_ms / 1e3 > self._known_until_s:
                self.counts[record.partition] += 1
        return np.sort(np.array([record.time_ms / 1e3 for record in records], dtype=np.float64))
