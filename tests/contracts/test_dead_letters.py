"""Dead letters from their death to their second life, on Apache Kafka and on the embedded broker alike."""

import json
import secrets
import subprocess
import time
from pathlib import Path

import pytest

from inferline_stream.dataplane.dead_letters import dead_letters
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from tests.scenarios.test_cli_documents import assert_documented
from tests.support.director import Director
from tests.support.forked_command import forked_command

FORK = """
from pathlib import Path
from msgspec import Struct
from inferline_stream import Pipeline, Stage, Topic

BROKEN = Path(__file__).with_name("broken")


class Post(Struct):
    number: int


class Both(Struct):
    left: int
    right: int


def enter(posts: list[Post]) -> list[int]:
    return [post.number for post in posts]


def left(numbers: list[int]) -> list[int]:
    return [-number for number in numbers]


def right(numbers: list[int]) -> list[int]:
    if BROKEN.exists() and any(number % 5 == 0 for number in numbers):
        raise ValueError("fives are not for me")
    return [2 * number for number in numbers]


def both(parts: list[Both]) -> list[Both]:
    return parts


first = Stage("enter", enter, hardware=["cpu-1"])
one = Stage("left", left, hardware=["cpu-1"], after=[first])
other = Stage("right", right, hardware=["cpu-1"], after=[first])
final = Stage("both", both, hardware=["cpu-1"], after=[one, other])
pipeline = Pipeline("fork", slo="250ms", source=Topic("posts"), sink=Topic("out"),
                    stages=[first, one, other, final])
"""


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    file = tmp_path / "topology.py"
    file.write_text(FORK)
    (tmp_path / "broken").touch()
    return file


