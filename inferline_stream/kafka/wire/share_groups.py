"""Requests about share groups (KIP-932), which aiokafka leaves out: their members, and what is left to do (KIP-1226).

Format: https://kafka.apache.org/protocol.html#The_Messages_ShareGroupDescribe and
#The_Messages_DescribeShareGroupOffsets.
Both are asked in version 1 alone: Apache Kafka 4.1 describes members, 4.2 and later know a group's lag.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import Request
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from inferline_stream.kafka.wire.later_requests import Uuid, request_struct

SHARE_GROUP_DESCRIBE, DESCRIBE_SHARE_GROUP_OFFSETS = 77, 90
_VERSION = 1

_TEXT = CompactString("utf-8")
_TAGS = ("tags", TaggedFields)
_ERROR = (("error_code", Int16), ("error_message", _TEXT))

_TOPIC_PARTITIONS = CompactArray(("topic_id", Uuid), ("topic", _TEXT), ("partitions", CompactArray(Int32)), _TAGS)
_MEMBERS = CompactArray(
    *(("member_id", _TEXT), ("rack", _TEXT), ("epoch", Int32), ("client_id", _TEXT), ("client_host", _TEXT)),
    ("subscribed", CompactArray(_TEXT)),
    ("assignment", Schema(("topics", _TOPIC_PARTITIONS), _TAGS)),
    _TAGS,
)
DESCRIBE = request_struct(
    "ShareGroupDescribe",
    SHARE_GROUP_DESCRIBE,
    _VERSION,
    Schema(("groups", CompactArray(_TEXT)), ("include_authorized_operations", Boolean), _TAGS),
    Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            CompactArray(
                *(*_ERROR, ("group", _TEXT), ("state", _TEXT), ("epoch", Int32), ("assignment_epoch", Int32)),
                *(("assignor", _TEXT), ("members", _MEMBERS), ("authorized_operations", Int32), _TAGS),
            ),
        ),
        _TAGS,
    ),
    flexible=True,
)
"""Asks for the members of share groups."""

_LAGS = CompactArray(
    *(("partition", Int32), ("start_offset", Int64), ("leader_epoch", Int32), ("lag", Int64), *_ERROR, _TAGS),
)
OFFSETS = request_struct(
    "DescribeShareGroupOffsets",
    DESCRIBE_SHARE_GROUP_OFFSETS,
    _VERSION,
    Schema(
        (
            "groups",
            CompactArray(
                ("group", _TEXT),
                ("topics", CompactArray(("topic", _TEXT), ("partitions", CompactArray(Int32)), _TAGS)),
                _TAGS,
            ),
        ),
        _TAGS,
    ),
    Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            CompactArray(
                ("group", _TEXT),
                ("topics", CompactArray(("topic", _TEXT), ("topic_id", Uuid), ("partitions", _LAGS), _TAGS)),
                *(*_ERROR, _TAGS),
            ),
        ),
        _TAGS,
    ),
    flexible=True,
)
"""Asks for the first offset of each partition that a share group may deliver, and for what it has not finished."""


class _OfShareGroups(Request[Any]):  # type: ignore[misc]  # aiokafka has no types
    """A request in the one version that is asked."""

    API_KEY = SHARE_GROUP_DESCRIBE

    def __init__(self, made: Any) -> None:
        self._made = made
        self.API_KEY = made.API_KEY

    def build(self, request_struct_class: Any) -> Any:
        return self._made

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Any:
        oldest, newest = versions.get(self.API_KEY, (0, -1))
        if not oldest <= _VERSION <= newest:
            raise IncompatibleBrokerVersion("the broker knows nothing of share groups: use Apache Kafka 4.2 or later")
        return self._made


def describe_request(group: str) -> Request[Any]:
    """Return what asks for the members of a group."""
    return _OfShareGroups(DESCRIBE([group], False, {}))


def offsets_request(group: str, topic: str, partitions: Iterable[int]) -> Request[Any]:
    """Return what asks for start offsets and lags of a group."""
    return _OfShareGroups(OFFSETS([(group, [(topic, list(partitions), {})], {})], {}))
