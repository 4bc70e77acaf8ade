"""Order after a join, and the bounds of what waits in one; on both brokers."""

import json
import secrets
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from inferline_stream.testing.directing import Director

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


async def put(director: Director, numbers: range, keys: int = 3) -> None:
    for number in numbers:
        topic, key = director.names.topic("posts"), b"k%d" % (number // 2 % keys)
        await director.producer.send(topic, b'{"number": %d}' % number, key=key)
    await director.producer.flush()


async def by_key(director: Director) -> dict[bytes, list[int]]:
    found = defaultdict(list)
    for record in sorted(await director.read(director.names.topic("out")), key=lambda r: (r.partition, r.offset)):
        found[record.key].append(json.loads(record.value))
    return found


@pytest.mark.parametrize("ordered", [True, False])
async def test_events_of_a_key_leave_an_ordered_join_as_they_entered_through_a_handover(kafka, tmp_path, ordered):
    partitions = dict.fromkeys(("enter", "slow", "both"), 4)
    async with Director(kafka.bootstrap_servers, fork(tmp_path, ordered=ordered), partitions=partitions) as director:
        replicas = await director.start_all()
        await put(director, range(60))
        second = await director.start("both")
        await director.share([replicas["both"], second])
        await put(director, range(60, 90))
        await director.caught_up()
        found = await by_key(director)
        reports = [director.reports[name].handovers for name in (replicas["both"], second)]
        await director.drain(*replicas.values(), second)
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(90))
    assert reports[0] > 0
    assert all(numbers == sorted(numbers) for numbers in found.values()) is ordered


async def test_events_that_are_read_anew_pass_a_join_that_had_finished_them(kafka, tmp_path):
    file, prefix, partitions = fork(tmp_path, ordered=False), f"{secrets.token_hex(4)}-", {"both": 1}
    for times in (1, 2):
        async with Director(
            kafka.bootstrap_servers, file, prefix=prefix, partitions=partitions, start="earliest"
        ) as director:
            replicas = await director.start_all()
            if times == 1:
                await put(director, range(20))
            await director.caught_up()
            sink = await director.read(director.names.topic("out"))
            await director.drain(*replicas.values())
        assert Counter(json.loads(record.value) for record in sink) == dict.fromkeys(range(20), times)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"join_age_s": 0.5}, "waited longer than 0.5 s"), ({"join_bytes": 4000.0}, "exceeds 4000 bytes")],
)
async def test_what_waits_too_long_or_is_too_much_becomes_a_dead_letter_and_late_parts_are_dropped(
    kafka, tmp_path, settings, why
):
    file = fork(tmp_path, ordered=False)
    async with Director(kafka.bootstrap_servers, file, settings=settings, partitions={"both": 1}) as director:
        replicas = {stage: await director.start(stage) for stage in ("enter", "both")}
        for stage, replica in replicas.items():
            await director.assign(replica, range(director.partitions[stage]))
        await put(director, range(20))
        join = replicas["both"]
        await director.until(lambda: director.reports[join].join_events > 0, "parts are seen to wait")
        waits = director.reports[join].join_events, director.reports[join].join_bytes
        expected = 10 if "join_age_s" in settings else 1  # no record comes in the meantime: time itself must tell
        await director.until(lambda: director.reports[join].dead_lettered >= expected, "events are given up")
        given_up = director.reports[join].dead_lettered
        slow = await director.start("slow")
        await director.assign(slow, range(director.partitions["slow"]))
        await director.caught_up()
        await director.until(lambda: director.reports[join].duplicates >= given_up, "late parts are dropped")
        await director.until(lambda: director.reports[join].join_events == 0, "nothing waits any more")
        letters = await director.read(director.names.dead_letters(director.names.stage_topic("both")))
        sink = await director.read(director.names.topic("out"))
        await director.drain(*replicas.values(), slow)
    assert waits[1] >= waits[0] * 600
    errors = Counter(dict(record.headers)["__inferline.errors.message"].decode() for record in letters)
    assert all(why in error and error.endswith("nothing was heard of slow") for error in errors), errors
    assert len(sink) + len(letters) == 20
