"""The profiler's dispatcher, without a Kafka."""

import asyncio
import socket
from pathlib import Path

import msgspec
import pytest

from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.kafka.records import Record
from inferline_stream.profiler.bench_dispatcher import BenchDispatcher
from inferline_stream.profiler.bench_messages import (
    Answered,
    Assembler,
    EventOutcome,
    Order,
    Outcomes,
    RunEvents,
    Standing,
    ToBench,
    Unreadable,
    decode_from_bench,
    pieces,
)

TOPOLOGY = Path(__file__).parent / "odd_stages" / "topology.py"
DEADLINE_S = 30.0
SPEC = DispatcherSpec("busy-0-ab12", 0, routes_of(load_topology(TOPOLOGY), "busy"), "")


class Kafka:
    """A producer to which other tasks come in between."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes]] = []

    async def deliver(self, topic: str, value: bytes, *, key: bytes) -> None:
        await asyncio.sleep(0)
        self.records.append((key, value))


async def test_pieces_of_two_messages_of_a_dispatcher_do_not_mix() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        bench, kafka, assembler = BenchDispatcher(SPEC, ours, lambda: None), Kafka(), Assembler()
        said = (
            Answered(1, Outcomes([EventOutcome(b"x" * (3 << 19))])),
            Standing({"one": "cpu-1"}),
            Standing({"two": "cpu-1"}),
        )
        await asyncio.gather(*(bench._say(kafka, message) for message in said))  # type: ignore[arg-type]
    found = [whole for record in kafka.records if (whole := assembler.add(*record)) is not None]
    assert [decode_from_bench(whole) for whole in found] == list(said)


def sent(*messages: ToBench) -> list[Record]:
    records = [record for message in messages for record in pieces(SPEC.dispatcher, message)]
    return [Record(key, value, timestamp_ms=0, offset=offset) for offset, (key, value) in enumerate(records)]


async def test_what_stands_is_said_with_the_process_that_says_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        again = msgspec.structs.replace(SPEC, incarnation=3)
        bench, kafka = BenchDispatcher(again, ours, lambda: None), Kafka()
        standing = asyncio.create_task(bench._stand(kafka))  # type: ignore[arg-type]
        async with asyncio.timeout(DEADLINE_S):
            while not kafka.records:
                await asyncio.sleep(0.01)
        standing.cancel()
        await asyncio.gather(standing, return_exceptions=True)
    assert decode_from_bench(kafka.records[0][1]) == Standing(incarnation=3)


class Orders:
    """A topic that has these records, and gets no more."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.read_all = asyncio.Event()

    async def end(self) -> dict[int, int]:
        return {0: len(self.records)}

    async def read_to(self, end: dict[int, int]) -> list[Record]:
        return self.records[: end[0]]

    async def read(self, timeout_s: float) -> list[Record]:
        self.read_all.set()
        await asyncio.sleep(timeout_s)
        return []


class Renamed(msgspec.Struct, tag="Orders"):
    """An order of a release that calls it otherwise."""


class Lacking(msgspec.Struct, tag="Order"):
    """An order of a release without what this one needs of it."""


@pytest.mark.parametrize(("message", "why"), [(Renamed(), "Orders"), (Lacking(), "replica")])
async def test_the_profiler_hears_what_cannot_be_read_and_nothing_after_it_is_carried_out(
    message: msgspec.Struct, why: str
) -> None:
    orders = Orders(sent(message, Order("one", RunEvents([b"x"]), 2)))  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        bench, kafka = BenchDispatcher(SPEC, ours, lambda: None), Kafka()
        following = asyncio.create_task(bench._follow(orders, kafka))  # type: ignore[arg-type]
        async with asyncio.timeout(DEADLINE_S):
            await orders.read_all.wait()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    said = [decode_from_bench(value) for _, value in kafka.records]
    assert [type(each) for each in said] == [Unreadable]
    assert why in said[0].why
    assert "bytes that begin with b'\\x" in said[0].why
