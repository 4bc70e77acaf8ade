"""One pool on emulated hardware under a load of its own. There is no controller: only the pool is measured.

The producer is open loop: it sends when its trace says so, whatever the pool does, and notes how late it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from inferline_stream.dataplane.process_specs import DISPATCHER_MODULE, Delivery
from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.station import station
from inferline_stream.estimator.workload import prepare
from inferline_stream.kafka.connection import client_options
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.pipeline.names import ENTRY_TIME, EVENT_ID
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.trace import Trace
from tests.benchmarks._bound_dispatcher import MODULE, bind
from tests.benchmarks._live import Passed, passed_through
from tests.support.director import Director
from tests.support.emulated_runs import declared_profile

PARTITIONS = 16
HARDWARE = "emulated-cpu"
SLO_S = 0.5
RECORD = b"x" * 200

_TOPOLOGY = """
import ctypes
import fcntl
import os
import time

from inferline_stream import Isolation, Pipeline, Stage, Topic


class Work:
    def __init__(self) -> None:
        self.built = b"%d/%d" % (os.getpid(), time.time_ns())

    def __call__(self, values: list[bytes]) -> list[bytes]:
        return [b"%s/%d" % (self.built, len(values))] * len(values)


class Lame(Work):
    '''Whichever replica has the lock is slower than the others, and hangs when it finds the file.'''

    def __init__(self) -> None:
        super().__init__()
        self.lock = open({folder!r} + "/lame", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.lame = True
        except BlockingIOError:
            self.lame = False

    def __call__(self, values: list[bytes]) -> list[bytes]:
        if self.lame and os.path.exists({folder!r} + "/slow"):
            time.sleep(0.09)
        if self.lame and os.path.exists({folder!r} + "/hang"):
            os.unlink({folder!r} + "/hang")
            ctypes.PyDLL(None).sleep(10)  # holds the interpreter's lock
        return super().__call__(values)


work = Stage("work", {stage}, hardware=[{hardware!r}], emulated={emulated!r}, max_batch_size={batch},
             isolation={isolation})
pipeline = Pipeline({name!r}, slo="{slo_s}s", source=Topic("in", partitions={partitions}, codec="raw"),
                    sink=Topic("out", partitions={partitions}, codec="raw"), stages=[work])
"""


class PoolBench:
    """A pool that runs, and what is needed to load it and to see what became of that."""

    def __init__(self, director: Director, offsets: Offsets, batch: int) -> None:
        self.director = director
        (sink,) = director.pipeline.sinks.values()
        self.sink = director.names.topic(sink.name)
        self.late_s: list[float] = []
        """How late each event was sent."""
        self._offsets = offsets
        self._batch = batch

    async def run(self, trace: Trace, keys: Sequence[bytes] | None = None) -> Passed:
        """Send a trace and return what came of it, once everything has."""
        before = await self.ends()
        await self.send(trace, keys)
        await self.all_out(before, len(trace))
        return await self.passed(before)

    async def passed(self, since: Mapping[int, int]) -> Passed:
        """Return what the sink took since these offsets."""
        return await passed_through(self.director.bootstrap_servers, self.sink, self._offsets, since)

    async def send(self, trace: Trace, keys: Sequence[bytes] | None = None) -> None:
        """Send an event at each arrival, whose keys repeat; without keys the partitions are drawn."""
        producer, topic = self.director.producer, self.director.names.topic("in")
        began_s, sent = time.time() + 0.05, []
        for number, at_s in enumerate(trace.arrivals_s):
            await asyncio.sleep(max(0.0, began_s + at_s - time.time()))
            self.late_s.append(time.time() - began_s - at_s)
            sent.append(await producer.send(topic, RECORD, key=keys[number % len(keys)] if keys else None))
        await asyncio.gather(*sent)

    async def ends(self) -> dict[int, int]:
        """Return where the sink ends now."""
        return dict(enumerate((await self._offsets.ends({self.sink: PARTITIONS}))[self.sink]))

    async def all_out(self, before: Mapping[int, int], events: int, timeout_s: float = 60.0) -> None:
        """Wait until the sink has so many more records; what is missing then is lost, and is counted elsewhere."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while sum((await self.ends()).values()) - sum(before.values()) < events:
                    await asyncio.sleep(0.05)

    def predicted_s(self, entry_s: np.ndarray, replicas: int, hop_s: float) -> np.ndarray:
        """Return the latencies that the Estimator's shared queue has for these arrivals."""
        shape, declared = shape_of(self.director.pipeline), declared_profile(self.director.pipeline, {})
        measured = PipelineProfile(declared.profiles, declared.paths, hop_overhead_s=hop_s)
        arrivals_s = np.sort(entry_s)
        workload = prepare(shape, measured, Trace(arrivals_s - arrivals_s[0]))
        served = station(measured, "work", (Allocation(HARDWARE, self._batch, replicas),), order_slo_s=SLO_S)
        latency_s = evaluate(workload, [served]).latency_s
        assert latency_s is not None
        return latency_s


@asynccontextmanager
async def pool(
    bootstrap_servers: str,
    folder: Path,
    emulated: Mapping[int, str],
    *,
    queue_each: bool = False,
    stage: str = "Work",
    forked: bool = True,
    delivery: Delivery = "at_least_once",
    settings: Mapping[str, float] | None = None,
) -> AsyncIterator[PoolBench]:
    """Start a pool with one replica.

    Args:
        bootstrap_servers: of a Kafka.
        folder: a new one is made inside.
        emulated: service time by batch size; the largest is the limit.
        queue_each: whether each replica has a queue of its own.
        stage: a class of the topology above.
        forked: whether replicas are sealed and forked; `Lame` looks for files, and cannot be.
        delivery: of `Director`.
        settings: of `Director`.
    """
    name = f"pool{secrets.token_hex(3)}"
    home = folder / name
    home.mkdir()
    isolation = "Isolation(forked=True)" if forked else 'Isolation("none")'
    text = _TOPOLOGY.format(
        folder=str(home), stage=stage, hardware=HARDWARE, emulated=dict(emulated), batch=max(emulated), name=name,
        isolation=isolation, slo_s=SLO_S, partitions=PARTITIONS,
    )  # fmt: skip
    (home / "topology.py").write_text(text)
    director = Director(
        bootstrap_servers,
        home / "topology.py",
        settings=settings,
        delivery=delivery,
        max_batch_size=max(emulated),
        dispatcher_module=MODULE if queue_each else DISPATCHER_MODULE,
    )
    # The sink stamps records when it appends them: a latency ends with Kafka having the result.
    stamped = {"message.timestamp.type": "LogAppendTime"}
    sink = WantedTopic(director.names.topic("out"), PARTITIONS, "a benchmark's own", stamped)
    await create_topics(bootstrap_servers, [sink])
    async with director, Offsets(bootstrap_servers) as offsets:
        if queue_each:
            bind(director.supervisor)
        await director.start("work")
        await director.warm()
        yield PoolBench(director, offsets, max(emulated))


class Watch:
    """Reads a pool's sink as it grows, committed records only, and notes when each could be read."""

    def __init__(self, bench: PoolBench) -> None:
        self._consumer = AIOKafkaConsumer(
            **client_options(bench.director.bootstrap_servers),
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        self._partitions = [TopicPartition(bench.sink, p) for p in range(PARTITIONS)]
        self.entry_s: list[float] = []
        self.out_s: list[float] = []
        self.events: list[bytes] = []
        self.built: set[bytes] = set()
        """Process and time of each construction of the stage that gave results."""

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        self._consumer.assign(self._partitions)
        await self._consumer.seek_to_end()
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._consumer.stop()

    async def _read(self) -> None:
        while True:
            for records in (await self._consumer.getmany(timeout_ms=1000)).values():
                now_s = time.time()
                for record in records:
                    headers = dict(record.headers)
                    self.entry_s.append(int(headers[ENTRY_TIME]) / 1e6)
                    self.out_s.append(now_s)
                    self.events.append(headers[EVENT_ID])
                    self.built.add(record.value.rpartition(b"/")[0])
