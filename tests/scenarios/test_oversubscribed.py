"""A machine that is full: no replica is added to cores that are not there, and scaling goes on once they are."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from inferline_stream.controlplane.core_use import CoreUse
from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.policy import POLICIES


async def test_traffic_beyond_the_plan_adds_nothing_while_others_take_the_cores_and_then_does(
    swing, embedded_broker: KafkaServer
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(150, 60)], policy=POLICIES["default"])
    run.pipeline.hardware = (Hardware("emulated-cpu", 0.0665, cores=0.1),)
    async with asyncio.timeout(180), open_run(replace(run, cores=100.0)) as under_way:
        await under_way.ready()
        view, stop = under_way.controller.view, asyncio.Event()
        view.core_use = CoreUse()  # it judges nothing: a test says what it sees
        view.core_use.crowded = "everything but replicas takes every core"
        feeding = asyncio.create_task(under_way.fed(stop))

        def reasons() -> list[tuple[str, str]]:
            return [(str(decision.action), str(decision.reason)) for decision in view.decisions]

        async def asked_in_vain() -> bool:
            return ("hold", "stock_exhausted") in reasons()

        async def added() -> bool:
            return any(action == "scale_up" for action, _ in reasons())

        assert await until(asked_in_vain, 30.0), reasons()
        assert reasons()[0] == ("hold", "oversubscribed")
        assert not await added()

        async def shown() -> bool:
            state = under_way.controller.state  # made twice a second
            return state is not None and bool(state.oversubscribed)

        assert await until(shown, 60.0)
        view.core_use.crowded = ""
        assert await until(added, 30.0), reasons()
        assert reasons().count(("hold", "oversubscribed")) == 2
        stop.set()
        await feeding
        await under_way.drain()
