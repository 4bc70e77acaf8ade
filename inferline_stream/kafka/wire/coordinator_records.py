"""Records of `__consumer_offsets`, in which a coordinator keeps what groups have committed, and who their members are.

Formats: group-coordinator/src/main/resources/common/message/ of Apache Kafka, which only adds fields. Read are those of
Kafka 2.1 to 4.4: a commit, a group of the classic protocol, and a member of one of the new protocol (KIP-848).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiokafka.protocol.types import (
    Array,
    Bytes,
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

from inferline_stream.kafka.wire.later_requests import Uuid

TOPIC = "__consumer_offsets"

_COMMIT, _CLASSIC_GROUP, _MEMBER = 1, 2, 8
"""What a key's first two bytes say that its record is of; other records are not read."""

_TEXT = String("utf-8")

_NO_ASSIGNMENT = 6
"""Bytes of the shortest assignment of a member that is none: version, no topics."""


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """A group has committed an offset.

    Args:
        group: its id.
        topic: of the partition.
        partition: of the topic.
        offset: next to be read; None where it was deleted.
        time_ms: when, on the broker's clock.
    """

    group: str
    topic: str
    partition: int
    offset: int | None
    time_ms: int


@dataclass(frozen=True, slots=True)
class ClassicGroupRecord:
    """A group of the classic protocol has a new generation.

    Args:
        group: its id.
        protocol: name of the assignor, such as ``range`` or ``cooperative-sticky``; empty without members.
        members: partitions by topic, by the member's id.
    """

    group: str
    protocol: str
    members: Mapping[str, Mapping[str, frozenset[int]]]


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """What a member of a KIP-848 group has now.

    Args:
        group: its id.
        member: the member's id.
        owned: partitions by the topic's id, 16 bytes; None once it has left.
    """

    group: str
    member: str
    owned: Mapping[bytes, frozenset[int]] | None


CoordinatorRecord = CommitRecord | ClassicGroupRecord | MemberRecord


def partition_of(group: str, partitions: int) -> int:
    """Return the partition of `__consumer_offsets` that holds a group: by the absolute value of Java's ``hashCode``."""
    units = group.encode("utf-16-be")
    code = 0
    for unit in struct.unpack(f">{len(units) // 2}H", units):
        code = (31 * code + unit) & 0xFFFFFFFF
    code -= (code >> 31) << 32
    return 0 if code == -(2**31) else abs(code) % partitions


def read_record(key: bytes | None, value: bytes | None) -> CoordinatorRecord | None:
    """Return what a record says; None for one of another kind or version, and for one that is damaged."""
    try:
        return _read(BytesIO(key or b""), value)
    except (ValueError, struct.error, IndexError, TypeError):
        return None


def _read(key: BytesIO, value: bytes | None) -> CoordinatorRecord | None:
    kind = Int16.decode(key)
    if kind in (0, _COMMIT):
        group, topic, partition = _TEXT.decode(key), _TEXT.decode(key), Int32.decode(key)
        if value is None:
            return CommitRecord(group, topic, partition, None, 0)
        offset, time_ms = _commit(BytesIO(value))
        return CommitRecord(group, topic, partition, offset, time_ms)
    if kind == _CLASSIC_GROUP:
        group = _TEXT.decode(key)
        return ClassicGroupRecord(group, "", {}) if value is None else _classic_group(group, BytesIO(value))
    if kind == _MEMBER:
        group, member = _TEXT.decode(key), _TEXT.decode(key)
        return MemberRecord(group, member, None if value is None else _owned(BytesIO(value)))
    return None


def _commit(value: BytesIO) -> tuple[int, int]:
    version = Int16.decode(value)
    epoch = [("leader_epoch", Int32)] if version >= 3 else []
    metadata = CompactString("utf-8") if version >= 4 else _TEXT
    offset, *_, time_ms = Schema(("offset", Int64), *epoch, ("metadata", metadata), ("time_ms", Int64)).decode(value)
    return offset, time_ms


def _classic_group(group: str, value: BytesIO) -> ClassicGroupRecord:
    version = Int16.decode(value)
    flexible = version >= 4
    text: Any = CompactString("utf-8") if flexible else _TEXT
    content: Any = CompactBytes if flexible else Bytes
    tags = [("tags", TaggedFields)] if flexible else []
    member = [
        ("id", text),
        *([("instance", text)] if version >= 3 else []),
        *[("client", text), ("host", text)],
        *([("rebalance_timeout", Int32)] if version >= 1 else []),
        *[("session_timeout", Int32), ("subscription", content), ("assignment", content)],
        *tags,
    ]
    found = Schema(
        *[("protocol_type", text), ("generation", Int32), ("protocol", text), ("leader", text)],
        *([("state_time_ms", Int64)] if version >= 2 else []),
        ("members", (CompactArray if flexible else Array)(*member)),
    ).decode(value)
    names, place = [name for name, _ in member], found[-1]
    members = {each[0]: assigned_partitions(each[names.index("assignment")]) for each in place}
    return ClassicGroupRecord(group, found[2] or "", members)


def assigned_partitions(assignment: bytes | None) -> dict[str, frozenset[int]]:
    """Return what a leader has given a member (ConsumerProtocolAssignment); its later fields are left unread."""
    if assignment is None or len(assignment) < _NO_ASSIGNMENT:
        return {}
    content = BytesIO(assignment)
    Int16.decode(content)
    topics = Array(("topic", _TEXT), ("partitions", Array(Int32))).decode(content)
    return {topic: frozenset(partitions) for topic, partitions in topics or ()}


def _owned(value: BytesIO) -> dict[bytes, frozenset[int]]:
    *_, owned = Schema(
        *[("version", Int16), ("epoch", Int32), ("previous_epoch", Int32), ("state", Int8)],
        ("owned", CompactArray(("topic_id", Uuid), ("partitions", CompactArray(Int32)), ("tags", TaggedFields))),
    ).decode(value)
    return {topic_id: frozenset(partitions) for topic_id, partitions, _ in owned or ()}
