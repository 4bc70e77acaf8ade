"""What pools do when something goes wrong, on Apache Kafka and on the embedded broker alike.

A replica that dies, hangs or holds its lock concerns no broker: those tests run on the embedded one alone. What becomes
of offsets, and of dispatchers that die, is the broker's as well.
"""

import asyncio
import contextlib
import resource
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from inferline_stream.actuators.actuator import DispatcherExit, ReplicaExit
from tests.contracts.pooled import PASSING, in_order_of_keys, more, under_load
from tests.support.director import Director, event_id

SAMPLES = {"work": b"1"}


def deaths(director: Director) -> list[str]:
    """Why replicas ended that were not to end."""
    return [each.reason for each in director.exits if isinstance(each, ReplicaExit) and not each.expected]


@pytest.mark.parametrize(("replicas", "value"), [(1, b"kill"), (3, b"short")])
async def test_an_event_that_costs_its_replica_is_recognised_and_all_others_get_through(
    embedded_broker, replicas, value
):
    async with Director(
        embedded_broker.bootstrap_servers, PASSING, partitions={"work": 3}, samples=SAMPLES
    ) as director:
        ids = await director.put([b"%d" % number for number in range(40)])
        (culprit,) = await director.put([value])
        ids += await director.put([b"%d" % number for number in range(40)])
        await director.start(replicas=replicas)
        await director.caught_up()
        letters = await director.letters("work")
        completed = await director.read(director.names.completed)
        results = await director.results()
        await director.until(lambda: director.report("work").suspects == 0, "nothing is suspected any more")
        died = deaths(director)
    assert 2 <= len(died) <= 3, died
    assert [record.value for record in letters] == [value]
    assert dict(letters[0].headers)["__inferline.errors.type"] == b"Poison"
    assert [record.key.decode() for record in completed] == [culprit]
    assert Counter(map(event_id, results)) == Counter(ids)
    assert in_order_of_keys(results)


async def test_a_dispatcher_without_free_descriptors_says_so_serves_on_and_recovers(embedded_broker):
    async with Director(
        embedded_broker.bootstrap_servers, PASSING, partitions={"work": 1}, samples=SAMPLES
    ) as director:
        await director.start()
        dispatcher = await director.pid(director.dispatcher("work"))
        soft, hard = resource.prlimit(dispatcher, resource.RLIMIT_NOFILE)
        resource.prlimit(dispatcher, resource.RLIMIT_NOFILE, (3, hard))  # what is open stays so
        await director.scale("work", 2, wait=False)
        await director.until(lambda: len(deaths(director)) == 3, "its new replicas cannot be attached")
        ids = await director.put([b"%d" % number for number in range(20)])
        await director.caught_up()
        resource.prlimit(dispatcher, resource.RLIMIT_NOFILE, (soft, hard))
        await director.until(lambda: len(director.ready("work")) == 2, "the second replica is ready")
        results, died = await director.results(), director.exits
    assert Counter(map(event_id, results)) == Counter(ids)
    assert {exit_.reason for exit_ in died} == {"its connection did not arrive: too many files are open"}
    waits_s = [exit_.restart_in_s for exit_ in died if isinstance(exit_, ReplicaExit)]
    assert waits_s == sorted(waits_s), "each next one is started later"


async def test_a_batch_that_hangs_runs_elsewhere_and_an_event_that_always_hangs_becomes_a_dead_letter(embedded_broker):
    settings = {"batch_deadline_s": 0.15}
    async with Director(
        embedded_broker.bootstrap_servers, PASSING, partitions={"work": 1}, settings=settings, samples=SAMPLES
    ) as director:
        await director.grant("work", service_s={})  # without a profile, the setting holds
        await director.start(replicas=2)
        ids = await director.put([b"x"] * 10)
        await director.put([b"hang"])
        ids += await director.put([b"x"] * 10)
        await director.caught_up(60.0)
        assert Counter(map(event_id, await director.results())) == Counter(ids)
        assert [record.value for record in await director.letters("work")] == [b"hang"]
        assert any("deadline" in reason for reason in deaths(director)), deaths(director)


async def test_a_batch_that_exceeds_the_memory_is_halved_before_any_event_is_suspected(embedded_broker):
    async with Director(
        embedded_broker.bootstrap_servers, PASSING, partitions={"work": 1}, samples=SAMPLES
    ) as director:
        ids = await director.put([b"large"] * 16, [None] * 16)
        await director.start()
        await director.caught_up(40.0)
        assert Counter(map(event_id, await director.results())) == Counter(ids)
        assert await director.letters("work") == []


async def rewind(director: Director, partition: int, offset: int) -> None:
    """What a zombie does that commits once more."""
    group = director.names.group("work")
    zombie = AIOKafkaConsumer(bootstrap_servers=director.bootstrap_servers, group_id=group, enable_auto_commit=False)
    async with zombie:
        zombie.assign([at := TopicPartition(director.names.topic("in"), partition)])
        await zombie.commit({at: offset})


