"""A controller and the pool of one stage beside it: a Kafka in memory, no processes, and time that needs no waiting."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.controlplane.controller import Controller
from inferline_stream.controlplane.leadership import LeadershipLost
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.recovery import Recovered
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import Override, Overrides
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus, encode_report
from inferline_stream.dataplane.slot_grants import Grant, grant_key
from inferline_stream.observability.stage_counts import BatchStats, StageCounts
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.idle import Idle
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Shape, independent_paths
from inferline_stream.pipeline.spot import Spot, on_demand
from inferline_stream.settings import Settings
from tests.support.emulated_runs import one_stage
from tests.support.fake_actuator import FakeActuator
from tests.support.virtual_time import run
from tests.unit.controlplane.memory_kafka import MemoryKafka

SHAPE = Shape(("a",), ())
SERVICE_S = {"cpu": 0.1, "gpu": 0.02}
START_UP_S = 2.0
TICK_S = 0.05


class World:
    """One stage "a" whose replicas serve 10 events/s each, or 50/s on the dearer kind, and start within two seconds.

    Args:
        rate: arrivals per second, by seconds since the start.
        idle: when the stage sleeps.
        held: replicas that an earlier controller has left.
        planned: replicas by hardware kind, two of the cheap one by default.
        more: fields of `Run`.
    """

    def __init__(
        self,
        rate: Callable[[float], float],
        overrides: Overrides | None = None,
        *,
        idle: Idle | None = None,
        held: int | None = None,
        planned: Mapping[str, int] | None = None,
        **more: Any,
    ) -> None:
        self.leading: Any = None
        self.rate, self.arrived, self.done, self.lost_lead, self.silent = rate, 0.0, 0.0, False, False
        names = Names("p")
        self.kafka = MemoryKafka("posts", 4, lambda: int(self.arrived), lambda: int(self.done))
        self.actuator = FakeActuator(drain_timeout_s=5.0)
        self.grants: dict[str, Grant] = {}
        profiles = {
            ("a", kind): Profile("a", kind, (ServiceTime(1, service_s),), start_up_s=START_UP_S)
            for kind, service_s in SERVICE_S.items()
        }
        profile = PipelineProfile(profiles, independent_paths(SHAPE, {})).with_spot({"a": ["cpu-spot"]})
        allocations = tuple(Allocation(kind, 1, count) for kind, count in (planned or {"cpu": 2}).items())
        plan = Plan(
            "p", 0.5, {"a": allocations}, 0.2, 0.3, 10.0,
            ((1.0, 16), (10.0, 115), (60.0, 620)), {"a": 1.0}, {"a": 0.5}, idle={} if idle is None else {"a": idle},
        )  # fmt: skip
        kafka: Any = self.kafka
        run = Run(
            pipeline=one_stage(hardware=[Hardware("cpu", 0.1, spot=Spot(0.03)), Hardware("gpu", 0.6)]),
            topology=Path("topology.py"),
            bootstrap_servers="", plan=plan, measured=profile,
            log_folder=Path("logs"), **{"replans": False, "cores": math.inf, **more},
        )  # fmt: skip
        context = PipelineContext(run.pipeline, kafka, Settings())
        leadership: Any = SimpleNamespace(
            term=1, controller="c", log=SimpleNamespace(grants=()), renewals=0, write=self._grant,
            write_records=self.kafka.write, heartbeat=self._heartbeat,
        )  # fmt: skip
        self.view = PipelineView(context, plan, profile, {"a": 4})
        wanted = {"a": {"cpu": 2 if held is None else held}}
        found = Recovered(None, (), (), overrides and wanted, overrides or Overrides(), 0)
        given: Any = {} if held is None else {"wanted": wanted}
        self.controller = Controller(run, self.view, self.actuator, leadership, found, **given)
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
            able = sum(TICK_S / SERVICE_S[on_demand(r.hardware)] for r in ready)
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
        for dispatcher in await self.actuator.dispatchers():
            self._reports += 1
            report = PoolReport(
                dispatcher.dispatcher, dispatcher.incarnation, "a", 0, "serving", self._reports,
                held={p: int(self.done) // 4 for p in range(4)},
                replicas=[ReplicaStatus(r.replica, r.hardware, "ready", START_UP_S) for r in ready],
                counts=StageCounts(
                    events=int(self.done), busy_s=self._busy_s, replica_s=self._replica_s,
                    batch_stats={"cpu": {1: BatchStats(int(self.done), self._busy_s, self._busy_s * SERVICE_S["cpu"])}},
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
        return self.kafka.decisions(self.names.decisions)

    def say(self, override: Override, *, time_s: float | None = None) -> None:
        """Write down what people have said, now by default."""
        self.kafka.say(self.names.control, override, time_s=time_s)


def now() -> float:
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
