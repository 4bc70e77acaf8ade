"""When a new replica is dealt to: at once, unless others are to be ready about now."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from types import SimpleNamespace

import pytest

from inferline_stream.controlplane import dealing
from inferline_stream.controlplane.dealing import Dealing
from inferline_stream.controlplane.fleet import Fleet
from inferline_stream.controlplane.picture import Picture
from inferline_stream.dataplane.protocol import Assignment, ReplicaReport
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Shape, independent_paths
from inferline_stream.settings import Settings
from inferline_stream.testing.actuator import FakeActuator

SHAPE = Shape(("a",), ())
PARTITIONS = 8


class Crew:
    """Replicas of one stage that apply what they are told at once, and who deals to them."""

    def __init__(self, log: Sequence[Assignment] = ()) -> None:
        profile = PipelineProfile(
            {("a", "cpu"): Profile("a", "cpu", (ServiceTime(1, 0.1),))}, independent_paths(SHAPE, {})
        )
        plan = Plan(
            "p", 0.5, {"a": (Allocation("cpu", 1, 1),)}, 0.1, 0.4, 10.0, ((60.0, 600),), {"a": 1.0}, {"a": 0.5}, {}
        )
        picture = Picture("p", SHAPE, plan, profile, {"cpu": Hardware("cpu", 0.1)}, 0.99, {"a": PARTITIONS}, (60.0,))
        self.written: list[Assignment] = []
        leadership = SimpleNamespace(term=1, log=SimpleNamespace(assignments=log), renewals=0, write=self._write)
        running = SimpleNamespace(settings=Settings(), delivery="at_least_once")
        self.dealing = Dealing(running, picture, leadership, self._silent)  # type: ignore[arg-type]
        self.fleet = Fleet(FakeActuator(), picture, self.dealing.partitions, {("a", "cpu"): 1})
        self.reports = picture.reports
        self._numbers = 0

    async def _silent(self, replica: str) -> None:
        raise AssertionError(replica)

    async def _write(self, assignments: Sequence[Assignment], forgotten: Collection[str]) -> None:
        self.written += assignments
        for told in assignments:
            self.report(told.replica, told.sequence, told.partitions)

    def report(self, replica: str, applied: int = 0, held: Sequence[int] = ()) -> None:
        self._numbers += 1
        self.reports.add(
            ReplicaReport(replica, "a", "cpu", "ready", self._numbers, applied, dict.fromkeys(held, 0)), 0.0
        )
        self.dealing.changed()

    async def deal(self) -> list[tuple[str, int]]:
        """Who is told of how many partitions in the next step."""
        self.written.clear()
        self.dealing.changed()
        await self.dealing.step(self.fleet, asyncio.get_running_loop().time())
        return [(told.replica, len(told.partitions)) for told in self.written]


@pytest.fixture
async def crew() -> Crew:
    found = Crew()
    found.report("first")
    assert await found.deal() == [("first", PARTITIONS)]  # the first waits for nobody: nothing works yet
    return found


async def test_replicas_that_become_ready_together_are_dealt_to_together(crew: Crew) -> None:
    crew.fleet.wanted[("a", "cpu")] = 4
    crew.report("second")
    crew.report("third")
    assert await crew.deal() == []
    crew.report("fourth")
    assert sorted(await crew.deal()) == [("first", 2), ("fourth", 2), ("second", 2), ("third", 2)]


async def test_a_new_replica_waits_no_longer_than_a_moment_for_others(crew: Crew) -> None:
    crew.fleet.wanted[("a", "cpu")] = 3
    crew.report("second")
    began_s = asyncio.get_running_loop().time()
    while not crew.written or crew.written[-1].replica == "first":
        await crew.dealing.step(crew.fleet, began_s)
    waited_s = asyncio.get_running_loop().time() - began_s
    assert waited_s >= dealing.TOGETHER_S
    assert crew.dealing.partitions() == {"first": 4, "second": 4}


async def test_a_new_replica_on_which_nobody_else_is_to_follow_is_dealt_to_at_once(crew: Crew) -> None:
    crew.fleet.wanted[("a", "cpu")] = 2
    crew.report("second")
    assert sorted(await crew.deal()) == [("first", 4), ("second", 4)]


async def test_partitions_of_a_dead_replica_wait_for_nobody(crew: Crew) -> None:
    crew.fleet.wanted[("a", "cpu")] = 3
    crew.report("second")
    assert await crew.deal() == []
    crew.dealing.end("first")
    assert await crew.deal() == [("second", PARTITIONS)]


async def test_a_replica_that_holds_partitions_keeps_them_whoever_is_to_come(crew: Crew) -> None:
    crew.fleet.wanted[("a", "cpu")] = 5
    assert await crew.deal() == []


async def test_a_new_term_listens_for_those_that_may_hold_something_and_for_no_others() -> None:
    leaving = Assignment("gone", "a", 1, 1, (), 1, drain=True, lapsed=True)
    log = [leaving, Assignment("slow", "a", 1, 2, (), 1, drain=True), Assignment("working", "a", 1, 3, (0, 1), 1)]
    liveness = Crew(log).dealing.liveness
    silent: set[str] = set()
    for step in range(600):  # a minute
        liveness.advance(step * 0.1, answered=True)
        silent |= liveness.fell_silent()
    assert silent == {"slow", "working"}
