"""A producer of records goes on where a client of it cannot, and leaves nobody waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, OutOfOrderSequenceNumber
from aiokafka.structs import TopicPartition

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.connection import closed
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.records import Record


class Client:
    """A `Writer` that refuses all that comes after what it refused, as Kafka does with an idempotent client's.

    Args:
        log: what Kafka has.
        refuses: what is wrong with a value; None where nothing is.
        answers: whether it says anything.
    """

    def __init__(self, log: list[bytes], refuses: Callable[[bytes], KafkaError | None], *, answers: bool) -> None:
        self._log, self._refuses, self._answers = log, refuses, answers
        self._refused = False
        self.has_ended = False

    async def add(self, record: Record) -> asyncio.Future[None]:
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._answers:
            asyncio.get_running_loop().call_soon(self._answer, record.value, sent)
        return sent

    async def add_alone(self, record: Record) -> asyncio.Future[None]:
        return await self.add(record)

    async def stop(self, within_s: float) -> None:
        self.has_ended = True

    async def flush(self) -> None:
        await asyncio.sleep(0.001)

    def _answer(self, value: bytes, sent: asyncio.Future[None]) -> None:
        error = OutOfOrderSequenceNumber() if self._refused else self._refuses(value)
        if error is None:
            self._log.append(value)
            sent.set_result(None)
        else:
            self._refused = True
            self.has_ended = type(error) is KafkaError
            sent.set_exception(error)


class Kafka:
    """Makes the clients of a producer."""

    def __init__(self, refuses: Callable[[bytes], KafkaError | None]) -> None:
        self.log: list[bytes] = []
        self.refuses = refuses
        self.clients: list[Client] = []
        self.answering = 100
        """So many clients, the first ones, get answers."""

    async def started(self) -> Client:
        self.clients.append(Client(self.log, self.refuses, answers=len(self.clients) < self.answering))
        return self.clients[-1]


def bad(value: bytes) -> KafkaError | None:
    if value == b"breaks the client":
        return KafkaError("Unexpected error during batch delivery")
    return MessageSizeTooLargeError() if value == b"bad" else None


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    """One that refuses `b"bad"`."""
    found = Kafka(bad)

    monkeypatch.setattr(RecordProducer, "_started", lambda _: found.started())
    return found


async def test_a_record_that_is_refused_costs_none_of_those_sent_after_it(kafka: Kafka) -> None:
    async with RecordProducer("nowhere:1") as producer:
        for value in (b"0", b"bad", b"1", b"2", b"bad", b"3"):
            await producer.send("topic", value)
        await producer.flush()
        await producer.send("topic", b"4")
        await producer.flush()
        assert (producer.acknowledged, producer.failed) == (5, 2)
        assert producer.last_error == f"RecordRefused: topic 'topic': Kafka refuses the record ({bad(b'bad')})"
    assert kafka.log == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_record_that_was_not_acknowledged_in_time_has_not_been_refused(kafka: Kafka) -> None:
    kafka.refuses = lambda value: KafkaTimeoutError("Batch expired")
    async with RecordProducer("nowhere:1") as producer:
        await producer.send("topic", b"0")
        await producer.flush()
        assert producer.last_error == "Unreachable: topic 'topic': not acknowledged (KafkaTimeoutError: Batch expired)"


async def test_a_kafka_that_takes_no_number_of_any_client_is_given_up(kafka: Kafka) -> None:
    kafka.refuses = lambda value: OutOfOrderSequenceNumber()
    async with RecordProducer("nowhere:1") as producer:
        with pytest.raises(Unreachable, match="not acknowledged by 10 clients in turn"):
            await producer.deliver("topic", b"0")
        assert producer.failed == 1


async def test_what_is_being_sent_again_when_the_producer_is_closed_has_failed(kafka: Kafka) -> None:
    kafka.refuses, kafka.answering = lambda value: OutOfOrderSequenceNumber(), 1
    impatient = RecordProducer("nowhere:1")
    impatient._connect_timeout_s = 0.01
    async with impatient as producer:
        for value in (b"0", b"1", b"2"):
            await producer.send("topic", value)
        async with asyncio.timeout(60.0):
            while len(producer._again) < 3:
                await asyncio.sleep(0)
        assert producer.failed == 0, "they are on their way again"
    assert (producer.acknowledged, producer.failed) == (0, 3)
    assert producer.last_error == "Unreachable: the producer was closed before Kafka acknowledged the record"


async def test_a_record_is_not_refused_for_a_client_that_has_ended_and_the_next_goes_through_another(
    kafka: Kafka,
) -> None:
    async with RecordProducer("nowhere:1") as producer:
        await producer.deliver("topic", b"0")
        with pytest.raises(Unreachable, match="not acknowledged"):
            await producer.deliver("topic", b"breaks the client")
        await producer.deliver("topic", b"1")
        assert len(kafka.clients) == 2
    assert kafka.log == [b"0", b"1"]


async def test_nobody_waits_for_a_record_of_a_client_that_was_closed() -> None:
    client = AIOKafkaProducer(bootstrap_servers="127.0.0.1:9")
    sent = await client._message_accumulator.add_message(TopicPartition("topic", 0), None, b"0", 1.0)
    await closed(client, within_s=1.0)
    with pytest.raises(KafkaTimeoutError, match="closed before Kafka answered"):
        await asyncio.wait_for(sent, 5.0)
