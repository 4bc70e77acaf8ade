"""A notice of spot capacity in the whole control loop: replaced at once, drained in time, whatever else is set."""

from __future__ import annotations

import asyncio
import logging

import pytest
from msgspec.structs import replace

from inferline_stream.controlplane.records.control_records import Override
from tests.support.virtual_time import EPOCH_S
from tests.unit.controlplane.one_stage_world import START_UP_S, World, in_world, steady

ON_SPOT = {"cpu": 0, "cpu-spot": 2}


async def there(world: World, kind: str) -> int:
    return sum(r.hardware == kind and r.state != "retiring" for r in await world.actuator.observe())


@pytest.mark.parametrize("paused", [False, True])
def test_replacements_start_at_once_and_what_is_taken_works_on_until_they_are_ready(paused: bool) -> None:
    @in_world(steady(10.0), planned=ON_SPOT)
    async def story(world: World) -> None:
        await asyncio.sleep(20.0)
        waiting = world.arrived - world.done
        if paused:
            world.say(Override("pause", until_s=EPOCH_S + 600.0))
        world.say(Override("notice", "cpu-spot", 30.0, until_s=EPOCH_S + 50.0))
        await world.until(lambda: world.controller.wanted["a"] == {"cpu": 2, "cpu-spot": 0}, 2.0)
        await asyncio.sleep(START_UP_S / 2)
        assert (await there(world, "cpu"), await there(world, "cpu-spot")) == (2, 2)
        await asyncio.sleep(START_UP_S + 2.0)
        assert (await there(world, "cpu"), await there(world, "cpu-spot")) == (2, 0)
        assert world.arrived - world.done <= waiting + 1.0
        await asyncio.sleep(60.0)
        assert (await there(world, "cpu"), await there(world, "cpu-spot")) == (2, 0), "it is away"
        assert world.decisions() == [("scale_up", "spot_lost")]

    story()


@in_world(steady(10.0), planned=ON_SPOT)
async def test_a_notice_shorter_than_a_start_drains_replicas_before_they_are_taken(world: World) -> None:
    await asyncio.sleep(20.0)
    world.say(Override("notice", "cpu-spot", 10.0, until_s=EPOCH_S + 30.0))
    world.actuator.room["cpu"] = 0  # none has a place
    await asyncio.sleep(3.0)
    assert await there(world, "cpu-spot") == 2
    await asyncio.sleep(4.0)
    assert await there(world, "cpu-spot") == 0


@in_world(steady(10.0))
async def test_a_notice_for_what_nobody_has_is_said_and_changes_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.sleep(10.0)
    with caplog.at_level(logging.WARNING):
        world.say(Override("notice", "cpu-spot", 30.0, until_s=EPOCH_S + 40.0))
        await asyncio.sleep(20.0)
    assert "notice of cpu-spot: there is no replica of it, so nothing is replaced" in caplog.text
    assert world.decisions() == []
    assert await world.replicas() == 2


@in_world(lambda time_s: 40.0 if time_s > 60.0 else 10.0, planned=ON_SPOT)
async def test_a_controller_that_takes_over_after_the_notice_knows_what_is_away(world: World) -> None:
    await asyncio.sleep(20.0)
    world.say(Override("notice", "cpu-spot", 20.0, until_s=EPOCH_S + 40.0))
    await world.until(lambda: world.controller.wanted["a"] == {"cpu": 2, "cpu-spot": 0}, 2.0)
    await asyncio.sleep(30.0)
    memory = world.controller.decider.memory
    memory.state = replace(memory.state, noticed={}, away_until_s={})  # as it begins
    await world.until(lambda: world.wanted > 2, 20.0)
    assert world.controller.wanted["a"]["cpu-spot"] == 0


@pytest.mark.parametrize("by", ["people", "the platform"])
@pytest.mark.parametrize(
    ("planned", "then"), [(ON_SPOT, {"cpu": 1, "cpu-spot": 1}), ({"cpu": 2}, {"cpu": 2})], ids=["on spot", "on demand"]
)
def test_replicas_of_one_node_are_replaced_at_once_and_it_alone_is_drained(
    planned: dict[str, int], then: dict[str, int], by: str
) -> None:
    @in_world(steady(10.0), planned=planned)
    async def story(world: World) -> None:
        await asyncio.sleep(20.0)
        first, second = [r.replica for r in await world.actuator.observe()]
        world.actuator.nodes = {first: "n1", second: "n2"}
        await asyncio.sleep(1.0)
        if by == "people":
            world.say(Override("notice", "node/n1", 30.0, until_s=EPOCH_S + 51.0))
        else:
            world.actuator.going = {"n1"}
        await asyncio.sleep(1.5)
        there = [r.replica for r in await world.actuator.observe() if r.state == "running"]
        assert len(there) == 3, "its replacement starts beside it"
        assert set(there) > {first, second}
        await asyncio.sleep(START_UP_S + 2.0)
        left = [r for r in await world.actuator.observe() if r.state == "running"]
        assert {r.replica for r in left} == {*there} - {first}
        assert {kind: n for kind, n in world.controller.wanted["a"].items() if n} == then
        (decided,) = [d for d in world.controller.decider.decisions if d.action == "replace"]
        assert (decided.reason, "node/n1 will be taken: 1 of a" in decided.detail) == ("spot_lost", True)

    story()


@in_world(steady(10.0))
async def test_a_notice_of_a_node_that_nobody_is_on_is_said_and_changes_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.sleep(10.0)
    with caplog.at_level(logging.WARNING):
        world.say(Override("notice", "node/n9", 30.0, until_s=EPOCH_S + 40.0))
        await asyncio.sleep(20.0)
    assert "notice of node/n9: no replica is on it, so nothing is replaced" in caplog.text
    assert (world.decisions(), await world.replicas()) == ([], 2)
