"""How fast the control plane answers a step of traffic from 1× to 3× on Apache Kafka, with emulated hardware.

`decision_ms`: from the first arrival of the step, by its record's timestamp, to the decision to scale up.
`first_record_over_start_up_ms`: from there to the first result of the new replica, beyond the replica's start-up time
(from asking for it to its READY). The median of several steps; each is a run of its own. A step after which nothing was
decided, or no new replica had a result, is a miss: it counts as longer than any other. `scaled_before_the_step` counts
the runs in which the policy scaled up on the noise before, which say nothing.
`standby_ms`: from the death of the only working replica (SIGKILL) to the first result of the one that stood by.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.records.control_records import Override, encode
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.trace import Trace
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.testing.kafka import find_apache_kafka
from inferline_stream.tuner.policy import POLICIES
from tests.benchmarks._figures import Figures
from tests.benchmarks._live import one_stage, passed, stamped
from tests.support.director import ready_logged_s

RATE = 60.0
STEP = 3.0
BEFORE_S, AFTER_S = 8.0, 5.0
RATE_OF_DEATHS, DEATHS = 200.0, 3
HARDWARE = "emulated-cpu"


def measure(quick: bool) -> Figures:
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(kafka.bootstrap_servers, Path(folder), 2 if quick else 9))


async def _measure(bootstrap_servers: str, folder: Path, rounds: int) -> Figures:
    standby = [s for _ in range(rounds) for s in await _deaths(bootstrap_servers, folder)]
    steps = [await _step(bootstrap_servers, folder) for _ in range(rounds)]
    found = [step for step in steps if step is not None]
    figures: Figures = {
        "standby_ms": statistics.median(standby) * 1e3,
        "standby_ms_max": max(standby) * 1e3,
        "steps": len(found),
        "missed_steps": sum(math.isinf(step.first_s) for step in found),
        "scaled_before_the_step": rounds - len(found),
    }
    start_ups = [step.start_up_s for step in found if math.isfinite(step.first_s)]
    for name, values in {
        "decision_ms": [step.decision_s for step in found],
        "first_record_over_start_up_ms": [step.first_s for step in found],
        "start_up_ms": start_ups,
    }.items():
        middle = statistics.median(values) if values else math.inf
        figures[name] = middle * 1e3 if math.isfinite(middle) else None
        if math.isinf(middle):
            figures[f"{name}_reason"] = "half of the steps or more were missed" if values else "there was no such step"
        elif name != "start_up_ms":
            figures[f"{name}_max"] = max(values) * 1e3 if math.isfinite(max(values)) else None
    return figures


@dataclass(frozen=True, slots=True)
class _Step:
    """Seconds of one step; infinite where it did not happen."""

    decision_s: float = math.inf
    start_up_s: float = math.inf
    first_s: float = math.inf
    """The first result of a new replica, beyond its start-up."""


async def _step(bootstrap_servers: str, folder: Path) -> _Step | None:
    """One step; None if it scaled up before."""
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
    async with stamped(run) as (under_way, _):
        first = await _replicas(under_way)
        await under_way.fed(asyncio.Event())
        ups = [d for d in under_way.controller.view.decisions if d.action == "scale_up"]
        found = await _replicas(under_way)
        shift_s = time.time() - asyncio.get_running_loop().time()
        ready_s = {name: ready_logged_s(run.log_folder / f"{name}.log") for name in found.keys() - first.keys()}
        await under_way.drain()
        sent = await passed(under_way)
    stepped_s = float(np.sort(sent.entry_s)[len(before)])
    if not ups:
        return _Step()
    if ups[0].time_s < stepped_s:
        return None
    signed = dict(zip(reversed(sent.values), sent.out_s[::-1], strict=True))  # the first result of each
    firsts = [
        (float(signed[own]), at_s, found[name].started_s + shift_s)
        for name, at_s in ready_s.items()
        if (own := b"%d" % (found[name].pid or 0)) in signed
    ]
    if not firsts:
        return _Step(ups[0].time_s - stepped_s)
    first_s, at_s, asked_s = min(firsts)
    start_up_s = at_s - asked_s
    return _Step(ups[0].time_s - stepped_s, start_up_s, first_s - ups[0].time_s - start_up_s)


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
    died_s = []
    async with stamped(run) as (under_way, _):
        standby = Override("standby", "work", 1)
        control = under_way.context.names.control
        await write_once(bootstrap_servers, Record.keyed(control, standby.key, encode(standby)))
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
