from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from inferline_stream import Pipeline, Stage, Topic
from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.controlplane.apply.fleet import Fleet
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus
from inferline_stream.errors import UsageError
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Shape, independent_paths
from inferline_stream.settings import Settings
from tests.support.emulated_runs import one_stage
from tests.support.fake_actuator import FakeActuator

SHAPE = Shape(("a",), ())


def a_context(kinds: Iterable[Hardware]) -> PipelineContext:
    return PipelineContext(one_stage(hardware=kinds), KafkaCluster(""), Settings())


def fleet(wanted: dict[str, int], standby: int = 0, stock: int | None = None) -> Fleet:
    kinds = [Hardware("cpu", 0.1, stock=stock), Hardware("gpu", 1.0)]
    speeds = {"cpu": 0.1, "gpu": 0.01}
    measured = PipelineProfile(
        {("a", kind): Profile("a", kind, (ServiceTime(1, s),)) for kind, s in speeds.items()},
        independent_paths(SHAPE, {}),
    )
    plan = Plan("p", 0.5, {"a": (Allocation("cpu", 1, 2),)}, 0.2, 0.4, 10.0, ((60.0, 600),), {"a": 1.0}, {"a": 0.5})
    view = PipelineView(a_context(kinds), plan, measured, {"a": 8})
    return Fleet(FakeActuator(), view, {"a": wanted}, {"a": standby})


async def up(held: Fleet) -> None:
    """Every replica that runs is READY, by the next report of the dispatcher."""
    running = [r for r in await held.actuator.observe() if r.state == "running"]
    number = 1 + max((r.report for r in [held.view.reports.newest("d")] if r), default=0)
    ready = [ReplicaStatus(r.replica, r.hardware, "ready") for r in running]
    held.view.reports.add(PoolReport("d", 1, "a", 0, "serving", number, replicas=ready), float(number))


async def running(held: Fleet) -> Fleet:
    """What is wanted runs and is READY."""
    await held.reconcile()
    await up(held)
    return held


async def there(held: Fleet) -> dict[str, int]:
    staying = [r.hardware for r in await held.actuator.observe() if r.state == "running"]
    return {kind: staying.count(kind) for kind in set(staying)}


async def test_what_is_wanted_is_asked_for_at_once_standbys_included() -> None:
    held = fleet({"cpu": 2}, standby=1)
    await held.reconcile()
    assert await there(held) == {"cpu": 3}
    await up(held)
    await held.want({"a": {"cpu": 4}})
    assert await there(held) == {"cpu": 5}


async def test_a_stage_that_something_else_scales_stops_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(numbers: list[int]) -> list[int]:
        return numbers

    a = Stage("a", work, hardware="cpu")
    b = Stage("b", work, hardware="cpu", after=[a])
    stages = [a, b, Stage("c", work, hardware="cpu", after=[b])]
    kinds = [Hardware("cpu", 0.1)]
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=stages, hardware=kinds)
    context, names = PipelineContext(pipeline, KafkaCluster(""), Settings()), ("a", "b", "c")
    shape = context.shape
    assert shape.stages == names
    profiles = {(name, "cpu"): Profile(name, "cpu", (ServiceTime(1, 0.1),)) for name in names}
    measured = PipelineProfile(profiles, independent_paths(shape, {}))
    held = {name: (Allocation("cpu", 1, 1),) for name in names}
    ones = dict.fromkeys(names, 1.0)
    plan = Plan("p", 0.5, held, 0.2, 0.4, 10.0, ((60.0, 600),), ones, ones)
    actuator = FakeActuator()
    scale = actuator.scale

    async def scaled(stage: str, *how: Any) -> None:
        if stage == "b":
            raise UsageError("HorizontalPodAutoscaler 'theirs' scales it, too")
        await scale(stage, *how)

    monkeypatch.setattr(actuator, "scale", scaled)
    view = PipelineView(context, plan, measured, dict.fromkeys(names, 8))
    with pytest.raises(UsageError, match="'theirs'"):
        await Fleet(actuator, view, {name: {"cpu": 1} for name in names}).reconcile()
    assert actuator.asked == [("a", "cpu", 1), ("c", "cpu", 1)]


