"""A week of scaling: what has ended leaves nothing behind in the controller."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inferline_stream.actuators.actuator import DispatcherExit
from inferline_stream.controlplane.apply.slots import KnownDispatchers, step
from inferline_stream.controlplane.controller import Controller
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.recovery import Recovered
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import Overrides
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.observability.metrics import StateCollector
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Shape, independent_paths
from inferline_stream.settings import Settings
from inferline_stream.tuner.decision import Action, Decision, Reason
from tests.support.emulated_runs import one_stage
from tests.support.fake_actuator import FakeActuator

SHAPE = Shape(("a",), ())
EVERY_S = 20.0
AT_ONCE = 10
NAME = re.compile(r"^(a-cpu-\d+|a-0-\d+x)$")


class Week:
    """A controller that scales stage "a" up and down again; its dispatcher is replaced now and then."""

    def __init__(self) -> None:
        profile = PipelineProfile(
            {("a", "cpu"): Profile("a", "cpu", (ServiceTime(1, 0.1),))}, independent_paths(SHAPE, {})
        )
        plan = Plan("p", 0.5, {"a": (Allocation("cpu", 1, 1),)}, 0.1, 0.4, 10.0, ((60.0, 600),), {"a": 1.0}, {"a": 0.5})
        context = PipelineContext(one_stage(hardware=[Hardware("cpu", 0.1)]), KafkaCluster(""), Settings())
        view = PipelineView(context, plan, profile, {"a": 8})
        leadership: Any = SimpleNamespace(
            term=1, controller="c", log=SimpleNamespace(grants=()), renewals=0, devices=()
        )
        found = Recovered(None, (), (), None, Overrides(), 0)
        run = Run(
            pipeline=context.pipeline, topology=Path("topology.py"), bootstrap_servers="", plan=plan, measured=profile,
            log_folder=Path("logs"), cores=math.inf,
        )  # fmt: skip
        self.actuator = FakeActuator()
        self.controller = Controller(run, view, self.actuator, leadership, found)
        self.controller.fleet.leads = lambda: True
        self.time_s, self.number, self.dispatcher, self.dispatchers = 0.0, 0, "a-0-0x", 0

    def report(self, *replicas: str) -> None:
        self.number += 1
        ready = [ReplicaStatus(name, "cpu", "ready") for name in replicas]
        report = PoolReport(self.dispatcher, 1, "a", 0, "serving", self.number, replicas=ready)
        report.counts.events = self.number
        if self.controller.view.reports.add(report, self.time_s):
            self.controller._heard(report)

    async def cycle(self) -> None:
        """Ten replicas more, and ten less."""
        self.time_s += AT_ONCE * EVERY_S
        replicas = 1 + AT_ONCE
        await self.controller.fleet.want({"a": {"cpu": replicas}})
        there = [r.replica for r in await self.actuator.observe() if r.state == "running"]
        self.report(*there)
        for name in there:
            decision = Decision({"a": {"cpu": replicas}}, Action.SCALE_UP, Reason.BACKLOG, f"for {name}")
            self.controller.decider._decided(decision, self.time_s)
        waiting = self.controller.decider.book
        waiting.written(len(waiting.waiting()))
        await self.controller.fleet.want({"a": {"cpu": 1}})
        leaving = [r.replica for r in await self.actuator.observe() if r.state == "retiring"]
        for name in leaving:
            self.actuator.finish(name)
            await self.controller._mourn()
        self.report(*there)  # it was sent before they ended, and is read after it
        await self.controller._look()
        self.report(*(name for name in there if name not in leaving))

    async def another_dispatcher(self) -> None:
        """The old one crashes, with trouble to report."""
        trouble = PoolReport(self.dispatcher, 1, "a", 0, "serving", self.number + 1, reason="no memory")
        self.controller.view.reports.add(trouble, self.time_s)
        self.controller._heard(trouble)
        gone = DispatcherExit(self.dispatcher, "a", 0, 1, -9, False, "killed", restarted=False)
        self.actuator._wanted.exits.put_nowait(gone)
        await self.controller._mourn()
        self.dispatchers += 1
        self.dispatcher = f"a-0-{self.dispatchers}x"

    async def pass_over(self, ended: int) -> None:
        for at in range(ended // AT_ONCE):
            if at % 10 == 9:
                await self.another_dispatcher()
            await self.cycle()
            keeper = self.controller.slots  # what its step does of this, without the grants that it writes
            keeper.table, _ = step(keeper.table, {}, KnownDispatchers(frozenset(), frozenset(keeper._ended)), "x")
            keeper._ended = {d: at for d, at in keeper._ended.items() if self.time_s - at < 60}
            keeper._unclean &= keeper._ended.keys()
            self.actuator.asked.clear()
            self.controller.exits.extend(["filled"] * 10)

    def remembered(self) -> Counter[str]:
        """Objects that the controller and its metrics reach, by kind; names of replicas and dispatchers apart."""
        seen: set[int] = set()
        found: Counter[str] = Counter()
        stack: list[Any] = [self.controller, list(StateCollector(lambda: self.controller.state).collect())]
        while stack:
            of = stack.pop()
            if id(of) in seen or isinstance(of, type) or callable(of) or type(of).__name__ == "module":
                continue
            seen.add(id(of))
            found["name" if isinstance(of, str) and NAME.match(of) else type(of).__name__] += 1
            stack += gc.get_referents(of)
        return found


async def test_ten_thousand_ended_replicas_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # it keeps every line
    week = Week()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: week.time_s)
    await week.pass_over(6_000)  # by then every history of a fixed length is full
    before = week.remembered()
    await week.pass_over(4_000)
    after = week.remembered()
    assert week.actuator._numbers.__reduce__()[1][0] > 10_000
    grown = {kind: count - before[kind] for kind, count in after.items() if count - before[kind] > 20}
    assert not grown
    assert after["name"] < 50
