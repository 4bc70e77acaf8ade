"""How values become bytes and back: one seam for source, sink and the topics between stages.

Neither the worker nor the loop that moves records knows which format it uses; one's own is a `pipeline.topology.Codec`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.topology import Codec

Decode = Callable[[bytes], Any]


def _builtin(value: Any) -> Any:
    """NumPy's scalars and arrays as numbers and lists: models return them without meaning to."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"results of type {type(value).__qualname__} cannot be encoded; return a msgspec Struct or numbers")


def _encode_raw(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"codec raw carries bytes, not {type(value).__qualname__}")


CODECS: Mapping[str, Codec] = {
    "json": Codec(
        "json", msgspec.json.Encoder(enc_hook=_builtin).encode, lambda type_: msgspec.json.Decoder(type_).decode
    ),
    "msgpack": Codec(
        "msgpack",
        msgspec.msgpack.Encoder(enc_hook=_builtin).encode,
        lambda type_: msgspec.msgpack.Decoder(type_).decode,
    ),
    "raw": Codec("raw", _encode_raw, lambda type_: bytes),
}


def codec(name: str | Codec) -> Codec:
    """The codec of that name, or the one that a topology brings itself.

    Raises:
        InvalidTopology: there is none.
    """
    if isinstance(name, Codec):
        return name
    try:
        return CODECS[name]
    except KeyError:
        raise InvalidTopology(f"codec {name!r} is unknown; use one of {', '.join(CODECS)}") from None
