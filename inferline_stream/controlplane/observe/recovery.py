"""What a new term finds in Kafka: the traffic of the last minutes, the last decision and plan, overrides."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inferline_stream.controlplane.observe.log_growth import LogGrowth
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.record_decoder import RecordDecoder
from inferline_stream.controlplane.records.control_records import (
    PLAN_KEY,
    WANTED_KEY,
    CalendarRecord,
    Overrides,
    SloRecord,
    decode_override,
    decode_stored,
    decode_ticks,
    merged,
)
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.observability.pipeline_state import DecisionRecord, StoredPlan
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.plan import Plan
from inferline_stream.tuner.plan_basis import Replicas

logger = logging.getLogger(__name__)

TRAFFIC_S = 90.0
"""How far back arrivals are read: more than the longest window of the envelope."""

_MOST_IN_GAP = 500_000
"""Records whose timestamps are read to fill a gap; more are spread evenly over it."""

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the topics of plans, decisions and overrides hold.

    Args:
        plan: of the last term that wrote one; None if there is none, or none should be followed.
        plans: those that came into force, newest last.
        decisions: newest last.
        wanted: replicas that the last controller wanted when it fell silent; None if it left in order.
        overrides: in force.
        slo: how the SLO's window stood when that was last written; None before it ever was.
        control_offset: next offset of the control topic.
        calendar: what was learned of weeks; None before anything was.
    """

    plan: StoredPlan | None
    plans: tuple[StoredPlan, ...]
    decisions: tuple[DecisionRecord, ...]
    wanted: Replicas | None
    overrides: Overrides
    control_offset: int
    slo: SloRecord | None = None
    calendar: CalendarRecord | None = None

    @property
    def number(self) -> int:
        """Of the newest decision."""
        return max((d.number for d in self.decisions), default=0)

    def its_plan(self) -> Plan | None:
        """The plan itself."""
        return None if self.plan is None else self.plan.plan


async def recover(bootstrap_servers: str, names: Names, decoder: RecordDecoder | None = None) -> Recovered:
    """Read what earlier terms have written.

    Args:
        bootstrap_servers: host:port, comma separated.
        names: of the pipeline.
        decoder: reads it, and counts what cannot be read.

    Raises:
        Unreachable: Kafka does not answer.
    """
    decoder = decoder or RecordDecoder()
    plan, wanted, slo, calendar = None, None, None, None
    decisions: dict[str, DecisionRecord] = {}
    plans: dict[str, StoredPlan] = {}
    async with TopicFollower(bootstrap_servers, names.decisions) as follower:
        records = await follower.read_to(await follower.end())
    for entry in decoder.decoded_by_key(records, decode_stored):
        key, stored = entry.key, entry.value
        if isinstance(stored, StoredPlan):
            if key == PLAN_KEY:
                plan = stored
            else:
                plans.pop(key, None)
                plans[key] = stored
        elif isinstance(stored, SloRecord):
            slo = stored
        elif isinstance(stored, CalendarRecord):
            calendar = stored
        elif stored is not None:
            if key == WANTED_KEY:
                wanted = stored.replicas
            else:
                decisions[key] = stored
        elif key == PLAN_KEY:
            plan = None
        elif key == WANTED_KEY:
            wanted = None
        else:
            plans.pop(key, None)
            decisions.pop(key, None)
    overrides = Overrides()
    async with TopicFollower(bootstrap_servers, names.control) as follower:
        records = await follower.read_to(await follower.end())
        for change in decoder.decoded_by_key(records, decode_override):
            overrides = overrides.with_record(change.key, change.value)
        control_offset = follower.positions[0]
    ordered = tuple(sorted(decisions.values(), key=lambda d: d.number))
    history = tuple(sorted(plans.values(), key=lambda p: p.number))
    return Recovered(plan, history, ordered, wanted, overrides, control_offset, slo, calendar)


async def look_up(bootstrap_servers: str, names: Names) -> Recovered:
    """Read what the terms of a pipeline have written, if it has ever run on this Kafka.

    Args:
        bootstrap_servers: host:port, comma separated.
        names: of the pipeline.

    Raises:
        Unreachable: Kafka does not answer, or no such pipeline has run there.
    """
    async with Offsets(bootstrap_servers) as offsets:
        await refuse_unknown(bootstrap_servers, names, offsets)
    return await recover(bootstrap_servers, names)


