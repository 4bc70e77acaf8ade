"""What arrived on the source topic lately: a sample for pipelines that declare none."""

from __future__ import annotations

import random
import time

import numpy as np

from inferline_stream.dataplane.control import OffsetReader, TopicFollower
from inferline_stream.dataplane.headers import timestamp_us
from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace

SPAN_S = 3600.0
"""How far back to look."""

EVENTS_KEPT = 5000
"""Events kept of those seen, drawn at random; the time of each one is kept."""


async def recent_sample(
    bootstrap_servers: str,
    pipeline: Pipeline,
    prefix: str = "",
    *,
    connect_timeout_s: float = 10.0,
    now_s: float | None = None,
) -> tuple[Trace, list[bytes]]:
    """Arrivals of the source topic's last hour, and events drawn from them.

    Args:
        bootstrap_servers: of the cluster.
        pipeline: whose source topic is read; its ``timestamp_header`` counts.
        prefix: of the pipeline's names.
        connect_timeout_s: longest wait for Kafka's first answer.
        now_s: end of the hour, seconds since the epoch; now by default.

    Raises:
        InvalidTopology: fewer than two events arrived.
        Unreachable: Kafka does not answer.
    """
    topic = Names(pipeline.name, prefix).topic(pipeline.source.name)
    end_s = time.time() if now_s is None else now_s
    async with OffsetReader(bootstrap_servers, connect_timeout_s) as offsets:
        partitions = (await offsets.existing([topic])).get(topic, 0)
    times_s: list[float] = []
    events: list[bytes] = []
    if partitions:
        rng = random.Random(0)  # noqa: S311  draws a sample, keeps no secret
        async with TopicFollower(bootstrap_servers, topic, end_s - SPAN_S, partitions=partitions) as records:
            async for record in records.until(await records.end()):
                if record.value is None:
                    continue
                header = pipeline.source.timestamp_header
                entry_us = timestamp_us(record.headers, header) if header is not None else None
                times_s.append(record.time_ms / 1e3 if entry_us is None else entry_us / 1e6)
                if len(events) < EVENTS_KEPT:
                    events.append(record.value)
                elif (place := rng.randrange(len(times_s))) < EVENTS_KEPT:  # reservoir sampling
                    events[place] = record.value
    if len(times_s) < 2:
        raise InvalidTopology(
            f"{pipeline.declared}: declares no sample, and topic {topic!r} holds {len(times_s)} events of the last "
            'hour; add sample=Sample(arrivals="arrivals.csv", events="events.jsonl")'
        )
    arrivals = np.sort(np.array(times_s))
    return Trace(arrivals - arrivals[0]), events
