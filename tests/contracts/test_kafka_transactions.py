"""Idempotence and transactions: on Apache Kafka and on the embedded broker."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import CoordinationType
from aiokafka.errors import (
    CorruptRecordException,
    InvalidProducerEpoch,
    InvalidTransactionTimeout,
    InvalidTxnState,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
)
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)
from aiokafka.structs import OffsetAndMetadata

from inferline_stream.kafka.offsets import group_offsets
from inferline_stream.kafka.topic_reader import TopicReader
from tests.support.deadlines import until
from tests.support.record_batches import record_batch


def batch(producer_id, epoch, sequence, *values, transactional=False):
    """A batch as an idempotent producer would send it."""
    records = [(None, None, value, []) for value in values]
    return record_batch(records, producer=(producer_id, epoch, sequence), transactional=transactional)


async def produce(clients, topic, data, transactional_id=None):
    """Code and offset of one batch; waits until the new topic's leader leads."""
    request = ProduceRequest(
        transactional_id=transactional_id, required_acks=-1, timeout=10_000, topics=[(topic, [(0, data)])]
    )
    async with asyncio.timeout(60):
        while True:
            ((_, (answer,)),) = (await clients.send(request)).topics
            if answer[1] != NotLeaderForPartitionError.errno:
                return answer[1], answer[2]
            await asyncio.sleep(0.02)


async def new_producer(clients, transactional_id=None, timeout_ms=60_000):
    """Id and epoch; waits for the coordinator, and until an earlier transaction of the same id has ended."""
    if transactional_id is not None:
        await clients.send(FindCoordinatorRequest(transactional_id, CoordinationType.TRANSACTION))
    async with asyncio.timeout(60):
        while True:
            answer = await clients.send(InitProducerIdRequest(transactional_id, timeout_ms))
            if answer.error_code not in (
                51,
                14,
                15,
                16,
            ):  # concurrent transactions; coordinator loading, not there, not here
                assert answer.error_code == 0
                return answer.producer_id, answer.producer_epoch
            await asyncio.sleep(0.02)


async def test_a_batch_sent_twice_is_acknowledged_twice_and_kept_once(clients):
    topic = await clients.topic()
    producer_id, epoch = await new_producer(clients)
    first, second = batch(producer_id, epoch, 0, b"a", b"b"), batch(producer_id, epoch, 2, b"c")
    assert await produce(clients, topic, first) == (0, 0)
    assert await produce(clients, topic, first) == (0, 0)
    assert await produce(clients, topic, second) == (0, 2)
    assert await produce(clients, topic, first) == (0, 0)
    consumer = await clients.reader(topic)
    assert [record.value for record in await clients.read(consumer, 3)] == [b"a", b"b", b"c"]
    await clients.nothing_more(consumer)


async def test_a_batch_after_a_gap_is_refused(clients):
    topic = await clients.topic()
    producer_id, epoch = await new_producer(clients)
    assert await produce(clients, topic, batch(producer_id, epoch, 0, b"a")) == (0, 0)
    code, _ = await produce(clients, topic, batch(producer_id, epoch, 2, b"c"))
    assert code == OutOfOrderSequenceNumber.errno
    assert await produce(clients, topic, batch(producer_id, epoch, 1, b"b")) == (0, 1)


async def test_every_partition_counts_for_itself(clients):
    topics = [await clients.topic(), await clients.topic()]
    producer_id, epoch = await new_producer(clients)
    for topic in topics:
        assert await produce(clients, topic, batch(producer_id, epoch, 0, b"a")) == (0, 0)