async def refuse_unknown(bootstrap_servers: str, names: Names, offsets: Offsets) -> None:
    """Refuse a pipeline that has never run there.

    Raises:
        Unreachable: for such a pipeline.
    """
    if not await offsets.existing([names.decisions]):
        raise Unreachable(
            f"no pipeline {names.pipeline!r} has run on Kafka at {bootstrap_servers}"
            + (f" under the prefix {names.prefix!r}" if names.prefix else "; was it run with a --prefix?")
        )


async def recover_arrivals(
    context: PipelineContext, offsets: Offsets, partitions: Mapping[str, int], growth: LogGrowth
) -> Times:
    """Arrival times of the last minutes, on the event loop's clock; ``growth`` goes on from their end.

    From the arrivals topic, and from there on to now from the timestamps of the source's own records.

    Args:
        context: names.
        offsets: to read end offsets.
        partitions: of each live source topic.
        growth: without a sample yet.
    """
    began_s = time.time()
    shift_s = asyncio.get_running_loop().time() - began_s
    ticks = await recent_ticks(context, sum(partitions.values()), began_s - TRAFFIC_S)
    if not ticks:
        return np.empty(0)
    # None is of the future: another controller's clock may have been ahead of this one.
    ahead_s = max(0.0, ticks[-1][0] - began_s)
    times = [growth.sample(time_s - ahead_s + shift_s, ends) for time_s, ends in ticks]
    last_s, known = ticks[-1][0] - ahead_s, ticks[-1][1]
    by_topic = await offsets.ends(partitions)
    ends = [end for topic in context.sources for end in by_topic[topic]]
    now_s = time.time()
    came = await arrivals_between(context, known, ends, last_s, now_s, partitions=partitions)
    gap = np.array([time_s for time_s, _ in came])
    growth.skip(now_s + shift_s, ends)
    growth.total = 0
    logger.info(
        "%d arrivals of the last %.0f s recovered, %d of them from the records of the last %.1f s, in %.2f s",
        sum(map(len, times)) + gap.size, TRAFFIC_S, gap.size, now_s - last_s, now_s - began_s,
    )  # fmt: skip
    return np.concatenate([*times, gap + shift_s])


async def recent_ticks(context: PipelineContext, partitions: int, since_s: float) -> list[tuple[float, list[int]]]:
    """When controllers sampled the source topics of so many partitions since then, and their end offsets."""
    async with context.kafka.follow(context.names.arrivals, since_s) as follower:
        records = await follower.read_to(await follower.end())
    entries = context.decoder.decoded(records, decode_ticks)
    return merged((e.value for e in entries if e.value), partitions)


async def arrivals_between(
    context: PipelineContext,
    known: Sequence[int],
    ends: Sequence[int],
    since_s: float,
    now_s: float,
    *,
    partitions: Mapping[str, int],
) -> list[tuple[float, int]]:
    """Time and partition of the sources' records between two sets of end offsets, ascending, within that time.

    Partitions are numbered on from one live source to the next, and end offsets in their order.
    """
    missing = [max(0, end - old) for end, old in zip(ends, known, strict=True)]
    if sum(missing) > _MOST_IN_GAP:
        span_s = now_s - since_s
        return sorted((since_s + span_s * (i + 0.5) / n, p) for p, n in enumerate(missing) for i in range(n))
    if not any(missing):
        return []
    found, first = [], 0
    for topic in context.sources:
        own = slice(first, first + partitions[topic])
        until = ends[own]
        async with context.kafka.follow(topic, dict(enumerate(known[own]))) as follower:
            # Events that enter meanwhile are read, too. The next sample, which goes on from these offsets, counts them.
            found += [
                (record.time_ms / 1e3, first + record.partition)
                async for record in follower.until(dict(enumerate(until)))  # their values are not kept
                if record.offset < until[record.partition]
            ]
        first = own.stop
    return sorted((min(max(time_s, since_s), now_s), partition) for time_s, partition in found)
