"""Order after a join, and the bounds of what waits in one.

On Apache Kafka alone: what a join needs of a broker has contracts on both, and runs on the embedded one
(tests/scenarios) have a join.
"""

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from inferline_stream.dataplane.dead_letters import send_again
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


async def test_while_one_branch_is_away_nothing_is_given_up_and_every_event_comes_out(apache_kafka, tmp_path):
    """With so little memory that most parts are read again, and so few partitions that all lie behind each other."""
    settings, partitions = {"join_age_s": 0.5, "join_bytes": 200_000.0}, {"both": 1}
    file = fork(tmp_path, ordered=False)
    async with Director(
        apache_kafka.bootstrap_servers, file, settings=settings, partitions=partitions, max_batch_size=64
    ) as director:
        await director.start("enter", "both")
        await put(director, range(400), header_bytes=3000)
        await director.until(lambda: director.report("both").join_events == 200, "the odd ones wait")
        assert director.report("both").join_bytes < 200_000 + 200 * 600
        await director.until(lambda: director.report("both").join_overdue, "they wait for longer than join_age_s")
        await director.start("slow", replicas=2)
        await director.caught_up()
        letters = await director.letters("both")
        sink = await director.results()
    assert letters == []
    assert Counter(json.loads(record.value) for record in sink) == Counter(range(400))


async def test_what_is_given_up_and_the_parts_that_come_later_are_letters_whose_replay_completes_the_join(
    apache_kafka, tmp_path
):
    file = fork(tmp_path, ordered=False)
    async with Director(
        apache_kafka.bootstrap_servers, file, settings={"join_age_s": 0.5}, partitions={"both": 1}
    ) as director:
        await director.start("enter", "both")
        await put(director, range(20))
        await director.until(lambda: director.report("both").join_overdue, "parts wait for longer than join_age_s")
        # A controller would not say so: what they wait for is on its way.
        await director.grant("both", settled={0: (20, 20)})
        await director.until(lambda: director.total("both", "dead_lettered") == 10, "events are given up")
        await director.start("slow")
        await director.caught_up()
        letters = await director.letters("both")
        whys = Counter(dict(record.headers)["__inferline.errors.message"].decode() for record in letters)
        assert whys == {
            "waited longer than 0.5 s; nothing came from slow": 10,
            "it came after its event was given up": 10,
        }
        first = next(letter for letter in letters if letter.value == b"1")
        at = f"{director.names.dead_letters(director.routes['both'].input_topic)}/0/{first.offset}"
        for ids, parts in (([at], 2), ([], 18)):
            sent = await send_again(director.bootstrap_servers, director.pipeline, director.prefix, ids=ids)
            assert len(sent.sent) == parts, "a part takes the others of its event along"
            await director.caught_up()
        sink = await director.results()
        assert len(await director.letters("both")) == 40, "letters and the notes that they were sent again"
    assert Counter(json.loads(record.value) for record in sink) == Counter(range(20))
