"""The loop of consumer groups in virtual time: groups whose members follow what is asked for, and a Kafka in memory."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from inferline_stream.controlplane import group_controller
from inferline_stream.controlplane.apply.group_fleet import GroupFleet
from inferline_stream.controlplane.group_controller import GroupController
from inferline_stream.controlplane.leader_loop import LeaderLoop
from inferline_stream.controlplane.observe.group_collector import GroupCollector
from inferline_stream.controlplane.observe.recovery import Recovered
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import Override, Overrides
from inferline_stream.errors import InferlineError, Unreachable, UsageError
from inferline_stream.pipeline.consumer_group import Command, ConsumerGroup, FaustApp
from inferline_stream.pipeline.group_look import Assignment, GroupLook, OffsetCommit
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.runs.archive import read_events, read_record, write_record
from inferline_stream.runs.group_run import GroupRun, recorded, report_of
from inferline_stream.runs.html_report import html_report
from inferline_stream.runs.replay_inputs import inputs_of_run
from inferline_stream.settings import Settings
from inferline_stream.tuner.group_replan import RECENT_S
from tests.support.virtual_time import EPOCH_S, run
from tests.unit.controlplane.memory_kafka import MemoryKafka

LOOK_S = 0.05
FIXED_S, PER_EVENT_S, MOST = 0.02, 0.01, 8
MU = MOST / (FIXED_S + PER_EVENT_S * MOST)
"""80/s of a worker at full batches."""

PAUSE_S = 0.5
COMMAND = Command("scale {replicas}")


class Plant:
    """A group's workers and topic, as `GroupWatch` would show them, and who changes their number.

    Every member takes batches of what waits in its partitions, and commits each. At a change all stop for `PAUSE_S`.
    Another group may read the same topic, more slowly.
    """

    def __init__(
        self, rate: Callable[[float], float], members: int, partitions: int = 12, slower: Plant | None = None
    ) -> None:
        self.rate, self.members, self.partitions, self.slower = rate, members, partitions, slower
        self.per_event_s = PER_EVENT_S if slower is None else PER_EVENT_S / 2
        self.asked: list[int] = []
        self.refuses, self.away, self.others = "", False, frozenset[str]()
        self.ends, self.taken = [0] * partitions, [0] * partitions
        self.skip: dict[int, int] = {}
        self._rng, self._free_s, self._changed_s = np.random.default_rng(1), [0.0] * members, -PAUSE_S
        self._dealt = 0

    # -- as `GroupWorkers` -----------------------------------------------------------------------------

    async def wanted(self) -> int | None:
        return self.asked[-1] if self.asked else None

    async def scale(self, workers: int) -> None:
        if self.refuses:
            raise InferlineError(self.refuses)
        self.asked.append(workers)
        asyncio.get_running_loop().call_later(2.0, self.has, workers)

    def has(self, members: int) -> None:
        now_s = asyncio.get_running_loop().time()
        self.members, self._changed_s, self._free_s = members, now_s, [now_s + PAUSE_S] * members

    # -- as `GroupWatch` -------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[Plant]:
        if self.away:
            raise Unreachable("Kafka does not answer")
        self._dealt = 0
        yield self

    def other_topics(self, group: str) -> frozenset[str]:
        return self.others

    async def looks(self) -> AsyncIterator[Mapping[str, GroupLook]]:
        loop, before_s = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(LOOK_S)
            if self.away:
                raise Unreachable("Kafka does not answer")
            now_s = loop.time()
            for _ in range(self._rng.poisson(self.rate(now_s) * (now_s - before_s))):
                self.ends[self._rng.integers(self.partitions)] += 1
            found = {"enrich": self._look(before_s, now_s)}
            if self.slower is not None:
                self.slower.ends = self.ends
                found["audit"] = self.slower._look(before_s, now_s)
            before_s = now_s
            yield found

    def _look(self, before_s: float, now_s: float) -> GroupLook:
        commits, assignments = self._served(before_s, now_s), ()
        if self._dealt != self.members:
            self._dealt = self.members
            owners = {f"m{m}": frozenset(range(m, self.partitions, self.members)) for m in range(self.members)}
            assignments = (Assignment(EPOCH_S + now_s, owners, "eager"),)
        return GroupLook(EPOCH_S + now_s, tuple(self.ends), tuple(commits), assignments)

    def _served(self, before_s: float, now_s: float) -> list[OffsetCommit]:
        commits = [OffsetCommit(EPOCH_S + now_s, p, offset) for p, offset in self.skip.items()]
        self.taken = [self.skip.get(p, taken) for p, taken in enumerate(self.taken)]
        self.skip = {}
        for member in range(self.members):
            own = range(member, self.partitions, self.members)
            free_s = max(self._free_s[member], before_s)
            while free_s < now_s:
                batch: dict[int, int] = {}
                for p in own:
                    room = MOST - sum(batch.values())
                    if (count := min(room, self.ends[p] - self.taken[p])) > 0:
                        batch[p] = count
                if not batch:
                    break
                free_s += FIXED_S + self.per_event_s * sum(batch.values())
                for p, count in batch.items():
                    self.taken[p] += count
                    commits.append(OffsetCommit(EPOCH_S + free_s, p, self.taken[p]))
            self._free_s[member] = free_s
        return commits

    @property
    def lag(self) -> int:
        return sum(self.ends) - sum(self.taken)


class World:
    """A plant and the controller that leads it."""

    def __init__(self, plant: Plant, declared: Command | FaustApp = COMMAND) -> None:
        self.plant = plant
        plants = {"enrich": plant} | ({} if plant.slower is None else {"audit": plant.slower})
        groups = [ConsumerGroup(n, group=f"{n}-v2", topic="posts", workers=declared) for n in plants]
        pipeline = Pipeline("p", slo="5s", stages=groups)
        self.kafka: Any = MemoryKafka("posts", plant.partitions, lambda: 0, lambda: 0)
        self.context = PipelineContext(pipeline, self.kafka, Settings())
        leadership: Any = SimpleNamespace(
            term=1, controller="c", write_records=self.kafka.write, heartbeat=self._heartbeat
        )
        loop = LeaderLoop(leadership)
        workers: Any = plants
        self.run = GroupRun(
            pipeline=pipeline, topology=Path("t.py"), bootstrap_servers="", workers=workers, log_folder=Path("logs")
        )
        watch: Any = plant.watch
        self.controller = GroupController(
            self.context, self.run.decided_by, watch, GroupCollector(self.context),
            GroupFleet(workers, {}, loop.leads), leadership, Recovered(None, (), (), None, Overrides(), 0), loop,
        )  # fmt: skip

    async def _heartbeat(self) -> None:
        self.kafka.answer()

    def decisions(self) -> list[tuple[str, str]]:
        return self.kafka.decisions(self.context.names.decisions)

    async def until(self, holds: Callable[[], bool], within_s: float) -> None:
        began_s = asyncio.get_running_loop().time()
        while not holds():
            assert asyncio.get_running_loop().time() - began_s < within_s, f"not within {within_s} s"
            await asyncio.sleep(0.1)


@pytest.fixture(autouse=True)
def _planned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread would take no virtual time, and the clock would run on while it works."""

    async def here(work: Callable[..., Any], *given: Any, **named: Any) -> Any:
        return work(*given, **named)

    monkeypatch.setattr(group_controller.asyncio, "to_thread", here)


