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

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.controlplane.log.control_records import Override, encode
from inferline_stream.controlplane.polling import until
from inferline_stream.kafka.controller_client import Written, write_once
from inferline_stream.pipeline.trace import Trace
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.runs.run import NoDisplay
from inferline_stream.testing.kafka import find_apache_kafka
from inferline_stream.tuner.policy import POLICIES
from tests.benchmarks._live import append_time_sink, one_stage, passed
from tests.support.director import ready_logged_s

RATE = 60.0
STEP = 3.0
BEFORE_S, AFTER_S = 8.0, 5.0
RATE_OF_DEATHS, DEATHS = 200.0, 3
HARDWARE = "emulated-cpu"


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
    async with open_run(run, NoDisplay()) as under_way:
        await under_way.ready()
        first = await _replicas(under_way)
        await under_way.fed(asyncio.Event())
        ups = [d for d in under_way.controller.view.decisions if d.action == "scale_up"]
        found = await _replicas(under_way)
        shift_s = time.time() - asyncio.get_running_loop().time()
        ready_s = {name: ready_logged_s(run.log_folder / f"{name}.log") for name in found.keys() - first.keys()}
        await under_way.drain()
        sent = await passed(under_way)
    stepped_s = float(np.sort(sent.entry_s)[len(before)])
    if not ups or ups[0].time_s < stepped_s:
        return None
    signed = dict(zip(reversed(sent.values), sent.out_s[::-1], strict=True))  # the first result of each
    firsts = [
        (float(signed[own]), at_s, found[name].started_s + shift_s)
        for name, at_s in ready_s.items()
        if (own := b"%d" % (found[name].pid or 0)) in signed
    ]
    if not firsts:
        return None
    first_s, at_s, asked_s = min(firsts)
    start_up_s = at_s - asked_s
    return ups[0].time_s - stepped_s, start_up_s, first_s - ups[0].time_s - start_up_s


async def _replicas(under_way: LiveRun) -> dict[str, ObservedReplica]:
    return {r.replica: r for r in await under_way.controller.actuator.observe() if r.state == "running"}


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
    async with open_run(run, NoDisplay()) as under_way:
        await under_way.ready()
        standby = Override("standby", "work", 1)
        control = under_way.running.names.control
        await write_once(bootstrap_servers, Written(control, standby.key, encode(standby)))
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        for _ in range(DEATHS):
            assert await until(lambda: _stands_by(under_way), 30.0)
            await asyncio.sleep(1.0)
            working, _ = (await _replicas(under_way)).values()  # the older one has the lower number, and the work
            died_s.append(time.time())
            os.kill(working.pid or 0, signal.SIGKILL)
            await asyncio.sleep(1.0)
        await feeding
        await under_way.drain()
        out_s = (await passed(under_way)).out_s
    # What the dead one had sent may be acknowledged for a moment after its death.
    return [float(out_s[out_s > at + 0.01][0]) - at for at in died_s]


async def _stands_by(under_way: LiveRun) -> bool:
    ready = under_way.controller.view.reports.ready("work", HARDWARE)
    return ready == 2 == len(await _replicas(under_way))