@contextlib.asynccontextmanager
async def busy(director: Director, partition: int) -> AsyncIterator[None]:
    """Keep a partition busy."""

    async def send() -> None:
        while True:
            await director.producer.send_and_wait(director.names.topic("in"), b"busy", partition=partition)
            await asyncio.sleep(0.01)

    sending = asyncio.create_task(send())
    try:
        yield
    finally:
        sending.cancel()


async def test_a_rewound_offset_of_an_idle_partition_is_overwritten_while_others_are_busy(kafka):
    settings = {"offsets_check_s": 0.5}
    async with Director(kafka.bootstrap_servers, PASSING, partitions={"work": 2}, settings=settings) as director:
        await director.start()
        topic = director.names.topic("in")
        for number in range(20):
            await director.producer.send(topic, b"%d" % number, partition=0)
        await director.producer.flush()
        await director.caught_up()
        async with busy(director, 1):
            await rewind(director, 0, 3)
            async with asyncio.timeout(60):
                while await director.lag() >= 17:
                    await asyncio.sleep(0.05)
        await director.caught_up()
        results = Counter(map(event_id, await director.results()))
    assert set(results.values()) == {1}


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_offsets_that_do_not_change_are_committed_again_before_kafka_forgets_them(kafka, delivery):
    settings = {"offsets_check_s": 1000.0, "offsets_recommit_s": 0.5}
    async with Director(
        kafka.bootstrap_servers, PASSING, partitions={"work": 1}, delivery=delivery, settings=settings
    ) as director:
        await director.start()
        await director.put([b"x"] * 20)
        await director.caught_up()
        await rewind(director, 0, 3)  # stands for what Kafka forgets, and nobody looks whether it is still there
        await director.caught_up()


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_replicas_and_dispatchers_that_are_killed_under_load_lose_nothing_and_reload_no_model(kafka, delivery):
    async with Director(
        kafka.bootstrap_servers, PASSING, partitions={"work": 4}, delivery=delivery, samples=SAMPLES
    ) as director:
        await director.start(replicas=3)
        async with under_load(director) as ids:
            for _ in range(2):
                victim = director.ready("work")[0].replica
                await director.kill(victim)
                await director.until(
                    lambda gone=victim: (
                        len(director.ready("work")) == 3
                        and gone not in [replica.replica for replica in director.ready("work")]
                    ),
                    f"{victim} is replaced",
                )
                await more(director, "work")
            replicas = {replica.replica for replica in director.ready("work")}
            pids = {await director.pid(name) for name in replicas}
            so_far = Counter(map(event_id, await director.results()))
            for times in (1, 2):
                await director.kill(director.dispatcher("work"))
                await director.until(
                    lambda times=times: (
                        director.report("work").incarnation == times + 1
                        and {replica.replica for replica in director.ready("work")} == replicas
                    ),
                    "a new dispatcher has the living replicas",
                )
                await more(director, "work")
        await director.caught_up()
        results = await director.results()
        restarted = [each.restarted for each in director.exits if isinstance(each, DispatcherExit)]
        assert {await director.pid(name) for name in replicas} == pids
        assert await director.letters("work") == []
    assert restarted == [True] * 2
    assert set(map(event_id, results)) == set(ids), "events are lost"
    assert set(so_far.values()) == {1}, "the death of a replica repeats nothing"
    repeated = len(results) - len(ids)
    if delivery == "exactly_once":
        assert repeated == 0
    else:
        assert repeated <= 2 * (3 * 16 + 1000), "more than what was in hand and not yet committed"


SLOW = """
import ctypes
from inferline_stream import Pipeline, Stage, Topic

HOLDING = ctypes.PyDLL(None)  # its functions keep the interpreter lock


class Build:
    def __init__(self) -> None:
        HOLDING.usleep(5_000_000)

    def __call__(self, values: list[bytes]) -> list[bytes]:
        return values


def hold(values: list[bytes]) -> list[bytes]:
    HOLDING.usleep(3_400_000)
    return values


build = Stage("build", Build, hardware=["cpu-1"])
held = Stage("held", hold, hardware=["emulated-cpu"], emulated={1: "3.4s", 16: "3.4s"}, after=[build])
pipeline = Pipeline("slow", slo="20s", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"),
                    stages=[build, held])
"""


async def test_stages_that_hold_the_interpreter_lock_for_seconds_lose_no_event_and_no_replica(
    embedded_broker, tmp_path: Path
):
    topology = tmp_path / "topology.py"
    topology.write_text(SLOW)
    settings = {"lease_s": 1.0, "heartbeat_s": 0.2}
    async with Director(
        embedded_broker.bootstrap_servers, topology,
        partitions={"build": 2, "held": 2}, settings=settings, max_batch_size=32,
    ) as director:  # fmt: skip
        ids = await director.put([b"x"] * 24)
        await director.start()
        await director.caught_up(40.0)
        assert Counter(map(event_id, await director.results())) == Counter(ids)
        assert director.exits == []
        for stage in ("build", "held"):
            assert await director.letters(stage) == []
            assert director.total(stage, "batches_lost") == 0
