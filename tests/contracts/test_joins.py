"""Order after a join, and the bounds of what waits in one.

On Apache Kafka alone: what a join needs of a broker has contracts on both, and runs on the embedded one
(tests/scenarios) have a join.
"""

import json
import secrets
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.support.director import Director

FORK = """
from msgspec import Struct
from inferline_stream import Pipeline, Stage, Topic


class Post(Struct):
    number: int


class Both(Struct):
    enter: int
    slow: int | None


def enter(posts: list[Post]) -> list[int]:
    return [post.number for post in posts]


def slow(numbers: list[int]) -> list[int]:
    return numbers


def both(parts: list[Both]) -> list[int]:
    return [part.enter for part in parts]


def is_odd(number: int) -> bool:
    return number % 2 == 1


first = Stage("enter", enter, hardware=["cpu-1"])
other = Stage("slow", slow, hardware=["emulated-cpu"], emulated={1: "20ms"}, after=[first.when(is_odd)])
final = Stage("both", both, hardware=["cpu-1"], after=[first, other], ordered=ORDERED)
pipeline = Pipeline("fork", slo="9s", source=Topic("posts"), sink=Topic("out"), stages=[first, other, final])
"""


def fork(folder: Path, *, ordered: bool) -> Path:
    file = folder / "topology.py"
    file.write_text(FORK.replace("ORDERED", str(ordered)))
    return file


async def put(director: Director, numbers: range, keys: int = 3, header_bytes: int = 0) -> None:
    headers = [("padding", b"x" * header_bytes)] if header_bytes else []
    for number in numbers:
        topic, key = director.names.topic("posts"), b"k%d" % (number // 2 % keys)
        await director.producer.send(topic, b'{"number": %d}' % number, key=key, headers=headers)
    await director.producer.flush()


async def by_key(director: Director) -> dict[bytes, list[int]]:
    found = defaultdict(list)
    for record in sorted(await director.read(director.names.topic("out")), key=lambda r: (r.partition, r.offset)):
        found[record.key].append(json.loads(record.value))
    return found


@pytest.mark.parametrize("ordered", [True, False])
async def test_events_of_a_key_leave_an_ordered_join_as_they_entered_through_a_change_of_dispatcher(
    apache_kafka, tmp_path, ordered
):
    partitions = dict.fromkeys(("enter", "slow", "both"), 4)
    async with Director(
        apache_kafka.bootstrap_servers, fork(tmp_path, ordered=ordered), partitions=partitions
    ) as director:
        await put(director, range(60))
        await director.start()
        await director.scale("both", 2)
        await director.dispatch("both")
        await put(director, range(60, 90))
        await director.caught_up()
        found = await by_key(director)
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(90))
    assert all(numbers == sorted(numbers) for numbers in found.values()) is ordered


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_a_join_keeps_what_waits_for_a_part_when_its_dispatcher_changes_or_dies(apache_kafka, tmp_path, delivery):
    partitions = dict.fromkeys(("enter", "slow", "both"), 2)
    async with Director(
        apache_kafka.bootstrap_servers, fork(tmp_path, ordered=False), partitions=partitions, delivery=delivery
    ) as director:
        await director.start("enter", "both")
        await put(director, range(60))
        # Without `slow`, every odd event of the join waits for its last part.
        await director.until(lambda: director.total("both", "events") == 30, "the even ones are complete")
        await director.until(lambda: director.report("both").join_events == 30, "the odd ones wait")
        await director.dispatch("both")
        await director.until(lambda: director.report("both").join_events == 30, "the next dispatcher has them")
        await director.kill(director.dispatcher("both"))
        await director.until(
            lambda: director.report("both").incarnation == 2 and director.report("both").join_events == 30,
            "the one started again has them",
        )
        await director.start("slow")
        await director.caught_up()
        sink = await director.results()
    assert Counter(json.loads(record.value) for record in sink) == Counter(range(60))


async def test_events_that_are_read_again_pass_a_join_that_had_finished_them(apache_kafka, tmp_path):
    file, prefix, partitions = fork(tmp_path, ordered=False), f"{secrets.token_hex(4)}-", {"both": 1}
    for times in (1, 2):
        async with Director(
            apache_kafka.bootstrap_servers, file, prefix=prefix, partitions=partitions, start="earliest"
        ) as director:
            await director.start()
            if times == 1:
                await put(director, range(20))
            await director.caught_up()
            sink = await director.results()
        assert Counter(json.loads(record.value) for record in sink) == dict.fromkeys(range(20), times)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"join_age_s": 0.5}, "waited longer than 0.5 s"), ({"join_bytes": 24000.0}, "exceeds 24000 bytes")],
)
async def test_what_waits_too_long_or_is_too_much_becomes_a_dead_letter_and_late_parts_are_dropped(
    apache_kafka, tmp_path, settings, why
):
    file = fork(tmp_path, ordered=False)
    async with Director(apache_kafka.bootstrap_servers, file, settings=settings, partitions={"both": 1}) as director:
        await director.start("enter", "both")
        await put(director, range(20), header_bytes=3000)  # ids of finished events are a small part of the state
        waits: list[tuple[int, int]] = []

        def waiting() -> bool:
            report = director.report("both")
            waits.append((report.join_events, report.join_bytes))
            return report.join_events > 0

        await director.until(waiting, "parts wait")
        expected = 10 if "join_age_s" in settings else 1  # no record comes in the meantime: time itself ends them
        await director.until(lambda: director.total("both", "dead_lettered") >= expected, "events are given up")
        given_up = director.total("both", "dead_lettered")
        await director.start("slow")
        await director.caught_up()
        await director.until(lambda: director.total("both", "duplicates") >= given_up, "late parts are dropped")
        await director.until(lambda: director.report("both").join_events == 0, "nothing waits any more")
        letters = await director.letters("both")
        sink = await director.results()
    assert waits[-1][1] >= waits[-1][0] * 600
    errors = Counter(dict(record.headers)["__inferline.errors.message"].decode() for record in letters)
    assert all(why in error and error.endswith("nothing came from slow") for error in errors), errors
    assert len(sink) + len(letters) == 20
