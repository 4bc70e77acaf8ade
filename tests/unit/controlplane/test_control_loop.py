"""The whole control loop on a Kafka in memory, an actuator without processes and a clock that needs no waiting."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from inferline_stream.controlplane.apply.fleet import Fleet
from inferline_stream.controlplane.decide import background_tables, replan_clock
from inferline_stream.controlplane.leadership import TAKE_OVER_AFTER_S, LeadershipLost
from inferline_stream.controlplane.observe import collector
from inferline_stream.controlplane.records.control_records import (
    CALENDAR_KEY,
    CalendarRecord,
    Override,
    Overrides,
    decode_stored,
    decode_ticks,
)
from inferline_stream.dataplane.reports import PoolReport, encode_report
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.idle import Idle
from inferline_stream.pipeline.trace import Trace
from inferline_stream.tuner.policy import POLICIES
from tests.support.virtual_time import EPOCH_S, run
from tests.unit.controlplane.one_stage_world import SERVICE_S, START_UP_S, TICK_S, World, in_world, now, steady


@in_world(steady(10.0))
async def test_the_plan_s_replicas_and_its_dispatcher_run_and_steady_traffic_changes_nothing(world: World) -> None:
    await asyncio.sleep(60.0)
    assert await world.replicas() == 2
    assert [d.dispatcher for d in await world.actuator.dispatchers()] == [world.grants["a/0"].dispatcher]
    assert world.decisions() == []
    assert world.controller.loop.failures == 0
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


@in_world(steady(10.0))
async def test_it_goes_on_leading_while_its_first_replicas_take_long_to_be_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats_s, (scale, heartbeat) = [], (world.actuator.scale, world.controller.leadership.heartbeat)

    async def scales_late(*of: Any) -> Any:
        await asyncio.sleep(20.0)
        return await scale(*of)

    async def beats() -> None:
        beats_s.append(now())
        await heartbeat()

    monkeypatch.setattr(world.actuator, "scale", scales_late)
    monkeypatch.setattr(world.controller.leadership, "heartbeat", beats)
    await asyncio.sleep(19.0)
    assert await world.replicas() == 0
    await asyncio.sleep(10.0)
    assert await world.replicas() > 0
    assert max(np.diff(beats_s)) < TAKE_OVER_AFTER_S


@in_world(steady(10.0))
async def test_arrivals_of_a_gap_are_recorded_as_known_once_they_were_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = world.kafka.ends

    async def hangs(partitions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        await asyncio.sleep(5.0)
        return await ends(partitions)

    async def read(*of: Any, **more: Any) -> list[tuple[float, int]]:
        return [(EPOCH_S + 32.0, 0)]

    await asyncio.sleep(30.0)
    monkeypatch.setattr(collector, "arrivals_between", read)
    monkeypatch.setattr(world.kafka, "ends", hangs)
    await asyncio.sleep(4.0)
    monkeypatch.setattr(world.kafka, "ends", ends)
    await asyncio.sleep(4.0)
    records = [decode_ticks(r.value) for r in world.kafka.topics[world.names.arrivals] if r.value]
    ((since_ms, known_ms),) = [gap for record in records for gap in record.gaps_ms]
    assert [since_ms / 1e3 - EPOCH_S, known_ms / 1e3 - EPOCH_S] == pytest.approx([30.0, 35.0], abs=0.1)
    asked = [time_ms for record in records for time_ms in record.asked_ms if since_ms < time_ms < known_ms]
    assert len(asked) > 40


@in_world(lambda time_s: 60.0 if time_s >= 30.0 else 10.0)
async def test_what_is_decided_while_nothing_starts_replicas_is_written_down_for_a_successor(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*of: object) -> None:
        raise Unreachable("the Kubernetes API server does not answer")

    await asyncio.sleep(30.0)
    monkeypatch.setattr(world.actuator, "scale", away)
    await world.until(lambda: world.wanted > 2, 5.0)
    decisions = world.kafka.topics[world.names.decisions]

    def written() -> bool:
        stored: Any = [decode_stored("wanted", d.value) for d in decisions if d.key == b"wanted" and d.value]
        return bool(stored) and stored[-1].replicas == world.controller.wanted

    await world.until(written, 1.0)


@in_world(steady(10.0))
async def test_a_controller_that_falls_silent_before_it_decides_leaves_its_replicas_to_a_successor(
    world: World,
) -> None:
    await asyncio.sleep(1.0)
    assert world.decisions() == []
    decisions = world.kafka.topics[world.names.decisions]
    stored: Any = [decode_stored("wanted", d.value) for d in decisions if d.key == b"wanted" and d.value]
    assert [wanted.replicas for wanted in stored] == [world.controller.wanted]


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


@in_world(lambda time_s: 60.0 if 30.0 <= time_s < 60.0 else 10.0)
async def test_a_dispatcher_of_a_lost_host_holds_decisions_no_longer_than_until_it_has_a_successor(
    world: World,
) -> None:
    """Nobody reports its end: its host is gone, and its last report came as this controller took over."""
    parts = {"background_enough": True, "join_events": 1, "halted": {0: "lost"}}
    last = PoolReport("a-0-theirs", 1, "a", 0, "serving", 1, waited_for=[1], **parts)  # type: ignore[arg-type]
    world.kafka.append(world.names.stage_stats, encode_report(last), b"a-0-theirs")
    await asyncio.sleep(60.0)
    assert world.grants["a/0"].begins
    assert world.wanted > 2
    await world.until(lambda: world.wanted == 2, 2400.0)
    reports = world.view.reports
    assert not reports.background_enough("a")
    assert not reports.join_waits("a")
    assert (reports.stage("a", now()).halted, reports.late_by_partition("a")[0]) == ({}, set())


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
    assert world.controller.loop.failures == 0
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
            while now() < 2 * feed_s:
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
    assert world.controller.loop.failures > 10
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
    assert world.controller.loop.failures == 20
    said = [record.message for record in caplog.records if "a mistake of ours" in record.message]
    assert said == [
        "a step of the control loop failed: ZeroDivisionError: a mistake of ours",
        "a step of the control loop has worked for 10 s after: ZeroDivisionError: a mistake of ours",
    ]


@in_world(lambda time_s: 60.0 if time_s > 20.0 else 10.0)
async def test_people_s_pause_holds_decisions_and_what_they_scale_to_applies(world: World) -> None:
    await asyncio.sleep(15.0)
    world.say(Override("pause", until_s=EPOCH_S + 40.0, who="anna"))
    await asyncio.sleep(20.0)
    assert time.time() < EPOCH_S + 40.0
    assert world.wanted == 2
    await world.until(lambda: world.wanted >= 6, 10.0)
    world.say(Override("limits", "a", minimum=9, maximum=9, who="anna"))
    await world.until(lambda: world.wanted == 9, 2.0)


@in_world(steady(10.0))
async def test_a_stage_without_a_replica_gets_those_of_its_plan_for_events_that_wait_though_others_take_the_cores(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.sleep(10.0)
    world.view.core_use.crowded = "others take the cores"
    world.say(Override("scale", "a", 0, until_s=EPOCH_S + 20.0, who="anna"))
    await world.until(lambda: world.wanted == 0, 2.0)
    assert "stage 'a' is held at no replica: its events wait until `resume` or its time is over" in caplog.text
    await asyncio.sleep(EPOCH_S + 19.0 - time.time())
    assert world.wanted == 0
    done = world.done
    await world.until(lambda: world.done > done, START_UP_S + 3.0)
    assert world.wanted == 2, "no more than those: the cores are not there"


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
    dearer = (Override("price", kind, 5.0) for kind in ("cpu", "cpu-spot"))
    for override in (Override("slo", value=0.25), *dearer):
        world.say(override)
    await world.until(lambda: world.view.plan.slo_s == 0.25, 2.0)
    assert [plan.reason for plan in decider.plans] == ["initial", "limit_changed"]
    assert {a.hardware: a.replicas for a in world.view.plan.allocations["a"]} == {"gpu": 1}
    await asyncio.sleep(60.0)
    assert [r.hardware for r in await world.actuator.observe()] == ["gpu"]
    table = decider.memory.state.basis.staffing
    assert decider.tables.staffed
    assert table is not None
    assert table.needed("a", 1.0) == pytest.approx(1 / SERVICE_S["gpu"])  # at its own traffic it is the plan
    assert world.controller.loop.failures == 0


async def planned_for(world: World, slo_s: float, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Set an SLO and wait for its plan; return the numbers of replicas that were asked for in the time after."""
    want, asked = Fleet.want, set[int]()

    async def at_once(function: Callable[..., Any], *args: Any, **how: Any) -> Any:
        return function(*args, **how)

    async def noted(fleet: Fleet, replicas: Mapping[str, Mapping[str, int]]) -> None:
        asked.add(sum(replicas["a"].values()))
        await want(fleet, replicas)

    monkeypatch.setattr(replan_clock, "call_in_subprocess", at_once)
    monkeypatch.setattr(Fleet, "want", noted)
    world.say(Override("slo", value=slo_s))
    await world.until(lambda: world.view.plan.slo_s == slo_s, 10.0)
    await asyncio.sleep(5.0)
    return asked


