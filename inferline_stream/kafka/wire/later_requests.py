"""Requests in the versions that aiokafka leaves out, made as aiokafka has the others.

- metadata: from version 10 on, Kafka names topics by an id, too (KIP-516)
- committed offsets: from version 7 on, stable ones can be asked for (KIP-447)

Format: https://kafka.apache.org/protocol.html#The_Messages_Metadata and #The_Messages_OffsetFetch.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.commit import OffsetFetchRequest_v3
from aiokafka.protocol.metadata import MetadataResponse_v5
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


def request_struct(name: str, key: int, version: int, asks: Schema, answers: Schema, *, flexible: bool) -> Any:
    """Return the class of a request, with the class of its answer as `RESPONSE_TYPE`.

    Args:
        name: of the request, as Kafka's documents have it.
        key: Kafka's number for it.
        version: of the request.
        asks: what a client sends.
        answers: what a broker sends back.
        flexible: whether this version's fields may be followed by tags (KIP-482).
    """
    common = {"API_KEY": key, "API_VERSION": version}
    response = type(f"{name}Response_v{version}", (Response,), {**common, "SCHEMA": answers})
    own = {"RESPONSE_TYPE": response, "SCHEMA": asks, "FLEXIBLE_VERSION": flexible}
    return type(f"{name}Request_v{version}", (RequestStruct,), {**common, **own})


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


def _metadata_response(version: int) -> Schema:
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


def _metadata_request(version: int) -> Schema:
    """What a client asks."""
    flexible = version >= 9
    tags = [("tags", TaggedFields)] if flexible else []
    ids = [("topic_id", Uuid)] if version >= 10 else []
    named = CompactArray(*ids, ("topic", CompactString("utf-8")), *tags) if flexible else Array(String("utf-8"))
    asks = ("include_cluster_authorized_operations", "include_topic_authorized_operations")
    operations = [(name, Boolean) for name in asks] if version >= 8 else []
    return Schema(("topics", named), ("allow_auto_topic_creation", Boolean), *operations, *tags)


LATER_METADATA: Mapping[int, Any] = {
    version: request_struct(
        "Metadata", METADATA, version, _metadata_request(version), _metadata_response(version), flexible=version >= 9
    )
    for version in range(6, 11)
}
"""Requests by version, with their answers."""


OFFSET_FETCH = 9

UNSTABLE = 88
"""Error of a partition whose offset a transaction that has not ended yet may change."""


def _offset_fetch_response(version: int) -> Schema:
    """What a broker answers, as of a version from 4 to 7; flexible from 6 on."""
    flexible = version >= 6
    text, array = (CompactString, CompactArray) if flexible else (String, Array)
    tags = [("tags", TaggedFields)] if flexible else []
    epoch = [("leader_epoch", Int32)] if version >= 5 else []
    partition = [("partition", Int32), ("offset", Int64), *epoch, ("metadata", text("utf-8")), ("error_code", Int16)]
    topic = [("topic", text("utf-8")), ("partitions", array(*partition, *tags)), *tags]
    return Schema(("throttle_time_ms", Int32), ("topics", array(*topic)), ("error_code", Int16), *tags)


def _offset_fetch_request(version: int) -> Schema:
    """What a client asks."""
    if version < 6:
        return OffsetFetchRequest_v3.SCHEMA
    tags = ("tags", TaggedFields)
    topics = CompactArray(("topic", CompactString("utf-8")), ("partitions", CompactArray(Int32)), tags)
    stable = [("require_stable", Boolean)] if version >= 7 else []
    return Schema(("consumer_group", CompactString("utf-8")), ("topics", topics), *stable, tags)


LATER_OFFSET_FETCH: Mapping[int, Any] = {
    version: request_struct(
        "OffsetFetch",
        OFFSET_FETCH,
        version,
        _offset_fetch_request(version),
        _offset_fetch_response(version),
        flexible=version >= 6,
    )
    for version in range(4, 8)
}
"""Requests by version, with their answers."""
