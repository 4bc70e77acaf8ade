"""Requests for committed offsets in the versions that aiokafka leaves out: from version 7 on, for stable ones.

Format: https://kafka.apache.org/protocol.html#The_Messages_OffsetFetch, KIP-447 for what is stable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiokafka.protocol.commit import OffsetFetchRequest_v3
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

from inferline_stream.kafka.wire.request_struct import request_struct

OFFSET_FETCH = 9

UNSTABLE = 88
"""Error of a partition whose offset a transaction that has not ended yet may change."""


def _response(version: int) -> Schema:
    """What a broker answers, as of a version from 4 to 7; flexible from 6 on."""
    flexible = version >= 6
    text, array = (CompactString, CompactArray) if flexible else (String, Array)
    tags = [("tags", TaggedFields)] if flexible else []
    epoch = [("leader_epoch", Int32)] if version >= 5 else []
    partition = [("partition", Int32), ("offset", Int64), *epoch, ("metadata", text("utf-8")), ("error_code", Int16)]
    topic = [("topic", text("utf-8")), ("partitions", array(*partition, *tags)), *tags]
    return Schema(("throttle_time_ms", Int32), ("topics", array(*topic)), ("error_code", Int16), *tags)


def _request(version: int) -> Schema:
    """What a client asks."""
    if version < 6:
        return OffsetFetchRequest_v3.SCHEMA
    tags = ("tags", TaggedFields)
    topics = CompactArray(("topic", CompactString("utf-8")), ("partitions", CompactArray(Int32)), tags)
    stable = [("require_stable", Boolean)] if version >= 7 else []
    return Schema(("consumer_group", CompactString("utf-8")), ("topics", topics), *stable, tags)


LATER_OFFSET_FETCH: Mapping[int, Any] = {
    version: request_struct(
        "OffsetFetch", OFFSET_FETCH, version, _request(version), _response(version), flexible=version >= 6
    )
    for version in range(4, 8)
}
"""Requests by version, with their answers."""
