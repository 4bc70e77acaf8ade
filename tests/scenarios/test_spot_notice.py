"""Spot replicas that are taken away under load: others take over, and nothing is lost or repeated."""

from __future__ import annotations

import asyncio
import time
from copy import copy
from dataclasses import replace

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.observe.event_ledger import read_ledger
from inferline_stream.controlplane.records.control_records import Override
from inferline_stream.controlplane.records.record_writers import write_overrides
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.spot import Spot
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.policy import POLICIES
from tests.support.emulated_runs import on_this_host

KIND = "emulated-cpu"
LENT = f"{KIND}-spot"


def on_spot(run: Run) -> Run:
    """The same run with every replica on spot capacity."""
    pipeline = copy(run.pipeline)
    pipeline.hardware = (Hardware(KIND, 0.0665, cores=0, spot=Spot(0.02)),)
    held: dict[str, tuple[Allocation, ...]] = {
        stage: (replace(a, hardware=LENT), replace(a, replicas=0)) for stage, (a,) in run.plan.allocations.items()
    }
    measured = run.measured.with_spot({stage: [LENT] for stage in held})
    return replace(run, pipeline=pipeline, plan=replace(run.plan, allocations=held), measured=measured)


async def test_on_demand_replicas_take_over_before_spot_ones_are_taken(swing, embedded_broker: KafkaServer) -> None:
    run = on_spot(swing(embedded_broker.bootstrap_servers, levels=[(30, 12)], policy=POLICIES["default"]))
    assert run.feed is not None
    async with (
        on_this_host(run, 180.0) as (live, actuator),
        run.feed(run.bootstrap_servers, live.context.source) as feed,
    ):
        await feed.ready()
        feed.start()
        await asyncio.sleep(3.0)
        notice = Override("notice", LENT, 20.0, until_s=time.time() + 20.0)
        await write_overrides(run.bootstrap_servers, live.context.names, [(notice.key, notice)])

        async def taken_over() -> bool:
            there = await actuator.observe()
            return all(r.hardware == KIND for r in there) and {r.stage for r in there} == set(run.plan.allocations)

        assert await until(taken_over, 60.0)
        feed.stop()
        await feed.finished()
        await live.drain()
        ledger = await read_ledger(live.offsets, live.context, live.since)
    assert ledger.events_in == ledger.events_out > 60
    assert (ledger.lost(), ledger.duplicated) == ((0, []), 0)
    decision = next(d for d in live.controller.decider.decisions if d.reason == "spot_lost")
    assert all(kinds.get(KIND) and not kinds[LENT] for kinds in decision.replicas.values())