def led(plant: Plant, story: Callable[[World], Any], declared: Command | FaustApp = COMMAND) -> World:
    world = World(plant, declared)

    async def played() -> None:
        leading = asyncio.create_task(world.controller.lead())
        try:
            await story(world)
            assert not leading.done(), leading.exception()
        finally:
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)

    run(played())
    return world


def test_a_group_is_learned_left_alone_until_then_and_follows_its_traffic(tmp_path: Path) -> None:
    plant = Plant(lambda now_s: 50.0 if now_s < 100 else 260.0 if now_s < 160 else 50.0, members=1)

    async def story(world: World) -> None:
        await asyncio.sleep(55.0)
        assert plant.asked == []
        assert world.controller.state is None
        await world.until(lambda: world.controller.decider is not None, 30.0)
        learned = world.controller.collector.profiles()[0].throughput
        assert learned is not None
        assert learned.value == pytest.approx(MU, rel=0.1)
        await asyncio.sleep(150.0 - asyncio.get_running_loop().time())
        assert plant.members * MU > 260.0
        assert plant.lag < 260
        assert world.controller.view is not None
        (start_up_s,) = world.controller.view.start_ups.by_stage()["enrich"].values()
        assert 1.4 < start_up_s < 2.6, "members join two seconds after they were asked for, and are looked at each half"
        state = world.controller.state
        assert state is not None
        assert state.stages[0].replicas[0].ready == plant.members
        # A batch of 8 takes 0.1 s, and more waits while members change.
        assert state.estimated
        assert sum(state.latency.counts) == state.events_out == pytest.approx(sum(plant.taken), rel=0.6)
        assert state.recent_p99_s is not None
        assert 0.05 < state.recent_p99_s < 5.0
        assert state.recent_late_share == 0.0
        assert state.budget_left is not None
        assert len(plant.asked) <= 10  # each change is a hole; the backlog of a hole is no demand
        await world.until(lambda: plant.members < max(plant.asked), 150.0)
        write_record(tmp_path / "run", *recorded(world.controller, report_of(world.controller, EPOCH_S)))

    world = led(plant, story)
    # It was planned for a minute of 50/s, and is planned again for the traffic that came since.
    assert {action for action, _ in world.decisions()} == {"scale_up", "scale_down", "replan"}
    assert world.controller.view is not None
    assert world.controller.view.plan.arrival_rate > 60.0
    assert all(math.ceil(12 / n) < math.ceil(12 / (n - 1)) for n in plant.asked if n > 1), "useful numbers only"
    _is_replayed_and_reported(tmp_path / "run", plant)


