"""What events notice when a stage goes from 1 to 4 replicas and back, under 500 records/s of 1 KB on Apache Kafka.

Directed assignments, beside the same work done by a Kafka consumer group (aiokafka's eager protocol; in full also
cooperative and KIP-848 groups of confluent-kafka). Emulated hardware: every side takes the same time per batch and no
core. `p99_ratio`: P99 of events that entered while partitions moved over the P99 of those that entered at rest.
Partitions move between a change's first written revocation and half a second after its last grant was taken up; a
group's windows are as long. `idle_over_batch_ms_max`: longest time that a partition had an event waiting and produced
nothing, beyond the batch in flight at its old owner and the event's own batch.

What is measured is moving, not starting: emulated replicas share the machine's cores, where real ones start on cores of
their own. So replicas are forked from a parent that has imported everything, and a group's members wait to be let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from inferline_stream.controlplane.ledger import read_ledger
from inferline_stream.controlplane.session import Quiet, session
from inferline_stream.dataplane.control import OffsetReader, TopicFollower
from inferline_stream.dataplane.protocol import Assignment, decode_control, decode_report
from inferline_stream.dataplane.reporting import GATHER_S
from inferline_stream.dataplane.topics import TopicSettings, create_topics
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.testing.kafka import find_apache_kafka
from inferline_stream.testing.runs import trace_feed
from tests.benchmarks._live import PARTITIONS, Passed, append_time_sink, one_stage, passed, passed_through

RATE = 500.0
EMULATED = {1: "2ms", 32: "10ms"}  # one replica passes up to 3,200/s
SERVICE_S = {1: 0.002, 32: 0.010}
CYCLE_S = 12.0
UP_S, DOWN_S = 3.0, 8.0
REST_AFTER_S = 2.5
"""Events count as at rest from so long after a change was done."""

SETTLED_S = 3.5
"""A change is done by then: starting a process takes a second at most."""

Figures = dict[str, float | int | str | None]


def measure(quick: bool) -> Figures:
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(kafka.bootstrap_servers, Path(folder), cycles=1 if quick else 4, quick=quick))


async def _measure(bootstrap_servers: str, folder: Path, *, cycles: int, quick: bool) -> Figures:
    rng = np.random.default_rng(5)
    trace = gamma_trace(RATE, 1.0, cycles * CYCLE_S, rng)
    # A broker that has just begun compiles itself, and would do so at the cost of whoever comes first.
    await _directed(bootstrap_servers, folder, gamma_trace(RATE, 1.0, CYCLE_S, rng), cycles=1)
    figures = await _directed(bootstrap_servers, folder, trace, cycles)
    protocols = ["eager"]
    if not quick and importlib.util.find_spec("confluent_kafka") is not None:
        protocols += ["cooperative", "kip848"]
    for protocol in protocols:
        figures |= await _group(protocol, bootstrap_servers, folder, trace, cycles)
    return figures


async def _directed(bootstrap_servers: str, folder: Path, trace: Trace, cycles: int) -> Figures:
    changes = [
        change
        for cycle in range(cycles)
        for change in ((cycle * CYCLE_S + UP_S, {"work": 4}), (cycle * CYCLE_S + DOWN_S, {"work": 1}))
    ]
    run = one_stage(
        bootstrap_servers,
        folder,
        trace,
        emulated=EMULATED,
        slo="250ms",
        planned_rate=RATE,
        changes=changes,
        forked=True,
    )
    await append_time_sink(run)
    async with session(run, Quiet()) as under_way:
        await under_way.ready()
        await under_way.fed(asyncio.Event())
        decided = [d.time_s for d in under_way.controller.picture.decisions]
        await under_way.drain()
        ledger = await read_ledger(
            under_way.offsets, under_way.running, under_way.since, under_way.controller.picture.partitions
        )
        sent = await passed(under_way)
        windows = await _moving(bootstrap_servers, under_way.running.names, decided)
    moving = sent.within(windows)
    resting = sent.within(_rests(sent, windows))
    over_s = sent.stalls_s() - SERVICE_S[32] - SERVICE_S[1]
    at_rest_s = np.quantile(sent.latency_s[resting], 0.99)
    return {
        "lost": ledger.lost()[0],
        "duplicated": ledger.duplicated,
        "p99_ratio": float(np.quantile(sent.latency_s[moving], 0.99) / at_rest_s),
        "idle_over_batch_ms_max": float(over_s[moving].max() * 1e3),
        "idle_over_batch_at_rest_ms_max": float(over_s[resting].max() * 1e3),
        "p99_at_rest_ms": float(at_rest_s * 1e3),
        "p99_moving_ms": float(np.quantile(sent.latency_s[moving], 0.99) * 1e3),
        "moves_s": statistics.median(end - start - 0.5 for start, end in windows),
        "events_moving": int(moving.sum()),
        "events": ledger.events_in,
        "changes": len(windows),
    }


async def _moving(bootstrap_servers: str, names: object, decided: list[float]) -> list[tuple[float, float]]:
    """For each decision: from the first assignment written for it to half a second after the last was applied.

    A replica tells of it after `GATHER_S`.
    """
    written: list[tuple[float, Assignment]] = []
    async with TopicFollower(bootstrap_servers, names.assignments) as follower:
        for record in await follower.read_to(await follower.end()):
            control = decode_control(record.value) if record.value else None
            if isinstance(control, Assignment):
                written.append((record.time_ms / 1e3, control))
    applied: dict[tuple[str, int], float] = {}
    async with TopicFollower(bootstrap_servers, names.stage_stats, committed_only=False) as follower:
        for record in await follower.read_to(await follower.end()):
            report = decode_report(record.value)
            if all(offset >= 0 for offset in report.held.values()):
                applied.setdefault((report.replica, report.sequence), record.time_ms / 1e3)
    windows = []
    for start_s, next_s in zip(decided, [*decided[1:], float("inf")], strict=True):
        own = [(at, a) for at, a in written if start_s <= at < min(next_s, start_s + SETTLED_S)]
        ends = [applied.get((a.replica, a.sequence), at) for at, a in own]
        if own:
            windows.append((min(at for at, _ in own), max(ends) + 0.5 - GATHER_S))
    return windows


def _rests(sent: Passed, windows: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Between the changes, and not while anything starts or has just moved."""
    began_s = float(sent.entry_s.min())
    bounds = [(began_s, began_s + 0.5), *windows, (float(sent.entry_s.max()), float(sent.entry_s.max()))]
    rests = []
    for (_, end_s), (start_s, _) in itertools.pairwise(bounds):
        if start_s - 1.5 > end_s + 0.5:
            rests.append((end_s + 0.5, start_s - 1.5))  # processes start in the second before a move
    return rests


