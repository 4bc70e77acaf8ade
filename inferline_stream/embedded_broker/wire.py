"""Requests and answers as bytes, through aiokafka's own schemas of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Bytes, Schema, String, TaggedFields

from inferline_stream.kafka.wire.later_requests import UUID_BYTES, Uuid

_HEADER = struct.Struct(">hhih")  # kind, version, correlation id, length of the client id
_ANSWER = struct.Struct(">ii")  # size, correlation id

Fields = dict[str, Any]
"""A request or an answer by the names in aiokafka's schemas, arrays as lists of the same."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a request says about itself."""

    api_key: int
    api_version: int
    correlation_id: int
    client_id: str


def read_header(frame: bytes) -> tuple[Header, BytesIO]:
    """A request's header, and its body still to be read."""
    api_key, version, correlation_id, length = _HEADER.unpack_from(frame)
    end = _HEADER.size + max(length, 0)
    body = BytesIO(frame)
    body.seek(end)
    return Header(api_key, version, correlation_id, frame[_HEADER.size : end].decode()), body


def read_request(request: type[RequestStruct], body: BytesIO) -> Fields:
    """A request's fields by name."""
    if request.FLEXIBLE_VERSION:
        TaggedFields.decode(body)  # they end the header
    fields: Fields = _by_name(request.SCHEMA, request.SCHEMA.decode(body))
    return fields


def write_answer(
    correlation_id: int, response: type[Response], fields: Mapping[str, Any], *, flexible: bool = False
) -> bytes:
    """An answer as bytes. Fields that its version does not have are left out; those not given say nothing."""
    tags = TaggedFields.encode({}) if flexible else b""
    body: bytes = tags + response.SCHEMA.encode(_in_order(response.SCHEMA, fields))
    return _ANSWER.pack(len(body) + 4, correlation_id) + body


def _by_name(kind: Any, value: Any) -> Any:
    """What a schema has read, with positions replaced by names."""
    if isinstance(kind, Schema):
        return {name: _by_name(of, part) for name, of, part in zip(kind.names, kind.fields, value, strict=True)}
    if isinstance(kind, Array) and value is not None:
        return [_by_name(kind.array_of, item) for item in value]
    return value


def _in_order(kind: Any, value: Any) -> Any:
    """The reverse: names replaced by the positions that a schema gives them."""
    if isinstance(kind, Schema):
        given = zip(kind.names, kind.fields, strict=True)
        return [_in_order(of, value[name] if name in value else _nothing(name, of)) for name, of in given]
    if isinstance(kind, Array) and value is not None:
        return [_in_order(kind.array_of, item) for item in value]
    return value


def _nothing(name: str, kind: Any) -> Any:
    """The value of a field that was not given: no error, no delay, an unknown number, nothing in it."""
    if isinstance(kind, Array):
        return []
    if isinstance(kind, String):
        return ""
    if kind is TaggedFields:
        return {}
    return {Bytes: b"", Boolean: False, Uuid: bytes(UUID_BYTES)}.get(
        kind, 0 if name in ("error_code", "throttle_time_ms") else -1
    )
