"""Batches that nobody should unpack, through a pool, on Apache Kafka and on the embedded broker alike."""

import time
from collections import Counter
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from inferline_stream.dataplane.dead_letters import send_again
from inferline_stream.kafka.fetched_batches import RECORDS_AT_ONCE
from tests.contracts.pooled import PASSING
from tests.support.director import Director, event_id
from tests.support.doubles.crashing_dispatcher import STANDS_STILL, TAKEN_IN, UNPACKED

BOMB = [bytes(1 << 20)] * 64  # 64 MiB, of which a few kilobytes are sent


async def send_batch(director: Director, codec: str, values: list[bytes]) -> int:
    """Send values as one batch; returns the first offset."""
    topic = director.names.topic(director.pipeline.source.name)
    producer = AIOKafkaProducer(
        bootstrap_servers=director.bootstrap_servers,
        compression_type=codec,
        max_batch_size=1 << 30,
        max_request_size=1 << 30,
    )
    async with producer:
        batch = producer.create_batch()
        for value in values:
            assert batch.append(key=None, value=value, timestamp=None) is not None
        sent = await producer.send_batch(batch, topic, partition=0)
        return (await sent).offset


def resident_kb(pid: int) -> int:
    """Most memory that a process has had."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
async def test_a_batch_that_expands_too_far_is_one_dead_letter_and_kills_nobody(kafka, codec):
    async with Director(kafka.bootstrap_servers, PASSING, partitions={"work": 1}) as director:
        await director.put([b"before"])
        await director.start()
        await director.caught_up()
        before_kb = resident_kb(await director.pid(director.dispatcher("work")))
        first = await send_batch(director, codec, BOMB)
        await director.put([b"after"])
        await director.until(lambda: director.total("work", "events") == 3, "the batch and its neighbours are done")
        await director.caught_up()
        grown_kb = resident_kb(await director.pid(director.dispatcher("work"))) - before_kb
        letters = await director.letters("work")
        results = await director.results()
        again = await send_again(kafka.bootstrap_servers, director.pipeline, director.prefix)
        exits = list(director.exits)
    assert len(results) == 2
    (letter,) = letters
    said = {name.removeprefix("__inferline.errors."): value.decode() for name, value in letter.headers}
    assert (letter.value, said["type"], said["partition"]) == (None, "BatchTooLarge", "0")
    assert f"the batch of offsets {first} to {first + 63}, {said['cut_bytes']} bytes as sent" in said["message"]
    assert said["offset"] == str(first + 63)
    assert (len(again.sent), len(again.cut)) == (0, 1), "there is nothing in it to send again"
    assert grown_kb < 40 * 1024
    assert exits == []


@pytest.mark.parametrize(
    ("delivery", "culprit", "neighbours"),
    [("at_least_once", UNPACKED, RECORDS_AT_ONCE + 5), ("exactly_once", TAKEN_IN, 2)],
)
async def test_a_batch_that_ends_two_dispatchers_is_skipped_by_the_third(kafka, delivery, culprit, neighbours):
    async with Director(
        kafka.bootstrap_servers,
        PASSING,
        partitions={"work": 2},
        delivery=delivery,
        settings={"lease_s": 1.0},
        dispatcher_module="crashing_dispatcher",
    ) as director:
        await director.start()
        ids = await director.put([b"before"] * 10)
        await director.caught_up()
        await director.kill(director.dispatcher("work"))  # while it takes in nothing: of no account
        first = await send_batch(director, "gzip", [b""] * neighbours + [culprit])
        ids += await director.put([b"after"] * 10)
        await director.caught_up(60.0)
        letters = await director.letters("work")
        found = [event_id(result) for result in await director.results()]
        exits = [each.reason for each in director.exits]
    (letter,) = letters
    headers = {name.removeprefix("__inferline.errors."): value.decode() for name, value in letter.headers}
    assert (letter.value, headers["type"], headers["partition"]) == (None, "BatchEndsDispatcher", "0")
    assert f"the batch of offsets {first} to {first + neighbours}," in headers["message"]
    assert exits == ["killed by SIGKILL", "killed by SIGSEGV", "killed by SIGSEGV"]
    assert Counter(each for each in found if each in ids) == Counter(ids)


async def test_a_batch_is_not_blamed_for_dispatchers_that_are_killed_while_their_host_stands_still(embedded_broker):
    async with Director(
        embedded_broker.bootstrap_servers,
        PASSING,
        partitions={"work": 1},
        settings={"lease_s": 1.0},
        dispatcher_module="crashing_dispatcher",
    ) as director:
        await director.start()
        dispatcher = director.dispatcher("work")
        until_s = time.time() + 6.0
        await send_batch(director, "gzip", [b"innocent"] * 99 + [STANDS_STILL + b"%f" % until_s])

        def stood_still() -> int:
            return (director.logs / f"{dispatcher}.log").read_text().count("stands still")

        await director.until(lambda: stood_still() == 1, "it takes the batch in")
        await director.kill(dispatcher)  # as the kernel does for lack of memory, of whatever process
        await director.until(lambda: stood_still() == 2, "the next one does")
        await director.supervisor.replace_dispatcher(dispatcher)  # as the controller does for its silence
        await director.caught_up(30.0)
        assert stood_still() > 2
        assert await director.letters("work") == []
        assert len(await director.results()) == 100
        assert ["SIGKILL" in each.reason for each in director.exits] == [True, True]