async def test_sequences_begin_again_with_a_new_epoch_and_the_old_one_is_fenced(clients):
    topic = await clients.topic()
    name = clients.unique("transactional")
    producer_id, old = await new_producer(clients, name)
    await add_partition(clients, name, producer_id, old, topic)
    assert await produce(clients, topic, batch(producer_id, old, 0, b"a", transactional=True), name) == (0, 0)
    assert await end(clients, name, producer_id, old, committed=True) == 0
    same_id, new = await new_producer(clients, name)
    assert same_id == producer_id
    assert new > old
    await add_partition(clients, name, producer_id, new, topic)
    code, _ = await produce(clients, topic, batch(producer_id, new, 0, b"b", transactional=True), name)
    assert code == 0
    code, _ = await produce(clients, topic, batch(producer_id, old, 1, b"c", transactional=True), name)
    assert code == InvalidProducerEpoch.errno
    assert await end(clients, name, producer_id, old, committed=True) == InvalidProducerEpoch.errno
    assert await end(clients, name, producer_id, new, committed=True) == 0


async def add_partition(clients, name, producer_id, epoch, topic):
    async with asyncio.timeout(60):
        while True:
            answer = await clients.send(AddPartitionsToTxnRequest(name, producer_id, epoch, [(topic, [0])]))
            ((_, ((_, code),)),) = answer.errors
            if code != 51:  # the markers of the transaction before are still being written
                assert code == 0
                return
            await asyncio.sleep(0.02)


async def end(clients, name, producer_id, epoch, *, committed):
    return (await clients.send(EndTxnRequest(name, producer_id, epoch, committed))).error_code


async def test_records_of_a_partition_outside_the_transaction_are_refused(clients):
    inside, outside = await clients.topic(), await clients.topic()
    name = clients.unique("transactional")
    producer_id, epoch = await new_producer(clients, name)
    await add_partition(clients, name, producer_id, epoch, inside)
    code, _ = await produce(clients, outside, batch(producer_id, epoch, 0, b"a", transactional=True), name)
    assert code == InvalidTxnState.errno
    assert await end(clients, name, producer_id, epoch, committed=False) == 0


async def test_a_transaction_that_was_not_begun_cannot_end_and_one_that_ended_may_end_again(clients):
    topic = await clients.topic()
    name = clients.unique("transactional")
    producer_id, epoch = await new_producer(clients, name)
    assert await end(clients, name, producer_id, epoch, committed=True) == InvalidTxnState.errno
    await add_partition(clients, name, producer_id, epoch, topic)
    assert await end(clients, name, producer_id, epoch, committed=True) == 0

    async def ended_again():
        return await end(clients, name, producer_id, epoch, committed=True) == 0

    await until(ended_again, "the repeated commit is acknowledged")
    assert await end(clients, name, producer_id, epoch, committed=False) == InvalidTxnState.errno


async def test_a_damaged_batch_is_refused(clients):
    topic = await clients.topic()
    data = bytearray(batch(-1, -1, -1, b"value"))
    data[-1] ^= 1
    code, _ = await produce(clients, topic, bytes(data))
    assert code == CorruptRecordException.errno


async def test_committed_records_are_read_and_aborted_ones_only_by_those_who_want_them(clients):
    topic = await clients.topic()
    producer = await clients.producer(transactional_id=clients.unique("transactional"))
    async with producer.transaction():
        await producer.send_and_wait(topic, b"committed")
    await producer.begin_transaction()
    await producer.send_and_wait(topic, b"aborted")
    await producer.abort_transaction()
    async with producer.transaction():
        await producer.send_and_wait(topic, b"last")
    committed = await clients.reader(topic, isolation_level="read_committed")
    assert [record.value for record in await clients.read(committed, 2)] == [b"committed", b"last"]
    everything = await clients.reader(topic, isolation_level="read_uncommitted")
    assert [record.value for record in await clients.read(everything, 3)] == [b"committed", b"aborted", b"last"]
    await clients.nothing_more(committed)
    await clients.nothing_more(everything)


