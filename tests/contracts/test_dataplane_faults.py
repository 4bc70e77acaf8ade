"""What replicas do when something goes wrong, on Apache Kafka and on the embedded broker alike."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from inferline_stream.testing.directing import Director

TOPOLOGY = """
import os
import time
from inferline_stream import Pipeline, Stage, Topic


def same(values: list[bytes]) -> list[bytes]:
    if b"kill" in values:
        os.kill(os.getpid(), 9)
    if b"hang" in values:
        time.sleep(60)
    return values


work = Stage("work", same, hardware=["emulated-cpu"], emulated={1: "2ms", 16: "5ms"})
pipeline = Pipeline("passing", slo="250ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"),
                    stages=[work])
"""


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    file = tmp_path / "topology.py"
    file.write_text(TOPOLOGY)
    return file


async def put(director: Director, values: list[bytes]) -> list[str]:
    """Send to the source topic; returns the event ids."""
    topic = director.names.topic("in")
    sent = [await director.producer.send(topic, value, key=b"%d" % (i % 7)) for i, value in enumerate(values)]
    return [f"{r.topic}/{r.partition}/{r.offset}" for r in await asyncio.gather(*sent)]


def event_id(record) -> str:
    return dict(record.headers)["__inferline.event_id"].decode()


async def sink(director: Director, **how: str) -> list:
    return await director.read(director.names.topic("out"), **how)


async def fenced_off(director: Director, replica: str) -> None:
    """What a controller does before it gives a dead replica's partitions away."""
    producer = AIOKafkaProducer(
        bootstrap_servers=director.bootstrap_servers, transactional_id=director.names.transactional_id(replica)
    )
    await producer.start()
    await producer.stop()


@pytest.mark.parametrize("partitions", [1, 3])
async def test_an_event_that_kills_every_replica_is_recognised_and_all_others_get_through(kafka, topology, partitions):
    async with Director(kafka.bootstrap_servers, topology, partitions={"work": partitions}) as director:
        replica = await director.start("work")
        ids = await put(director, [b"%d" % number for number in range(40)])
        (culprit,) = await put(director, [b"kill"])
        ids += await put(director, [b"%d" % number for number in range(40)])
        deaths = 0
        await director.assign(replica, range(partitions))
        async with asyncio.timeout(30):
            while await director.lag():
                if director.processes[replica].returncode is not None:
                    deaths += 1
                    replica = await director.start("work")
                    await director.assign(replica, range(partitions))
                await asyncio.sleep(0.02)
        letters = await director.read(director.names.dead_letters(director.names.topic("in")))
        completed = await director.read(director.names.completed)
        results = await sink(director)
    assert deaths == 4
    assert [record.value for record in letters] == [b"kill"]
    assert dict(letters[0].headers)["__inferline.errors.type"] == b"Poison"
    assert [record.key.decode() for record in completed] == [culprit]
    assert set(map(event_id, results)) == set(ids)


async def test_a_stage_that_hangs_costs_its_replica_with_the_reason(kafka, topology):
    settings = {"batch_deadline_s": 0.3}
    async with Director(kafka.bootstrap_servers, topology, partitions={"work": 1}, settings=settings) as director:
        replica = await director.start("work")
        await director.assign(replica, [0])
        await put(director, [b"hang"])
        assert await asyncio.wait_for(director.processes[replica].wait(), 10) == 70
        await director.until(lambda: director.reports[replica].phase == "failed", "the failure is told")
        assert "batch_deadline_s" in director.reports[replica].reason
        assert await director.lag() == 1


async def rewind(director: Director, partition: int, offset: int) -> None:
    """What a zombie does that commits once more."""
    group = director.names.group("work")
    zombie = AIOKafkaConsumer(bootstrap_servers=director.bootstrap_servers, group_id=group, enable_auto_commit=False)
    async with zombie:
        zombie.assign([at := TopicPartition(director.names.topic("in"), partition)])
        await zombie.commit({at: offset})


