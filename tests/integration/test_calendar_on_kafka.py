"""Exactly once on Apache Kafka: a pipeline sleeps and wakes, holds what is scheduled, and loses its spot capacity."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.observe.recovery import recover
from inferline_stream.controlplane.records.control_records import Override
from inferline_stream.controlplane.records.explanation import PlanHistory, sentences
from inferline_stream.controlplane.records.record_writers import write_overrides
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.pipeline.idle import Idle
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.schedule import On, last_s
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.policy import POLICIES
from tests.support.emulated_runs import SWING, on_this_host, swing_runs

KIND, LENT = "emulated-cpu", "emulated-cpu-spot"
GAP_S = 1 / 30


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    """The swing topology on spot capacity, with a time after which it sleeps."""
    folder = tmp_path / "lent"
    shutil.copytree(SWING, folder)
    file = folder / "topology.py"
    source = file.read_text().replace("import Pipeline,", "import Hardware, Pipeline, Spot,")
    source = source.replace(f'EMULATED = ["{KIND}"]', f'EMULATED = ["{LENT}", "{KIND}"]')
    given = f'hardware=[Hardware("{KIND}", 0.0665, cores=0, spot=Spot(0.02, notice="20s"))],\n    idle="60s",\n'
    file.write_text(source.replace('    slo="400ms",\n', f'    slo="400ms",\n    {given}'))
    return file


def on_spot(run: Run) -> Run:
    """The same run with every replica on spot capacity, and a time without events that tests can wait for."""
    held: dict[str, tuple[Allocation, ...]] = {
        stage: (a, replace(a, hardware=KIND, replicas=0)) for stage, (a,) in run.plan.allocations.items()
    }
    return replace(run, plan=replace(run.plan, allocations=held, idle=dict.fromkeys(held, Idle(3.0))))


@contextlib.asynccontextmanager
async def load(run: Run, topic: str) -> AsyncIterator[None]:
    """Thirty orders a second while the block lasts."""
    ended = asyncio.Event()

    async def send() -> None:
        number = 0
        async with RecordProducer(run.bootstrap_servers) as producer:
            while not ended.is_set():
                await producer.send(topic, b'{"number": %d}' % (number := number + 1), key=b"%d" % number)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), GAP_S)
            await producer.flush()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        try:
            yield
        finally:
            ended.set()


async def test_it_sleeps_and_wakes_holds_what_is_scheduled_and_survives_a_notice(
    topology: Path, tmp_path: Path, apache_kafka: KafkaServer
) -> None:
    run = on_spot(
        swing_runs(tmp_path, topology)(
            apache_kafka.bootstrap_servers, levels=[], delivery="exactly_once", policy=POLICIES["default"], feed=None
        )
    )
    planned = {stage: sum(a.replicas for a in held) for stage, held in run.plan.allocations.items()}
    today = f"{datetime.now(UTC):%Y-%m-%d}"

    async with on_this_host(run, 240.0) as (live, actuator):
        view, decisions = live.controller.view, live.controller.decider.decisions

        async def say(override: Override) -> None:
            await write_overrides(run.bootstrap_servers, live.context.names, [(override.key, override)])

        async def ready(kind: str, times: int) -> bool:
            """Whether every stage has a replica of the kind, and that which bounds the plan so many times its own."""
            there = {stage: view.reports.ready(stage, kind) for stage in planned}
            return all(there.values()) and there["parse"] >= times * planned["parse"]

        async def asleep() -> bool:
            return not await actuator.observe()

        async with load(run, live.context.source):
            await asyncio.sleep(1.0)
        assert await until(asleep, 60.0), "nothing comes for longer than it waits"
        async with load(run, live.context.source):
            assert await until(lambda: ready(LENT, 1), 60.0), "the first event wakes it"
            await say(Override("reserve", today, 3.0, until_s=last_s(On(today), "UTC")))
            assert await until(lambda: ready(LENT, 2), 60.0), "the scheduled floor is held"
            await say(Override("notice", LENT, 20.0, until_s=time.time() + 20.0))

            async def taken_over() -> bool:
                there = await actuator.observe()
                return all(r.hardware == KIND for r in there) and await ready(KIND, 2)

            assert await until(taken_over, 60.0), "on-demand replicas take over"
        report = await live.report(await live.drain())
        found = await recover(run.bootstrap_servers, live.context.names)
        explained = "\n".join(sentences(PlanHistory("swing", found.plans, found.decisions, found.overrides), last=50))
    assert (report.lost, report.duplicated, report.unknown) == (0, 0, 0)
    assert report.events_in == report.events_out > 60
    reasons = [d.reason for d in found.decisions]
    assert [reason for reason in reasons if reason in ("idle", "woken", "spot_lost")] == ["idle", "woken", "spot_lost"]
    (lost,) = [d for d in decisions if d.reason == "spot_lost"]
    assert all(kinds[KIND] and not kinds[LENT] for kinds in lost.replicas.values()), "in the step that sees the notice"
    for said in (
        "no event has come for 3s",
        "its first replica is ready in about",
        f"the schedule holds 3 times the planned traffic: '{today}'",
        f"of {LENT} will be taken within 20s",
    ):
        assert said in explained, explained
