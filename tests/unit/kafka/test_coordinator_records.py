"""What a group coordinator keeps in Kafka, as bytes made by hand from Kafka's schemas."""

import struct

import pytest

from inferline_stream.kafka.wire.coordinator_records import (
    ClassicGroupRecord,
    CommitRecord,
    MemberRecord,
    partition_of,
    read_record,
)


def _text(text):
    return struct.pack(">h", len(text)) + text.encode()


def _compact(content):
    return bytes([len(content) + 1]) + (content if isinstance(content, bytes) else content.encode())


COMMIT_KEY = struct.pack(">h", 1) + _text("enrich") + _text("posts") + struct.pack(">i", 3)
ASSIGNMENT = struct.pack(">hi", 0, 1) + _text("posts") + struct.pack(">iii", 2, 4, 5) + struct.pack(">i", -1)
CLASSIC_KEY = struct.pack(">h", 2) + _text("enrich")
MEMBER_KEY = struct.pack(">h", 8) + _text("enrich") + _text("m1")
TOPIC_ID = bytes(range(16))


@pytest.mark.parametrize(
    ("group", "partitions", "expected"),
    [
        ("hello", 50, 99162322 % 50),
        ("Hello World", 50, 862545276 % 50),
        ("polygenelubricants", 50, 0),
        ("é", 7, 233 % 7),
    ],
)
def test_a_group_is_in_the_partition_of_the_absolute_hash_code_that_java_gives_its_name(group, partitions, expected):
    assert partition_of(group, partitions) == expected


@pytest.mark.parametrize(
    "value",
    [
        struct.pack(">hq", 1, 17) + _text("meta") + struct.pack(">qq", 1234, 99),
        struct.pack(">hqi", 3, 17, 5) + _text("") + struct.pack(">q", 1234),
        struct.pack(">hqi", 4, 17, 5) + _compact("meta") + struct.pack(">q", 1234) + b"\x01\x00\x10" + TOPIC_ID,
    ],
)
def test_a_commit_is_read_in_every_version(value):
    assert read_record(COMMIT_KEY, value) == CommitRecord("enrich", "posts", 3, 17, 1234)


def _classic(version):
    if version >= 4:
        member = b"".join(_compact(each) for each in ("m1", "", "c", "/h")) + struct.pack(">ii", 1, 2)
        member = member + _compact(b"sub") + _compact(ASSIGNMENT) + b"\x00"
        head = _compact("consumer") + struct.pack(">i", 7) + _compact("range") + _compact("m1")
        return struct.pack(">h", version) + head + struct.pack(">q", 5) + b"\x02" + member + b"\x00"
    instance = struct.pack(">h", -1) if version >= 3 else b""
    member = _text("m1") + instance + _text("c") + _text("/h") + struct.pack(">ii", 1, 2)
    member += struct.pack(">i", 3) + b"sub" + struct.pack(">i", len(ASSIGNMENT)) + ASSIGNMENT
    head = _text("consumer") + struct.pack(">i", 7) + _text("range") + _text("m1") + struct.pack(">q", 5)
    return struct.pack(">h", version) + head + struct.pack(">i", 1) + member


@pytest.mark.parametrize("version", [2, 3, 4])
def test_members_of_a_classic_group_and_their_partitions_are_read_in_every_version(version):
    assert read_record(CLASSIC_KEY, _classic(version)) == ClassicGroupRecord(
        "enrich", "range", {"m1": {"posts": frozenset({4, 5})}}
    )


def test_a_member_of_the_new_protocol_has_what_is_not_to_be_revoked():
    topic = TOPIC_ID + b"\x03" + struct.pack(">ii", 1, 2) + b"\x00"
    value = struct.pack(">hiib", 0, 3, 2, 1) + b"\x02" + topic + b"\x01" + b"\x00"

    assert read_record(MEMBER_KEY, value) == MemberRecord("enrich", "m1", {TOPIC_ID: frozenset({1, 2})})
    assert read_record(MEMBER_KEY, None) == MemberRecord("enrich", "m1", None)


def test_what_is_deleted_of_another_kind_or_damaged_stops_nothing():
    assert read_record(COMMIT_KEY, None) == CommitRecord("enrich", "posts", 3, None, 0)
    assert read_record(CLASSIC_KEY, None) == ClassicGroupRecord("enrich", "", {})
    assert read_record(struct.pack(">h", 6) + _text("enrich"), b"\x00\x00") is None
    damaged = [_classic(3)[:n] for n in range(len(_classic(3)) - 30)]
    assert {read_record(CLASSIC_KEY, value) for value in damaged} == {None}
    assert {read_record(COMMIT_KEY[:n], b"") for n in range(len(COMMIT_KEY))} == {None}
