"""Benches in a cluster, without a cluster and without a Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec
import pytest

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import StageFailed
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.profiler import benches as module
from inferline_stream.profiler.bench_link import BenchLink
from inferline_stream.profiler.bench_messages import (
    Answered,
    Assembler,
    BenchAnswer,
    Failure,
    FromBench,
    Measure,
    Order,
    Outcomes,
    SampleInputs,
    Standing,
    Times,
    decode_to_bench,
    dispatcher_of,
    pieces,
)
from inferline_stream.profiler.benches import Bench, Benches
from inferline_stream.profiler.profiling_session import replica_spec
from inferline_stream.profiler.replica_failures import ReplicaFailed
from inferline_stream.settings import Settings
from tests.support.fake_actuator import FakeActuator

TOPOLOGY = """
from inferline_stream import Hardware, Pipeline, Stage, Topic

def same(values: list[bytes]) -> list[bytes]:
    return values

first = Stage("first", same, hardware=["large", "small"], max_batch_size=1)
second = Stage("second", same, hardware=["small"], after=[first], max_batch_size=1)
pipeline = Pipeline("two", slo="250ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"),
                    stages=[first, second], hardware=[Hardware("large", 0.5, cores=2), Hardware("small", 0.1)])
"""
DEADLINE_S = 30.0


class Actuator(FakeActuator):
    """One that makes no replica of some kinds, as where a quota leaves no room; `gone` is called for one that goes."""

    full: Collection[str] = ()
    gone: Callable[[], None] = staticmethod(lambda: None)

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        if hardware not in self.full:
            await super().scale(stage, hardware, replicas, retiring)
            if replicas == 0:
                self.gone()


@dataclass
class Cluster:
    """Benches whose dispatchers and replicas are this test's: they say what it has them say."""

    answer: Callable[[Order], BenchAnswer] = lambda order: Outcomes([])
    goes: bool = True
    """Whether a replica ends that is asked to."""
    speaks: bool = True
    """Whether a dispatcher says anything."""
    dies: str = ""
    """Why one that says nothing ends."""
    orders_lost: int = 0
    """So many orders end the dispatcher's process."""
    standing: Standing = field(default_factory=Standing)
    received: list[SampleInputs | Order] = field(default_factory=list)
    assembler: Assembler = field(default_factory=Assembler)

    def __post_init__(self) -> None:
        self.link = BenchLink(cast("RecordProducer", self), "orders")
        timeout_s = 0.0 if self.goes else DEADLINE_S
        self.actuator = Actuator(drain_timeout_s=timeout_s, started=self.started, dispatching=self.dispatching)
        if self.goes:
            self.actuator.gone = lambda: self.stands(Standing())
        self.dispatcher, self.incarnation = "", 0

    def says(self, message: FromBench) -> None:
        for record in pieces(self.dispatcher, message):
            self.link.hear(*record)

    def stands(self, standing: Standing) -> None:
        self.standing = msgspec.structs.replace(standing, incarnation=self.incarnation)
        self.says(self.standing)

    def dispatching(self, spec: DispatcherSpec) -> None:
        self.dispatcher, self.incarnation = spec.dispatcher, spec.incarnation
        if self.speaks:
            self.stands(self.standing)
        elif self.dies and spec.incarnation == 1:
            asyncio.get_running_loop().call_soon(self.actuator.crash, spec.dispatcher, 1, self.dies)

    def started(self, replica: ObservedReplica) -> None:
        self.stands(Standing({replica.replica: replica.hardware}))

    async def deliver(self, topic: str, value: bytes, *, key: bytes) -> None:
        assert dispatcher_of(key) == self.dispatcher
        if (data := self.assembler.add(key, value)) is None:
            return
        self.received.append(message := decode_to_bench(data))
        if isinstance(message, SampleInputs):
            return
        if self.orders_lost:
            self.orders_lost -= 1
            self.actuator.crash(self.dispatcher, 1, "out of memory")
        else:
            self.says(Answered(message.number, self.answer(message)))

    @asynccontextmanager
    async def benches(self, folder: Path) -> AsyncIterator[Benches]:
        (topology := folder / "topology.py").write_text(TOPOLOGY)
        self.pipeline = load_topology(topology)
        names, soon = Names("two", "profile-"), Settings(start_timeout_s=2.0)
        benches = Benches("kafka:9092", names=names, settings=soon, actuator=self.actuator, link=self.link)
        async with asyncio.timeout(DEADLINE_S), self.link.beside(benches.watch()):
            yield benches

    def bench(self, benches: Benches, stage: str, kind: str) -> AbstractAsyncContextManager[Bench]:
        kinds, declared = catalogue(self.pipeline.hardware), self.pipeline.stage(stage)
        return benches.bench(declared, replica_spec(Path("topology.py"), declared, kinds[kind]))


