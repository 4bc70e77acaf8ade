"""What the loop does for a pipeline of twice the size is about twice the work: counted in calls, never in seconds."""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inferline_stream import Pipeline, Stage, Topic
from inferline_stream.controlplane.apply.rolling_update import StageReplica, next_change
from inferline_stream.controlplane.controller import Controller
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.recovery import Recovered
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import Overrides
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.observability.stage_counts import BatchStats, StageCounts
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import independent_paths
from inferline_stream.settings import Settings
from tests.support.fake_actuator import FakeActuator

SLOTS, REPLICAS, PARTITIONS = 4, 8, 8
MORE_THAN_TWICE = 2.3


def work(numbers: list[int]) -> list[int]:
    return numbers


class Chain:
    """A controller of so many stages, one after another, whose replicas are all ready."""

    def __init__(self, stages: int, partitions: int = PARTITIONS) -> None:
        declared: list[Stage] = []
        for number in range(stages):
            declared.append(Stage(f"s{number}", work, hardware="cpu", after=declared[-1:]))
        pipeline = Pipeline(
            "p", slo="9s", source=Topic("in"), sink=Topic("out"), stages=declared, hardware=[Hardware("cpu", 0.1)]
        )
        context = PipelineContext(pipeline, KafkaCluster(""), Settings())
        self.stages, self.partitions, self.number = context.shape.stages, partitions, 0
        profiles = {(name, "cpu"): Profile(name, "cpu", (ServiceTime(1, 0.1),)) for name in self.stages}
        measured = PipelineProfile(profiles, independent_paths(context.shape, {}))
        held = {name: (Allocation("cpu", 1, REPLICAS),) for name in self.stages}
        ones = dict.fromkeys(self.stages, 1.0)
        windows = ((1.0, 16), (60.0, 600))
        plan = Plan("p", 9.0, held, 0.2, 0.4, 10.0, windows, ones, ones, slots=dict.fromkeys(self.stages, SLOTS))
        run = Run(
            pipeline=pipeline, topology=Path("topology.py"), bootstrap_servers="", plan=plan, measured=measured,
            log_folder=Path("logs"), replans=False, cores=math.inf,
        )  # fmt: skip
        leadership: Any = SimpleNamespace(
            term=1, controller="c", log=SimpleNamespace(grants=()), renewals=0, write=self._written, devices=()
        )
        self.view = PipelineView(context, plan, measured, dict.fromkeys(self.stages, partitions))
        self.actuator, found = FakeActuator(), Recovered(None, (), (), None, Overrides(), 0)
        self.controller = Controller(run, self.view, self.actuator, leadership, found)
        self.controller.fleet.leads = self.controller.slots.leads = lambda: True

    async def _written(self, *_: object) -> None:
        pass

    async def up(self) -> Chain:
        """Have every replica run, reported twice by its dispatcher, and all offsets read."""
        await self.controller.fleet.reconcile()
        for _ in range(2):
            await self.report()
        await self.controller.slots.step(now())
        for history in self.view.offsets.values():
            history.reached(now(), [9] * self.partitions)
            history.committed(now(), [Committed(5)] * self.partitions)
        return self

    async def report(self) -> None:
        """Hear every dispatcher once."""
        self.number += 1
        replicas = await self.actuator.observe()
        own = {stage: [r.replica for r in replicas if r.stage == stage] for stage in self.stages}
        batches = {"cpu": {1: BatchStats(self.number, 0.1)}}
        reports = [
            PoolReport(
                f"{stage}-{slot}-x", 1, stage, slot, "serving", self.number, stay=(1.0, 2.0, -0.1),
                replicas=[ReplicaStatus(name, "cpu", "ready") for name in own[stage][slot::SLOTS]],
                counts=StageCounts(events=self.number, batch_stats=batches),
            )
            for stage in self.stages
            for slot in range(SLOTS)
        ]  # fmt: skip
        self.heard = await calls(lambda: [self.view.reports.add(report, now()) for report in reports])


def now() -> float:
    return asyncio.get_running_loop().time()


async def calls(of: Callable[[], Any]) -> int:
    """Return how many calls something makes, into Python or beyond, the turns of its generators among them."""
    count = 0

    def called(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        result = of()
        if inspect.isawaitable(result):
            await result
    finally:
        sys.setprofile(before)
    return count


STEPS: dict[str, Callable[[Chain], Any]] = {
    "see": lambda chain: chain.view.observation(now(), chain.controller.wanted, {}, {}),
    "show": lambda chain: chain.controller.look(),
    "reconcile": lambda chain: chain.controller.fleet.reconcile(),
    "grant": lambda chain: chain.controller.slots.step(now()),
}


@pytest.mark.parametrize("step", STEPS)
async def test_twice_the_stages_are_no_more_than_about_twice_the_work(step: str) -> None:
    few, many = await Chain(10).up(), await Chain(20).up()
    once, twice = [await calls(partial(STEPS[step], chain)) for chain in (few, many)]
    assert twice < MORE_THAN_TWICE * once


async def test_reports_of_twice_the_stages_are_no_more_than_about_twice_the_work() -> None:
    few, many = await Chain(10).up(), await Chain(20).up()
    assert many.heard < MORE_THAN_TWICE * few.heard


async def test_a_partition_more_costs_a_step_of_the_policy_hardly_a_call() -> None:
    few, many = await Chain(1, 100).up(), await Chain(1, 1100).up()
    seen = [await calls(partial(STEPS["see"], chain)) for chain in (few, many)]
    assert seen[1] - seen[0] < 5 * 1000


def test_which_replicas_of_a_stage_stay_is_found_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def compared(one: StageReplica, other: object) -> bool:
        raise AssertionError("of a thousand replicas, each would be compared with all others")

    monkeypatch.setattr(StageReplica, "__eq__", compared)
    members = [StageReplica(f"r{n}", "cpu", float(n), fresh=n >= 4) for n in range(8)]
    change = next_change({"cpu": 4}, members, {"cpu": 1.0})
    assert set(change.leaving) == {"r0", "r1", "r2", "r3"}
