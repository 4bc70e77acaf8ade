"""Codecs of a schema registry: Avro, JSON Schema and Protobuf, each value behind the id of its schema.

They are Confluent's serializers (the extra ``registry``). A replica asks the registry once for each schema.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

from inferline_stream.errors import InvalidTopology, ServerUnavailable
from inferline_stream.pipeline.topology import Codec

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient

_AVRO_TYPES = (bytes, datetime.datetime, datetime.date, datetime.time, decimal.Decimal, uuid.UUID)
"""What fastavro takes as it is."""

_NOT_THE_RECORDS_FAULT = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS)
_ANSWER_S = 5.0
_WAIT_S = 1.0


def registry_codec(
    format: Literal["avro", "json", "protobuf"],
    url: str,
    *,
    schema: Any = None,
    subject: str = "",
    registers: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Codec:
    """Return the codec of topics whose values a schema registry describes.

    A value is a zero byte, the id of its schema as four bytes, and the encoded value. It is read with the schema of its
    id. Where there is no such schema, or it does not fit, the record becomes a dead letter. Where the registry does not
    answer, or refuses our credentials, its events wait. A sandboxed stage needs the registry's port::

        orders = registry_codec("avro", "http://registry:8081", schema=SCHEMA, subject="scored-value")
        first = Stage("score", Score, isolation=Isolation(ports=[8081]))
        pipeline = Pipeline("orders", source=Topic("orders", codec=orders), sink=Topic("scored", codec=orders), ...)

    Args:
        format: ``"avro"``, ``"json"`` for JSON Schema, or ``"protobuf"``.
        url: of the registry.
        schema: of the results that are written, as text; of Protobuf the message class, which reading needs too. Stages
            take and return messages of it then.
        subject: under which the registry has that schema, by custom the topic's name and ``-value``.
        registers: register the schema where the registry lacks it; otherwise results fail without it.
        options: of confluent-kafka's ``SchemaRegistryClient``, such as ``basic.auth.user.info``.

    Raises:
        InvalidTopology: confluent-kafka is not installed, or the format is none of these, or lacks its message class.
    """
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
        from confluent_kafka.serialization import MessageField, SerializationContext
    except ImportError as error:
        raise InvalidTopology(f"registry_codec needs {error.name}: pip install 'inferline-stream[registry]'") from error
    if format not in ("avro", "json", "protobuf"):
        raise InvalidTopology(f"registry_codec({format!r}): use avro, json or protobuf")
    if format == "protobuf" and schema is None:
        raise InvalidTopology("registry_codec('protobuf'): give the message class, schema=Order")
    client = SchemaRegistryClient({"url": url, "timeout": _ANSWER_S, "max.retries": 0, **(options or {})})
    _know_host(client, urlsplit(url).hostname or "")
    conf = {"auto.register.schemas": registers, "subject.name.strategy": lambda *_: subject}
    serialize, deserialize = _serializers(format, client, schema, conf)
    context = SerializationContext(subject, MessageField.VALUE)

    def encode(value: Any) -> bytes:
        if serialize is None:
            raise TypeError(f"the codec of {url} only reads: give registry_codec a schema and its subject")
        if format != "protobuf":
            value = msgspec.to_builtins(value, builtin_types=_AVRO_TYPES if format == "avro" else ())
        with _answering(url):
            return bytes(serialize(value, context))

    def decoder(type_: Any) -> Callable[[bytes], Any]:
        def decode(data: bytes) -> Any:
            with _answering(url):
                found = deserialize(bytes(data), context)
            return found if format == "protobuf" else msgspec.convert(found, type_)

        return decode

    return Codec(format, encode, decoder)


def _serializers(format: str, client: SchemaRegistryClient, schema: Any, conf: dict[str, Any]) -> tuple[Any, Any]:
    """Confluent's serializer, None without a schema, and deserializer. All that they import is imported here."""
    if format == "avro":
        from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer

        return schema and AvroSerializer(client, schema, conf=conf), AvroDeserializer(client)
    if format == "json":
        from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer

        read_json = JSONDeserializer(None, schema_registry_client=client)
        return schema and JSONSerializer(schema, client, conf=conf), read_json
    from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer

    conf["use.deprecated.format"] = False
    read = {"use.deprecated.format": False}
    return ProtobufSerializer(schema, client, conf), ProtobufDeserializer(schema, read, client)


@contextlib.contextmanager
def _answering(url: str) -> Iterator[None]:
    """Say that a registry does not answer, or not this client; what else it answers is the record's own affair.

    Raises:
        ServerUnavailable: the batch is to run again later.
    """
    import httpx2
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    try:
        yield
    except httpx2.TransportError as error:
        raise ServerUnavailable(f"schema registry {url} does not answer: {error}", _WAIT_S) from error
    except SchemaRegistryError as error:
        if error.http_status_code < 500 and error.http_status_code not in _NOT_THE_RECORDS_FAULT:
            raise
        raise ServerUnavailable(f"schema registry {url}: {error}", _WAIT_S) from error


def _know_host(client: SchemaRegistryClient, host: str) -> None:
    """Let a client connect to the address that its host has now, where a sealed process cannot look it up later."""
    import httpcore2

    known = ""
    with contextlib.suppress(OSError):
        known = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])

    class KnownHost(httpcore2.SyncBackend):
        def connect_tcp(self, host: str, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
            try:
                return super().connect_tcp(host, *args, **kwargs)
            except httpcore2.ConnectError:
                if not known:
                    raise
                return super().connect_tcp(known, *args, **kwargs)

    # httpx2 has no option for the first, confluent-kafka none for the second. Schemas are asked for once.
    pool = client._rest_client.session._transport._pool  # type: ignore[attr-defined]
    pool._network_backend, pool._max_keepalive_connections = KnownHost(), 0
