"""The whole control loop on a Kafka in memory, an actuator without processes and a clock that needs no waiting."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.controlplane.controller import Controller
from inferline_stream.controlplane.decide import background_tables, replan_clock
from inferline_stream.controlplane.leadership import LeadershipLost
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.recovery import Recovered
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import Override, Overrides, decode_stored, encode
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus, encode_report
from inferline_stream.dataplane.slot_grants import Grant, grant_key
from inferline_stream.kafka.records import Record
from inferline_stream.observability.stage_counts import BatchStats, CanaryCounts, StageCounts
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Shape, independent_paths
from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.version import version_on
from inferline_stream.settings import Settings
from inferline_stream.tuner.policy import POLICIES
from tests.support.emulated_runs import one_stage
from tests.support.fake_actuator import FakeActuator
from tests.support.virtual_time import EPOCH_S, run
from tests.unit.controlplane.memory_kafka import MemoryKafka

SHAPE = Shape(("a",), ())
SERVICE_S = {"cpu": 0.1, "gpu": 0.02}
START_UP_S = 2.0
TICK_S = 0.05


class World:
    """One stage "a" whose replicas serve 10 events/s each, or 50/s on the dearer kind, and start within two seconds.

    Args:
        rate: arrivals per second, by seconds since the start.
        more: fields of `Run`.
    """

    def __init__(self, rate: Callable[[float], float], overrides: Overrides | None = None, **more: Any) -> None:
        self.leading: Any = None
        self.canaries: dict[str, CanaryCounts] = {}
        """What is counted of a version that is tried out, by step."""
        self.fails = 0.0
        """Share of events on which it fails."""
        self.rate, self.arrived, self.done, self.lost_lead, self.silent = rate, 0.0, 0.0, False, False
        names = Names("p")
        self.kafka = MemoryKafka("posts", 4, lambda: int(self.arrived), lambda: int(self.done))
        self.actuator = FakeActuator(drain_timeout_s=5.0)
        self.grants: dict[str, Grant] = {}
        profiles = {
            ("a", kind): Profile("a", kind, (ServiceTime(1, service_s),), start_up_s=START_UP_S)
            for kind, service_s in SERVICE_S.items()
        }
        profile = PipelineProfile(profiles, independent_paths(SHAPE, {}))
        plan = Plan(
            "p", 0.5, {"a": (Allocation("cpu", 1, 2),)}, 0.2, 0.3, 10.0,
            ((1.0, 16), (10.0, 115), (60.0, 620)), {"a": 1.0}, {"a": 0.5},
        )  # fmt: skip
        kafka: Any = self.kafka
        run = Run(
            pipeline=one_stage(hardware=[Hardware("cpu", 0.1), Hardware("gpu", 0.6)]), topology=Path("topology.py"),
            bootstrap_servers="", plan=plan, measured=profile,
            log_folder=Path("logs"), faust=False, **{"replans": False, "cores": math.inf, **more},
        )  # fmt: skip
        context = PipelineContext(run.pipeline, kafka, Settings())
        leadership: Any = SimpleNamespace(
            term=1, controller="c", log=SimpleNamespace(grants=()), renewals=0, write=self._grant,
            write_records=self.kafka.write, heartbeat=self._heartbeat,
        )  # fmt: skip
        self.view = PipelineView(context, plan, profile, {"a": 4})
        found = Recovered(None, (), (), overrides and {"a": {"cpu": 2}}, overrides or Overrides(), 0)
        self.controller = Controller(run, self.view, self.actuator, leadership, found)
        self.names = names
        self._reports, self._busy_s, self._replica_s = 0, 0.0, 0.0

    async def _heartbeat(self) -> None:
        if self.lost_lead:
            raise LeadershipLost("another controller leads: this one stops")
        self.kafka.answer()

    async def _grant(self, grants: Sequence[Grant] = (), forgotten: Sequence[str] = ()) -> None:
        self.kafka.answer()
        self.grants |= {grant_key(g.stage, g.slot): g for g in grants}
        for key in forgotten:
            self.grants.pop(key, None)

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[asyncio.Task[None]]:
        """The loop and the pool beside it."""
        leading = asyncio.create_task(self.controller.lead())
        pool = asyncio.create_task(self._serve())
        try:
            yield leading
        finally:
            for task in (leading, pool):
                task.cancel()
            await asyncio.gather(leading, pool, return_exceptions=True)
        if not pool.cancelled():
            pool.result()

    async def _serve(self) -> None:
        """Events come and are served, retiring replicas end, the dispatcher reports twice a second."""
        loop, tick = asyncio.get_running_loop(), 0
        began_s = loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            tick += 1
            self.arrived += self.rate(loop.time() - began_s) * TICK_S
            replicas = await self.actuator.observe()
            ready = [r for r in replicas if r.state == "running" and loop.time() >= r.started_s + START_UP_S]
            able = sum(TICK_S / SERVICE_S[r.hardware] for r in ready if not version_on(r.hardware))
            served = min(self.arrived - self.done, able)
            self.done += served
            if able:
                self._busy_s += served / able * len(ready) * TICK_S
            self._replica_s += len(ready) * TICK_S
            for replica in replicas:
                if replica.state == "retiring":
                    self.actuator.finish(replica.replica)
            if tick % 10 == 0 and not self.silent:
                await self._report(ready)

    async def _report(self, ready: Sequence[ObservedReplica]) -> None:
        grant = self.grants.get(grant_key("a", 0))
        canary = None if grant is None else grant.plan.canary
        if canary is not None and any(version_on(r.hardware) == canary.version for r in ready):
            counts = self.canaries.setdefault(canary.step, CanaryCounts())
            counts.events, counts.main_events = (
                counts.events + 100,
                counts.main_events + round(100 / canary.share - 100),
            )
            counts.answered, counts.failed = counts.events, round(self.fails * counts.events)
            for _ in range(10):
                counts.own.note(0.8)
                counts.main.note(0.8)
        for dispatcher in await self.actuator.dispatchers():
            self._reports += 1
            tried_s = 0.8 * SERVICE_S["cpu"]
            report = PoolReport(
                dispatcher.dispatcher, dispatcher.incarnation, "a", 0, "serving", self._reports,
                held={p: int(self.done) // 4 for p in range(4)},
                replicas=[ReplicaStatus(r.replica, r.hardware, "ready", START_UP_S) for r in ready],
                counts=StageCounts(
                    events=int(self.done), busy_s=self._busy_s, replica_s=self._replica_s,
                    batch_stats={"cpu": {1: BatchStats(int(self.done), self._busy_s, self._busy_s * SERVICE_S["cpu"])}}
                    | {"cpu@5fa2": {1: BatchStats(100, 100 * tried_s, 100 * tried_s**2)}},
                    canaries=self.canaries,
                ),
            )  # fmt: skip
            self.kafka.append(self.names.stage_stats, encode_report(report), dispatcher.dispatcher.encode())

    async def replicas(self) -> int:
        """Those that are not on their way out."""
        return sum(r.state != "retiring" for r in await self.actuator.observe())

    async def until(self, holds: Callable[[], bool], within_s: float) -> float:
        """Let time pass until it holds; the seconds that it took."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while not holds():
            assert loop.time() - began_s < within_s, f"not within {within_s} s"
            await asyncio.sleep(TICK_S)
        return loop.time() - began_s

    @property
    def wanted(self) -> int:
        """Replicas that the controller wants."""
        return self.controller.wanted["a"]["cpu"]

    def decisions(self) -> list[tuple[str, str]]:
        """Action and reason of each decision that is written down."""
        found = []
        for record in self.kafka.topics[self.names.decisions]:
            if record.key is not None and record.key.startswith(b"decision-") and record.value:
                stored: Any = decode_stored(record.key.decode(), record.value)
                found.append((stored.action, stored.reason))
        return found


