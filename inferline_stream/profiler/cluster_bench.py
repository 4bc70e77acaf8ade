"""The profiler's bench in a cluster: replicas of each kind, where and as an actuator places them, timed one at a time.

A dispatcher of the profiler runs there in the place of the usual one, so that a replica is placed, sealed and reached
as in a run. What the network takes of a batch of one event is no service time: it is measured too, and part of the hop.
What it takes of a larger batch beyond that keeps the replica from the next one, and counts.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import secrets
import signal
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from inferline_stream.actuators.actuator import Actuator, ObservedReplica, ReplicaExit
from inferline_stream.dataplane.frames import StageInput
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.errors import StageFailed
from inferline_stream.kafka.pipeline_topics import create_topics, delete_topics, topics_of
from inferline_stream.pipeline.emulation import emulated_s
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline, Stage
from inferline_stream.profiler.bench import exit_failure
from inferline_stream.profiler.bench_link import LOOK_S, BenchLink, bench_link
from inferline_stream.profiler.bench_messages import NotReady, Order, RunEvents
from inferline_stream.profiler.service_times import FEWEST_BATCHES, Measures
from inferline_stream.profiler.worker_messages import (
    Answer,
    Failure,
    Measure,
    Outcomes,
    ProcessEvents,
    Request,
    Times,
    Weigh,
    Weights,
)
from inferline_stream.profiler.worker_process import WorkerFailed
from inferline_stream.settings import Settings

_A = TypeVar("_A", bound=Answer)

MakeActuator = Callable[[Names], AbstractAsyncContextManager[Actuator]]
"""Makes what starts processes in the cluster, for a pipeline of these names and with `remote_bench_dispatcher.MODULE`
for dispatchers; at its end nothing of it is left there."""

SAMPLE_BYTES = 32 << 20
"""Of inputs, all that the dispatcher is sent; more would say nothing more."""

WARM_UP_BATCHES, BATCHES = 10, 50
"""Of one event each, to measure the network: the first open connections and fill caches."""

_NETWORK_S = 30.0
"""A stage that takes seconds for an event is measured by fewer of them."""

DISPATCHER_START_S = 120.0
"""Of a dispatcher, which loads no model: mostly getting its image."""

_TRIES = 3
"""Of an order whose replica or dispatcher was lost."""

_EXIT_S = 5.0
"""From the end of a connection to the word that the replica has ended, in the slowest cluster."""

GONE_S = 30.0
"""From asking a replica to go to its being gone."""


class NoPlace(StageFailed):
    """The cluster has no place for a replica of some kind."""


class ClusterBenches:
    """What measures stages in a cluster; see `cluster_benches`.

    Args:
        pipeline: a valid pipeline.
        bootstrap_servers: of Kafka, as the cluster reaches it.
        names: of the profile's own topics.
        settings: time limits.
        actuator: starts processes in the cluster; it knows a template of each stage and kind.
        link: to dispatchers.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        bootstrap_servers: str,
        *,
        names: Names,
        settings: Settings,
        actuator: Actuator,
        link: BenchLink,
    ) -> None:
        self._pipeline = pipeline
        self._servers = bootstrap_servers
        self._names = names
        self._settings = settings
        self._actuator = actuator
        self._link = link
        self._dispatchers: dict[str, str] = {}
        """By stage."""
        self._given: dict[str, list[StageInput]] = {}
        """What each was given last, which serves all kinds of its stage."""
        self._open: Counter[str] = Counter()
        """Benches by stage."""
        self._exits: dict[str, ReplicaExit] = {}
        """By replica; unexpected ones."""

    @asynccontextmanager
    async def bench(
        self, stage: Stage, kind: Hardware, inputs: Sequence[StageInput], weigher: Measures | None = None
    ) -> AsyncIterator[ClusterBench]:
        """Have a replica of a stage ready on a kind, alone.

        Args:
            stage: the stage.
            kind: the hardware kind.
            inputs: all that will be asked about, at most `SAMPLE_BYTES`; see `within_bytes`.
            weigher: says what events cost; without it nothing does.

        Raises:
            NoPlace: the cluster has none for it.
            WorkerFailed: the stage could not be built there.
            StageFailed: nothing was ready in time, or the replica stays when it is asked to go.
        """
        dispatcher = await self._dispatcher(stage)
        if (given := list(inputs)) != self._given.get(dispatcher, []):
            await self._link.give(dispatcher, given)
            self._given[dispatcher] = given
        began_s = asyncio.get_running_loop().time()
        self._open[stage.name] += 1
        bench = ClusterBench(self, stage, kind, dispatcher, inputs=inputs, weigher=weigher)
        try:
            await self._actuator.scale(stage.name, kind.name, 1)
            await self.ready(bench)
            bench.start_up_s = asyncio.get_running_loop().time() - began_s
            bench.node = next((r.node for r in await self._actuator.observe() if self._is_of(bench, r)), "")
            yield bench
        finally:
            self._open[stage.name] -= 1
            await self._actuator.scale(stage.name, kind.name, 0)
            gone = await self._gone(bench)  # or the next bench's times would be this replica's
        if not gone:
            raise StageFailed(
                f"stage {stage.name!r} on {kind.name!r}: its replica was still there {GONE_S:g} s after it was asked "
                "to go; see its log and its node's state, and profile again"
            )

    async def network_s(self, inputs: Mapping[str, Sequence[StageInput]]) -> float:
        """Return the time that a batch of one event takes there beyond the replica's own, in seconds; the mean.

        The cheapest kind of an entry stage that the cluster has room for is asked.

        Args:
            inputs: by stage, some that it can process.

        Raises:
            NoPlace: the cluster has none for any kind of an entry stage.
            StageFailed: no replica was ready in time.
        """
        kinds = catalogue(self._pipeline.hardware)
        entries = [(each, kinds[name]) for each in self._pipeline.stages if not each.after for name in each.hardware]
        nowhere = []
        for stage, kind in sorted(entries, key=lambda entry: entry[1].price_per_hour):
            given = within_bytes(inputs[stage.name])
            try:
                async with self.bench(stage, kind, given) as bench:
                    for least, most in ((1, WARM_UP_BATCHES), (FEWEST_BATCHES, BATCHES)):
                        found = await bench.timed(Measure(given, kind, {}, 1, _NETWORK_S, least, most))
                return statistics.fmean(found.network_s)
            except NoPlace as error:
                nowhere.append(str(error))
        raise NoPlace("\n".join(nowhere))

    # What benches ask

    async def ready(self, bench: ClusterBench) -> str:
        """Wait until a replica is ready; returns its name.

        Raises:
            NoPlace: the cluster has none for it.
            WorkerFailed: the stage could not be built there.
            StageFailed: it was not ready in time.
        """
        limit_s = self._settings.start_limit_s(gpu=bench.kind.gpus > 0)

        def failed() -> ReplicaExit | None:
            exits = (e for e in self._exits.values() if self._is_of(bench, e) and e.replica not in self._link.stood)
            return next((exit_ for exit_ in exits if exit_.exit_code > 0 or exit_.exit_code == -signal.SIGKILL), None)

        def standing() -> str:
            found = self._link.standing[bench.dispatcher]
            return found.replica if found.hardware == bench.kind.name else ""

        if not await self._link.until(lambda: bool(standing()) or failed() is not None, limit_s):
            raise await self._late(bench, limit_s)
        if (exit_ := failed()) is not None:
            raise exit_failure(exit_.exit_code, exit_.tail, Failure(exit_.reason))
        return standing()

    async def carried_out(self, bench: ClusterBench, order: Order | RunEvents) -> Times | Outcomes:
        """Have an order carried out.

        It is given again where the replica or the dispatcher was lost, which may be the cluster's fault.

        Raises:
            WorkerFailed: it could not be done, or the replica has ended.
            StageFailed: the dispatcher is lost, or no replica became ready.
        """
        why, replica_lost = "", False
        for _ in range(_TRIES):
            replica = await self.ready(bench)
            found = await self._link.ask(bench.dispatcher, order)
            if isinstance(found, NotReady):
                why = found.why
                continue
            if not isinstance(found, Failure):
                return found
            if not found.ended:
                raise WorkerFailed.of(found)
            await self._link.until(functools.partial(self._exits.__contains__, replica), _EXIT_S)
            exit_ = self._exits.get(replica)
            if exit_ is not None and (exit_.exit_code > 0 or (replica_lost and exit_.exit_code == -signal.SIGKILL)):
                raise exit_failure(exit_.exit_code, exit_.tail, Failure(exit_.reason))
            why, replica_lost = "the connection to it broke" if exit_ is None else exit_.reason, True
        raise StageFailed(
            f"stage {bench.stage.name!r} on {bench.kind.name!r}: an order was not carried out in {_TRIES} tries: "
            f"{why}; see the logs of the stage's pods or actors"
        )

    # The cluster

    async def _dispatcher(self, stage: Stage) -> str:
        """Have a dispatcher for a stage, and for no other that has no bench; return its name."""
        if (name := self._dispatchers.get(stage.name)) is not None:
            return name
        for idle in [each for each in self._dispatchers if not self._open[each]]:
            del self._dispatchers[idle]
            await self._actuator.dispatch(idle, [])
        name = self._dispatchers[stage.name] = f"{stage.name}-0-{secrets.token_hex(4)}"
        routes = routes_of(self._pipeline, stage.name, self._names.prefix)
        await self._actuator.dispatch(stage.name, [DispatcherSpec(name, 0, routes, self._servers)])
        if not await self._link.until(lambda: name in self._link.standing, DISPATCHER_START_S):
            own = [each for each in await self._actuator.dispatchers() if each.stage == stage.name]
            pending = next((each.pending for each in own if each.pending), "")
            why = self._link.ends.get(name) or pending
            raise StageFailed(
                f"stage {stage.name!r}: its dispatcher was not ready there within {DISPATCHER_START_S:g} s: "
                f"{why or 'see its log; a ResourceQuota may leave no room for it'}"
            )
        return name

    async def _late(self, bench: ClusterBench, limit_s: float) -> StageFailed:
        """Return why no replica was ready in time, with what can be done about it."""
        found = [each for each in await self._actuator.observe() if self._is_of(bench, each)]
        what = f"stage {bench.stage.name!r} on {bench.kind.name!r}: no replica was ready there within {limit_s:g} s"
        if bench.dispatcher in self._link.ends:
            return StageFailed(
                f"{what}: its dispatcher ended and is not back: {self._link.ends[bench.dispatcher]}; see its log"
            )
        if not found:
            return NoPlace(f"{what}: the cluster made none, as where a ResourceQuota leaves no room; raise it")
        pending, placed = found[-1].pending, found[-1].node
        if pending and not placed:
            return NoPlace(f"{what}: {pending}; add a node that has room for it, or leave the kind out")
        remedy = (
            "see that its node can get the image and what the pod mounts"
            if pending
            else "if it needs longer, set INFERLINE_START_TIMEOUT_S, on a GPU INFERLINE_GPU_START_TIMEOUT_S"
        )
        return StageFailed(f"{what}: {pending or 'it is starting'}; {remedy}")

    @staticmethod
    def _is_of(bench: ClusterBench, seen: ObservedReplica | ReplicaExit) -> bool:
        return (seen.stage, seen.hardware) == (bench.stage.name, bench.kind.name)

    async def _gone(self, bench: ClusterBench) -> bool:
        """Wait until a bench's replica has ended; return whether it has."""
        try:
            async with asyncio.timeout(GONE_S):
                while any(self._is_of(bench, each) for each in await self._actuator.observe()):  # noqa: ASYNC110  asked for
                    await asyncio.sleep(LOOK_S)
                return await self._link.until(lambda: not self._link.standing[bench.dispatcher].replica, math.inf)
        except TimeoutError:
            return False

    async def watch(self) -> None:
        """Note how processes end, for ever."""
        while True:
            exit_ = await self._actuator.next_exit()
            if exit_.expected:
                continue
            if isinstance(exit_, ReplicaExit):
                self._exits[exit_.replica] = exit_
                self._link.touch()
            else:
                self._link.ended(exit_.dispatcher, exit_.incarnation, exit_.reason)


