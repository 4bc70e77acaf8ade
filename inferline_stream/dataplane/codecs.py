"""How values become bytes and back: one seam for source, sink and the topics between stages.

Another format (Avro with a schema registry, say) is one more entry in `CODECS`; neither the worker nor the loop
that moves records knows which one it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from inferline_stream.errors import InvalidTopology

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class Codec:
    """A format: an encoder, and a decoder for each type of value.

    Both raise `ValueError` or `TypeError` for what they cannot represent.
    """

    encode: Encode
    decoder: Callable[[Any], Decode]


def _builtin(value: Any) -> Any:
    """NumPy's scalars and arrays as numbers and lists: models return them without meaning to."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"results of type {type(value).__qualname__} cannot be encoded; return a msgspec Struct or numbers")


def _encode_raw(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"codec raw carries bytes, not {type(value).__qualname__}")


def _decode_raw(data: bytes) -> Any:
    return data


def _raw_decoder(type_: Any) -> Decode:
    return _decode_raw


def _json_decoder(type_: Any) -> Decode:
    return msgspec.json.Decoder(type_).decode


def _msgpack_decoder(type_: Any) -> Decode:
    return msgspec.msgpack.Decoder(type_).decode


CODECS: Mapping[str, Codec] = {
    "json": Codec(msgspec.json.Encoder(enc_hook=_builtin).encode, _json_decoder),
    "msgpack": Codec(msgspec.msgpack.Encoder(enc_hook=_builtin).encode, _msgpack_decoder),
    "raw": Codec(_encode_raw, _raw_decoder),
}


def codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        InvalidTopology: there is none.
    """
    try:
        return CODECS[name]
    except KeyError:
        raise InvalidTopology(f"codec {name!r} is unknown; use one of {', '.join(CODECS)}") from None
