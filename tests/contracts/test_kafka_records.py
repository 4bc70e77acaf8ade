"""What producers write is what consumers read: on Apache Kafka and on the embedded broker."""

import asyncio
import time

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    OffsetMetadataTooLargeError,
    OffsetOutOfRangeError,
    UnknownError,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.structs import OffsetAndMetadata

HOUR_MS = 3_600_000
NOON_MS = 1_700_000_000_000


async def test_a_record_comes_back_with_key_value_headers_and_timestamp(clients):
    topic = await clients.topic()
    producer = await clients.producer()
    headers = [("trace", b"\x00\xff"), ("trace", b"again"), ("empty", b"")]
    sent = await producer.send_and_wait(topic, b"value", key=b"key", headers=headers, timestamp_ms=NOON_MS)
    (record,) = await clients.read(await clients.reader(topic), 1)
    assert (record.key, record.value, list(record.headers)) == (b"key", b"value", headers)
    assert (record.timestamp, record.timestamp_type) == (NOON_MS, 0)
    assert (sent.offset, sent.timestamp, record.offset) == (0, NOON_MS, 0)


async def test_keys_and_values_may_be_missing_or_empty(clients):
    topic = await clients.topic()
    producer = await clients.producer()
    pairs = [(None, b"value"), (b"key", None), (b"", b""), (b"key", b"")]
    for key, value in pairs:
        await producer.send_and_wait(topic, value, key=key)
    records = await clients.read(await clients.reader(topic), len(pairs))
    assert [(record.key, record.value) for record in records] == pairs


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_every_codec_is_read_as_it_was_written(clients, codec):
    topic = await clients.topic()
    producer = await clients.producer(compression_type=codec, linger_ms=20)
    values = [f"value {number} ".encode() * 50 for number in range(200)]
    await asyncio.gather(*[await producer.send(topic, value, headers=[("n", b"1")]) for value in values])
    records = await clients.read(await clients.reader(topic), len(values))
    assert [record.value for record in records] == values
    assert [record.offset for record in records] == list(range(len(values)))


@pytest.mark.parametrize("acks", [0, 1, "all"])
async def test_records_arrive_whatever_acknowledgement_is_wanted(clients, acks):
    topic = await clients.topic()
    producer = await clients.producer(acks=acks)
    for value in (b"a", b"b"):
        await producer.send_and_wait(topic, value)
    records = await clients.read(await clients.reader(topic), 2)
    assert [record.value for record in records] == [b"a", b"b"]


async def test_a_topic_may_stamp_records_with_the_time_of_their_arrival(clients):
    topic = await clients.topic(message_timestamp_type="LogAppendTime")
    producer = await clients.producer()
    before_ms = time.time() * 1000
    sent = await producer.send_and_wait(topic, b"value", timestamp_ms=NOON_MS)
    (record,) = await clients.read(await clients.reader(topic), 1)
    assert record.timestamp_type == 1
    assert before_ms - 1000 <= record.timestamp <= time.time() * 1000 + 1000
    assert sent.timestamp == record.timestamp


async def test_a_waiting_fetch_ends_as_soon_as_a_record_arrives(clients):
    topic = await clients.topic()
    producer = await clients.producer()
    consumer = await clients.reader(topic, fetch_max_wait_ms=10_000)
    await producer.send_and_wait(topic, b"warm")
    await clients.read(consumer, 1)
    waits_s = []
    for _ in range(5):
        waiting = asyncio.create_task(consumer.getone())
        await asyncio.sleep(0.2)
        sent_at = time.monotonic()
        await producer.send_and_wait(topic, b"value")
        await asyncio.wait_for(waiting, 20)
        waits_s.append(time.monotonic() - sent_at)
    assert min(waits_s) < 1.0


