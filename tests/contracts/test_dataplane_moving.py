"""What replicas do with records, on Apache Kafka and on the embedded broker alike."""

from pathlib import Path

import msgspec
import pytest

from inferline_stream.testing.directing import Director

TOPOLOGY = """
from msgspec import Struct
from inferline_stream import Pipeline, Stage, Topic


class Post(Struct):
    number: int


class Gathered(Struct):
    parity: int
    odd: int | None
    twice: int


def parity_of(posts: list[Post]) -> list[int]:
    return [post.number for post in posts]


def odd_of(numbers: list[int]) -> list[int]:
    return [-number for number in numbers]


def twice_of(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


def gather(parts: list[Gathered]) -> list[Gathered]:
    return parts


def is_odd(number: int) -> bool:
    return number % 2 == 1


parity = Stage("parity", parity_of, hardware=["cpu-1"])
odd = Stage("odd", odd_of, hardware=["cpu-1"], after=[parity.when(is_odd)])
twice = Stage("twice", twice_of, hardware=["cpu-1"], after=[parity])
final = Stage("final", gather, hardware=["cpu-1"], after=[parity, odd, twice])
pipeline = Pipeline("diamond", slo="250ms", source=Topic("posts"), sink=Topic("verdicts"),
                    stages=[parity, odd, twice, final])
"""


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    file = tmp_path / "topology.py"
    file.write_text(TOPOLOGY)
    return file


async def test_a_conditional_branch_and_a_join_give_every_event_its_result_once(kafka, topology):
    async with Director(
        kafka.bootstrap_servers, topology, partitions=dict.fromkeys(("parity", "odd", "twice", "final"), 3)
    ) as director:
        for number in range(100):
            await director.producer.send(
                director.names.topic("posts"), b'{"number": %d}' % number, key=b"%d" % (number % 7)
            )
        await director.producer.flush()
        await director.start_all()
        await director.caught_up()
        results = await director.read(director.names.topic("verdicts"))
    found = {record.value: record for record in results}
    assert len(results) == 100
    assert sorted(msgspec.json.decode(value)["parity"] for value in found) == list(range(100))
    for value, record in found.items():
        gathered = msgspec.json.decode(value)
        number = gathered["parity"]
        assert gathered == {"parity": number, "odd": -number if number % 2 else None, "twice": 2 * number}
        assert record.key == b"%d" % (number % 7)