def _is_replayed_and_reported(run: Path, plant: Plant) -> None:
    record, events = read_record(run), read_events(run)
    report = record.report
    assert report.verified == report.events_in == pytest.approx(sum(plant.ends), abs=10)
    assert events.sample_s.size + events.arrivals_s.size == report.events_in
    assert 60.0 < events.sample_s[-1] < 90.0, "the first plan was made of a minute, and more until a worker was known"
    again = inputs_of_run(run).replayed()
    changes = sum(decision.action.startswith("scale") for decision in record.decisions)
    assert again.changes == pytest.approx(changes, abs=3)
    assert again.cost_per_hour == pytest.approx(3600 * report.cost / report.duration_s, rel=0.15)
    assert report.p99_s is not None
    assert again.p99_s == pytest.approx(report.p99_s, rel=0.6)
    page = html_report(record, events)
    assert "The SLO was" in page
    assert "smallest fixed number, in hindsight" in page
    assert "lost or twice" not in page, "nobody has looked events up"
    with pytest.raises(UsageError, match="have a policy of their own"):
        inputs_of_run(run).replayed("inferline")


def test_people_scale_and_pause_groups_as_stages() -> None:
    plant = Plant(lambda now_s: 50.0, members=1)

    async def story(world: World) -> None:
        names = world.context.names
        await world.until(lambda: world.controller.decider is not None, 90.0)
        world.kafka.say(names.control, Override("scale", "enrich", 4))
        await world.until(lambda: plant.members == 4, 10.0)
        world.kafka.say(names.control, Override("pause"))
        await asyncio.sleep(2.0)
        world.kafka.append(names.control, None, b"scale/enrich")
        plant.rate = lambda now_s: 400.0
        await asyncio.sleep(30.0)
        assert plant.asked == [4]
        assert world.controller.state is not None
        assert world.controller.state.paused

    led(plant, story)