async def test_a_fetch_without_records_ends_after_its_longest_wait(clients):
    topic = await clients.topic()
    consumer = await clients.reader(topic, fetch_max_wait_ms=200)
    began = time.monotonic()
    assert await consumer.getmany(timeout_ms=300) == {}
    assert time.monotonic() - began < 5
    assert await consumer.end_offsets([TopicPartition(topic, 0)]) == {TopicPartition(topic, 0): 0}


async def test_offsets_are_found_by_timestamp(clients):
    topic = await clients.topic()
    partition = TopicPartition(topic, 0)
    producer = await clients.producer()
    for hour in range(4):
        await producer.send_and_wait(topic, str(hour).encode(), timestamp_ms=NOON_MS + hour * HOUR_MS)
    consumer = await clients.reader(topic)

    async def at(timestamp_ms):
        found = (await consumer.offsets_for_times({partition: timestamp_ms}))[partition]
        return found and (found.offset, found.timestamp)

    assert await at(NOON_MS - 1) == (0, NOON_MS)
    assert await at(NOON_MS + HOUR_MS) == (1, NOON_MS + HOUR_MS)
    assert await at(NOON_MS + HOUR_MS + 1) == (2, NOON_MS + 2 * HOUR_MS)
    assert await at(NOON_MS + 4 * HOUR_MS) is None


async def test_an_offset_is_found_inside_a_batch(clients):
    topic = await clients.topic()
    partition = TopicPartition(topic, 0)
    producer = await clients.producer(compression_type="gzip", linger_ms=200)
    await asyncio.gather(*[await producer.send(topic, b"v", timestamp_ms=NOON_MS + number) for number in range(10)])
    consumer = await clients.reader(topic)
    found = (await consumer.offsets_for_times({partition: NOON_MS + 7}))[partition]
    assert (found.offset, found.timestamp) == (7, NOON_MS + 7)


async def test_the_ends_of_a_log_are_known(clients):
    topic = await clients.topic(2)
    producer = await clients.producer()
    for _ in range(3):
        await producer.send_and_wait(topic, b"value", partition=1)
    consumer = await clients.reader(topic, 0, 1)
    empty, full = TopicPartition(topic, 0), TopicPartition(topic, 1)
    assert await consumer.beginning_offsets([empty, full]) == {empty: 0, full: 0}
    assert await consumer.end_offsets([empty, full]) == {empty: 0, full: 3}


async def test_a_consumer_seeks_pauses_and_resumes_partitions(clients):
    topic = await clients.topic(2)
    producer = await clients.producer()
    for number in range(5):
        for partition in (0, 1):
            await producer.send_and_wait(topic, str(number).encode(), partition=partition)
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    consumer = await clients.reader(topic, 0, 1)
    consumer.pause(second)
    consumer.seek(first, 3)
    records = await clients.read(consumer, 2)
    assert [(record.partition, record.offset) for record in records] == [(0, 3), (0, 4)]
    await clients.nothing_more(consumer)
    consumer.seek(second, 4)
    consumer.resume(second)
    (record,) = await clients.read(consumer, 1)
    assert (record.partition, record.offset) == (1, 4)


async def test_an_offset_in_the_middle_of_a_batch_can_be_read_from(clients):
    topic = await clients.topic()
    producer = await clients.producer(linger_ms=200)
    await asyncio.gather(*[await producer.send(topic, str(number).encode()) for number in range(10)])
    consumer = await clients.reader(topic)
    consumer.seek(TopicPartition(topic, 0), 6)
    assert [record.offset for record in await clients.read(consumer, 4)] == [6, 7, 8, 9]


async def test_reading_beyond_the_end_is_refused(clients):
    topic = await clients.topic()
    await (await clients.producer()).send_and_wait(topic, b"value")
    consumer = await clients.reader(topic, auto_offset_reset="none")
    consumer.seek(TopicPartition(topic, 0), 100)
    with pytest.raises(OffsetOutOfRangeError):
        await asyncio.wait_for(consumer.getone(), 20)