@asynccontextmanager
async def cluster_benches(
    pipeline: Pipeline, topology: Path, bootstrap_servers: str, make: MakeActuator, settings: Settings
) -> AsyncIterator[ClusterBenches]:
    """Have what measures stages in a cluster, on topics of its own that are deleted again.

    Args:
        pipeline: a valid pipeline.
        topology: its file, as the actuator's processes find it.
        bootstrap_servers: of Kafka, as the cluster reaches it.
        make: starts the processes.
        settings: time limits.

    Raises:
        Unreachable: Kafka or the cluster does not answer.
    """
    timeout_s, names = settings.connect_timeout_s, Names(pipeline.name, f"profile-{secrets.token_hex(4)}-")
    own = {names.assignments, names.control, names.stage_stats}
    topics = [topic for topic in topics_of(pipeline, names.prefix) if topic.name in own]
    kinds = catalogue(pipeline.hardware)
    pairs = [(stage, kinds[name]) for stage in pipeline.stages for name in stage.hardware]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(delete_topics, bootstrap_servers, [topic.name for topic in topics])
        await create_topics(bootstrap_servers, topics, replication=1, timeout_s=timeout_s)
        link = await stack.enter_async_context(bench_link(bootstrap_servers, names, timeout_s))
        actuator = await stack.enter_async_context(make(names))
        await actuator.know({(stage.name, kind.name): _spec(topology, stage, kind) for stage, kind in pairs})
        benches = ClusterBenches(
            pipeline, bootstrap_servers, names=names, settings=settings, actuator=actuator, link=link
        )
        await stack.enter_async_context(link.beside(benches.watch()))
        yield benches


