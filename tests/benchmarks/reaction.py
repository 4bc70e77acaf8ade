"""How fast the control plane answers a step of traffic from 1× to 3× on Apache Kafka, with emulated hardware.

`decision_ms`: from the first arrival of the step, by its record's timestamp, to the decision to scale up.
`first_record_over_start_up_ms`: from there to the first result of the new replica, beyond the replica's start-up time
(from asking for it to its READY). The median of several steps; each is a run of its own.
`standby_ms`: from the death of the only working replica (SIGKILL) to the first result of the one that stood by.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from inferline_stream.controlplane.records import Override, encode
from inferline_stream.controlplane.session import Quiet, Session, session
from inferline_stream.controlplane.waiting import until
from inferline_stream.dataplane.control import TopicFollower, Written, write_once
from inferline_stream.dataplane.protocol import ReplicaReport, decode_report
from inferline_stream.pipeline.trace import Trace
from inferline_stream.testing.kafka import find_apache_kafka
from inferline_stream.tuner.policy import POLICIES
from tests.benchmarks._live import append_time_sink, one_stage, passed

RATE = 60.0
STEP = 3.0
BEFORE_S, AFTER_S = 8.0, 5.0
RATE_OF_DEATHS, DEATHS = 200.0, 3


def measure(quick: bool) -> dict[str, float | int | str | None]:
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(kafka.bootstrap_servers, Path(folder), 2 if quick else 9))


async def _measure(bootstrap_servers: str, folder: Path, rounds: int) -> dict[str, float | int | str | None]:
    decisions, firsts, start_ups = [], [], []
    early = 0
    standby = [s for _ in range(rounds) for s in await _deaths(bootstrap_servers, folder)]
    taken_over = {"standby_ms": statistics.median(standby) * 1e3, "standby_ms_max": max(standby) * 1e3}
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
        return {
            "decision_ms": None,
            "first_record_over_start_up_ms": None,
            "decision_ms_reason": reason,
            **taken_over,
        }
    return {
        **taken_over,
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


async def _deaths(bootstrap_servers: str, folder: Path) -> list[float]:
    """Seconds from each death of the working replica to the standby's first result, several in one run."""
    run = one_stage(
        bootstrap_servers,
        folder,
        Trace(np.arange(0.0, 3.0 + 4.0 * DEATHS, 1 / RATE_OF_DEATHS)),
        emulated={1: "2ms", 8: "4ms"},
        slo="250ms",
        planned_rate=RATE_OF_DEATHS,
    )
    await append_time_sink(run)
    died_s = []
    async with session(run, Quiet()) as under_way:
        await under_way.ready()
        picture, actuator = under_way.controller.picture, under_way.controller.actuator
        standby = Override("standby", "work", 1)
        control = under_way.running.names.control
        await write_once(bootstrap_servers, Written(control, standby.key, encode(standby)))
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        for _ in range(DEATHS):
            assert await until(lambda: _stands_by(under_way), 30.0)
            await asyncio.sleep(1.0)
            (working,) = [r for r in await actuator.observe() if r.pid and r.replica not in picture.standbys["work"]]
            died_s.append(time.time())
            os.kill(working.pid or 0, signal.SIGKILL)
            await asyncio.sleep(1.0)
        await feeding
        await under_way.drain()
        out_s = (await passed(under_way)).out_s
    # What the dead one had sent may be acknowledged for a moment after its death.
    return [float(out_s[out_s > at + 0.01][0]) - at for at in died_s]


async def _stands_by(under_way: Session) -> bool:
    return len(under_way.controller.picture.standbys.get("work", ())) == 1


async def _reports(bootstrap_servers: str, topic: str) -> dict[str, list[tuple[float, ReplicaReport]]]:
    """Reports of each replica with the time they were made, replicas in order of their first."""
    found: dict[str, list[tuple[float, ReplicaReport]]] = {}
    async with TopicFollower(bootstrap_servers, topic, committed_only=False) as follower:
        for record in await follower.read_to(await follower.end()):
            if record.value:
                report = decode_report(record.value)
                found.setdefault(report.replica, []).append((record.time_ms / 1e3, report))
    return found