async def test_a_batch_larger_than_the_fetch_is_still_read(clients):
    topic = await clients.topic(2)
    producer = await clients.producer()
    for partition in (0, 1):
        await producer.send_and_wait(topic, b"x" * 200_000, partition=partition)
    consumer = await clients.reader(topic, 0, 1, max_partition_fetch_bytes=1000, fetch_max_bytes=1000)
    assert [len(record.value) for record in await clients.read(consumer, 2)] == [200_000, 200_000]


async def test_many_records_are_read_in_order_across_fetches(clients):
    topic = await clients.topic(3)
    producer = await clients.producer(linger_ms=5)
    count = 3000
    await asyncio.gather(*[await producer.send(topic, b"v" * 1024, partition=n % 3) for n in range(count)])
    consumer = await clients.reader(topic, 0, 1, 2, max_partition_fetch_bytes=50_000)
    offsets = {0: [], 1: [], 2: []}
    for record in await clients.read(consumer, count):
        offsets[record.partition].append(record.offset)
    assert all(found == list(range(count // 3)) for found in offsets.values())


async def test_a_record_larger_than_the_topic_allows_is_refused(clients):
    topic = await clients.topic(max_message_bytes="2000")
    producer = await clients.producer()
    with pytest.raises(MessageSizeTooLargeError):
        await producer.send_and_wait(topic, b"x" * 5000)


async def test_a_compacted_topic_refuses_records_without_a_key(clients):
    topic = await clients.topic(cleanup_policy="compact")
    producer = await clients.producer()
    with pytest.raises(UnknownError):  # Kafka's INVALID_RECORD, which aiokafka does not know
        await producer.send_and_wait(topic, b"value")
    await producer.send_and_wait(topic, b"value", key=b"key")


async def test_a_topic_that_does_not_exist_is_an_error_and_not_created(clients):
    missing = clients.unique("missing")
    producer = await clients.producer(request_timeout_ms=1000)
    with pytest.raises((UnknownTopicOrPartitionError, KafkaError)):
        await producer.send_and_wait(missing, b"value")
    assert missing not in await (await clients.admin()).list_topics()


async def test_a_commit_keeps_the_offset_and_the_metadata(clients):
    topic = await clients.topic()
    group, partition = clients.unique("group"), TopicPartition(topic, 0)
    await (await clients.producer()).send_and_wait(topic, b"value")
    consumer = await clients.reader(topic, group_id=group)
    metadata = "x" * 4000
    await consumer.commit({partition: OffsetAndMetadata(1, metadata)})
    offsets = await (await clients.admin()).list_consumer_group_offsets(group)
    assert offsets == {partition: OffsetAndMetadata(1, metadata)}
    successor = await clients.reader(topic, group_id=group)
    assert await successor.committed(partition) == 1
    await clients.nothing_more(successor)


async def test_metadata_beyond_4096_bytes_is_refused(clients):
    topic = await clients.topic()
    partition = TopicPartition(topic, 0)
    consumer = await clients.reader(topic, group_id=clients.unique("group"))
    await consumer.commit({partition: OffsetAndMetadata(1, "x" * 4096)})
    with pytest.raises(OffsetMetadataTooLargeError):
        await consumer.commit({partition: OffsetAndMetadata(2, "x" * 4097)})
    assert await consumer.committed(partition) == 1


async def test_a_partition_without_a_commit_has_no_offset(clients):
    topic = await clients.topic()
    consumer = await clients.reader(topic, group_id=clients.unique("group"))
    assert await consumer.committed(TopicPartition(topic, 0)) is None


async def test_committing_an_unknown_partition_is_an_error(clients):
    topic = await clients.topic()
    wanted = [(topic, [(0, 1, ""), (7, 1, "")])]
    answer = await clients.send(OffsetCommitRequest(clients.unique("group"), -1, "", -1, wanted))
    ((named, codes),) = answer.topics
    assert (named, sorted(codes)) == (topic, [(0, 0), (7, UnknownTopicOrPartitionError.errno)])
