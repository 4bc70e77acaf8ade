"""How fast the control plane answers a step of traffic from 1× to 3× on Apache Kafka, with emulated hardware.

`decision_ms`: from the first arrival of the step, by its record's timestamp, to the decision to scale up.
`first_record_over_start_up_ms`: from there to the first result of the new replica, beyond the replica's start-up time
(from asking for it to its READY). The median of several steps; each is a run of its own.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from inferline_stream.controlplane.session import Quiet, session
from inferline_stream.dataplane.control import TopicFollower
from inferline_stream.dataplane.protocol import ReplicaReport, decode_report
from inferline_stream.pipeline.trace import Trace
from inferline_stream.testing.kafka import find_apache_kafka
from inferline_stream.tuner.policy import POLICIES
from tests.benchmarks._live import append_time_sink, one_stage, passed

RATE = 60.0
STEP = 3.0
BEFORE_S, AFTER_S = 8.0, 5.0


def measure(quick: bool) -> dict[str, float | int | str | None]:
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(kafka.bootstrap_servers, Path(folder), 2 if quick else 9))


async def _measure(bootstrap_servers: str, folder: Path, rounds: int) -> dict[str, float | int | str | None]:
    decisions, firsts, start_ups = [], [], []
    early = 0
    for _ in range(rounds):
        found = await _step(bootstrap_servers, folder)
        if found is None:
            early += 1
            continue
        decisions.append(found[0])
        start_ups.append(found[1])
        firsts.append(found[2])
    if not decisions:
        reason = f"the policy scaled up before the step in all {rounds} rounds: the machine was too noisy"
        return {"decision_ms": None, "first_record_over_start_up_ms": None, "decision_ms_reason": reason}
    return {
        "decision_ms": statistics.median(decisions) * 1e3,
        "first_record_over_start_up_ms": statistics.median(firsts) * 1e3,
        "decision_ms_max": max(decisions) * 1e3,
        "first_record_over_start_up_ms_max": max(firsts) * 1e3,
        "start_up_ms": statistics.median(start_ups) * 1e3,
        "steps": len(decisions),
        "scaled_before_the_step": early,
    }


async def _step(bootstrap_servers: str, folder: Path) -> tuple[float, float, float] | None:
    """(decision, start-up, first record beyond start-up) in seconds; None if it scaled up before the step."""
    before = np.arange(0.0, BEFORE_S, 1 / RATE)
    after = np.arange(BEFORE_S, BEFORE_S + AFTER_S, 1 / (RATE * STEP))
    run = one_stage(
        bootstrap_servers,
        folder,
        Trace(np.concatenate([before, after])),
        emulated={1: "10ms", 2: "12ms", 4: "16ms", 8: "40ms"},  # at most 250/s: one replica carries 60/s, not 180/s
        slo="250ms",
        planned_rate=RATE,
        policy=POLICIES["default"],
    )
    await append_time_sink(run)
    async with session(run, Quiet()) as under_way:
        await under_way.ready()
        await under_way.fed(asyncio.Event())
        picture = under_way.controller.picture
        ups = [d for d in picture.decisions if d.action == "scale_up"]
        asked_s = dict(under_way.controller.fleet.started_s)
        shift_s = time.time() - asyncio.get_running_loop().time()
        await under_way.drain()
        sent = await passed(under_way)
        reports = await _reports(under_way.run.bootstrap_servers, under_way.running.names.stage_stats)
    by_entry = np.sort(sent.entry_s)
    stepped_s = float(by_entry[len(before)])
    if not ups or ups[0].time_s < stepped_s:
        return None
    first_replica = next(iter(reports))
    new = [name for name in reports if name != first_replica]
    firsts = []
    for name in new:
        ready_s = next(at for at, r in reports[name] if r.phase == "ready")
        held = next((r.held for _, r in reports[name] if r.held and all(o >= 0 for o in r.held.values())), None)
        if held is None:
            continue
        done = [
            float(sent.out_s[(sent.partition == p) & (sent.offset == offset)][0])
            for p, offset in held.items()
            if ((sent.partition == p) & (sent.offset == offset)).any()
        ]
        if done:
            firsts.append((min(done), ready_s, asked_s[name] + shift_s))
    if not firsts:
        return None
    first_s, ready_s, asked = min(firsts)
    start_up_s = ready_s - asked
    return ups[0].time_s - stepped_s, start_up_s, first_s - ups[0].time_s - start_up_s


async def _reports(bootstrap_servers: str, topic: str) -> dict[str, list[tuple[float, ReplicaReport]]]:
    """Reports of each replica with the time they were made, replicas in order of their first."""
    found: dict[str, list[tuple[float, ReplicaReport]]] = {}
    async with TopicFollower(bootstrap_servers, topic, committed_only=False) as follower:
        for record in await follower.read_to(await follower.end()):
            if record.value:
                report = decode_report(record.value)
                found.setdefault(report.replica, []).append((record.time_ms / 1e3, report))
    return found
