"""Time that a record spends between two stages beyond queueing and service: produce and fetch."""

from __future__ import annotations

import asyncio
import random
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable

import msgspec

from inferline_stream.dataplane.dispatcher.result_delivery import Pace
from inferline_stream.dataplane.headers import read_headers
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics, delete_topics
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_reader import TopicReader
from inferline_stream.kafka.writer import Writer
from inferline_stream.pipeline.names import ENTRY_TIME, EVENT_ID
from inferline_stream.pipeline.profile import HOP_PROBABILITIES

_RECORDS = 460
_WARMING = 60
_GAP_S = 0.004
_PARTITIONS = 8
_LOST_AFTER_S = 10.0

_ROUNDS = 5
_STEADY = 5.0
"""A round is measured again where its slowest 2 % take more than so many medians, as they do beside other work.

Where the machine does nothing else they take about two.
"""


async def measure_hop(
    bootstrap_servers: str,
    *,
    fetch_wait_s: float,
    timeout_s: float = 10.0,
) -> tuple[float, tuple[float, ...]]:
    """Time from finishing a result to having its record, with a dispatcher's own sender and reader, at its own pace.

    Handing it to a replica is part of the service time.

    At random times over several partitions, as in a pipeline: a record that comes while Kafka still takes the one
    before, or while the reader's fetch is on its way, waits for that. Uses a topic of its own, deleted again.
    Where something else takes the cores meanwhile, it is measured again.

    Returns:
        The mean of the middle half, since a machine that stands still for a moment is not what a hop takes; and how far
        the times at `HOP_PROBABILITIES` lie from it.

    Raises:
        Unreachable: Kafka does not answer in time, or loses records.
    """
    name = f"inferline-hop-{secrets.token_hex(4)}"
    wanted = {name: _PARTITIONS, f"{name}.assignments": 1}
    topics = [WantedTopic(topic, partitions, "probe of the profiler") for topic, partitions in wanted.items()]
    reader = TopicReader(bootstrap_servers, name, name, f"{name}.assignments", fetch_wait_s=fetch_wait_s)
    sender = Writer(bootstrap_servers, name)
    try:
        await create_topics(bootstrap_servers, topics, replication=1, timeout_s=timeout_s)
        await asyncio.gather(reader.start(timeout_s), sender.start(timeout_s))
        reader.hold(dict.fromkeys(range(_PARTITIONS), 0))
        times_s = await steadiest(lambda: _hops_s(reader, sender, name))
    finally:
        await asyncio.gather(reader.stop(), sender.stop())
        await delete_topics(bootstrap_servers, list(wanted))
    quarter = len(times_s) // 4
    typical_s = statistics.fmean(times_s[quarter:-quarter])
    spread_s = tuple(times_s[round(p * (len(times_s) - 1))] - typical_s for p in HOP_PROBABILITIES)
    return typical_s, spread_s


async def steadiest(measured: Callable[[], Awaitable[list[float]]]) -> list[float]:
    """Return the times of the first round that is steady, else of the one with the least tail; ascending.

    Args:
        measured: measures a round; its first records warm up and are left out.
    """
    rounds: list[list[float]] = []
    while len(rounds) < _ROUNDS:
        rounds.append(sorted((await measured())[_WARMING:]))
        if _tail_s(rounds[-1]) <= _STEADY * statistics.median(rounds[-1]):
            break
    return min(rounds, key=_tail_s)


def _tail_s(times_s: list[float]) -> float:
    return times_s[round(0.98 * (len(times_s) - 1))]


async def _hops_s(reader: TopicReader, sender: Writer, topic: str) -> list[float]:
    """The time of every record, in the order in which they were finished."""
    rng = random.Random(0)  # noqa: S311 - nothing to keep secret
    finished_s: list[float] = []
    arrived_s: dict[int, float] = {}
    waiting: list[int] = []
    finished = asyncio.Event()
    headers = [(EVENT_ID, b"topic/0/0"), (ENTRY_TIME, b"1700000000000000")]

    async def read() -> None:
        pace = Pace()
        while len(arrived_s) < _RECORDS:
            fetched = await reader.fetch((), _LOST_AFTER_S)
            for records in fetched.records.values():
                for record in records:
                    read_headers(record.headers)
                    arrived_s[msgspec.json.decode(record.value or b"")["number"]] = time.perf_counter()
            if fetched.records:
                await asyncio.sleep(pace.wait_s(sum(map(len, fetched.records.values())), time.monotonic()))

    async def send() -> None:
        pace = Pace()
        while True:
            await finished.wait()
            await asyncio.sleep(pace.wait_s(len(waiting), time.monotonic()))
            finished.clear()
            outgoing: dict[tuple[str, int], list[Record]] = {}
            for number in waiting:
                message = Record(None, msgspec.json.encode({"number": number}), headers)
                outgoing.setdefault((topic, rng.randrange(_PARTITIONS)), []).append(message)
            waiting.clear()
            await sender.send(outgoing)

    async def finish() -> None:
        for number in range(_RECORDS):
            await asyncio.sleep(rng.expovariate(1 / _GAP_S))
            finished_s.append(time.perf_counter())
            waiting.append(number)
            finished.set()

    reading, sending = asyncio.create_task(read()), asyncio.create_task(send())
    try:
        await finish()
        # Slow is not lost: a crowded machine may take long for all of them.
        before, ended = -1, set[asyncio.Task[None]]()
        while not ended:
            if len(arrived_s) == before:
                raise Unreachable(f"Kafka took no record, or gave none back, in {_LOST_AFTER_S:g} s")
            before = len(arrived_s)
            first = asyncio.wait((reading, sending), timeout=_LOST_AFTER_S, return_when=asyncio.FIRST_COMPLETED)
            ended, _ = await first
    finally:
        for task in (reading, sending):
            task.cancel()
        results = await asyncio.gather(reading, sending, return_exceptions=True)
    for error in results:
        if isinstance(error, Exception):
            raise Unreachable(f"Kafka took no record, or gave none back ({error})") from error
    return [arrived_s[number] - at_s for number, at_s in enumerate(finished_s)]
