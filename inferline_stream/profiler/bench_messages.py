"""What is said between the profiler and its dispatchers: MessagePack, through topics of their own.

A message longer than a record may be comes in pieces. Each record's key is ``dispatcher/message/total/left``: a random
name for the message, its bytes, and those that are left from this piece on. No two records share a key, so that a
compacted topic keeps them all.
"""

from __future__ import annotations

import secrets
from typing import Literal

import msgspec

from inferline_stream.dataplane.frames import StageInput

_PIECE_BYTES = 1 << 19
"""Below what any Kafka takes as one record."""


NO_ANSWER = "it did not answer as a replica does"
"""Why a replica is ended that sends what is no frame."""


class SampleInputs(msgspec.Struct, frozen=True, tag=True):
    """Profiler to dispatcher: the inputs that later orders are about."""

    inputs: list[StageInput]


class RunEvents(msgspec.Struct, frozen=True, tag=True):
    """Run these events once; answered by `Outcomes`."""

    inputs: list[StageInput]


class Measure(msgspec.Struct, frozen=True, tag=True):
    """Time batches of one size; answered by `Times`.

    Args:
        batch_size: events per batch.
        seconds: time to spend, the warming batch left out.
        fewest: batches to run in any case.
        most: batches that are enough.
        concurrency: batches that the replica has in hand all the time.
        sleeps_s: see `frames.Profiling`.
        version: see `frames.Batch`.
        events: positions in the newest `SampleInputs`; taken in turn, again from the start when they end.
        beside: copies of the replica that run the same batches meanwhile.
        asleep: whether the server that the replica asks sleeps before each batch.
    """

    batch_size: int
    seconds: float
    fewest: int
    most: int
    concurrency: int = 1
    sleeps_s: float = 0.0
    version: int = 0
    events: list[int] = []
    beside: list[str] = []
    asleep: bool = False


class Weigh(msgspec.Struct, frozen=True, tag=True):
    """Say of each event what the topology says of it; answered by `Outcomes`.

    Args:
        what: see `frames.Profiling`.
        events: positions in the newest `SampleInputs`.
    """

    what: Literal["cost", "emulated"]
    events: list[int] = []


Work = RunEvents | Measure | Weigh


class Order(msgspec.Struct, frozen=True, tag=True):
    """Profiler to dispatcher: have a replica do something; answered by `Answered`.

    Args:
        replica: its name.
        work: what.
        number: of the order; only the newest one counts.
    """

    replica: str
    work: Work
    number: int = 0


class Standing(msgspec.Struct, frozen=True, tag=True):
    """Dispatcher to profiler, at each change and again and again while it lives.

    Args:
        replicas: that are ready, with the hardware kind that each is on.
        incarnation: of the dispatcher: one that is started again counts on.
    """

    replicas: dict[str, str] = {}
    incarnation: int = 1


class EventOutcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of one event: its encoded result and the edges that it takes, or why it failed.

    ``many`` are the results of an event of which the stage gives many, or none, each with its edges, in place of one.
    """

    value: bytes
    edges: int = 0
    error: str = ""
    many: tuple[tuple[bytes, int], ...] | None = None


class Outcomes(msgspec.Struct, frozen=True, tag=True):
    """In the order of the inputs."""

    outcomes: list[EventOutcome]


class Times(msgspec.Struct, frozen=True, tag=True):
    """How long each batch took, in seconds, in order.

    Args:
        took_s: from handing a batch over to having the results.
        network_s: the part of it in which the replica did not have the batch: on another host, the way there and back.
    """

    took_s: list[float]
    network_s: list[float]


class Failure(msgspec.Struct, frozen=True, tag=True):
    """It could not be done.

    Args:
        message: why, without the stage's name.
        memory: whether for lack of memory.
        unavailable: whether because what the stage asks does not answer, or takes no more at once.
        ended: name of the replica that has ended, of which nothing else is known here; empty if none has.
    """

    message: str
    memory: bool = False
    unavailable: bool = False
    ended: str = ""


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


ToBench = SampleInputs | Order
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