async def test_asking_again_changes_nothing() -> None:
    held = fleet({"cpu": 2})
    for _ in range(3):
        await held.reconcile()
    assert held.actuator.asked == [("a", "cpu", 2)]


async def test_replicas_that_were_there_before_are_asked_for_once_too() -> None:
    held = fleet({"cpu": 2})
    await held.actuator.scale("a", "cpu", 2)
    await held.reconcile()
    await held.reconcile()
    assert held.actuator.asked == [("a", "cpu", 2)] * 2


async def test_other_hardware_takes_over_before_the_old_one_leaves() -> None:
    held = await running(fleet({"cpu": 3}))
    await held.want({"a": {"gpu": 1}})
    assert await there(held) == {"cpu": 3, "gpu": 1}
    await held.reconcile()
    assert await there(held) == {"cpu": 3, "gpu": 1}
    await up(held)
    await held.reconcile()
    assert await there(held) == {"gpu": 1}


async def test_newer_code_goes_round_one_after_another() -> None:
    held = await running(fleet({"cpu": 3}))
    before = {r.replica for r in await held.actuator.observe()}
    await asyncio.sleep(0.01)
    held.newest_code_s = asyncio.get_running_loop().time()
    most, steps = 0, 0
    while before & {r.replica for r in await held.actuator.observe() if r.state == "running"}:
        await held.reconcile()
        await up(held)
        most, steps = max(most, (await there(held))["cpu"]), steps + 1
        assert steps < 20
    assert (most, await there(held)) == (4, {"cpu": 3})


async def test_a_full_stock_lets_an_old_one_leave_first_but_never_the_last() -> None:
    held = await running(fleet({"cpu": 2}, stock=2))
    await asyncio.sleep(0.01)
    held.newest_code_s = asyncio.get_running_loop().time()
    await held.reconcile()
    assert await there(held) == {"cpu": 1}
    leaving = next(r.replica for r in await held.actuator.observe() if r.state == "retiring")
    await held.reconcile()
    assert await there(held) == {"cpu": 1}  # its place is still taken
    held.actuator.finish(leaving)
    await held.reconcile()
    assert await there(held) == {"cpu": 2}


@pytest.mark.parametrize("standby", [0, 1])
async def test_retired_stages_stay_empty(standby: int) -> None:
    held = await running(fleet({"cpu": 2}, standby=standby))
    await held.retire({"a"})
    assert not await held.gone({"a"})
    for r in await held.actuator.observe():
        held.actuator.finish(r.replica)
    await held.reconcile()
    assert await held.gone({"a"})


async def test_what_was_known_of_replicas_that_are_gone_is_forgotten() -> None:
    held = fleet({"cpu": 1})
    for _ in range(20):
        await held.reconcile()
        (replica,) = await held.actuator.observe()
        await held.actuator.scale("a", "cpu", 0)
        held.actuator.finish(replica.replica)
        held._asked.clear()
    assert len(held.started_s) <= 1


def of_two_slots(wanted: dict[str, int]) -> Fleet:
    held = fleet(wanted)
    held.view.plan = replace(held.view.plan, slots={"a": 2})
    return held


def attached(held: Fleet, number: int, *slots: list[ObservedReplica], at_s: float = 0.0) -> None:
    """Each slot's dispatcher has these, all READY, in its report of that number."""
    for slot, replicas in enumerate(slots):
        ready = [ReplicaStatus(r.replica, r.hardware, "ready") for r in replicas]
        held.view.reports.add(PoolReport(f"d{slot}", 1, "a", slot, "serving", number, replicas=ready), at_s)


async def test_no_slot_loses_its_last_replica_while_another_has_two() -> None:
    held = of_two_slots({"cpu": 4})
    await held.reconcile()
    first, second, third, youngest = await held.actuator.observe()
    attached(held, 1, [first, second, third], [youngest])
    await held.want({"a": {"cpu": 3}})
    assert [r.replica for r in await held.actuator.observe() if r.state == "retiring"] == [third.replica]