async def test_a_server_that_a_stage_there_asks_in_vain_is_not_blamed_on_the_stage(tmp_path: Path) -> None:
    cluster = Cluster(lambda order: Failure("the model server does not answer", unavailable=True))
    async with cluster.benches(tmp_path) as benches, cluster.bench(benches, "first", "small") as bench:
        with pytest.raises(ReplicaFailed, match="does not answer") as caught:
            await bench.run([b"x"])
    assert caught.value.unavailable


async def test_a_replica_of_another_kind_is_not_timed_in_the_place_of_the_one_asked_for(tmp_path: Path) -> None:
    cluster = Cluster()
    async with cluster.benches(tmp_path) as benches, cluster.bench(benches, "first", "small") as bench:
        cluster.says(Standing({"first-large-7": "large"}))
        ready = asyncio.create_task(benches.ready(bench, 1))
        await asyncio.sleep(0.3)
        assert not ready.done()
        cluster.says(Standing({"first-small-8": "small"}))
        assert await ready == ["first-small-8"]


async def test_a_replica_that_stays_when_it_is_asked_to_go_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GONE_S", 0.3)
    cluster = Cluster(goes=False)
    async with cluster.benches(tmp_path) as benches:
        with pytest.raises(StageFailed, match=r"stage 'first' on 'small': its replica was still there 0\.3 s"):
            async with cluster.bench(benches, "first", "small"):
                pass


async def test_a_replica_is_gone_when_what_was_done_with_it_fails(tmp_path: Path) -> None:
    cluster = Cluster(lambda order: Failure("it raised"))
    async with cluster.benches(tmp_path) as benches:
        with pytest.raises(ReplicaFailed, match="it raised"):
            async with cluster.bench(benches, "first", "small") as bench:
                await bench.run([b"x"])
        assert await cluster.actuator.observe() == ()


@pytest.mark.parametrize(("ends", "why"), [("first", "see its log; a ResourceQuota"), ("second", "no such image")])
async def test_a_dispatcher_that_is_not_ready_is_blamed_on_its_own_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, why: str
) -> None:
    monkeypatch.setattr(module, "DISPATCHER_START_S", 1.0)
    cluster = Cluster()
    async with cluster.benches(tmp_path) as benches:
        async with cluster.bench(benches, "first", "small"):
            pass
        cluster.speaks = False
        if ends == "first":
            cluster.actuator.crash(cluster.dispatcher, 1, "no such image")
        else:
            cluster.dies = "no such image"
        with pytest.raises(StageFailed, match=f"stage 'second': its dispatcher was not ready there .*: {why}"):
            async with cluster.bench(benches, "second", "small"):
                pass


async def test_an_order_is_given_again_where_its_dispatcher_ended(tmp_path: Path) -> None:
    cluster = Cluster(orders_lost=2)
    async with cluster.benches(tmp_path) as benches, cluster.bench(benches, "first", "small") as bench:
        assert await bench.run([b"x"]) == []
    assert len(cluster.received) == 3


@pytest.mark.parametrize(
    ("comes_back", "why"),
    [
        (True, "an order was not carried out in 3 tries: its dispatcher ended: out of memory"),
        (False, "no replica was ready there within 2 s: its dispatcher ended and is not back: out of memory"),
    ],
)
async def test_a_dispatcher_that_ends_is_named_with_why(tmp_path: Path, comes_back: bool, why: str) -> None:
    cluster = Cluster(orders_lost=3)
    async with cluster.benches(tmp_path) as benches, cluster.bench(benches, "first", "small") as bench:
        cluster.speaks = comes_back
        with pytest.raises(StageFailed, match=f"stage 'first' on 'small': {why}"):
            await bench.run([b"x"])


async def test_inputs_are_sent_once_for_all_kinds_of_a_stage_and_the_way_there_is_no_service_time(
    tmp_path: Path,
) -> None:
    cluster = Cluster(lambda order: Times([0.12, 0.15], [0.02, 0.04]))
    async with cluster.benches(tmp_path) as benches:
        for stage, kind, inputs in (
            ("first", "small", [b"x"]),
            ("first", "large", [b"x"]),
            ("first", "large", [b"y"]),
            ("second", "small", [b"y"]),
        ):
            async with cluster.bench(benches, stage, kind) as bench:
                assert await bench.time(inputs, Measure(1, 0.0, 2, 2)) == pytest.approx([0.1, 0.11])
                assert bench.network_s == pytest.approx(0.03)
    sent = [message for message in cluster.received if isinstance(message, SampleInputs)]
    assert sent == [SampleInputs([b"x"]), SampleInputs([b"y"]), SampleInputs([b"y"])]
