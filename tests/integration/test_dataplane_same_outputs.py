"""The embedded broker and Apache Kafka are interchangeable: the same events in, the same records out."""

from pathlib import Path

from tests.support.director import Director

TOPOLOGY = """
from msgspec import Struct
from inferline_stream import Pipeline, Stage, Topic


class Both(Struct):
    first: int
    third: int | None


def first_of(numbers: list[int]) -> list[int]:
    return numbers


def third_of(numbers: list[int]) -> list[int]:
    return [number // 3 for number in numbers]


def together(parts: list[Both]) -> list[Both]:
    return parts


def by_three(number: int) -> bool:
    return number % 3 == 0


first = Stage("first", first_of, hardware=["cpu-1"])
third = Stage("third", third_of, hardware=["cpu-1"], after=[first.when(by_three)])
last = Stage("last", together, hardware=["cpu-1"], after=[first, third])
pipeline = Pipeline("same", slo="250ms", source=Topic("in"), sink=Topic("out"), stages=[first, third, last])
"""


async def outputs(bootstrap_servers: str, topology: Path) -> list[tuple[bytes, bytes, int]]:
    """(key, value, partition) of every record in the sink, and what could not be decoded."""
    partitions = dict.fromkeys(("first", "third", "last"), 3)
    async with Director(bootstrap_servers, topology, partitions=partitions) as director:
        for number in range(60):
            value = b"nothing" if number == 31 else b"%d" % number
            await director.producer.send(director.names.topic("in"), value, key=b"%d" % (number % 11))
        await director.producer.flush()
        await director.start()
        await director.caught_up()
        records = await director.results()
        records += await director.letters("first")
    return sorted((record.key, record.value, record.partition) for record in records)


async def test_the_embedded_broker_and_apache_kafka_give_the_same_outputs(apache_kafka, embedded_broker, tmp_path):
    topology = tmp_path / "topology.py"
    topology.write_text(TOPOLOGY)
    on_apache = await outputs(apache_kafka.bootstrap_servers, topology)
    assert len(on_apache) == 60
    assert await outputs(embedded_broker.bootstrap_servers, topology) == on_apache