async def test_a_rewound_offset_of_an_idle_partition_is_overwritten_while_others_are_busy(kafka, topology):
    settings = {"offsets_check_s": 1.0}
    async with Director(kafka.bootstrap_servers, topology, partitions={"work": 2}, settings=settings) as director:
        replica = await director.start("work")
        await director.assign(replica, range(2))
        topic = director.names.topic("in")
        for number in range(20):
            await director.producer.send(topic, b"%d" % number, partition=0)
        await director.producer.flush()
        await director.caught_up()

        async def busy() -> None:
            while True:
                await director.producer.send_and_wait(topic, b"busy", partition=1)
                await asyncio.sleep(0.01)

        feeding = asyncio.create_task(busy())
        await rewind(director, 0, 3)
        try:
            async with asyncio.timeout(10):
                while await director.lag() >= 17:
                    await asyncio.sleep(0.1)
        finally:
            feeding.cancel()
        await director.caught_up()
        results = Counter(map(event_id, await sink(director)))
    assert set(results.values()) == {1}


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_offsets_that_do_not_change_are_committed_again_before_kafka_forgets_them(kafka, topology, delivery):
    settings = {"offsets_check_s": 1000.0, "offsets_recommit_s": 0.5}
    async with Director(
        kafka.bootstrap_servers, topology, partitions={"work": 1}, delivery=delivery, settings=settings
    ) as director:
        replica = await director.start("work")
        await director.assign(replica, [0])
        await put(director, [b"%d" % number for number in range(20)])
        await director.caught_up()
        await rewind(director, 0, 3)  # stands for what Kafka forgets, and nobody looks whether it is still there
        await director.caught_up(timeout_s=10)


async def test_exactly_once_survives_a_kill_without_a_duplicate(kafka, topology):
    async with Director(
        kafka.bootstrap_servers,
        topology,
        partitions={"work": 4},
        delivery="exactly_once",
        max_batch_size=4,
        settings={"heartbeat_s": 0.1},
    ) as director:
        victim, heir = await asyncio.gather(director.start("work"), director.start("work"))
        await director.assign(victim, range(4))
        ids = await put(director, [b"%d" % number for number in range(600)])
        await director.until(lambda: director.reports[victim].events > 0, "the victim works")
        await asyncio.sleep(0.1)
        director.kill(victim)
        await director.processes[victim].wait()
        await fenced_off(director, victim)
        await director.assign(heir, range(4))
        await director.caught_up()
        assert Counter(map(event_id, await sink(director))) == Counter(ids)
        assert director.reports[heir].events > 0


async def test_exactly_once_hands_over_without_a_duplicate(kafka, topology):
    async with Director(kafka.bootstrap_servers, topology, partitions={"work": 4}, delivery="exactly_once") as director:
        one, two = await asyncio.gather(director.start("work"), director.start("work"))
        await director.share([one])
        ids: list[str] = []
        for owners in ([one, two], [two], [one, two], [one]):
            ids += await put(director, [b"%d" % number for number in range(150)])
            await director.share(owners)
        await director.caught_up()
        assert Counter(map(event_id, await sink(director))) == Counter(ids)
        await director.drain(one, two)


async def test_a_suspended_replica_in_exactly_once_mode_is_fenced_and_leaves(kafka, topology):
    async with Director(
        kafka.bootstrap_servers,
        topology,
        partitions={"work": 4},
        delivery="exactly_once",
        max_batch_size=4,
        settings={"lease_s": 0.6, "heartbeat_s": 0.15},
    ) as director:
        zombie, heir = await asyncio.gather(director.start("work"), director.start("work"))
        await director.assign(zombie, range(4))
        ids = await put(director, [b"%d" % number for number in range(600)])
        await director.until(lambda: director.reports[zombie].events > 0, "the zombie works")
        director.kill(zombie, signal.SIGSTOP)
        await asyncio.sleep(0.9)
        await fenced_off(director, zombie)
        await director.assign(heir, range(4))
        await director.caught_up()
        director.kill(zombie, signal.SIGCONT)
        assert await asyncio.wait_for(director.processes[zombie].wait(), 10) == 75
        assert Counter(map(event_id, await sink(director))) == Counter(ids)
        # What the zombie had begun is in the topic, aborted: only readers of uncommitted records see it.
        assert len(await sink(director, isolation="read_uncommitted")) >= len(ids)