def _spec(topology: Path, stage: Stage, kind: Hardware) -> ReplicaSpec:
    emulated = emulated_s(stage.emulated, kind.name) if kind.emulated else None
    return ReplicaSpec("", stage.name, str(topology.resolve()), kind, emulated, stage.confined)


class ClusterBench:
    """One stage on one kind of hardware in a cluster; `Measures`."""

    def __init__(
        self,
        benches: ClusterBenches,
        stage: Stage,
        kind: Hardware,
        dispatcher: str,
        *,
        inputs: Sequence[StageInput],
        weigher: Measures | None,
    ) -> None:
        self.stage, self.kind, self.dispatcher = stage, kind, dispatcher
        self._benches = benches
        self._weigher = weigher
        self._inputs = list(inputs)  # kept, so that their ids stay theirs
        self._places = {id(each): at for at, each in enumerate(self._inputs)}
        self._singles_s: list[float] = []
        self.node = ""
        """That the replica is on, in the cluster's words."""
        self.start_up_s = 0.0
        """From asking the cluster for a replica to its being ready, with finding a node and getting its image."""

    @property
    def network_s(self) -> float:
        """What the network took of a batch of one event, on average."""
        return statistics.fmean(self._singles_s)

    async def ask(self, request: Request, answer: type[_A]) -> _A:
        """Weigh events here, or run them or time batches of one size there.

        Raises:
            WorkerFailed: it could not be done, or the replica has ended.
            StageFailed: the cluster is to blame.
        """
        if isinstance(request, Weigh):
            found: Answer = Weights(None) if self._weigher is None else await self._weigher.ask(request, Weights)
            assert isinstance(found, answer)
            return found
        if isinstance(request, ProcessEvents):
            found = await self._benches.carried_out(self, RunEvents(request.inputs))
            assert isinstance(found, answer)
            return found
        assert isinstance(request, Measure)
        times = await self.timed(request)
        if request.batch_size == request.concurrency == 1:
            self._singles_s += times.network_s
        # The least of each: what delays a packet now and then is no property of a batch.
        longer_s = max(0.0, min(times.network_s) - min(self._singles_s))
        found = Times([service_s + longer_s for service_s in times.service_s])
        assert isinstance(found, answer)
        return found

    async def timed(self, order: Measure) -> Times:
        """Time batches, without any of what the network takes."""
        events = [self._places[id(each)] for each in order.inputs]
        measure = msgspec.structs.replace(order, inputs=[])
        found = await self._benches.carried_out(self, Order(measure, events))
        assert isinstance(found, Times)
        return found


def within_bytes(inputs: Sequence[StageInput], most: int = SAMPLE_BYTES) -> list[StageInput]:
    """Return the first inputs that come to so many bytes together; one in any case."""
    sizes = (len(each) if isinstance(each, bytes) else sum(map(len, each.values())) for each in inputs)
    fitting = sum(total <= most for total in itertools.accumulate(sizes))
    return list(inputs[: max(1, fitting)])
