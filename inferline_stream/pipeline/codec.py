"""The seam for formats: how the events of a source or sink topic become bytes and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Codec:
    """A format of one's own, given as ``Topic("in", codec=...)`` beside ``"json"``, ``"msgpack"`` and ``"raw"``.

    Each replica builds it with its topology, so a client of a schema registry belongs in here. Confluent's wire format,
    for example, which puts the number of a schema before each value::

        registry = SchemaRegistryClient({"url": "http://registry:8081"})
        serialize = AvroSerializer(registry, SCHEMA)
        deserialize = AvroDeserializer(registry)

        avro = Codec(
            "avro",
            encode=lambda value: serialize(msgspec.to_builtins(value), None),
            decoder=lambda type_: lambda data: msgspec.convert(deserialize(data, None), type_),
        )
        pipeline = Pipeline("orders", source=Topic("orders", codec=avro), ...)

    Args:
        name: for people, and in the version of the topology: another name is another format.
        encode: a result to bytes; raises `ValueError` or `TypeError` for what it cannot represent.
        decoder: given the type that the stage takes, a function from bytes to a value of it; what that raises makes the
            record a dead letter.
    """

    name: str
    encode: Callable[[Any], bytes]
    decoder: Callable[[Any], Callable[[bytes], Any]]
