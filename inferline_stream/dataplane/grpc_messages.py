"""Messages of gRPC protocols, declared by the numbers and types of their fields, without generated code."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessages

Fields = tuple[tuple[int, str, str], ...]
"""Number, name and type of each field: a scalar type of proto3 or another message; ``[]`` after it for any number of
values."""

_Field = FieldDescriptorProto


def message_types(package: str, fields: Mapping[str, Fields]) -> dict[str, type[Message]]:
    """Return the classes of a protocol's messages, by name.

    They are in a pool of descriptors of their own: in the default one they would clash with those of a client library
    that the process may have loaded as well.

    Args:
        package: of the protocol.
        fields: of each message. A map is any number of a message with ``key`` 1 and ``value`` 2: the same bytes.
    """

    def field(number: int, name: str, kind: str) -> FieldDescriptorProto:
        kind, _, many = kind.partition(" ")
        label = _Field.LABEL_REPEATED if many else _Field.LABEL_OPTIONAL
        if kind in fields:
            of = f".{package}.{kind}"
            return _Field(number=number, name=name, label=label, type=_Field.TYPE_MESSAGE, type_name=of)
        return _Field(number=number, name=name, label=label, type=_Field.Type.Value(f"TYPE_{kind.upper()}"))

    file = FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, of_message in fields.items():
        file.message_type.append(DescriptorProto(name=name, field=[field(*each) for each in of_message]))
    pool = DescriptorPool()
    pool.Add(file)
    return {name.rpartition(".")[2]: kind for name, kind in GetMessages([file], pool).items()}
