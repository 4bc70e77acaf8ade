"""Codecs of a schema registry: what they read and write is what the formats' own libraries do, behind a schema's id."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fastavro
import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from inferline_stream import InvalidTopology, Pipeline, ServerUnavailable, Stage, Topic, registry_codec
from inferline_stream.dataplane.frames import Done, Failed
from inferline_stream.dataplane.replica.stage_code import StageCode
from inferline_stream.pipeline.isolation import Isolation
from tests.support.confined_code import run
from tests.support.schema_registry import SchemaRegistry, schema_registry


class Order(msgspec.Struct):
    id: int
    total: float
    note: str = ""


AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Order",
    "fields": [{"name": "id", "type": "long"}, {"name": "total", "type": "double"}],
}
NEWER_AVRO = AVRO | {"fields": [*AVRO["fields"], {"name": "note", "type": "string"}]}
JSON = {
    "title": "Order",
    "type": "object",
    "properties": {"id": {"type": "integer"}, "total": {"type": "number", "minimum": 0}, "note": {"type": "string"}},
    "required": ["id"],
}
ORDER = Order(7, 2.5)


@pytest.fixture
def registry() -> Iterator[SchemaRegistry]:
    with schema_registry() as found:
        found.register("others-value", '"string"')  # so that ids and versions differ
        yield found


def avro(schema: dict[str, Any], number: int, order: Order) -> bytes:
    """By fastavro, framed by hand."""
    written = io.BytesIO()
    fastavro.schemaless_writer(written, schema, msgspec.to_builtins(order))
    return struct.pack(">bI", 0, number) + written.getvalue()


def test_avro_is_read_with_the_schema_of_its_id_and_written_with_that_of_the_codec(registry) -> None:
    older, newer = (registry.register("orders-value", json.dumps(each)) for each in (AVRO, NEWER_AVRO))
    codec = registry_codec("avro", registry.url, schema=json.dumps(AVRO), subject="orders-value")
    decode = codec.decoder(Order)
    assert decode(avro(AVRO, older, ORDER)) == ORDER
    assert decode(avro(NEWER_AVRO, newer, Order(8, 1.0, "new"))) == Order(8, 1.0, "new")
    assert [codec.encode(ORDER) for _ in range(3)] == [avro(AVRO, older, ORDER)] * 3
    assert len(registry.asked) == len(set(registry.asked)), "nothing is asked for twice"


def test_json_is_held_against_its_schema(registry) -> None:
    number = registry.register("orders-value", json.dumps(JSON), "JSON")
    codec = registry_codec("json", registry.url, schema=json.dumps(JSON), subject="orders-value")
    framed = struct.pack(">bI", 0, number)
    assert codec.decoder(Order)(framed + b'{"id": 7, "total": 2.5}') == ORDER
    written = codec.encode(ORDER)
    assert (written[:5], json.loads(written[5:])) == (framed, {"id": 7, "total": 2.5, "note": ""})
    with pytest.raises(Exception, match="less than the minimum"):
        codec.encode(Order(1, -1.0))
    with pytest.raises(Exception, match="less than the minimum"):
        codec.decoder(Order)(framed + b'{"id": 7, "total": -2.5}')


def message() -> Any:
    """The class that protoc would make of an order."""
    file = descriptor_pb2.FileDescriptorProto(name="order.proto", package="shop", syntax="proto3")
    order = file.message_type.add(name="Order")
    order.field.add(name="id", number=1, type=3, label=1)
    order.field.add(name="total", number=2, type=1, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Order"))


def test_protobuf_is_the_message_behind_its_place_in_the_schema(registry) -> None:
    kind = message()
    codec = registry_codec("protobuf", registry.url, schema=kind, subject="orders-value", registers=True)
    written = codec.encode(kind(id=7, total=2.5))
    (number,) = registry.subjects["orders-value"]
    assert written == struct.pack(">bI", 0, number) + b"\0" + b"\x08\x07\x11" + struct.pack("<d", 2.5)
    assert codec.decoder(kind)(written) == kind(id=7, total=2.5)


def stage_code(registry: SchemaRegistry) -> tuple[StageCode, int]:
    number = registry.register("orders-value", json.dumps(AVRO))
    codec = registry_codec("avro", registry.url, schema=json.dumps(AVRO), subject="orders-value")

    def double(orders: list[Order]) -> list[Order]:
        return [Order(order.id, 2 * order.total) for order in orders]

    stage = Stage("double", double, hardware=["cpu-1"])
    ends = {"source": Topic("orders", codec=codec), "sink": Topic("doubled", codec=codec)}
    return StageCode(Pipeline("p", slo="1s", stages=[stage], **ends), "double", __file__), number


def test_a_record_that_does_not_decode_fails_alone_with_its_reason(registry) -> None:
    code, number = stage_code(registry)
    good = avro(AVRO, number, ORDER)
    records = [b"", b"\1" + good[1:], good[:9], avro(AVRO, 99, ORDER), avro(AVRO, 1, ORDER), good]
    *failed, done = code.process(code.run, records).outcomes
    assert all(isinstance(each, Failed) for each in failed), failed
    assert "99" in failed[3].message
    assert isinstance(done, Done)
    assert done.value == avro(AVRO, number, Order(7, 5.0))


@pytest.mark.parametrize("status", [503, 429, 401, 403])
def test_events_wait_for_a_registry_that_does_not_answer_and_none_is_blamed(registry, status: int) -> None:
    code, number = stage_code(registry)
    registry.broken, registry.status = True, status
    with pytest.raises(ServerUnavailable, match="it takes nothing now"):
        code.process(code.run, [avro(AVRO, number, ORDER)])
    registry.broken = False
    (done,) = code.process(code.run, [avro(AVRO, number, ORDER)]).outcomes
    assert isinstance(done, Done)
    nobody = registry_codec("avro", "http://127.0.0.1:9", schema=json.dumps(AVRO), subject="s")
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:9 does not answer"):
        nobody.encode(ORDER)


def test_a_sealed_replica_reads_and_writes_schemas_that_it_has_not_seen_before(registry, tmp_path: Path) -> None:
    number = registry.register("orders-value", json.dumps(AVRO))
    code = f"""
        from inferline_stream import registry_codec

        codec = registry_codec("avro", {registry.url!r}, schema={json.dumps(AVRO)!r}, subject="orders-value")
        decode = codec.decoder(dict)
        seal(CONFINEMENT)
        outcome["order"] = decode({avro(AVRO, number, ORDER)!r})
        outcome["written"] = codec.encode(outcome["order"]).hex()
    """
    port = urlsplit(registry.url).port
    assert port is not None
    found = run(tmp_path, code, Isolation(ports=(port,)))
    assert found == {"order": {"id": 7, "total": 2.5}, "written": avro(AVRO, number, ORDER).hex()}


def test_what_a_codec_lacks_is_named() -> None:
    with pytest.raises(InvalidTopology, match="use avro, json or protobuf"):
        registry_codec("xml", "http://localhost:1")  # type: ignore[arg-type]
    with pytest.raises(InvalidTopology, match="message class"):
        registry_codec("protobuf", "http://localhost:1")
    with pytest.raises(TypeError, match="only reads"):
        registry_codec("avro", "http://localhost:1").encode(ORDER)
