"""Formats of one's own at source and sink, and records that are too large for a topic; on both brokers."""

import json
import secrets
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from inferline_stream.dataplane.dead_letters import send_again
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from tests.support.director import Director

NUMBERED = '''
import msgspec
from inferline_stream import Codec, Pipeline, Stage, Topic

SCHEMAS = {7: ["number", "text"]}  # what a registry would know


class Post(msgspec.Struct):
    number: int
    text: str


def encode(value: Post) -> bytes:
    """As registries have it: a zero, the number of the schema, then the fields without their names."""
    built = msgspec.to_builtins(value)
    return b"\\0" + (7).to_bytes(4, "big") + msgspec.json.encode([built[name] for name in SCHEMAS[7]])


def decoder(type_: type) -> object:
    def decode(data: bytes) -> object:
        names = SCHEMAS[int.from_bytes(data[1:5], "big")]
        return msgspec.convert(dict(zip(names, msgspec.json.decode(data[5:]), strict=True)), type_)

    return decode


def same(posts: list[Post]) -> list[Post]:
    return posts


first = Stage("first", same, hardware=["cpu-1"])
last = Stage("last", same, hardware=["cpu-1"], after=[first])
pipeline = Pipeline("numbered", slo="1s", source=Topic("in", codec={source}), sink=Topic("out", codec={sink}),
                    stages=[first, last])
'''

LARGE = """
from inferline_stream import Pipeline, Stage, Topic


def grow(values: list[bytes]) -> list[bytes]:
    return [value * int(value[:1]) for value in values]


work = Stage("work", grow, hardware=["cpu-1"])
pipeline = Pipeline("large", slo="1s", source=Topic("in", codec="raw", max_bytes=4000), sink=Topic("out", codec="raw"),
                    stages=[work])
"""

OWN = 'Codec("numbered", encode, decoder)'


@pytest.mark.parametrize(("source", "sink"), [(OWN, '"msgpack"'), ('"msgpack"', OWN)])
async def test_a_format_of_ones_own_reads_the_source_and_writes_the_sink(kafka, tmp_path, source, sink):
    file = tmp_path / "topology.py"
    file.write_text(NUMBERED.replace("{source}", source).replace("{sink}", sink))
    own = b"\0\0\0\0\7" + b'[3,"three"]'
    packed = msgspec.msgpack.encode({"number": 3, "text": "three"})
    async with Director(kafka.bootstrap_servers, file) as director:
        for value in (own if source == OWN else packed, b"\0\0\0\0\x08[]", b"\0"):
            await director.producer.send_and_wait(director.names.topic("in"), value, key=b"k")
        await director.start()
        await director.caught_up()
        (result,) = await director.results()
        (between,) = await director.read(director.names.stage_topic("last"))
        letters = await director.letters("first")
    assert json.loads(between.value) == {"number": 3, "text": "three"}
    if sink == OWN:
        assert result.value == own
    else:
        assert msgspec.msgpack.decode(result.value) == {"number": 3, "text": "three"}
    assert len(letters) == 2


async def test_what_is_too_large_for_a_topic_becomes_a_dead_letter_and_the_rest_goes_on(kafka, tmp_path: Path):
    file = tmp_path / "topology.py"
    file.write_text(LARGE)
    prefix = f"{secrets.token_hex(4)}."
    small = [
        WantedTopic(f"{prefix}in", 1, "made elsewhere", {"max.message.bytes": "100000"}),
        WantedTopic(f"{prefix}out", 1, "made elsewhere", {"max.message.bytes": "3000"}),
        WantedTopic(f"{prefix}in.dlq", 1, "made elsewhere", {"max.message.bytes": "6000"}),
    ]
    await create_topics(kafka.bootstrap_servers, small, replication=1)
    values = [b"1" * 1000, b"2" * 1900, b"1" * 5000, b"1" * 50_000, b"3"]
    async with Director(kafka.bootstrap_servers, file, prefix=prefix, max_batch_size=2) as director:
        for value in values:
            await director.producer.send_and_wait(f"{prefix}in", value)
        await director.start()
        await director.caught_up()
        sink = await director.read(f"{prefix}out")
        letters = await director.read(f"{prefix}in.dlq")
        done = await send_again(kafka.bootstrap_servers, director.pipeline, prefix)
    assert {record.value for record in sink} == {b"1" * 1000, b"333"}
    assert len(sink) == 2
    headers = [dict(record.headers) for record in letters]
    assert Counter(found["__inferline.errors.type"] for found in headers) == Counter({b"Oversize": 3})
    assert {len(record.value or b"") for record in letters} == {1900, 5000, 0}
    (cut,) = [found for found in headers if "__inferline.errors.cut_bytes" in found]
    assert cut["__inferline.errors.cut_bytes"] == b"50000"
    assert (len(done.sent), len(done.cut)) == (2, 1)


async def test_what_a_compacted_topic_takes_only_with_a_key_becomes_a_dead_letter_and_the_rest_goes_on(
    kafka, tmp_path: Path
):
    file = tmp_path / "topology.py"
    file.write_text(LARGE)
    prefix = f"{secrets.token_hex(4)}."
    table = WantedTopic(f"{prefix}out", 1, "made elsewhere", {"cleanup.policy": "compact"})
    await create_topics(kafka.bootstrap_servers, [table], replication=1)
    async with Director(kafka.bootstrap_servers, file, prefix=prefix, max_batch_size=2) as director:
        for number, key in enumerate((b"a", None, b"b", b"c")):
            await director.producer.send_and_wait(f"{prefix}in", b"%d" % number, key=key)
        await director.start()
        await director.caught_up()
        sink = await director.read(f"{prefix}out")
        (letter,) = await director.read(f"{prefix}in.dlq")
    assert sorted(record.key for record in sink) == [b"a", b"b", b"c"]
    headers = dict(letter.headers)
    assert (letter.value, headers["__inferline.errors.type"]) == (b"1", b"NoKey")
    assert f"topic {prefix}out is compacted" in headers["__inferline.errors.message"].decode()