def test_whatever_happens_to_a_group_the_loop_holds_says_why_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    plant = Plant(lambda now_s: 60.0, members=1)

    async def story(world: World) -> None:
        await world.until(lambda: world.controller.decider is not None, 90.0)
        await asyncio.sleep(5.0)
        asked = list(plant.asked)
        plant.others = frozenset({"other"})  # another topic is given to the group
        await asyncio.sleep(5.0)
        assert world.controller.state is not None
        assert "reads other beside posts" in world.controller.state.stages[0].trouble
        plant.rate = lambda now_s: 500.0
        await asyncio.sleep(15.0)
        assert plant.asked == asked
        plant.rate, plant.others = (lambda now_s: 60.0), frozenset()
        plant.away = True  # silence
        await asyncio.sleep(20.0)
        assert plant.asked == asked
        plant.away = False
        plant.skip = dict.fromkeys(range(12), 0)  # offsets are reset by hand, to the beginning
        plant.has(1)  # and a worker is killed
        await asyncio.sleep(30.0)
        replans = [action for action, _ in world.decisions()].count("replan")
        plant.partitions += 12
        plant.ends, plant.taken = plant.ends + [0] * 12, plant.taken + [0] * 12
        await asyncio.sleep(20.0)
        assert [action for action, _ in world.decisions()].count("replan") == replans + 1
        assert max(plant.asked, default=1) <= 12
        assert plant.lag < 15_000

    world = led(plant, story)
    assert ("hold", "input_stale") in world.decisions()
    assert ("hold", "input_restored") in world.decisions()
    assert len(world.decisions()) < 40
    assert world.controller.loop.failures == 0
    assert "Traceback" not in caplog.text


def test_while_it_learns_it_says_what_is_missing_still() -> None:
    said: list[str] = []

    async def story(world: World) -> None:
        world.controller.step_text = said.append
        await world.until(lambda: world.controller.decider is not None, 90.0)

    led(Plant(lambda now_s: 60.0, members=1), story)
    assert not [text for text in said if "no record has come yet" in text or "60 of 60 s" in text]
    assert said[0] == "watching: the throughput of enrich is not known yet"


def test_a_faust_app_is_decided_on_although_its_agents_read_other_topics_too() -> None:
    plant = Plant(lambda now_s: 60.0, members=1)
    plant.others = frozenset({"packed"})

    async def story(world: World) -> None:
        await world.until(lambda: world.controller.decider is not None, 90.0)
        plant.rate = lambda now_s: 120.0
        await world.until(lambda: plant.members > 1, 60.0)

    led(plant, story, FaustApp("shop:app"))


def test_two_groups_on_one_topic_each_follow_it() -> None:
    slower = Plant(lambda now_s: 0.0, members=1)
    plant = Plant(lambda now_s: 50.0 if now_s < 90 else 220.0, members=1, slower=slower)

    async def story(world: World) -> None:
        await asyncio.sleep(130.0)
        before = len(slower.asked), len(plant.asked)
        assert slower.members * MU > 220.0
        learned = [profile.throughput for profile in world.controller.collector.profiles()]
        faster = MOST / (FIXED_S + plant.per_event_s * MOST)
        assert [of.value for of in learned if of is not None] == pytest.approx([faster, MU], rel=0.1)
        assert plant.members * faster > 220.0
        plant.has(1)  # somebody kills workers of one of them
        await asyncio.sleep(15.0)
        assert len(slower.asked) == before[0]
        assert slower.lag < 220
        assert world.controller.state is not None
        assert [stage.trouble for stage in world.controller.state.stages] == ["", ""]

    led(plant, story)


def test_a_refusal_is_said_and_tried_again() -> None:
    plant = Plant(lambda now_s: 50.0 if now_s < 80 else 200.0, members=1)
    plant.refuses = "the quota is used up"

    async def story(world: World) -> None:
        await world.until(lambda: world.controller.decider is not None, 90.0)
        await asyncio.sleep(100.0 - asyncio.get_running_loop().time())
        assert world.controller.state is not None
        assert world.controller.state.stages[0].trouble == "the quota is used up"
        assert plant.asked == []
        plant.refuses = ""
        await world.until(lambda: plant.members * MU > 200.0, 20.0)
        await asyncio.sleep(2.0)
        assert world.controller.state.stages[0].trouble == ""

    led(plant, story)


def test_the_first_record_after_an_outage_of_hours_is_an_arrival_like_any_other() -> None:
    collector = World(Plant(lambda time_s: 0.0, 1, partitions=1)).controller.collector
    for at_s, end in ((0.0, 5), (1.0, 6), (1.0 + 2 * RECENT_S, 7), (2.0 + 2 * RECENT_S, 9)):
        collector.take({"enrich": GroupLook(at_s, (end,))}, ahead_s=0.0)
    assert collector.growth.total == 4
    assert collector.arrivals_s().size == 2