async def test_an_open_transaction_holds_back_what_comes_after_it(clients):
    topic = await clients.topic()
    partition = TopicPartition(topic, 0)
    open_one = await clients.producer(transactional_id=clients.unique("transactional"))
    plain = await clients.producer()
    await plain.send_and_wait(topic, b"before")
    await open_one.begin_transaction()
    await open_one.send_and_wait(topic, b"within")
    await plain.send_and_wait(topic, b"after")
    committed = await clients.reader(topic, isolation_level="read_committed", fetch_max_wait_ms=10_000)
    assert [record.value for record in await clients.read(committed, 1)] == [b"before"]
    await clients.nothing_more(committed)
    for isolation_level, end_offset in (("read_committed", 1), ("read_uncommitted", 3)):
        asking = await clients.consumer(isolation_level=isolation_level)
        assert await asking.end_offsets([partition]) == {partition: end_offset}
    reading = asyncio.create_task(clients.read(committed, 2, within_s=8))  # less than the fetch would wait
    await open_one.commit_transaction()
    assert [record.value for record in await reading] == [b"within", b"after"]


async def test_transactions_that_interleave_end_each_for_itself(clients):
    topic = await clients.topic()
    one, other = [await clients.producer(transactional_id=clients.unique("transactional")) for _ in range(2)]
    await one.begin_transaction()
    await other.begin_transaction()
    for number in range(3):
        await one.send_and_wait(topic, b"one %d" % number)
        await other.send_and_wait(topic, b"other %d" % number)
    await one.abort_transaction()
    await other.commit_transaction()
    async with one.transaction():
        await one.send_and_wait(topic, b"one again")
    committed = await clients.reader(topic, isolation_level="read_committed")
    expected = [b"other 0", b"other 1", b"other 2", b"one again"]
    assert [record.value for record in await clients.read(committed, 4)] == expected
    await clients.nothing_more(committed)


async def test_a_transaction_spans_partitions_and_topics(clients):
    topics = [await clients.topic(2), await clients.topic(2)]
    producer = await clients.producer(transactional_id=clients.unique("transactional"))
    for value, commit in ((b"no", False), (b"yes", True)):
        await producer.begin_transaction()
        for topic in topics:
            for partition in (0, 1):
                await producer.send_and_wait(topic, value, partition=partition)
        await (producer.commit_transaction() if commit else producer.abort_transaction())
    for topic in topics:
        reader = await clients.reader(topic, 0, 1, isolation_level="read_committed")
        assert [record.value for record in await clients.read(reader, 2)] == [b"yes", b"yes"]
        await clients.nothing_more(reader)


async def test_offsets_and_their_metadata_are_committed_with_the_transaction(clients):
    topic, group = await clients.topic(), clients.unique("group")
    partition = TopicPartition(topic, 0)
    admin = await clients.admin()
    producer = await clients.producer(transactional_id=clients.unique("transactional"))

    async def committed():
        return (await admin.list_consumer_group_offsets(group)).get(partition)

    await producer.begin_transaction()
    await producer.send_offsets_to_transaction({partition: OffsetAndMetadata(3, "three")}, group)
    assert await committed() is None
    await producer.abort_transaction()
    assert await committed() is None
    async with producer.transaction():
        await producer.send_and_wait(topic, b"out")
        await producer.send_offsets_to_transaction({partition: OffsetAndMetadata(5, "x" * 4000)}, group)

    async def is_five():
        return await committed() == OffsetAndMetadata(5, "x" * 4000)

    await until(is_five, "the offset is committed")


async def test_a_reader_of_group_offsets_waits_for_the_transaction_that_may_change_them(clients):
    topic, group = await clients.topic(2), clients.unique("group")
    partition = TopicPartition(topic, 0)
    producer = await clients.producer(transactional_id=clients.unique("transactional"))
    async with producer.transaction():
        await producer.send_offsets_to_transaction({partition: OffsetAndMetadata(3, "three")}, group)
    async with AIOKafkaConsumer(
        bootstrap_servers=clients.bootstrap_servers, group_id=group, enable_auto_commit=False
    ) as consumer:

        async def stable():
            return await group_offsets(consumer._coordinator, topic, [0, 1], 20.0)

        assert await stable() == {0: (3, "three")}, "it shows at once, and partition 1 has none"
        assert await group_offsets(consumer._coordinator, topic, [], 20.0) == {}
        for end, kept in ((producer.abort_transaction, (3, "three")), (producer.commit_transaction, (5, "five"))):
            await producer.begin_transaction()
            await producer.send_offsets_to_transaction({partition: OffsetAndMetadata(5, "five")}, group)
            asking = asyncio.create_task(stable())
            await asyncio.sleep(0.2)
            assert not asking.done()
            reader = TopicReader(clients.bootstrap_servers, topic, group, topic, fetch_wait_s=0.02)
            async with asyncio.timeout(60):
                await reader.start(10.0)  # the dispatcher that is to end what another one left open
            await reader.stop()
            await end()
            assert await asking == {0: kept}
            assert await stable() == {0: kept}


