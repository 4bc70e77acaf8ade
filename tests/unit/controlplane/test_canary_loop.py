"""The control loop tries a version out: it goes on or goes back, whatever comes between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from inferline_stream.controlplane.records.control_records import CodeVersion, Override, Overrides
from inferline_stream.pipeline.version import kind_of_version, version_on
from tests.support.virtual_time import EPOCH_S
from tests.unit.controlplane.one_stage_world import SERVICE_S, TICK_S, World, in_world, steady

NEXT = "/releases/2/topology.py"
KIND = kind_of_version("cpu", "5fa2")


def trial(within_s: float = 60.0, *, share: float = 0.1, began_s: float | None = None) -> Override:
    began_s = time.time() if began_s is None else began_s
    return Override(
        "canary", value=share, until_s=began_s + within_s, who="anna", code=CodeVersion("5fa2", NEXT, began_s)
    )


def controlled(world: World) -> Overrides:
    return world.controller.decider.overrides


async def running(world: World) -> set[str]:
    """Replicas of the running version that stay."""
    return {r.replica for r in await world.actuator.observe() if not version_on(r.hardware) and r.state != "retiring"}


async def none_left(world: World) -> bool:
    return not any(version_on(r.hardware) for r in await world.actuator.observe())


def reasons(world: World) -> list[str]:
    return [reason for action, reason in world.decisions() if action in ("canary", "replace")]


@in_world(steady(10.0))
async def test_a_good_version_gets_more_at_each_step_and_then_takes_over_with_the_times_that_it_had(
    world: World,
) -> None:
    await asyncio.sleep(10.0)
    before = await running(world)
    world.say(trial())
    await world.until(lambda: world.controller.versions.running is not None, 60.0)
    assert list(world.canaries) == ["5fa2/0.1", "5fa2/0.4"]
    assert ("a", KIND, 1) in world.actuator.asked
    await asyncio.sleep(20.0)
    assert before.isdisjoint(await running(world))
    assert await none_left(world)
    assert {spec.topology for spec in (world.actuator.known or {}).values()} == {NEXT}
    assert reasons(world) == ["canary_begun", "canary_passed", "canary_promoted"]
    own = world.view.measured.profiles["a", "cpu"]
    assert own.service_time_s(1) == pytest.approx(0.8 * SERVICE_S["cpu"])
    assert controlled(world).canary is None
    last = [record for record in world.kafka.topics[world.names.control]][-2:]
    assert [record.key for record in last] == [b"code", b"canary"]  # of one transaction


def fails(world: World) -> None:
    world.fails = 0.02


def ends_again_and_again(world: World) -> None:
    async def end() -> None:
        for _ in range(100):
            await asyncio.sleep(1.0)
            for replica in await world.actuator.observe():
                if version_on(replica.hardware) and replica.state == "running":
                    world.actuator.crash(replica.replica)

    world.ending = asyncio.create_task(end())  # type: ignore[attr-defined]


def newer_code(world: World) -> None:
    world.say(Override("code", value=time.time(), who="anna"))


def taken_back(world: World) -> None:
    world.kafka.append(world.names.control, None, b"canary")


def held(world: World) -> None:
    world.say(Override("pause", who="anna"))


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (fails, "worse: stage a: events on which it alone fails 2."),
        (ends_again_and_again, "of its replicas ended by themselves: killed by SIGKILL"),
        (newer_code, "newer code was given meanwhile"),
        (taken_back, "taken back by people"),
        (held, "not decided in time"),
    ],
)
@in_world(steady(10.0))
async def test_a_version_goes_back_and_the_running_one_stays(
    world: World, what: Callable[[World], None], why: str
) -> None:
    await asyncio.sleep(10.0)
    before = await running(world)
    world.say(trial())
    await asyncio.sleep(1.0)
    what(world)
    if what is newer_code:
        before = set()
    await world.until(lambda: "canary_rolled_back" in reasons(world), 70.0)
    detail = next(d.detail for d in world.controller.decider.decisions if d.reason == "canary_rolled_back")
    assert why in detail
    await asyncio.sleep(10.0)
    assert await none_left(world)
    assert before <= await running(world)
    assert (controlled(world).canary, world.controller.versions.running) == (None, None)
    assert NEXT not in {spec.topology for spec in (world.actuator.known or {}).values()}
    assert reasons(world).count("canary_rolled_back") == 1


@pytest.mark.parametrize(("within_s", "last"), [(60.0, "canary_promoted"), (-1.0, "canary_rolled_back")])
def test_the_next_controller_goes_on_with_a_version_or_back_where_its_time_is_over(within_s: float, last: str) -> None:
    def found() -> Overrides:
        override = trial(within_s, share=0.4, began_s=EPOCH_S)
        return Overrides({override.key: override})

    @in_world(steady(10.0), found)
    async def story(world: World) -> None:
        await world.until(lambda: last in reasons(world), 60.0)
        await asyncio.sleep(20.0)
        assert await none_left(world)
        assert (world.controller.versions.running is None) == (last == "canary_rolled_back")

    story()


@in_world(steady(10.0))
async def test_the_next_run_says_that_a_version_was_given_up_with_the_run_that_tried_it_out(world: World) -> None:
    override, decider = trial(60.0, share=0.4, began_s=EPOCH_S), world.controller.decider
    decider.found = replace(decider.found, overrides=Overrides({override.key: override}))
    await world.until(lambda: "canary_rolled_back" in reasons(world), 10.0)
    await asyncio.sleep(10.0)
    assert reasons(world).count("canary_rolled_back") == 1


@in_world(steady(10.0))
async def test_a_host_that_is_lost_with_replicas_of_both_versions_changes_nothing_of_the_trial(world: World) -> None:
    await asyncio.sleep(10.0)
    world.say(trial())
    await world.until(lambda: len(world.canaries) == 1, 30.0)
    lost = [r for r in await world.actuator.observe() if r.state == "running"]
    assert {version_on(replica.hardware) for replica in lost} == {"", "5fa2"}
    for replica in lost:
        world.actuator.crash(replica.replica, reason="its host is lost")
    await world.until(lambda: world.controller.versions.running is not None, 60.0)
    await asyncio.sleep(20.0)
    assert reasons(world) == ["canary_begun", "canary_passed", "canary_promoted"]
    assert await none_left(world)
    assert {replica.replica for replica in lost}.isdisjoint(await running(world))


@in_world(steady(10.0))
async def test_another_version_takes_the_place_of_one_that_is_tried_out(world: World) -> None:
    await asyncio.sleep(10.0)
    world.fails = 0.003  # nobody can tell soon
    world.say(trial())
    await asyncio.sleep(10.0)
    other = Override("canary", value=0.5, until_s=time.time() + 60, code=CodeVersion("77aa", NEXT, time.time()))
    world.say(other)
    await asyncio.sleep(10.0)
    assert {version_on(r.hardware) for r in await world.actuator.observe()} == {"", "77aa"}
    assert len(world.canaries) == 2
    await asyncio.sleep(TICK_S)