@in_world(lambda time_s: 0.0 if 70.0 <= time_s < 150.0 else 10.0, idle=Idle(20.0), replans=True)
async def test_a_plan_that_comes_into_force_while_a_stage_sleeps_lets_it_sleep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.sleep(75.0)
    await world.until(lambda: world.wanted == 0, 40.0)
    assert await planned_for(world, 0.25, monkeypatch) == {0}
    assert [reason for _, reason in world.decisions()][-1] == "limit_changed"
    done = world.done
    await world.until(lambda: world.done > done, 60.0 + START_UP_S)


@in_world(steady(10.0), replans=True)
async def test_a_plan_that_comes_into_force_starts_no_replica_of_a_stage_that_people_hold_at_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.sleep(70.0)
    world.say(Override("scale", "a", 0, until_s=EPOCH_S + 95.0))
    await world.until(lambda: world.wanted == 0, 2.0)
    assert await planned_for(world, 0.25, monkeypatch) == {0}
    done = world.done
    await world.until(lambda: world.done > done, 20.0 + START_UP_S)


@pytest.mark.parametrize("apart_s", [-3600.0, 3600.0])
@in_world(steady(10.0))
async def test_what_people_set_for_a_while_lasts_as_long_whatever_their_clock_says(
    world: World, apart_s: float
) -> None:
    await asyncio.sleep(10.0)
    now_s = time.time() + apart_s
    world.say(Override("scale", "a", 7, until_s=now_s + 20.0, who="anna"), time_s=now_s)
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
    world.say(Override("code", value=now_s, who="anna"), time_s=now_s)
    fewest = 2
    for _ in range(200):
        await asyncio.sleep(TICK_S)
        there = [r for r in await world.actuator.observe() if r.state == "running"]
        fewest = min(fewest, sum(r.replica in before or r.started_s + START_UP_S <= now() for r in there))
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
async def test_a_scheduled_reserve_is_held_in_its_hours_and_the_hours_ahead_are_written_down(world: World) -> None:
    begins_s = 60.0 * (int(time.time()) // 60 + 2)
    since, until = (time.gmtime(begins_s + more_s) for more_s in (0.0, 60.0))
    window = f"{time.strftime('%Y-%m-%d %H:%M', since)}-{time.strftime('%H:%M', until)}"
    world.say(Override("reserve", window, 4.0))
    await asyncio.sleep(begins_s - time.time() - START_UP_S - 2.0)
    assert world.wanted == 2
    await world.until(lambda: world.wanted >= 6, 2.0)
    await asyncio.sleep(55.0)
    assert world.wanted >= 6
    assert world.decisions()[0] == ("scale_up", "insurance")
    await world.until(lambda: world.wanted == 2, 60.0)
    newest = [r for r in world.kafka.topics[world.names.decisions] if r.key == CALENDAR_KEY.encode()][-1]
    calendar = decode_stored(CALENDAR_KEY, newest.value)
    assert isinstance(calendar, CalendarRecord)
    assert next(hour.replicas["a"] for hour in calendar.hours if window in hour.words) >= 6


@in_world(steady(10.0), lambda: Overrides({"scale/a": Override("scale", "a", 0, until_s=EPOCH_S + 10.0)}), held=0)
async def test_a_controller_that_finds_a_stage_held_at_none_waits_for_no_replica_of_it(world: World) -> None:
    await world.until(lambda: world.done > 0, 10.0 + START_UP_S + 3.0)


def test_a_controller_that_takes_over_takes_no_replica_s_age_for_the_time_that_it_took_to_start() -> None:
    async def story() -> None:
        world = World(steady(10.0), held=2)
        await world.actuator.scale("a", "cpu", 2)
        await asyncio.sleep(1000.0)
        async with world():
            await asyncio.sleep(10.0)
            assert world.view.start_ups.next_s("a", "cpu") is None, "nor the time that it took to load its model"
            world.say(Override("scale", "a", 3))
            await world.until(lambda: world.view.start_ups.next_s("a", "cpu") is not None, START_UP_S + 3.0)
            assert world.view.start_ups.next_s("a", "cpu") == pytest.approx(START_UP_S, abs=0.5)

    run(story())