async def test_a_slot_without_a_replica_gets_one_before_one_of_a_fuller_slot_leaves() -> None:
    held = of_two_slots({"cpu": 2, "gpu": 1})
    await held.reconcile()
    there_first = await held.actuator.observe()
    one, two = (r for r in there_first if r.hardware == "cpu")
    (gpu,) = (r for r in there_first if r.hardware == "gpu")
    attached(held, 1, [one, two], [gpu])
    await held.want({"a": {"cpu": 2}})
    await held.reconcile()
    assert await there(held) == {"cpu": 3}, "one starts as soon as it is known that the last one leaves"
    held.actuator.finish(gpu.replica)
    attached(held, 2, [one, two], [])
    await held.reconcile()
    assert await there(held) == {"cpu": 3}, "while the new one starts"
    *_, new = await held.actuator.observe()
    attached(held, 3, [one, two], [new])
    await held.reconcile()
    assert [r.replica for r in await held.actuator.observe() if r.state == "retiring"] == [two.replica]
    held.actuator.finish(two.replica)
    attached(held, 4, [one], [new])
    await held.reconcile()
    assert await held.actuator.observe() == (one, new)


async def test_a_slot_that_a_starting_replica_may_fill_is_left_to_it() -> None:
    held = of_two_slots({"cpu": 3})
    await held.reconcile()
    one, two, _ = await held.actuator.observe()
    attached(held, 1, [one, two], [])
    await held.reconcile()
    assert await there(held) == {"cpu": 3}


async def test_a_slot_whose_dispatcher_has_just_begun_to_serve_may_get_its_replicas_yet() -> None:
    held = of_two_slots({"cpu": 2})
    await held.reconcile()
    now_s = asyncio.get_running_loop().time()
    attached(held, 1, list(await held.actuator.observe()), [], at_s=now_s)
    await held.reconcile()
    assert await there(held) == {"cpu": 2}


def on_one_gpu(wanted: dict[str, int]) -> Fleet:
    """A box with one GPU, whole or in halves."""
    held = fleet(wanted)
    t4 = {"gpu_model": "Tesla T4", "gpu_stock": 1.0}
    kinds = [Hardware("cpu", 0.1, gpus=0.5, stock=2, **t4), Hardware("gpu", 1.0, gpus=1, stock=1, **t4)]
    held.view.catalogue = catalogue(kinds)
    return held


async def ended(held: Fleet) -> None:
    """What was asked to leave has left."""
    for replica in [r.replica for r in await held.actuator.observe() if r.state == "retiring"]:
        held.actuator.finish(replica)


async def test_newer_code_on_a_full_box_stops_the_old_replica_before_the_new_one_starts() -> None:
    held = await running(on_one_gpu({"gpu": 1}))
    await held.observe()
    assert held.crowded() == {"a": "gpu"}, "known before it happens"
    held.newest_code_s = asyncio.get_running_loop().time()
    await held.reconcile()
    assert await there(held) == {}
    await held.reconcile()
    assert await there(held) == {}, "it has not left yet"
    await ended(held)
    await held.reconcile()
    assert await there(held) == {"gpu": 1}


async def test_two_halves_take_the_place_of_a_whole_gpu() -> None:
    held = await running(on_one_gpu({"gpu": 1}))
    await held.want({"a": {"cpu": 2}})
    assert await there(held) == {}
    await ended(held)
    await held.reconcile()
    assert await there(held) == {"cpu": 2}


async def test_a_box_with_a_spare_gpu_replaces_without_a_gap() -> None:
    held = await running(fleet({"cpu": 1}, stock=2))
    await held.observe()
    assert held.crowded() == {}
    held.newest_code_s = asyncio.get_running_loop().time()
    await held.reconcile()
    assert await there(held) == {"cpu": 2}
