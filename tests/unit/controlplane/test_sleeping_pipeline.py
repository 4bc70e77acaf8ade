"""A pipeline that sleeps, in the whole control loop: it wakes for events whatever else is set, and for nothing else."""

from __future__ import annotations

import asyncio

from inferline_stream.controlplane.records.control_records import Override
from inferline_stream.pipeline.idle import Idle
from tests.support.virtual_time import EPOCH_S
from tests.unit.controlplane.one_stage_world import START_UP_S, World, in_world, now

IDLE = Idle(20.0)
BURSTS_S = (35.0, 80.0)
"""When five events come."""


def at_bursts(time_s: float) -> float:
    return 10.0 if any(begins_s <= time_s < begins_s + 0.5 for begins_s in BURSTS_S) else 0.0


async def asleep(world: World, within_s: float) -> None:
    await world.until(lambda: world.wanted == 0, within_s)
    await world.until(lambda: not world.view.reports.ready("a", "cpu"), 5.0)
    assert await world.replicas() == 0
    assert len(await world.actuator.dispatchers()) == 1


@in_world(at_bursts, idle=IDLE)
async def test_it_sleeps_and_events_wake_it_also_in_a_pause_and_people_keep_it_awake(world: World) -> None:
    began_s = now()
    await asyncio.sleep(19.0)
    assert world.wanted == 2
    await asleep(world, 8.0)
    await asyncio.sleep(1.0)
    cost = world.view.cost
    await asyncio.sleep(began_s + BURSTS_S[0] - 1.0 - now())
    assert world.view.cost == cost
    await world.until(lambda: world.done >= 1, START_UP_S + 2.5)
    assert [reason for _, reason in world.decisions()] == ["idle", "woken"]
    await asleep(world, 40.0)
    assert world.done == world.arrived

    world.say(Override("pause", until_s=EPOCH_S + 130.0))
    await world.until(lambda: world.done > 6, BURSTS_S[1] + began_s - now() + START_UP_S + 2.5)
    woken = world.wanted
    await asyncio.sleep(began_s + 128.0 - now())
    assert world.wanted == woken > 0, "nothing else is decided in a pause"
    await asyncio.sleep(15.0)
    assert world.wanted > 0, "what came in the pause is not known: its time begins again"
    await asleep(world, 15.0)

    world.say(Override("limits", "a", minimum=1))
    await world.until(lambda: world.wanted >= 1, 5.0)
    await asyncio.sleep(30.0)
    assert world.wanted >= 1
    assert [reason for _, reason in world.decisions()].count("woken") == 2


@in_world(lambda time_s: 10.0 if 40.0 <= time_s < 40.5 else 0.0, idle=IDLE)
async def test_what_people_ask_for_in_a_pause_waits_and_an_event_wakes_it_all_the_same(world: World) -> None:
    await asleep(world, 30.0)
    world.say(Override("pause", until_s=EPOCH_S + 130.0))
    world.say(Override("limits", "a", minimum=1))
    await world.until(lambda: world.arrived > 0, 20.0)
    assert world.wanted == 0
    await world.until(lambda: world.done >= 1, START_UP_S + 2.5)
    assert world.decisions()[-1] == ("scale_up", "woken")


@in_world(lambda time_s: 10.0 if 5.0 <= time_s < 5.5 else 0.0, idle=IDLE, held=0)
async def test_a_controller_that_finds_it_asleep_does_not_wait_for_replicas_and_wakes_it_in_time(world: World) -> None:
    await world.until(lambda: world.arrived > 0, 6.0)
    assert world.wanted == 0
    await world.until(lambda: world.done >= world.arrived >= 1, START_UP_S + 2.5)
    assert world.decisions()[0] == ("scale_up", "woken")


@in_world(at_bursts, idle=Idle(20.0, standby=1))
async def test_one_that_stands_by_stays_and_serves_the_first_events_without_a_start(world: World) -> None:
    await world.until(lambda: world.wanted == 0, 30.0)
    await asyncio.sleep(2.0)
    assert (await world.replicas(), world.arrived) == (1, 0.0)
    assert "and 1 on standby stay" in world.controller.decider.decisions[-1].detail
    await world.until(lambda: world.arrived >= 1, 20.0)
    assert await world.until(lambda: world.done >= 1, 5.0) < START_UP_S / 2
