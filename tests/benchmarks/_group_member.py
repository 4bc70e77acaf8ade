"""A member of a Kafka consumer group that does what an emulated replica does: take, sleep S(b), produce, commit.

Protocols: ``eager`` (aiokafka), ``cooperative`` and ``kip848`` (confluent-kafka). Says ``loaded``, waits for a line on
standard input, joins, says ``ready``. Ends in order on SIGTERM.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import time

SESSION_MS = 6000
HEARTBEAT_MS = 500


def say(text: str) -> None:
    """One line to the parent."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def wait_to_be_let_in() -> None:
    """Until the parent says so."""
    say("loaded")
    sys.stdin.readline()


def service_s(table: dict[int, float], batch: int) -> float:
    """S(b), linear between the sizes given."""
    sizes = sorted(table)
    for low, high in itertools.pairwise(sizes):
        if low <= batch <= high:
            return table[low] + (table[high] - table[low]) * (batch - low) / (high - low)
    return table[sizes[-1]]


def named(topic: str, partition: int, offset: int, timestamp_ms: int) -> list[tuple[str, bytes]]:
    """Headers that a replica's results carry."""
    name = f"{topic}/{partition}/{offset}".encode()
    return [("__inferline.event_id", name), ("__inferline.entry_time_us", b"%d" % (timestamp_ms * 1000))]


async def eager(servers: str, source: str, sink: str, group: str, table: dict[int, float]) -> None:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    wait_to_be_let_in()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    consumer = AIOKafkaConsumer(
        source,
        bootstrap_servers=servers,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        heartbeat_interval_ms=HEARTBEAT_MS,
        session_timeout_ms=SESSION_MS,
        fetch_max_wait_ms=20,
    )
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True)
    async with consumer, producer:
        say("ready")
        while not ended.is_set():
            found = await consumer.getmany(timeout_ms=100, max_records=max(table))
            records = [record for part in found.values() for record in part]
            if not records:
                continue
            await asyncio.sleep(service_s(table, len(records)))
            sent = [
                await producer.send(sink, r.value, key=r.key, headers=named(source, r.partition, r.offset, r.timestamp))
                for r in records
            ]
            await asyncio.gather(*sent)
            try:
                await consumer.commit()
            except Exception as error:  # the group has moved on: what was done is done again elsewhere
                say(f"commit refused: {error}")


def confluent(protocol: str, servers: str, topics: tuple[str, str], group: str, table: dict[int, float]) -> None:
    from confluent_kafka import Consumer, KafkaException, Producer

    wait_to_be_let_in()
    source, sink = topics
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    settings = {
        "bootstrap.servers": servers,
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": 20,
    }
    if protocol == "kip848":
        settings["group.protocol"] = "consumer"
    else:
        settings |= {
            "partition.assignment.strategy": "cooperative-sticky",
            "heartbeat.interval.ms": HEARTBEAT_MS,
            "session.timeout.ms": SESSION_MS,
        }
    consumer = Consumer(settings)
    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 0})
    consumer.subscribe([source])
    say("ready")
    while not ended:
        records = [r for r in consumer.consume(max(table), 0.02) if not r.error()]
        if not records:
            continue
        time.sleep(service_s(table, len(records)))
        for r in records:
            headers = named(source, r.partition(), r.offset(), r.timestamp()[1])
            producer.produce(sink, r.value(), r.key(), headers=headers)
        producer.flush(10)
        try:
            consumer.commit(asynchronous=False)
        except KafkaException as error:
            say(f"commit refused: {error}")
    consumer.close()


if __name__ == "__main__":
    which, where, read, write, name, times = sys.argv[1:7]
    service = {int(size): float(seconds) for size, seconds in json.loads(times).items()}
    if which == "eager":
        asyncio.run(eager(where, read, write, name, service))
    else:
        confluent(which, where, (read, write), name, service)
