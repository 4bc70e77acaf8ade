"""Metadata requests in the versions that aiokafka leaves out: from version 10 on, Kafka names topics by an id, too.

Format: https://kafka.apache.org/protocol.html#The_Messages_Metadata, KIP-516 for the ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.metadata import MetadataResponse_v5
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)

from inferline_stream.kafka.wire.request_struct import request_struct

METADATA = 3

UUID_BYTES = 16

UNKNOWN_OPERATIONS = -(2**31)
"""Says that nobody asked which operations are allowed."""


class Uuid(AbstractType[bytes]):  # type: ignore[misc]  # aiokafka has no types
    """16 bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        """Return the bytes as they are."""
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        """Read 16 bytes."""
        value = data.read(UUID_BYTES)
        if len(value) != UUID_BYTES:
            raise ValueError("a topic id is cut off")
        return value


def _response(version: int) -> Schema:
    """What a broker answers, as of a version from 6 to 10; flexible from 9 on."""
    if version == 6:
        return MetadataResponse_v5.SCHEMA
    flexible = version >= 9
    text, array = (CompactString, CompactArray) if flexible else (String, Array)
    tags = [("tags", TaggedFields)] if flexible else []
    operations = [("topic_authorized_operations", Int32)] if version >= 8 else []
    ids = [("topic_id", Uuid)] if version >= 10 else []
    partition = [
        ("error_code", Int16),
        ("partition", Int32),
        ("leader", Int32),
        ("leader_epoch", Int32),
        ("replicas", array(Int32)),
        ("isr", array(Int32)),
        ("offline_replicas", array(Int32)),
        *tags,
    ]
    topic = [
        ("error_code", Int16),
        ("topic", text("utf-8")),
        *ids,
        ("is_internal", Boolean),
        ("partitions", array(*partition)),
        *operations,
        *tags,
    ]
    broker = [("node_id", Int32), ("host", text("utf-8")), ("port", Int32), ("rack", text("utf-8")), *tags]
    return Schema(
        ("throttle_time_ms", Int32),
        ("brokers", array(*broker)),
        ("cluster_id", text("utf-8")),
        ("controller_id", Int32),
        ("topics", array(*topic)),
        *([("cluster_authorized_operations", Int32)] if version >= 8 else []),
        *tags,
    )


def _request(version: int) -> Schema:
    """What a client asks."""
    flexible = version >= 9
    tags = [("tags", TaggedFields)] if flexible else []
    ids = [("topic_id", Uuid)] if version >= 10 else []
    named = CompactArray(*ids, ("topic", CompactString("utf-8")), *tags) if flexible else Array(String("utf-8"))
    asks = ("include_cluster_authorized_operations", "include_topic_authorized_operations")
    operations = [(name, Boolean) for name in asks] if version >= 8 else []
    return Schema(("topics", named), ("allow_auto_topic_creation", Boolean), *operations, *tags)


LATER_METADATA: Mapping[int, Any] = {
    version: request_struct("Metadata", METADATA, version, _request(version), _response(version), flexible=version >= 9)
    for version in range(6, 11)
}
"""Requests by version, with their answers."""