def dlq(director: Director, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    where = ["--bootstrap-servers", director.bootstrap_servers, "--prefix", director.prefix]
    return forked_command("dlq", action, str(director.topology), *arguments, *where)


def answer(director: Director, action: str, *arguments: str) -> dict:
    done = dlq(director, action, *arguments, "--output", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert_documented(f"dlq {action}", document)
    return document


def header(record: object, name: str) -> bytes | None:
    return dict(record.headers).get(f"__inferline.{name}")  # type: ignore[attr-defined]


async def test_a_letter_is_listed_shown_and_sent_again_once_and_its_join_is_then_completed(kafka, fork):
    async with Director(kafka.bootstrap_servers, fork, settings={"lease_s": 20.0}, max_batch_size=4) as director:
        topic = director.names.topic("posts")
        for number in range(7):
            await director.producer.send_and_wait(
                topic, b'{"number": %d}' % number, key=b"k%d" % number, headers=[("shop", b"7")]
            )
        await director.producer.send_and_wait(topic, b"\xff no json", key=b"k7")
        await director.start()
        await director.caught_up()

        listed = answer(director, "ls")["letters"]
        died = [letter for letter in listed if letter["type"] == "ValueError"]
        assert sorted(letter["key"] for letter in died) == ["k0", "k5"]
        parts = [letter for letter in listed if letter["type"] == "DiedUpstream"]
        assert sorted(letter["event_id"] for letter in parts) == sorted(letter["event_id"] for letter in died)
        (undecodable,) = [letter for letter in listed if letter["stage"] == "enter"]
        shown = answer(director, "show", undecodable["letter"])["letters"][0]
        assert (shown["value"], shown["undecodable"] is None) == ("0xff206e6f206a736f6e", False)
        fives = answer(director, "show", "--stage", "right")["letters"]
        assert sorted(letter["value"] for letter in fives) == [0, 5]
        assert fives[0]["headers"]["shop"] == "7"
        assert "fives are not for me" in dlq(director, "show", "--stage", "right").stdout

        # Replicas load the stage's code once: a file repairs the broken one.
        (fork.parent / "broken").unlink()
        sent = answer(director, "replay", died[0]["letter"])
        assert len(sent["sent"]) == 2, "the letter, and what the other branch had for the join"
        sent = answer(director, "replay", "--stage", "right")
        assert (len(sent["sent"]), len(sent["left_alone"])) == (2, 2)
        await director.caught_up()
        sink = await director.results()
        records = await director.read(director.names.stage_topic("right"))
        noted = answer(director, "ls", died[0]["letter"])["letters"]
        again = dlq(director, "replay", died[0]["letter"])
        unknown = dlq(director, "replay", "nothing/0/0")

    assert sorted(json.loads(record.value)["left"] for record in sink) == [-6, -5, -4, -3, -2, -1, 0]
    replayed = [record for record in records if header(record, "replay")]
    assert [record.key for record in sorted(replayed, key=lambda r: r.key)] == [b"k0", b"k5"]
    for record in replayed:
        first = next(r for r in records if r.key == record.key and r is not record)
        assert (record.value, record.timestamp_ms, record.partition) == (
            first.value,
            first.timestamp_ms,
            first.partition,
        )
        assert {*record.headers} - {*first.headers} == {("__inferline.replay", b"1")}
    assert noted[0]["sent_again"] is not None
    assert again.returncode == 0
    assert "left alone: it was sent on 20" in again.stdout
    assert unknown.returncode == 2
    assert "no dead letter has the id" in unknown.stderr


HOSTILE_HEADERS = [
    [("__inferline.parent", b"\xff"), ("__inferline.skipped", None), ("__inferline.dead", None)],
    [("ts", b"inf")],
    [("ts", b"1e300")],
    [("ts", None), ("__inferline.entry_time_us", b"9" * 400)],
    [("__inferline.event_id", b""), ("__inferline.version", b"\xff"), ("__inferline.replay", b"9" * 400)],
    [("__inferline.event_id", b"x" * 5000)],
    [("__inferline.errors.topic", b"CONTROL"), ("__inferline.errors.partition", b"0"), ("__inferline.errors.x", None)],
    [("__inferline.sent_again", b"0/0")],
    [("__inferline.sent_again", b"\xff"), ("__inferline.errors.timestamp_ms", b"inf")],
]
STEERING = b"\x1b]0;owned\x07\x1b[2J\xc2\x9b31m" + "\u202e".encode()


async def test_hostile_records_cost_dead_letters_alone_and_none_of_them_chooses_a_topic(kafka, fork):
    fork.write_text(FORK.replace('Topic("posts")', 'Topic("posts", timestamp_header="ts")'))
    (fork.parent / "broken").unlink()
    now_ms = round(time.time() * 1000)
    # A broker refuses what is an hour ahead, and deletes what is older than its retention.
    times_ms = [now_ms - 5 * 86_400_000, now_ms + 1_800_000, now_ms - 3_600_000]
    async with Director(kafka.bootstrap_servers, fork, settings={"lease_s": 20.0}, max_batch_size=4) as director:
        source, control = director.names.topic("posts"), director.names.control
        good = 0
        for at, chosen in enumerate(HOSTILE_HEADERS):
            headers = [(name, control.encode() if value == b"CONTROL" else value) for name, value in chosen]
            time_ms = times_ms[at % 3]
            await director.producer.send(source, STEERING, key=STEERING, headers=headers, timestamp_ms=time_ms)
            await director.producer.send(source, b'{"number": %d}' % good, headers=headers, timestamp_ms=time_ms)
            await director.producer.send_and_wait(source, b'{"number": %d}' % (good + 1))
            good += 2
        await director.start()
        await director.caught_up()
        letters = answer(director, "ls")["letters"]
        shown = dlq(director, "show")
        sent = answer(director, "replay")
        sent_again = answer(director, "ls")["letters"]
        await director.caught_up()
        sink = await director.results()
        controls = await director.read(control)
        records = await director.read(source)
        died = await director.letters("enter")
        report = director.report("enter")
        exits = list(director.exits)

    assert sorted(json.loads(record.value)["left"] for record in sink) == sorted(-number for number in range(good))
    assert exits == []
    assert controls == []
    assert (shown.returncode, shown.stderr) == (0, "")
    assert not set(shown.stdout) & set("\x1b\x07\x9b\u202e")
    assert len(letters) == len(HOSTILE_HEADERS) == len(sent["sent"])
    assert all(letter["sent_again"] is None for letter in letters)
    assert sum(letter["sent_again"] is not None for letter in sent_again) == len(letters)
    assert 1000 < report.clock_lead_s < 2000
    for letter in died:
        if letter.value is not None:
            assert letter.time_ms >= now_ms
    again = [record for record in records if header(record, "replay") == b"1"]
    assert len(again) == len(letters)
    sent_ms = sorted(record.timestamp_ms for record in again)
    assert sent_ms[:3] == [now_ms - 3_600_000] * 3
    assert all(now_ms <= time_ms < now_ms + 600_000 for time_ms in sent_ms[3:])
    entered_ms = sorted(int(header(record, "entry_time_us") or 0) // 1000 for record in again)
    assert entered_ms == sorted(times_ms * 3)


async def test_letters_of_one_moment_are_listed_in_the_order_in_which_they_were_written(embedded_broker):
    stage = Stage("only", list, hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=Topic(f"in-{secrets.token_hex(4)}"), sink=Topic("out"), stages=[stage])
    topic, where = Names("p", "").dead_letters(pipeline.source.name), embedded_broker.bootstrap_servers
    await create_topics(where, [WantedTopic(topic, 1, "a test's")], replication=1)
    async with RecordProducer(where) as producer:
        for number in range(12):
            await producer.send(topic, b"%d" % number, key=b"k", timestamp_ms=1_700_000_000_000)
        await producer.flush()
    assert [letter.value for letter in await dead_letters(where, pipeline)] == [b"%d" % n for n in range(12)]


def test_a_pipeline_without_topics_of_dead_letters_is_distinguished_from_one_without_letters(embedded_broker, fork):
    where = ("--bootstrap-servers", embedded_broker.bootstrap_servers, "--prefix", "nobody.")
    done = forked_command("dlq", "ls", str(fork), *where)
    assert done.returncode == 5
    assert "has none of the topics nobody.posts.dlq" in done.stderr
