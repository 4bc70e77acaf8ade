"""The profiler's benches: replicas, where and as an actuator places them, timed one at a time.

A dispatcher of the profiler runs in the place of the usual one, so that a replica is placed, sealed and reached as in a
run. In a cluster, what the network takes of a batch of one event is no service time: it is measured too, and part of
the hop. What it takes of a larger batch beyond that keeps the replica from the next one, and counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import secrets
import signal
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import msgspec

from inferline_stream.actuators.actuator import Actuator, ObservedReplica, ReplicaExit
from inferline_stream.dataplane.frames import StageInput
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import Routes
from inferline_stream.embedded_broker.server import EmbeddedBroker
from inferline_stream.errors import StageFailed
from inferline_stream.kafka.connection import plaintext
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics, delete_topics
from inferline_stream.pipeline.emulation import Emulated
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Stage
from inferline_stream.profiler.bench_link import LOOK_S, BenchLink, bench_link
from inferline_stream.profiler.bench_messages import (
    EventOutcome,
    Failure,
    Measure,
    NotReady,
    Outcomes,
    RunEvents,
    Standing,
    Times,
    Weigh,
    Work,
)
from inferline_stream.profiler.replica_failures import ReplicaFailed, late
from inferline_stream.profiler.sample_run import INPUT_BYTES
from inferline_stream.profiler.this_host import ThisHost, neighbour
from inferline_stream.settings import Settings

MakeActuator = Callable[[Names], AbstractAsyncContextManager[Actuator]]
"""Makes what starts processes, for a pipeline of these names and with `bench_dispatcher.MODULE` for dispatchers; at its
end nothing of it is left there."""

_KEPT = {"retention.bytes": str(4 * INPUT_BYTES), "segment.bytes": str(1 << 20)}
"""Of the topics: the embedded broker has them in memory."""

DISPATCHER_START_S = 120.0
"""Of a dispatcher, which loads no model: mostly getting its image."""

_TRIES = 3
"""Of an order whose replica or dispatcher was lost."""

_EXIT_S = 5.0
"""From the end of a connection to the word that the replica has ended, in the slowest cluster."""

GONE_S = 30.0
"""From asking a replica to go to its being gone."""


class Benches:
    """What measures stages; see `open_benches`.

    Args:
        bootstrap_servers: of Kafka, as dispatchers reach it.
        names: of the profile's own topics.
        settings: time limits.
        actuator: starts processes.
        link: to dispatchers.
        host: what is known of this host where replicas are on it; None for a cluster.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        names: Names,
        settings: Settings,
        actuator: Actuator,
        link: BenchLink,
        host: ThisHost | None = None,
    ) -> None:
        self._servers = bootstrap_servers
        self._names = names
        self._settings = settings
        self._actuator = actuator
        self._link = link
        self.host = host
        self._specs: list[ReplicaSpec] = []
        self._dispatchers: dict[str, str] = {}
        """By group of replicas: a stage's in a cluster, all on this host."""
        self._given: dict[str, list[StageInput]] = {}
        """What each was given last, which serves all kinds of its stage."""
        self._open: Counter[str] = Counter()
        """Benches by group."""
        self._exits: dict[str, ReplicaExit] = {}
        """By replica; unexpected ones."""

    async def know(self, specs: Sequence[ReplicaSpec]) -> None:
        """Set the replicas that benches may have."""
        self._specs = list(specs)
        await self._actuator.know({self._key(spec): spec for spec in specs})

    def _key(self, spec: ReplicaSpec) -> tuple[str, str]:
        """Return by which stage and kind the actuator knows a replica; here one dispatcher has those of all stages."""
        return (spec.stage, spec.hardware.name) if self.host is None else ("profile", str(self._specs.index(spec)))

    @asynccontextmanager
    async def bench(self, stage: Stage, spec: ReplicaSpec, *, crowded: bool = False) -> AsyncIterator[Bench]:
        """Have a replica of a stage ready.

        Args:
            stage: the stage.
            spec: of the replica: one of those known, or in the place of the one of the same stage and kind.
            crowded: whether what it shares of cores and devices is used by others meanwhile, as in a run.

        Raises:
            NoPlace: the cluster has none for it.
            ReplicaFailed: the stage could not be built.
            StageFailed: nothing was ready in time, or the replica stays when it is asked to go.
        """
        if spec not in self._specs:
            await self.know([*(each for each in self._specs if self._key(each) != self._key(spec)), spec])
        key = self._key(spec)
        bench = Bench(self, stage, spec, key, await self._dispatcher(key[0]))
        bench.copies = spec.hardware.parts if crowded else 1
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        self._open[key[0]] += 1
        try:
            for count in range(1, bench.copies + 1):
                await self._actuator.scale(*key, count)
                await self.ready(bench, count)
                bench.start_up_s = bench.start_up_s or loop.time() - began_s
            bench.seen = await self.seen(bench)
            with neighbour(spec.hardware, bench.seen) if crowded else contextlib.nullcontext():
                yield bench
        finally:
            self._open[key[0]] -= 1
            await self._actuator.scale(*key, 0)
            gone = await self._gone(bench)  # or the next bench's times would be this replica's
        if not gone:
            raise StageFailed(
                f"{bench}: its replica was still there {GONE_S:g} s after it was asked to go; see its log and its "
                "node's state, and profile again"
            )

    # What benches ask

    async def seen(self, bench: Bench) -> ObservedReplica | None:
        """Return a bench's replica as it is now; the first of several."""
        return next((each for each in await self._actuator.observe() if self._is_of(bench, each)), None)

    async def ready(self, bench: Bench, count: int) -> list[str]:
        """Wait until so many replicas are ready; returns their names.

        Raises:
            NoPlace: the cluster has none for it.
            ReplicaFailed: the stage could not be built.
            StageFailed: they were not ready in time.
        """
        limit_s = self._settings.start_limit_s(gpu=bench.spec.hardware.gpus > 0)

        def failed() -> ReplicaExit | None:
            exits = (e for e in self._exits.values() if self._is_of(bench, e) and e.replica not in self._link.stood)
            blamed = (e for e in exits if self.host or e.exit_code > 0 or e.exit_code == -signal.SIGKILL)
            return next(blamed, None)

        def standing() -> list[str]:
            found = self._link.standing.get(bench.dispatcher, Standing()).replicas
            return [replica for replica, kind in found.items() if kind == bench.key[1]]

        async with AsyncExitStack() as stack:
            if self.host is not None and bench.spec.hardware.gpus:
                waiting = self.host.see_to_device(bench.spec.hardware, functools.partial(self._pending, bench))
                await stack.enter_async_context(self._link.beside(waiting))
            in_time = await self._link.until(lambda: len(standing()) >= count or failed() is not None, limit_s)
        if not in_time:
            raise await self._late(bench, limit_s)
        if (exit_ := failed()) is not None:
            raise ReplicaFailed.ended(exit_.exit_code, exit_.tail, exit_.reason, built=False)
        return standing()

    async def _pending(self, bench: Bench) -> str:
        return next((each.pending for each in await self._actuator.observe() if self._is_of(bench, each)), "")

    async def carried_out(self, bench: Bench, work: Work) -> Times | Outcomes:
        """Have a replica do something.

        It is asked again where the replica or the dispatcher was lost, which may be the cluster's fault.

        Raises:
            ReplicaFailed: it could not be done, or the replica has ended.
            StageFailed: the dispatcher is lost, or no replica became ready.
        """
        why, replica_lost = "", self.host is not None
        for _ in range(_TRIES):
            replica, *beside = await self.ready(bench, bench.copies)
            if isinstance(work, Measure):
                work = msgspec.structs.replace(work, beside=beside)
            found = await self._link.ask(bench.dispatcher, replica, work)
            if isinstance(found, NotReady):
                why = found.why
                continue
            if not isinstance(found, Failure):
                return found
            if not found.ended:
                raise ReplicaFailed.of(found)
            await self._link.until(functools.partial(self._exits.__contains__, found.ended), _EXIT_S)
            exit_ = self._exits.get(found.ended)
            if exit_ is not None and (
                exit_.exit_code > 0 or (replica_lost and (self.host or exit_.exit_code == -signal.SIGKILL))
            ):
                raise ReplicaFailed.ended(exit_.exit_code, exit_.tail, exit_.reason, built=True)
            why, replica_lost = "the connection to it broke" if exit_ is None else exit_.reason, True
        raise StageFailed(
            f"{bench}: an order was not carried out in {_TRIES} tries: {why}; see the logs of the stage's pods or "
            "actors"
        )

    async def give(self, dispatcher: str, inputs: list[StageInput]) -> None:
        """Send a dispatcher the inputs that later orders are about, unless it has them."""
        if inputs != self._given.get(dispatcher):
            await self._link.give(dispatcher, inputs)
            self._given[dispatcher] = inputs

    # Processes

    async def _dispatcher(self, group: str) -> str:
        """Have a dispatcher for a group, and for no other that has no bench; return its name."""
        if (name := self._dispatchers.get(group)) is not None:
            return name
        for idle in [each for each in self._dispatchers if not self._open[each]]:
            del self._dispatchers[idle]
            await self._actuator.dispatch(idle, [])
        name = self._dispatchers[group] = f"{group}-0-{secrets.token_hex(4)}"
        # It reads and writes the profile's topics alone.
        routes = Routes(
            *(self._names.pipeline, self._names.prefix, group, "", "", (group,), (), ()),
            keys_in_order=False, slo_s=0.0, on_expired="process", version=b"",
        )  # fmt: skip
        await self._actuator.dispatch(group, [DispatcherSpec(name, 0, routes, self._servers)])
        if not await self._link.until(lambda: name in self._link.standing, DISPATCHER_START_S):
            own = [each for each in await self._actuator.dispatchers() if each.stage == group]
            pending = next((each.pending for each in own if each.pending), "")
            why = self._link.ends.get(name) or pending
            raise StageFailed(
                f"stage {group!r}: its dispatcher was not ready there within {DISPATCHER_START_S:g} s: "
                f"{why or 'see its log; a ResourceQuota may leave no room for it'}"
            )
        return name

    async def _late(self, bench: Bench, limit_s: float) -> StageFailed:
        """Return why no replica was ready in time."""
        if self.host is not None:
            return late("", limit_s)
        found = [each for each in await self._actuator.observe() if self._is_of(bench, each)]
        end = self._link.ends.get(bench.dispatcher, "")
        return late(str(bench), limit_s, found[-1] if found else None, end)

    @staticmethod
    def _is_of(bench: Bench, seen: ObservedReplica | ReplicaExit) -> bool:
        return (seen.stage, seen.hardware) == bench.key

    async def _gone(self, bench: Bench) -> bool:
        """Wait until a bench's replicas have ended; return whether they have."""

        def stands() -> bool:
            return bench.key[1] in self._link.standing.get(bench.dispatcher, Standing()).replicas.values()

        try:
            async with asyncio.timeout(GONE_S):
                while any(self._is_of(bench, each) for each in await self._actuator.observe()):  # noqa: ASYNC110  asked for
                    await asyncio.sleep(LOOK_S / 5)
                return await self._link.until(lambda: not stands(), math.inf)
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
async def open_benches(
    names: Names,
    bootstrap_servers: str,
    make: MakeActuator,
    specs: Sequence[ReplicaSpec],
    settings: Settings,
    *,
    host: ThisHost | None = None,
) -> AsyncIterator[Benches]:
    """Have what measures stages, on topics of its own that are deleted again.

    Args:
        names: of the pipeline; a prefix is put before them.
        bootstrap_servers: of Kafka, as the processes reach it.
        make: starts the processes.
        specs: of the replicas that benches may have.
        settings: time limits.
        host: see `Benches`.

    Raises:
        Unreachable: Kafka or the cluster does not answer.
    """
    timeout_s, names = settings.connect_timeout_s, Names(names.pipeline, f"profile-{secrets.token_hex(4)}-")
    own = (names.assignments, names.control, names.stage_stats)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(delete_topics, bootstrap_servers, list(own))
        topics = [WantedTopic(topic, 1, "of the profiler", _KEPT) for topic in own]
        await create_topics(bootstrap_servers, topics, replication=1, timeout_s=timeout_s)
        link = await stack.enter_async_context(bench_link(bootstrap_servers, names))
        actuator = await stack.enter_async_context(make(names))
        benches = Benches(bootstrap_servers, names=names, settings=settings, actuator=actuator, link=link, host=host)
        await benches.know(specs)
        await stack.enter_async_context(link.beside(benches.watch()))
        yield benches