async def _group(protocol: str, bootstrap_servers: str, folder: Path, trace: Trace, cycles: int) -> Figures:
    """The same work and the same changes by a consumer group."""
    name = secrets.token_hex(4)
    source, sink = f"group-in-{name}", f"group-out-{name}"
    settings = {"message.timestamp.type": "LogAppendTime"}
    await create_topics(
        bootstrap_servers,
        [
            TopicSettings(source, PARTITIONS, "a benchmark's"),
            TopicSettings(sink, PARTITIONS, "a benchmark's", settings),
        ],
    )
    events = folder / f"{name}.jsonl"
    events.write_text("".join(f'{{"n":{n},"pad":"{"x" * 980}"}}\n' for n in range(50)))
    members: list[asyncio.subprocess.Process] = []
    windows: list[tuple[float, float]] = []
    try:
        members.append(await _member(protocol, bootstrap_servers, source, sink, name))
        await asyncio.sleep(5.0)  # a group's first assignment
        async with trace_feed(trace, events, folder, "n")(bootstrap_servers, source) as feed:
            await feed.ready()
            feed.start()
            began_s = time.time()
            for cycle in range(cycles):
                waiting = [await _member(protocol, bootstrap_servers, source, sink, name, join=False) for _ in "123"]
                members += waiting
                await _until(began_s + cycle * CYCLE_S + UP_S)
                await asyncio.gather(*map(_let_in, waiting))
                windows.append((time.time() - 0.1, time.time() + REST_AFTER_S))
                await _until(began_s + cycle * CYCLE_S + DOWN_S)
                windows.append((time.time(), time.time() + REST_AFTER_S))
                for member in members[1:]:
                    member.terminate()
                await asyncio.gather(*(member.wait() for member in members[1:]))
                del members[1:]
            await feed.finished()
        async with OffsetReader(bootstrap_servers) as offsets:
            group = name
            ends = (await offsets.ends({source: PARTITIONS}))[source]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(20):
                    while await offsets.committed(group, source, PARTITIONS) != ends:
                        await asyncio.sleep(0.2)
            sent = await passed_through(bootstrap_servers, sink, source, offsets)
    finally:
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                member.kill()
            await member.wait()
    moving, resting = sent.within(windows), sent.within(_rests(sent, windows))
    at_rest_s = np.quantile(sent.latency_s[resting], 0.99)
    return {
        f"{protocol}_p99_ratio": float(np.quantile(sent.latency_s[moving], 0.99) / at_rest_s),
        f"{protocol}_p99_moving_ms": float(np.quantile(sent.latency_s[moving], 0.99) * 1e3),
        f"{protocol}_latency_max_ms": float(sent.latency_s[moving].max() * 1e3),
    }


async def _until(time_s: float) -> None:
    await asyncio.sleep(max(0.0, time_s - time.time()))


async def _member(
    protocol: str, bootstrap_servers: str, source: str, sink: str, group: str, *, join: bool = True
) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.benchmarks._group_member", protocol, bootstrap_servers, source, sink, group,
        json.dumps(SERVICE_S),
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    await process.stdout.readline()
    if join:
        await _let_in(process)
    return process


async def _let_in(member: asyncio.subprocess.Process) -> None:
    """Returns once it has joined the group, or has at least asked to."""
    assert member.stdin is not None
    assert member.stdout is not None
    member.stdin.write(b"join\n")
    await member.stdout.readline()