def _now() -> float:
    return asyncio.get_running_loop().time()


def steady(rate: float) -> Callable[[float], float]:
    return lambda time_s: rate


def in_world(
    rate: Callable[[float], float], overrides: Callable[[], Overrides] | None = None, **more: Any
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Run a test beside the loop of a world, in virtual time; the loop begins with the test's first wait."""

    def decorated(test: Callable[..., Any]) -> Callable[..., None]:
        def in_virtual_time(**fixtures: Any) -> None:
            async def story() -> None:
                world = World(rate, overrides and overrides(), **more)
                async with world() as world.leading:
                    await test(world, **fixtures)

            run(story())

        own = inspect.signature(test)
        wanted = [parameter for name, parameter in own.parameters.items() if name != "world"]
        vars(in_virtual_time)["__signature__"] = own.replace(parameters=wanted)
        return in_virtual_time

    return decorated


@in_world(steady(10.0))
async def test_the_plan_s_replicas_and_its_dispatcher_run_and_steady_traffic_changes_nothing(world: World) -> None:
    await asyncio.sleep(60.0)
    assert await world.replicas() == 2
    assert [d.dispatcher for d in await world.actuator.dispatchers()] == [world.grants["a/0"].dispatcher]
    assert world.decisions() == []
    assert world.controller.failures == 0
    assert world.controller.state is not None
    assert world.controller.state.budget_left == 1.0
    assert world.controller.view.observation(0.0, {}, {}, {}).late_share == pytest.approx(0.01, rel=0.01)


@in_world(lambda time_s: 60.0 if 30.0 <= time_s < 60.0 else 10.0)
async def test_a_leap_of_the_traffic_is_answered_within_a_second_and_its_end_gives_replicas_back(world: World) -> None:
    await asyncio.sleep(30.0)
    assert world.wanted == 2
    await world.until(lambda: world.wanted > 2, 1.0)
    await world.until(lambda: world.wanted >= 6, 5.0)
    await asyncio.sleep(30.0)
    peak = world.wanted
    await world.until(lambda: world.wanted < peak, 2400.0)
    await world.until(lambda: world.wanted == 2, 2400.0)
    assert await world.replicas() == 2
    assert {action for action, _ in world.decisions()} >= {"scale_up", "scale_down"}


@in_world(lambda time_s: 60.0 if 30.0 <= time_s < 60.0 else 10.0)
async def test_without_reports_the_controller_holds_what_there_is(world: World) -> None:
    """Falling traffic is what a blind controller would be tempted by."""
    await asyncio.sleep(60.0)
    peak, world.silent = world.wanted, True
    await asyncio.sleep(60.0)  # with reports it takes eleven
    assert world.wanted == peak > 2
    assert world.decisions()[-1] == ("hold", "input_stale")
    assert "scale_down" not in {action for action, _ in world.decisions()}
    world.silent = False
    await world.until(lambda: world.wanted == 2, 60.0)


@in_world(steady(10.0))
async def test_a_replica_that_dies_is_there_again_and_its_death_is_counted(world: World) -> None:
    await asyncio.sleep(10.0)
    died = (await world.actuator.observe())[0].replica
    world.actuator.crash(died)
    await asyncio.sleep(5.0)
    there = [r.replica for r in await world.actuator.observe()]
    assert len(there) == 2
    assert died not in there
    assert world.view.restarts["a"] == 1
    assert any(died in exit_ for exit_ in world.controller.exits)


@in_world(lambda time_s: 60.0 if time_s > 45.0 else 10.0)
async def test_while_kafka_is_away_nothing_changes_and_afterwards_the_loop_goes_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.sleep(20.0)
    before = [d.dispatcher for d in await world.actuator.dispatchers()]
    world.kafka.away = True
    await asyncio.sleep(20.0)
    assert not world.leading.done()
    assert (world.wanted, [d.dispatcher for d in await world.actuator.dispatchers()]) == (2, before)
    world.kafka.away = False
    await world.until(lambda: world.wanted >= 6, 15.0)
    assert world.controller.failures == 0
    said = [r.message for r in caplog.records if r.levelno >= logging.WARNING and "does not answer" in r.message]
    assert 0 < len(said) < 100, "said now and then, and not at every step"


def test_replicas_for_what_is_known_to_come_are_there_when_it_comes() -> None:
    feed_s = 5.0
    world = World(lambda time_s: 40.0 if time_s > feed_s else 0.0)
    waited: list[float] = []

    async def story() -> None:
        controller = world.controller
        await controller.decider.foresee(Trace([n / 40.0 for n in range(2400)]), {world.names.group("a"): 0})
        async with world():
            await world.until(lambda: world.view.reports.ready("a", "cpu") >= 4, feed_s)
            while _now() < 2 * feed_s:
                await asyncio.sleep(TICK_S)
                waited.append((world.arrived - world.done) / 40.0)
        assert world.decisions()[0] == ("scale_up", "rate_rising")

    run(story())
    assert max(waited) < world.view.plan.slo_s


def test_before_its_first_heartbeat_a_controller_does_not_say_that_another_one_may_lead(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(steady(10.0))

    async def story() -> None:
        await world.controller.fleet.want({"a": {"cpu": 4}})
        assert world.actuator.asked == []
        async with world():
            await asyncio.sleep(1.0)
            assert await world.replicas() == 4

    run(story())
    assert [r.message for r in caplog.records if "heartbeat" in r.message] == []


def test_the_time_before_a_feed_is_no_history_that_its_beginning_rises_from() -> None:
    feed_s = 10.0
    asked: dict[bool, int] = {}
    for awaited in (True, False):
        world = World(lambda time_s: 30.0 if time_s > feed_s else 0.0)
        world.controller.decider.awaits_feed = awaited

        async def story(world: World = world, awaited: bool = awaited) -> None:
            async with world():
                await asyncio.sleep(feed_s)
                world.controller.decider.awaits_feed = False
                await asyncio.sleep(feed_s)
                asked[awaited] = world.wanted

        run(story())
    assert 3 <= asked[True] < asked[False], asked


@in_world(steady(0.0))
async def test_no_replica_is_given_back_before_the_feed_begins_however_long_the_start_takes(world: World) -> None:
    world.controller.decider.awaits_feed = True
    await asyncio.sleep(150.0)
    assert world.wanted == 2


@in_world(steady(10.0))
async def test_another_leader_ends_the_loop(world: World) -> None:
    await asyncio.sleep(5.0)
    world.lost_lead = True
    with pytest.raises(BaseExceptionGroup) as caught:
        await asyncio.wait_for(world.leading, 5.0)
    assert caught.group_contains(LeadershipLost)


@in_world(steady(10.0))
async def test_a_step_that_fails_is_counted_and_the_others_go_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(state: Any, seen: Any) -> Any:
        raise ZeroDivisionError("a mistake of ours")

    world.controller.decider.memory.policy = fails
    await asyncio.sleep(20.0)
    assert not world.leading.done()
    assert world.controller.failures > 10
    assert world.controller.state is not None
    assert world.controller.state.failures > 10
    assert await world.replicas() == 2
    assert "a step of the control loop failed" in caplog.text


@in_world(steady(10.0))
async def test_the_end_of_a_step_s_failures_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    left = iter(range(20))

    def fails(state: Any, seen: Any) -> Any:
        if next(left, None) is not None:
            raise ZeroDivisionError("a mistake of ours")
        return POLICIES["default"](state, seen)

    world.controller.decider.memory.policy = fails
    await asyncio.sleep(40.0)
    assert world.controller.failures == 20
    said = [record.message for record in caplog.records if "a mistake of ours" in record.message]
    assert said == [
        "a step of the control loop failed: ZeroDivisionError: a mistake of ours",
        "a step of the control loop has worked for 10 s after: ZeroDivisionError: a mistake of ours",
    ]


@in_world(lambda time_s: 60.0 if time_s > 20.0 else 10.0)
async def test_people_s_pause_holds_decisions_and_what_they_scale_to_applies(world: World) -> None:
    def say(override: Override) -> None:
        world.kafka.append(world.names.control, encode(override), override.key.encode())

    await asyncio.sleep(15.0)
    say(Override("pause", until_s=EPOCH_S + 40.0, who="anna"))
    await asyncio.sleep(20.0)
    assert time.time() < EPOCH_S + 40.0
    assert world.wanted == 2
    await world.until(lambda: world.wanted >= 6, 10.0)
    say(Override("limits", "a", minimum=9, maximum=9, who="anna"))
    await world.until(lambda: world.wanted == 9, 2.0)


@in_world(steady(10.0), replans=True, sample=Trace(np.arange(600) / 10))
async def test_another_slo_and_price_set_by_people_are_planned_for_and_applied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(function: Callable[..., Any], *args: Any, **how: Any) -> Any:
        return function(*args, **how)

    for module in (replan_clock, background_tables):
        monkeypatch.setattr(module, "call_in_subprocess", at_once)
    await asyncio.sleep(70.0)
    decider = world.controller.decider
    assert [plan.reason for plan in decider.plans] == ["initial"]
    for override in (Override("slo", value=0.25), Override("price", "cpu", 5.0)):
        world.kafka.append(world.names.control, encode(override), override.key.encode())
    await world.until(lambda: world.view.plan.slo_s == 0.25, 2.0)
    assert [plan.reason for plan in decider.plans] == ["initial", "limit_changed"]
    assert {a.hardware: a.replicas for a in world.view.plan.allocations["a"]} == {"gpu": 1}
    await asyncio.sleep(60.0)
    assert [r.hardware for r in await world.actuator.observe()] == ["gpu"]
    table = decider.memory.state.basis.staffing
    assert decider.tables.staffed
    assert table is not None
    assert table.needed("a", 1.0) == pytest.approx(1 / SERVICE_S["gpu"])  # at its own traffic it is the plan
    assert world.controller.failures == 0


@pytest.mark.parametrize("apart_s", [-3600.0, 3600.0])
@in_world(steady(10.0))
async def test_what_people_set_for_a_while_lasts_as_long_whatever_their_clock_says(
    world: World, apart_s: float
) -> None:
    await asyncio.sleep(10.0)
    now_s = time.time() + apart_s
    held = Override("scale", "a", 7, until_s=now_s + 20.0, who="anna")
    world.kafka.append(world.names.control, encode(held), held.key.encode(), time_s=now_s)
    await world.until(lambda: world.wanted == 7, 2.0)
    await asyncio.sleep(15.0)
    assert world.wanted == 7
    assert world.controller.decider.overrides.limits(time.time() + 10.0) == {}


@pytest.mark.parametrize("apart_s", [-3600.0, 0.0, 3600.0])
@in_world(steady(10.0))
async def test_newer_code_comes_into_every_replica_one_after_another(world: World, apart_s: float) -> None:
    await asyncio.sleep(10.0)
    before = {r.replica for r in await world.actuator.observe()}
    now_s = time.time() + apart_s  # by the clock of who gives it
    override = Override("code", value=now_s, who="anna")
    world.kafka.append(world.names.control, encode(override), override.key.encode(), time_s=now_s)
    fewest = 2
    for _ in range(200):
        await asyncio.sleep(TICK_S)
        there = [r for r in await world.actuator.observe() if r.state == "running"]
        fewest = min(fewest, sum(r.replica in before or r.started_s + START_UP_S <= _now() for r in there))
    assert before.isdisjoint(r.replica for r in await world.actuator.observe())
    assert (fewest, await world.replicas()) == (2, 2)


@in_world(steady(10.0))
async def test_a_retired_pipeline_leaves_no_replica_and_no_dispatcher(world: World) -> None:
    await asyncio.sleep(10.0)
    retiring = asyncio.create_task(world.controller.retire(["a"], 30.0))
    await asyncio.sleep(1.0)
    for dispatcher in await world.actuator.dispatchers():
        world.actuator.finish(dispatcher.dispatcher)
    await retiring
    assert await world.replicas() == 0
    assert not await world.actuator.dispatchers()


@in_world(steady(10.0))
async def test_groups_of_ended_terms_are_deleted_now_and_then(world: World) -> None:
    world.controller.leadership.term = 12
    await asyncio.sleep(1.0)
    world.kafka.groups = ["p.control.1", "p.control.11"]
    await asyncio.sleep(60.0)
    assert world.kafka.groups == []


@in_world(steady(10.0))
async def test_a_leader_of_which_no_heartbeat_is_acknowledged_leaves_its_successors_replicas_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.sleep(10.0)
    before = await world.replicas()
    world.kafka.away = True
    await asyncio.sleep(3.1)
    await world.actuator.scale("a", "cpu", before + 3)  # as a controller does that Kafka answers
    asked = len(world.actuator.asked)
    await asyncio.sleep(60.0)
    await world.controller.fleet.want({"a": {"cpu": 1}})
    await world.controller.retire(["a"], 5.0)
    assert (await world.replicas(), world.actuator.asked[asked:]) == (before + 3, [])
    assert sum("another controller may lead" in record.message for record in caplog.records) == 1


@in_world(steady(10.0))
async def test_a_leader_goes_on_once_a_heartbeat_is_acknowledged_again(world: World) -> None:
    await asyncio.sleep(10.0)
    before = await world.replicas()
    world.kafka.away = True
    await asyncio.sleep(10.0)
    await world.actuator.scale("a", "cpu", before + 3)
    world.kafka.away = False
    await asyncio.sleep(2.0)
    assert await world.replicas() == before


@in_world(steady(10.0))
async def test_a_leader_that_has_lost_ends_without_having_acted(world: World) -> None:
    await asyncio.sleep(10.0)
    world.kafka.away = True
    await asyncio.sleep(3.1)
    await world.actuator.scale("a", "cpu", 7)
    await asyncio.sleep(10.0)
    world.lost_lead, world.kafka.away = True, False
    with pytest.raises(ExceptionGroup):
        await world.leading
    assert await world.replicas() == 7


@pytest.mark.parametrize(("days", "share"), [((), 0.0), ((3.5, 1.0), 0.5)])
@in_world(steady(10.0))
async def test_the_age_of_the_oldest_dead_letter_is_a_share_of_what_its_topic_keeps(
    world: World, days: Sequence[float], share: float
) -> None:
    died_ms = [int((EPOCH_S - day * 24 * 3600) * 1e3) for day in days]
    world.kafka.topics["posts.dlq"] += [Record(None, b"", timestamp_ms=ms, offset=n) for n, ms in enumerate(died_ms)]
    await asyncio.sleep(2.0)
    assert world.controller.state is not None
    assert world.controller.state.stages[0].letter_age_share == pytest.approx(share, abs=1e-3)


@in_world(steady(10.0))
async def test_only_groups_of_ended_terms_are_deleted(world: World) -> None:
    world.controller.leadership.term = 12
    others = ["p.control.12", "p.control.120", "p.control", "p.control.", "p.control.tower", "p.control.1.a", "p.a"]
    others += ["p-control-tower", "p.control.1x", "p.control.-1", "p.control.\u0661", "xp.control.1"]
    world.kafka.groups = [*others, "p.control.3"]
    await asyncio.sleep(1.0)
    assert world.kafka.groups == others
