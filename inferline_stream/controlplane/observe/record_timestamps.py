"""Arrivals by the timestamps of the source's own records: where its offsets also count what is no event.

A producer that writes in transactions ends each with a record of its own in the log, and what it aborts stays there.
This reads every record, so it costs with their size; elsewhere log growth shows the same for next to nothing.

Timestamps are what producers say. One that cannot be right counts as now where the record has just come, and not at
all where it was there before: a record of the year 2100 would make all others older than the envelope's windows.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import numpy as np

from inferline_stream.calculus.envelope_state import Times
from inferline_stream.controlplane.observe.recovery import TRAFFIC_S
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import decode_ticks, merged


class SourceTimestamps:
    """Follows the committed records of the source topic, from a minute and a half ago.

    Args:
        context: names.
        partitions: of the source topic.

    Raises:
        Unreachable: on entering, Kafka does not answer.
    """

    def __init__(self, context: PipelineContext, partitions: int) -> None:
        self._context, self._partitions = context, partitions
        self.counts = [0] * partitions
        """Records by partition, counted on from what an earlier controller has written down."""
        self._history: list[float] = []
        self._follower = context.kafka.follow(context.source, time.time() - TRAFFIC_S, partitions=partitions)

    async def __aenter__(self) -> Self:
        since_s = time.time() - TRAFFIC_S
        async with self._context.kafka.follow(self._context.names.arrivals, since_s) as follower:
            records = await follower.read_to(await follower.end())
        entries = self._context.decoder.decoded(records, decode_ticks)
        ticks = [t for t in merged(e.value for e in entries if e.value) if len(t[1]) == self._partitions]
        known_until_s = 0.0
        if ticks:
            known_until_s, self.counts = ticks[-1][0], list(ticks[-1][1])
        await self._follower.__aenter__()
        now_s = time.time()
        for record in await self._follower.read_to(await self._follower.end()):
            time_s = record.time_ms / 1e3
            if _credible(time_s, now_s):
                self._history.append(time_s)
                self.counts[record.partition] += time_s > known_until_s
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._follower.__aexit__(kind, error, trace)

    async def read(self, timeout_s: float) -> Times:
        """Times of the records that came since the last call, ascending, in seconds since the epoch; maybe none."""
        times, self._history = self._history, []
        if not times:
            records = await self._follower.read(timeout_s)
            now_s = time.time()
            for record in records:
                self.counts[record.partition] += 1
                times.append(record.time_ms / 1e3 if _credible(record.time_ms / 1e3, now_s) else now_s)
        return np.sort(np.array(times, dtype=np.float64))


def _credible(time_s: float, now_s: float) -> bool:
    """Whether a record that is read now may have been written then: a transaction's come once it has ended."""
    return now_s - TRAFFIC_S <= time_s <= now_s