@asynccontextmanager
async def benches_here(
    specs: Sequence[ReplicaSpec], settings: Settings, host: ThisHost | None = None
) -> AsyncIterator[Benches]:
    """Have what measures stages on this host, by way of a broker in this process.

    Args:
        specs: of the replicas that benches may have.
        settings: time limits.
        host: starts the processes.
    """
    host = host or ThisHost()
    async with EmbeddedBroker() as broker:
        servers = plaintext(broker.bootstrap_servers)
        async with open_benches(Names("stages"), servers, host.actuator, specs, settings, host=host) as benches:
            yield benches


class Bench:
    """One stage on one kind of hardware."""

    def __init__(
        self, benches: Benches, stage: Stage, spec: ReplicaSpec, key: tuple[str, str], dispatcher: str
    ) -> None:
        self.stage, self.spec, self.key, self.dispatcher = stage, spec, key, dispatcher
        self.copies = 1
        """Of the replica, of which one is timed beside the others."""
        self._benches = benches
        self._inputs: list[StageInput] = []
        """Kept, so that their ids stay theirs."""
        self._places: dict[int, int] = {}
        self._singles_s: list[float] = []
        self._served_s = self._waited_s = 0.0
        self.seen: ObservedReplica | None = None
        """The replica, once it was ready."""
        self.start_up_s = 0.0
        """From asking for the first replica to its being ready; in a cluster with finding a node and its image."""

    def __str__(self) -> str:
        return f"stage {self.stage.name!r} on {self.spec.hardware.name!r}"

    @property
    def network_s(self) -> float:
        """What the network took of a batch of one event, on average."""
        return statistics.fmean(self._singles_s)

    @property
    def waited_share(self) -> float:
        """Share of the service time in which the replica had no core, where something tells."""
        return min(1.0, self._waited_s / self._served_s) if self._served_s else 0.0

    async def run(self, inputs: Sequence[StageInput]) -> list[EventOutcome]:
        """Run events once.

        Raises:
            ReplicaFailed: it could not be done, or the replica has ended.
            StageFailed: the cluster is to blame.
        """
        found = await self._benches.carried_out(self, RunEvents(list(inputs)))
        assert isinstance(found, Outcomes)
        return found.outcomes

    async def weigh(self, inputs: Sequence[StageInput], *, emulated: bool = False) -> list[float] | None:
        """Return what the topology says of each event: its cost, or its weight on emulated hardware; None for nothing.

        Raises:
            ReplicaFailed: its function fails.
        """
        varies = self.stage.emulated if isinstance(self.stage.emulated, Emulated) else Emulated({})
        if (varies.weight if emulated else self.stage.cost) is None:
            return None
        order = Weigh("emulated" if emulated else "cost", await self._given(inputs))
        found = await self._benches.carried_out(self, order)
        assert isinstance(found, Outcomes)
        return [msgspec.json.decode(each.value, type=float) for each in found.outcomes]

    async def time(self, inputs: Sequence[StageInput], order: Measure) -> list[float]:
        """Time batches of one size; returns their service times in seconds.

        Raises:
            ReplicaFailed: it could not be done, or the replica has ended.
            StageFailed: the cluster is to blame.
        """
        times = await self.timed(inputs, order)
        # The least of each: what delays a packet now and then is no property of a batch.
        least_s = min(times.network_s)
        if self._benches.host is None:
            if order.batch_size == order.concurrency == 1:
                self._singles_s += times.network_s
            least_s = max(0.0, least_s - min(self._singles_s))
        elif not order.sleeps_s:
            return list(times.took_s)
        return [took_s - network_s + least_s for took_s, network_s in zip(times.took_s, times.network_s, strict=True)]

    async def timed(self, inputs: Sequence[StageInput], order: Measure) -> Times:
        """Time batches, with what the network takes."""
        order = msgspec.structs.replace(order, events=await self._given(inputs))
        before = await self._benches.seen(self)
        found = await self._benches.carried_out(self, order)
        after = await self._benches.seen(self)
        assert isinstance(found, Times)
        if before is not None and after is not None and before.replica == after.replica:
            self._waited_s += after.waited_s - before.waited_s
            self._served_s += sum(found.took_s)
        return found

    async def _given(self, inputs: Sequence[StageInput]) -> list[int]:
        """Have the dispatcher given inputs, or some of them; return their positions among what it has."""
        if not all(id(each) in self._places for each in inputs):
            self._inputs = list(inputs)
            self._places = {id(each): at for at, each in enumerate(self._inputs)}
        await self._benches.give(self.dispatcher, self._inputs)
        return [self._places[id(each)] for each in inputs]
