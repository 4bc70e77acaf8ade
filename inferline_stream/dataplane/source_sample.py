"""What arrived on the source topics lately: a sample for pipelines that declare none.

Its times are what producers say, and one wrong time would stretch the sample to years, so that every rate in it is
next to nothing. So an event counts at its entry time where that lies within the hour, else at its record's timestamp
where that does, and else not at all: nothing says when it came. How many were left out is logged.
"""

from __future__ import annotations

import logging
import random
import time

import numpy as np

from inferline_stream.dataplane.headers import timestamp_us
from inferline_stream.errors import InvalidTopology
from inferline_stream.kafka.fetched_batches import SkippedBatch
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline, Topic
from inferline_stream.pipeline.trace import Trace, merged
from inferline_stream.pipeline.units import count_of

logger = logging.getLogger(__name__)

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
) -> tuple[Trace, list[bytes], list[bytes | None], list[int]]:
    """Arrivals of the last hour, events drawn from them, and of each of those its key and the number of its source.

    Args:
        bootstrap_servers: of the cluster.
        pipeline: whose source topics are read, as many as have samples; their ``timestamp_header`` counts.
        prefix: of the pipeline's names.
        connect_timeout_s: longest wait for Kafka's first answer.
        now_s: end of the hour, seconds since the epoch; now by default.

    Raises:
        InvalidTopology: fewer than two events arrived on a topic.
        Unreachable: Kafka does not answer.
    """
    end_s = time.time() if now_s is None else now_s
    declared = {source.name: source for source in (pipeline.source, *pipeline.others)}
    traces: list[Trace] = []
    events: list[bytes] = []
    keys: list[bytes | None] = []
    sources: list[int] = []
    for number, name in enumerate(pipeline.samples):
        times_s, of_source, its_keys = await _of_topic(
            bootstrap_servers, pipeline, prefix, declared[name], connect_timeout_s=connect_timeout_s, end_s=end_s
        )
        traces.append(Trace(np.sort(np.array(times_s))))
        events += of_source
        keys += its_keys
        sources += [number] * len(of_source)
    trace = merged(traces)
    return Trace(trace.arrivals_s - trace.arrivals_s[0], trace.source_of), events, keys, sources


async def _of_topic(
    bootstrap_servers: str, pipeline: Pipeline, prefix: str, source: Topic, *, connect_timeout_s: float, end_s: float
) -> tuple[list[float], list[bytes], list[bytes | None]]:
    """Return when events of a source topic entered, and events drawn from them with their keys."""
    topic = Names(pipeline.name, prefix).topic(source.name)
    async with Offsets(bootstrap_servers, connect_timeout_s) as offsets:
        partitions = (await offsets.existing([topic])).get(topic, 0)
    later = pipeline.moved.items() if source is pipeline.source else ()
    background = {header for header, of_class in later if of_class.background}
    times_s: list[float] = []
    events: list[bytes] = []
    keys: list[bytes | None] = []
    left_out = 0
    if partitions:
        rng = random.Random(0)  # noqa: S311  draws a sample, keeps no secret
        async with TopicFollower(bootstrap_servers, topic, end_s - SPAN_S) as records:
            async for record in records.until(await records.end()):
                if (
                    record.value is None
                    or type(record.value) is SkippedBatch
                    or not background.isdisjoint(record.headers)
                ):
                    continue
                time_s = _time_s(record, source.timestamp_header, end_s)
                if time_s is None:
                    left_out += 1
                    continue
                times_s.append(time_s)
                if len(events) < EVENTS_KEPT:
                    events.append(record.value)
                    keys.append(record.key)
                elif (place := rng.randrange(len(times_s))) < EVENTS_KEPT:  # reservoir sampling
                    events[place], keys[place] = record.value, record.key
    outside = f" ({left_out} more bear times outside it)" if left_out else ""
    if outside:
        logger.warning(
            "topic %s: %d of %d records bear times outside the last hour and are left out of the sample: compare the "
            "clocks of their producers with this host's",
            topic,
            left_out,
            left_out + len(times_s),
        )
    if len(times_s) < 2:
        raise InvalidTopology(
            f"{pipeline.declared}: declares no sample, and topic {topic!r} holds {count_of(len(times_s), 'event')} of "
            f'the last hour{outside}; add sample=Sample(arrivals="arrivals.csv", events="events.jsonl")'
        )
    return times_s, events, keys


def _time_s(record: Record, header: str | None, end_s: float) -> float | None:
    """When a record's event entered, seconds since the epoch; None where neither of its times lies within the hour."""
    entry_us = timestamp_us(record.headers, header) if header is not None else None
    for time_s in (entry_us / 1e6 if entry_us is not None else None, record.time_ms / 1e3):
        if time_s is not None and end_s - SPAN_S <= time_s <= end_s:
            return time_s
    return None
