"""Randomized faults under load on Apache Kafka, with an oracle that accounts for every event id.

A pipeline of three stages with a conditional branch and a join (emulated hardware) runs under a steady load while
faults strike: replicas killed or frozen beyond their lease, the controller silent until another takes over, both at
once, the broker stopped and started, killed, or frozen. Half of the rounds deliver at least once, half exactly once.
Recovery counts from the fault's end to the last event that was late because of it. `lost`: events that neither reached
the sink nor ended for a recorded reason. `duplicated_exactly_once`: sink records beyond the first of an event, read
with read_committed, in the exactly-once half.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from inferline_stream.actuators.local import LocalActuator
from inferline_stream.controlplane.ledger import Ledger, read_ledger
from inferline_stream.controlplane.session import Quiet, Run, Session, session
from inferline_stream.controlplane.waiting import until
from inferline_stream.dataplane.control import OffsetReader
from inferline_stream.testing.local_kafka import LocalKafka
from inferline_stream.testing.runs import emulated_run
from tests.benchmarks._live import append_time_sink, passed_through

SWING = Path(__file__).parents[1] / "scenarios" / "swing"
RATE = 60.0
FROZEN_S = 6.0
"""Beyond the lease (2 s) and beyond what counts as death (3 s)."""

Figures = dict[str, float | int | str | None]


def measure(quick: bool) -> Figures:
    rounds = 4 if quick else 24
    pause_s = 2.0 if quick else 6.0
    kinds = ("kill_replica", "controller", "freeze_replica", "kill_replica") if quick else tuple(FAULTS)
    with LocalKafka() as kafka, tempfile.TemporaryDirectory() as folder:
        halves = []
        for half, delivery in enumerate(("at_least_once", "exactly_once")):
            rng = random.Random(f"faults-{half}")
            struck = [kinds[i % len(kinds)] for i in range(rounds // 2)] if not quick else list(kinds[half::2])
            rng.shuffle(struck)
            halves.append(asyncio.run(_half(kafka, Path(folder), delivery, struck, pause_s)))
    recoveries = [s for half in halves for s in half.recovery_s]
    return {
        "rounds": len(recoveries),
        "lost": sum(half.ledger.lost()[0] for half in halves),
        "duplicated_exactly_once": halves[1].ledger.duplicated,
        "duplicated_at_least_once": halves[0].ledger.duplicated,
        "recovery_s_p95": float(np.quantile(recoveries, 0.95, method="higher")),
        "recovery_s_median": statistics.median(recoveries),
        "recovery_s_max": max(recoveries),
        "worst_fault": max((s, kind) for half in halves for s, kind in zip(half.recovery_s, half.struck, strict=True))[
            1
        ],
        "events": sum(half.ledger.events_in for half in halves),
        "unknown": sum(half.ledger.unknown for half in halves),
    }


@dataclass(slots=True)
class Half:
    """What one pipeline went through."""

    ledger: Ledger
    struck: list[str]
    recovery_s: list[float]


@dataclass(slots=True)
class Scene:
    """A pipeline under load that faults strike."""

    kafka: LocalKafka
    run: Run
    actuator: LocalActuator
    rng: random.Random
    stack: contextlib.AsyncExitStack
    leading: Session
    ended_s: list[float] = field(default_factory=list)
    """When each fault ended, seconds since the epoch."""

    async def replica(self) -> int:
        """Process of some replica."""
        running = [r.pid for r in await self.actuator.observe() if r.state == "running" and r.pid is not None]
        return self.rng.choice(running)

    async def new_controller(self) -> None:
        """The leading one falls silent without a word; another takes over once it has been for long enough."""
        self.leading.control.cancel()
        self.leading = await self.stack.enter_async_context(
            session(replace(self.run, feed=None), Quiet(), self.actuator)
        )


async def kill_replica(scene: Scene) -> None:
    os.kill(await scene.replica(), signal.SIGKILL)


async def freeze_replica(scene: Scene) -> None:
    pid = await scene.replica()
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(FROZEN_S)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


async def controller(scene: Scene) -> None:
    await scene.new_controller()


async def controller_and_replica(scene: Scene) -> None:
    pid = await scene.replica()
    scene.leading.control.cancel()
    os.kill(pid, signal.SIGKILL)
    await scene.new_controller()


async def restart_broker(scene: Scene) -> None:
    await asyncio.to_thread(scene.kafka.restart)


async def kill_broker(scene: Scene) -> None:
    await asyncio.to_thread(scene.kafka.restart, kill=True)


async def freeze_broker(scene: Scene) -> None:
    scene.kafka.suspend()
    await asyncio.sleep(FROZEN_S)
    scene.kafka.resume()


FAULTS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    fault.__name__: fault
    for fault in (
        kill_replica,
        freeze_replica,
        controller,
        controller_and_replica,
        restart_broker,
        freeze_broker,
        kill_broker,
    )
}


async def _half(kafka: LocalKafka, folder: Path, delivery: str, struck: list[str], pause_s: float) -> Half:
    folder = folder / delivery
    folder.mkdir()
    run = emulated_run(
        SWING,
        kafka.bootstrap_servers,
        folder,
        levels=[(RATE, 3600.0)],
        replicas={"parse": 2, "check": 1, "decide": 2},
        probability={("parse", "check"): 1 / 3},
        planned_rate=RATE,
        key_field="number",
        delivery=delivery,
    )
    await append_time_sink(run)
    assert run.feed is not None
    async with contextlib.AsyncExitStack() as stack:
        actuator = await stack.enter_async_context(LocalActuator(run.spec, run.log_folder))
        first = await stack.enter_async_context(session(run, Quiet(), actuator))
        await first.ready()
        scene = Scene(kafka, run, actuator, random.Random(delivery), stack, first)
        feed = await stack.enter_async_context(run.feed(run.bootstrap_servers, first.running.source))
        await feed.ready()
        feed.start()
        await asyncio.sleep(pause_s)
        spans = []
        for kind in struck:
            began_s = time.time()
            await FAULTS[kind](scene)
            spans.append((began_s, time.time()))
            await _calm(scene)
            await asyncio.sleep(pause_s)
        feed.stop()
        await feed.finished()
        await scene.leading.drain()
        async with OffsetReader(run.bootstrap_servers) as offsets:
            partitions = scene.leading.controller.picture.partitions
            ledger = await read_ledger(offsets, first.running, first.since, partitions)
            sent = await passed_through(run.bootstrap_servers, first.running.sink, first.running.source, offsets)
    late = sent.latency_s > run.plan.slo_s
    recovery_s = []
    for (_, end_s), (next_s, _) in zip(spans, [*spans[1:], (time.time(), 0.0)], strict=True):
        own = late & (sent.out_s > end_s) & (sent.entry_s < next_s) & (sent.out_s < next_s)
        recovery_s.append(float(sent.out_s[own].max() - end_s) if own.any() else 0.0)
    return Half(ledger, struck, recovery_s)


async def _calm(scene: Scene) -> None:
    """Wait until every replica is back and nothing lags behind, for at most half a minute."""

    async def calm() -> bool:
        controller_ = scene.leading.controller
        state = controller_.state
        return (
            state is not None
            and all(kind.ready >= kind.wanted for stage in state.stages for kind in stage.replicas)
            and all(stage.lag_s < 1.0 for stage in state.stages)
        )

    await asyncio.sleep(0.6)
    await until(calm, 30.0, 0.2)
