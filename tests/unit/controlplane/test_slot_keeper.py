"""The keeper of slots with a log in memory and an actuator whose dispatchers report when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from inferline_stream.actuators.actuator import DispatcherExit, ObservedDispatcher
from inferline_stream.controlplane.apply.slot_keeper import SlotKeeper
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.settled_parts import SettledParts
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.dataplane.reports import DispatcherPhase, PoolReport
from inferline_stream.dataplane.routes import Routes
from inferline_stream.dataplane.slot_grants import Grant, HardwarePlan, StagePlan, grant_key
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Shape, independent_paths
from inferline_stream.settings import Settings
from tests.support.emulated_runs import one_stage

SHAPE = Shape(("a",), ())


class House:
    """A stage "a" with what surrounds its keeper."""

    def __init__(self, log: Sequence[Grant] = (), running: Sequence[str] = (), rate: float = 10.0) -> None:
        times = (ServiceTime(1, 0.1), ServiceTime(4, 0.2))
        profile = PipelineProfile({("a", "cpu"): Profile("a", "cpu", times)}, independent_paths(SHAPE, {}))
        plan = Plan(
            "p", 0.5, {"a": (Allocation("cpu", 4, 1, 0.012),)}, 0.1, 0.4, rate, ((60.0, 600),), {"a": 1.0}, {"a": 0.5}
        )
        context = PipelineContext(one_stage(hardware=[Hardware("cpu", 0.1)]), KafkaCluster(""), Settings())
        self.view = PipelineView(context, plan, profile, {"a": 8})
        self.log = {grant_key(g.stage, g.slot): g for g in log}
        self.fails = False
        self.starts = True
        self.asked: list[list[str]] = []
        self.replaced: list[str] = []
        self.running = {name: ObservedDispatcher(name, "a", 0, 1, 1, "running", 0.0) for name in running}
        self._reports = 0
        self.specs_made = 0
        leadership = SimpleNamespace(term=2, log=SimpleNamespace(grants=tuple(log)), renewals=0, write=self._write)
        self.keeper = SlotKeeper(self.view, leadership, self, self._spec)  # type: ignore[arg-type]

    def _spec(self, stage: str) -> DispatcherSpec:
        self.specs_made += 1
        routes = Routes("p", "", stage, "in", "out", (stage,), (), (), True, 1.0, "process", b"1")
        return DispatcherSpec("", 0, routes, "k:1")

    async def _write(self, grants: Sequence[Grant], forgotten: Sequence[str]) -> None:
        if self.fails:
            raise Unreachable("no answer")
        self.log |= {grant_key(g.stage, g.slot): g for g in grants}
        for key in forgotten:
            del self.log[key]

    async def dispatchers(self) -> list[ObservedDispatcher]:
        return list(self.running.values())

    async def dispatch(self, stage: str, specs: Sequence[DispatcherSpec]) -> None:
        self.asked.append([spec.dispatcher for spec in specs])
        if not self.starts:
            raise Unreachable("no answer")
        self.running = {
            s.dispatcher: ObservedDispatcher(s.dispatcher, stage, s.slot, 1, 1, "running", 0.0) for s in specs
        }

    async def replace_dispatcher(self, dispatcher: str) -> None:
        self.replaced.append(dispatcher)

    async def step(self, steps: int = 1) -> None:
        for _ in range(steps):
            await self.keeper.step(asyncio.get_running_loop().time())

    async def after(self, seconds: float) -> None:
        """Let a time pass in which nobody reports."""
        now_s = self.keeper.silence._time_s or 0.0
        for tick in range(1, int(seconds * 10) + 1):
            self.keeper.silence.advance(now_s + tick / 10, answered=True)
        self.keeper.silence._time_s = now_s
        await self.step(2)

    def report(
        self, dispatcher: str, phase: DispatcherPhase, slot: int = 0, number: int = 0, *, overdue: bool = False
    ) -> None:
        self._reports += 1
        found = PoolReport(dispatcher, 1, "a", slot, phase, self._reports, number=number, join_overdue=overdue)
        self.view.reports.add(found, 0.0)
        self.keeper.heard(found)

    def exits(self, dispatcher: str, code: int, *, restarted: bool) -> None:
        slot = self.running[dispatcher].slot
        if not restarted:
            del self.running[dispatcher]
        self.keeper.exited(DispatcherExit(dispatcher, "a", slot, 1, code, False, "", restarted))


@pytest.fixture
async def house() -> House:
    found = House()
    await found.step()
    return found


def the_grant(house: House) -> Grant:
    (grant,) = house.log.values()
    return grant


async def test_a_grant_says_limits_hold_and_profiled_times_and_its_dispatcher_is_asked_for(house: House) -> None:
    grant = the_grant(house)
    assert (grant.slots, grant.begins, grant.term) == (1, True, 2)
    assert grant.plan.hardware == {"cpu": HardwarePlan(4, {1: 0.1, 4: 0.2})}
    assert grant.plan.hold_s == 0.012
    assert house.asked == [[grant.dispatcher]]
    await house.step(3)
    assert len(house.asked) == 1


async def test_a_joins_grant_says_what_is_settled_where_its_dispatcher_asks(house: House) -> None:
    house.view.settling["a"] = settling = SettledParts("a", ())
    settling.settled = {0: (5, 7)}
    dispatcher = the_grant(house).dispatcher
    house.report(dispatcher, "serving")
    await house.step()
    assert the_grant(house).settled == {}, "nobody needs it, and a grant for each round would be one a second"
    house.report(dispatcher, "serving", overdue=True)
    await house.step()
    assert the_grant(house).settled == {0: (5, 7)}
    settling.settled = {0: (9, 9)}
    house.report(dispatcher, "serving")
    await house.step()
    assert the_grant(house).settled == {0: (5, 7)}


async def test_what_could_not_be_written_is_decided_again_and_nothing_runs_meanwhile() -> None:
    house = House()
    house.fails = True
    with pytest.raises(Unreachable):
        await house.step()
    assert (house.asked, house.keeper.table.grants) == ([], {})
    house.fails = False
    await house.step()
    assert house.asked == [[the_grant(house).dispatcher]]


async def test_a_dispatcher_that_is_started_again_keeps_its_grant(house: House) -> None:
    before = the_grant(house)
    house.report(before.dispatcher, "serving")
    house.exits(before.dispatcher, -9, restarted=True)
    await house.step(3)
    assert the_grant(house) == before


async def test_a_fenced_dispatcher_gets_a_successor_with_another_name(house: House) -> None:
    first = the_grant(house).dispatcher
    house.exits(first, 75, restarted=False)
    await house.step()
    assert the_grant(house).dispatcher != first
    assert the_grant(house).begins


async def test_a_silent_dispatcher_of_this_host_is_killed_and_keeps_its_slot(house: House) -> None:
    first = the_grant(house)
    house.report(first.dispatcher, "serving")
    await house.after(3.2)
    assert house.replaced == [first.dispatcher]
    assert the_grant(house) == first


async def test_another_hosts_dispatcher_is_waited_for_until_it_is_gone() -> None:
    house = House([Grant("a", 0, 1, "theirs", 1, 5)])
    await house.step(3)
    house.report("theirs", "serving", number=5)
    await house.step(3)
    assert not the_grant(house).begins
    house.report("theirs", "gone", number=6)
    await house.step(2)
    assert the_grant(house).begins


async def test_another_hosts_dispatcher_that_is_never_heard_is_given_up_after_its_lease() -> None:
    house = House([Grant("a", 0, 1, "theirs", 1, 5)])
    await house.step(2)
    await house.after(2.5)
    assert not the_grant(house).begins
    await house.after(1.0)
    assert the_grant(house).begins


async def test_a_dispatcher_that_was_let_begin_and_could_not_be_started_is_given_up_after_its_lease() -> None:
    house = House()
    house.starts = False
    with pytest.raises(Unreachable):
        await house.step()
    first, house.starts = the_grant(house).dispatcher, True
    await house.step(2)
    assert (the_grant(house).dispatcher == first, the_grant(house).begins) == (False, False)
    await house.after(3.2)
    assert the_grant(house).begins


async def test_a_dispatcher_of_this_host_that_takes_long_to_start_is_left_alone(house: House) -> None:
    first = the_grant(house)
    await house.step()
    await house.after(30.0)
    assert (house.replaced, the_grant(house)) == ([], first)


async def test_a_controller_that_comes_back_keeps_the_dispatchers_of_its_host() -> None:
    house = House([Grant("a", 0, 1, "mine", 1, 5, plan=StagePlan({"cpu": HardwarePlan(4)}))], running=["mine"])
    await house.step(2)
    assert (the_grant(house).dispatcher, the_grant(house).begins) == ("mine", True)


async def test_a_plan_with_more_dispatchers_gives_the_stage_more_slots_once_the_old_one_is_gone(house: House) -> None:
    first = the_grant(house).dispatcher
    house.report(first, "serving")
    house.view.plan = replace(house.view.plan, slots={"a": 2})
    await house.step(2)
    assert (the_grant(house).dispatcher, house.asked[-1]) == ("", [])
    house.report(first, "gone")
    await house.step()
    assert sorted((g.slot, g.slots, g.begins) for g in house.log.values()) == [(0, 2, True), (1, 2, True)]


async def test_a_stage_has_no_more_slots_than_its_topic_has_partitions(house: House) -> None:
    house.view.plan = replace(house.view.plan, slots={"a": 9})
    assert house.keeper.wanted()["a"].slots == 8


async def test_retiring_a_stage_takes_its_slots_back_and_clears_the_log(house: House) -> None:
    first = the_grant(house).dispatcher
    house.report(first, "serving")
    house.keeper.retire({"a"})
    await house.step(2)
    assert not await house.keeper.retired({"a"})
    house.report(first, "gone")
    await house.step()
    assert (await house.keeper.retired({"a"}), house.log) == (True, {})


async def test_partitions_with_lag_are_reported_with_who_should_work_on_them(house: House) -> None:
    house.view.offsets["a"].reached(0.0, [5, *[0] * 7])
    name = the_grant(house).dispatcher
    house.report(name, "serving")
    assert house.keeper.stuck() == f"posts/0 lags 5, {name} (serving, at none, 0 queued)"


async def test_what_the_dispatchers_of_a_stage_are_given_is_found_once_for_all_of_its_slots() -> None:
    house = House()
    house.view.plan = replace(house.view.plan, slots={"a": 4})
    await house.step()
    assert (len(house.running), house.specs_made) == (4, 1)
