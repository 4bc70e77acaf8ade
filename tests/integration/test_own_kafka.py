"""A Kafka of a test's own can be hurt, and comes back with everything it acknowledged."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from inferline_stream.settings import surroundings
from inferline_stream.testing.local_kafka import classes_archive, kafka_jars
from tests.support.deadlines import alive

HOLD_A_KAFKA = """
from inferline_stream.testing.local_kafka import LocalKafka
with LocalKafka() as kafka:
    print(kafka.pid, flush=True)
    input()
"""


async def test_it_is_killed_suspended_and_restarted_on_the_same_address_with_the_same_records(own_apache_kafka):
    kafka, address = own_apache_kafka, own_apache_kafka.bootstrap_servers
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    await admin.create_topics([NewTopic("topic", 1, 1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=address, enable_idempotence=True) as producer:
        await producer.send_and_wait("topic", b"before")
        await asyncio.to_thread(kafka.restart, kill=True)
        await asyncio.wait_for(producer.send_and_wait("topic", b"after SIGKILL"), 30)
        kafka.suspend()
        sending = asyncio.create_task(producer.send_and_wait("topic", b"while suspended"))
        await asyncio.sleep(0.5)
        assert not sending.done()
        kafka.resume()
        await asyncio.wait_for(sending, 30)
        await asyncio.to_thread(kafka.restart)
        await asyncio.wait_for(producer.send_and_wait("topic", b"after SIGTERM"), 30)
    assert kafka.bootstrap_servers == address
    async with AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition("topic", 0)])
        values = [(await asyncio.wait_for(consumer.getone(), 30)).value for _ in range(4)]
    assert values == [b"before", b"after SIGKILL", b"while suspended", b"after SIGTERM"]


def test_another_starts_with_the_classes_that_one_kept_and_does_not_outlive_a_test_run_that_is_killed(own_apache_kafka):
    where = surroundings()
    kept = classes_archive(kafka_jars(where.cache, where.kafka_version))
    command = [sys.executable, "-c", HOLD_A_KAFKA]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        pid = int(run.stdout.readline())
        mapped = Path(f"/proc/{pid}/maps").read_text()
        run.kill()
    assert str(kept) in mapped
    deadline_s = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < deadline_s, f"the broker {pid} lives on"
        time.sleep(0.05)