async def test_offsets_of_a_group_outside_the_transaction_are_refused(clients):
    topic = await clients.topic()
    name = clients.unique("transactional")
    producer_id, epoch = await new_producer(clients, name)
    await add_partition(clients, name, producer_id, epoch, topic)
    request = TxnOffsetCommitRequest(name, clients.unique("group"), producer_id, epoch, [(topic, [(0, 1, "")])])
    ((_, ((_, code),)),) = (await clients.send(request)).errors
    assert code == InvalidTxnState.errno


async def test_copying_in_transactions_survives_a_crash_without_loss_or_duplicate(clients):
    source, sink, group = await clients.topic(), await clients.topic(), clients.unique("group")
    name = clients.unique("transactional")
    partition = TopicPartition(source, 0)
    feeder = await clients.producer()
    for number in range(30):
        await feeder.send_and_wait(source, b"%d" % number)

    async def copy(producer, *, until, crash):
        consumer = await clients.reader(source, group_id=group, isolation_level="read_committed")
        while (position := await consumer.position(partition)) < until:
            await producer.begin_transaction()
            for record in await clients.read(consumer, 5):
                await producer.send_and_wait(sink, record.value)
            await producer.send_offsets_to_transaction({partition: position + 5}, group)
            if crash and position + 5 >= until:
                return  # with everything sent, and nothing committed
            await producer.commit_transaction()

    await copy(await clients.producer(transactional_id=name), until=15, crash=True)
    await copy(await clients.producer(transactional_id=name), until=30, crash=False)
    reader = await clients.reader(sink, isolation_level="read_committed")
    assert [int(record.value) for record in await clients.read(reader, 30)] == list(range(30))
    await clients.nothing_more(reader)


async def test_a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced(clients):
    topic = await clients.topic()
    slow = await clients.producer(transactional_id=clients.unique("transactional"), transaction_timeout_ms=1000)
    plain = await clients.producer()
    await slow.begin_transaction()
    await slow.send_and_wait(topic, b"too late")
    await plain.send_and_wait(topic, b"after")
    committed = await clients.reader(topic, isolation_level="read_committed")
    assert [record.value for record in await clients.read(committed, 1)] == [b"after"]
    with pytest.raises(ProducerFenced):
        await slow.commit_transaction()


@pytest.mark.parametrize("timeout_ms", [0, 24 * 3_600_000])
async def test_a_transaction_timeout_has_bounds(clients, timeout_ms):
    answer = await clients.send(InitProducerIdRequest(clients.unique("transactional"), timeout_ms))
    assert answer.error_code == InvalidTransactionTimeout.errno


async def test_an_empty_transaction_may_be_committed(clients):
    producer = await clients.producer(transactional_id=clients.unique("transactional"))
    for _ in range(2):
        async with producer.transaction():
            pass


async def test_an_idempotent_producer_delivers_everything_once(clients):
    topic = await clients.topic(2)
    producer: AIOKafkaProducer = await clients.producer(enable_idempotence=True, linger_ms=2)
    await asyncio.gather(*[await producer.send(topic, b"%d" % n, partition=n % 2) for n in range(1000)])
    records = await clients.read(await clients.reader(topic, 0, 1), 1000)
    assert sorted(int(record.value) for record in records) == list(range(1000))
