"""Workers of a real Faust app: started, measured by the sensor that they are given, killed, and stopped."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from inferline_stream.actuators.faust_workers import FaustWorkers
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.testing.kafka import KafkaServer

APP = Path(__file__).parent / "fausted"
RECORDS = 600


async def test_a_faust_app_is_scaled_and_its_throughput_is_what_its_agent_takes(
    embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers, topic, group = embedded_broker.bootstrap_servers, f"t{secrets.token_hex(4)}", f"g{secrets.token_hex(4)}"
    for name, value in (("KAFKA", servers), ("TOPIC", topic), ("GROUP", group), ("TIMES", str(tmp_path))):
        monkeypatch.setenv(f"SHOP_{name}", value)
    await create_topics(servers, [WantedTopic(topic, 4, "records")], replication=1)
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer, Offsets(servers) as offsets:
        for number in range(RECORDS):
            await producer.send(topic, b"%d" % number, partition=number % 4)

        async def done() -> int:
            return sum(max(0, each.offset) for each in await offsets.committed(group, topic, 4))

        async with (
            asyncio.timeout(90),
            FaustWorkers("shop:app", APP, "look", topic, logs=tmp_path / "logs", data=tmp_path / "data") as workers,
        ):
            await workers.scale(2)
            while await done() < RECORDS:
                await asyncio.sleep(0.2)
            learned = workers.throughput()
            await workers.scale(1)
            while workers.running != 1:
                await asyncio.sleep(0.1)
    files = [file.read_text().split() for file in tmp_path.glob("*.txt")]
    assert len(files) == 2, "both served"
    times = [float(line) for each in files for line in each]
    assert len(times) >= RECORDS
    assert learned is not None
    assert learned.value == pytest.approx(len(times) / sum(times), rel=0.1)
    assert learned.error < 0.1
    assert workers.running == 0


async def test_the_throughput_of_an_app_of_several_agents_is_of_the_records_of_the_topic_that_its_events_enter_by(
    embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers, topic, group = embedded_broker.bootstrap_servers, f"t{secrets.token_hex(4)}", f"g{secrets.token_hex(4)}"
    for name, value in (("KAFKA", servers), ("TOPIC", topic), ("GROUP", group), ("TIMES", str(tmp_path))):
        monkeypatch.setenv(f"SHOP_{name}", value)
    topics = topic, f"{topic}-looked"
    await create_topics(servers, [WantedTopic(name, 1, "records") for name in topics], replication=1)
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer, Offsets(servers) as offsets:
        for number in range(RECORDS // 2):
            await producer.send(topic, b"%d" % number)

        async def done() -> list[int]:
            return [(await offsets.committed(group, name, 1))[0].offset for name in topics]

        async with (
            asyncio.timeout(90),
            FaustWorkers("chain:app", APP, "look", topic, logs=tmp_path / "logs", data=tmp_path / "data") as workers,
        ):
            await workers.scale(1)
            while await done() != [RECORDS // 2] * 2:
                await asyncio.sleep(0.2)
            learned = workers.throughput()
    took = {each: [float(line) for line in (tmp_path / f"{each}.txt").read_text().split()] for each in ("look", "pack")}
    assert len(took["look"]) == RECORDS // 2
    assert learned is not None
    assert learned.value == pytest.approx(len(took["look"]) / sum(map(sum, took.values())), rel=0.1)
