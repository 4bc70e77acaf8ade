"""What benchmarks of live runs share: a one-stage topology on emulated hardware, and reading its sink back."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.names import ENTRY_TIME, EVENT_ID, Names
from inferline_stream.pipeline.trace import Trace
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.tuner.policy import Policy
from tests.benchmarks._machine import Elsewhere
from tests.support.emulated_runs import emulated_run, trace_feed

PARTITIONS = 8

_TOPOLOGY = """
import os

from inferline_stream import Isolation, Pipeline, Sample, Stage, Topic


def sign(values: list[bytes]) -> list[bytes]:
    return [b"%d" % os.getpid()] * len(values)


work = Stage("work", sign, hardware=["emulated-cpu"], emulated={emulated!r}, max_batch_size={batch},
             isolation=Isolation(forked={forked}))
pipeline = Pipeline("{name}", slo="{slo}", source=Topic("in", partitions={partitions}, codec="raw"),
                    sink=Topic("out", partitions={partitions}, codec="raw"), stages=[work],
                    sample=Sample(arrivals="none.csv", events="events.jsonl"))
"""


def one_stage(
    bootstrap_servers: str,
    folder: Path,
    trace: Trace,
    *,
    emulated: dict[int, str],
    slo: str,
    planned_rate: float,
    record_bytes: int = 1000,
    forked: bool = False,
    policy: Policy | None = None,
    partitions: int = PARTITIONS,
    keys: bool = True,
) -> Run:
    """A run of one stage whose results are the process that made them, fed by a trace with records of that size.

    Replicas may be forked from a parent that has imported everything. Without a policy nothing is scaled. The source
    and the sink have so many partitions. Records have one of fifty keys, or none.
    """
    name = f"bench{secrets.token_hex(3)}"
    folder = folder / name
    folder.mkdir()
    (folder / "topology.py").write_text(
        _TOPOLOGY.format(
            name=name, emulated=emulated, batch=max(emulated), slo=slo, partitions=partitions, forked=forked
        )
    )
    events = folder / "events.jsonl"
    events.write_text("".join(f'{{"n":{n},"pad":"{"x" * (record_bytes - 20)}"}}\n' for n in range(50)))
    run = emulated_run(folder, bootstrap_servers, folder, levels=[(1.0, 1.0)], planned_rate=planned_rate)
    return replace(
        run, policy=policy or run.policy, feed=trace_feed(trace, events, folder, key_field="n" if keys else None)
    )


@asynccontextmanager
async def stamped(run: Run) -> AsyncIterator[tuple[LiveRun, Elsewhere]]:
    """A run whose replicas are ready, and what others take of the machine from now on.

    The sink stamps records when it appends them: the latency then ends with Kafka having the result.
    """
    (sink,) = run.pipeline.sinks.values()
    topic = Names(run.pipeline.name, run.records.prefix).topic(sink.name)
    settings = {"message.timestamp.type": "LogAppendTime"}
    partitions = sink.partitions or PARTITIONS
    await create_topics(run.bootstrap_servers, [WantedTopic(topic, partitions, "a benchmark's own", settings)])
    async with open_run(run) as under_way:
        await under_way.ready()
        yield under_way, Elsewhere()


@dataclass(frozen=True, slots=True)
class Passed:
    """Events that reached the sink, each once, in order of arrival there. Seconds since the epoch."""

    entry_s: np.ndarray
    out_s: np.ndarray
    partition: np.ndarray
    """Of the source."""
    offset: np.ndarray
    values: list[bytes]
    duplicated: int
    """Records beyond the first of their event."""

    @property
    def latency_s(self) -> np.ndarray:
        """End to end."""
        latency_s: np.ndarray = self.out_s - self.entry_s
        return latency_s

    def within(self, windows: list[tuple[float, float]]) -> np.ndarray:
        """Whether each event entered in one of the windows."""
        chosen = np.zeros(len(self.entry_s), dtype=bool)
        for start_s, end_s in windows:
            chosen[(self.entry_s >= start_s) & (self.entry_s < end_s)] = True
        return chosen


async def passed(under_way: LiveRun) -> Passed:
    """Read a run's sink back."""
    (sink,) = under_way.context.sinks.values()
    return await passed_through(under_way.run.bootstrap_servers, sink, under_way.offsets)


async def passed_through(
    bootstrap_servers: str, sink: str, offsets: Offsets, start: Mapping[int, int] | None = None
) -> Passed:
    """Read a sink back whose records carry our headers, from its beginning or from these offsets."""
    partitions = await offsets.partitions(sink)
    ends = (await offsets.ends({sink: partitions}))[sink]
    seen: set[bytes] = set()
    rows, duplicated = [], 0
    async with TopicFollower(bootstrap_servers, sink, start or "earliest") as follower:
        async for record in follower.until(dict(enumerate(ends))):
            headers = dict(record.headers)
            name = headers[EVENT_ID]
            if name in seen:
                duplicated += 1
                continue
            seen.add(name)
            topic, _, offset = name.decode().rpartition("/")
            entry_s, partition = int(headers[ENTRY_TIME]) / 1e6, int(topic.rpartition("/")[2])
            rows.append((record.time_ms / 1e3, partition, int(offset), entry_s, record.value or b""))
    rows.sort()
    out_s, partition_of, offset_of, entered_s = (np.array([row[at] for row in rows]) for at in range(4))
    return Passed(entered_s, out_s, partition_of, offset_of, [row[4] for row in rows], duplicated)
