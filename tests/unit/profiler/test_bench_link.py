"""The profiler's way to its dispatchers, without a Kafka."""

import asyncio
from typing import cast

import msgspec
import pytest

from inferline_stream.errors import InferlineError, StageFailed
from inferline_stream.kafka.record_producer import RecordProducer, RecordRefused
from inferline_stream.profiler import bench_link
from inferline_stream.profiler.bench_link import BenchLink
from inferline_stream.profiler.bench_messages import (
    Answered,
    EventOutcome,
    FromBench,
    NotReady,
    Outcomes,
    RunEvents,
    Standing,
    Unreadable,
    pieces,
)

DEADLINE_S = 30.0
ONE = Standing({"one": "cpu-1"})


class Kafka:
    """A producer that takes every record, or refuses each."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses
        self.records: list[tuple[bytes, bytes]] = []

    async def deliver(self, topic: str, value: bytes, *, key: bytes) -> None:
        if self.refuses:
            raise RecordRefused("topic 'orders': Kafka refuses the record")
        self.records.append((key, value))


def link_of(kafka: Kafka) -> BenchLink:
    return BenchLink(cast("RecordProducer", kafka), "orders")


def said(link: BenchLink, message: FromBench) -> None:
    for record in pieces("busy-0-ab12", message):
        link.hear(*record)


async def test_an_order_has_the_answer_of_its_number() -> None:
    link = link_of(kafka := Kafka())
    said(link, ONE)
    asked = [asyncio.create_task(link.ask("busy-0-ab12", "one", RunEvents([b"x"]))) for _ in range(2)]
    async with asyncio.timeout(DEADLINE_S):
        while len(kafka.records) < 2:
            await asyncio.sleep(0)
        first, second = Outcomes([]), Outcomes([EventOutcome(b"x")])
        said(link, Answered(2, second))
        said(link, Answered(1, first))
        assert await asyncio.gather(*asked) == [first, second]


async def test_an_order_that_kafka_refuses_fails_at_once() -> None:
    link = link_of(Kafka(refuses=True))
    said(link, ONE)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(RecordRefused, match="refuses the record"):
            await link.ask("busy-0-ab12", "one", RunEvents([b"x"]))


async def test_an_order_may_be_given_again_once_the_process_that_has_it_has_ended() -> None:
    link = link_of(kafka := Kafka())
    said(link, ONE)
    asked = asyncio.create_task(link.ask("busy-0-ab12", "one", RunEvents([b"x"])))
    async with asyncio.timeout(DEADLINE_S):
        while not kafka.records:
            await asyncio.sleep(0)
        link.ended("busy-0-ab12", 1, "killed by SIGKILL")
        assert await asked == NotReady("its dispatcher ended: killed by SIGKILL")


async def test_what_a_dead_process_left_in_kafka_is_not_taken_for_the_next_ones() -> None:
    link = link_of(Kafka())
    said(link, ONE)
    link.ended("busy-0-ab12", 1, "killed by SIGKILL")
    ended = ({"busy-0-ab12": Standing(incarnation=2)}, {"busy-0-ab12": "killed by SIGKILL"})
    assert (link.standing, link.ends) == ended
    for left in (ONE, Answered(7, NotReady())):
        said(link, left)
        assert (link.standing, link.ends) == ended
    said(link, again := Standing({"two": "cpu-1"}, incarnation=2))
    assert (link.standing, link.ends) == ({"busy-0-ab12": again}, {})


async def test_an_end_that_is_noted_after_the_next_process_was_heard_is_not_that_ones() -> None:
    link = link_of(Kafka())
    said(link, ONE)
    said(link, again := Standing({"two": "cpu-1"}, incarnation=2))
    link.ended("busy-0-ab12", 1, "killed by SIGKILL")
    assert (link.standing, link.ends) == ({"busy-0-ab12": again}, {})


async def test_a_silent_dispatcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_link, "SILENT_S", 0.1)
    link = link_of(Kafka())
    said(link, ONE)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(StageFailed, match=r"dispatcher busy-0-ab12 .* silent .*; profile again"):
            await link.ask("busy-0-ab12", "one", RunEvents([b"x"]))


async def test_a_message_of_another_release_is_an_error_that_says_so() -> None:
    link = link_of(Kafka())
    data = msgspec.msgpack.encode({"type": "Sitting"})
    with pytest.raises(StageFailed, match="use an image of this command's release"):
        link.hear(f"busy-0-ab12/name/{len(data)}/{len(data)}".encode(), data)


async def test_an_order_that_its_dispatcher_cannot_read_ends_the_wait_for_it() -> None:
    link = link_of(kafka := Kafka())
    said(link, ONE)

    async def follow() -> None:
        while not kafka.records:
            await asyncio.sleep(0)
        said(link, Unreadable("Invalid value 'Orders'"))

    async with asyncio.timeout(DEADLINE_S), link.beside(follow()):
        with pytest.raises(
            StageFailed, match=r"busy-0-ab12 cannot read .*: Invalid value 'Orders'; .* an image of this"
        ):
            await link.ask("busy-0-ab12", "one", RunEvents([b"x"]))


async def test_what_waits_fails_of_the_work_beside_it() -> None:
    link = link_of(Kafka())

    async def fails() -> None:
        raise InferlineError("the cluster is gone")

    async with link.beside(fails()):
        with pytest.raises(InferlineError, match="the cluster is gone"):
            await link.until(lambda: False, DEADLINE_S)
