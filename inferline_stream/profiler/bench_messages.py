"""What is said between the profiler and its dispatcher in a cluster: MessagePack, through topics of their own.

A message longer than a record may be comes in pieces. Each record's key is ``dispatcher/message/total/left``: a random
name for the message, its bytes, and those that are left from this piece on. No two records share a key, so that a
compacted topic keeps them all.
"""

from __future__ import annotations

import secrets

import msgspec

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.profiler.worker_messages import Failure, Measure, Outcomes, Times

_PIECE_BYTES = 1 << 19
"""Below what any Kafka takes as one record."""


class SampleInputs(msgspec.Struct, frozen=True, tag=True):
    """Profiler to dispatcher: the inputs that later orders are about."""

    inputs: list[StageInput]


class Order(msgspec.Struct, frozen=True, tag=True):
    """Profiler to dispatcher: time batches; answered by `Answered`.

    Args:
        measure: without its inputs.
        events: positions of those in the newest `SampleInputs`.
        number: of the order; only the newest one counts.
    """

    measure: Measure
    events: list[int]
    number: int = 0


class RunEvents(msgspec.Struct, frozen=True, tag=True):
    """Profiler to dispatcher: run these events once; answered by `Answered`.

    Args:
        inputs: the events.
        number: of the order, see `Order`.
    """

    inputs: list[StageInput]
    number: int = 0


class Standing(msgspec.Struct, frozen=True, tag=True):
    """Dispatcher to profiler, again and again while it lives.

    Args:
        replica: that is ready; empty for none.
        hardware: the kind that it is on.
        incarnation: of the dispatcher: one that is started again counts on.
    """

    replica: str = ""
    hardware: str = ""
    incarnation: int = 1


class NotReady(msgspec.Struct, frozen=True, tag=True):
    """No replica could be given the order; it may be given again.

    Args:
        why: in words.
    """

    why: str = "no replica was ready for it"


BenchAnswer = Times | Outcomes | Failure | NotReady


class Answered(msgspec.Struct, frozen=True, tag=True):
    """Dispatcher to profiler: what came of an order."""

    number: int
    answer: BenchAnswer


class Unreadable(msgspec.Struct, frozen=True, tag=True):
    """Dispatcher to profiler: what came is no message of its release.

    Args:
        why: in words, with what was read.
    """

    why: str


ToBench = SampleInputs | Order | RunEvents
FromBench = Standing | Answered | Unreadable

_encode = msgspec.msgpack.Encoder().encode
decode_to_bench = msgspec.msgpack.Decoder(ToBench).decode
decode_from_bench = msgspec.msgpack.Decoder(FromBench).decode


def pieces(dispatcher: str, message: ToBench | FromBench) -> list[tuple[bytes, bytes]]:
    """Return keys and values of the records that make a message, in their order."""
    data, name = _encode(message), secrets.token_hex(4)
    return [
        (f"{dispatcher}/{name}/{len(data)}/{len(data) - at}".encode(), data[at : at + _PIECE_BYTES])
        for at in range(0, len(data), _PIECE_BYTES)
    ]


class Assembler:
    """Puts the pieces of one dispatcher's messages together again.

    A message that lacks a piece is dropped, as one whose sender died on the way.
    """

    def __init__(self) -> None:
        self._name = b""
        self._data = bytearray()

    def add(self, key: bytes, value: bytes) -> bytes | None:
        """Return the message that a record completes; None while there is more to come."""
        _, name, total, left = key.rsplit(b"/", 3)
        if total == left:
            self._name, self._data = name, bytearray()
        if name != self._name or len(self._data) + int(left) != int(total):
            return None
        self._data += value
        return bytes(self._data) if len(self._data) == int(total) else None


def dispatcher_of(key: bytes | None) -> str:
    """Return the dispatcher that a record's key names; empty if it is of no message."""
    dispatcher, *rest = (key or b"").decode(errors="replace").rsplit("/", 3)
    return dispatcher if len(rest) == 3 else ""
