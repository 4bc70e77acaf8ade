"""Frames between a dispatcher and its replicas: MessagePack after a header of format and length.

Every frame names the epoch, the dispatcher session that it belongs to, so that a result of an earlier session is
recognised and dropped. A frame of another format is refused. Fields that a newer release has added at a frame's end
are ignored by an older one, and have their defaults where they are missing.

A replica's frame is anybody's: its texts are cut, and a dispatcher holds a long one only as the answer to a batch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec

from inferline_stream.errors import InferlineError
from inferline_stream.isolation.enforced import Enforced
from inferline_stream.pipeline.topology import MOST_RESULTS

FORMAT = 1
"""Version of the frames' layout."""

MAX_FRAME_BYTES = 1 << 30
"""A longer frame is refused: its length field is damaged."""

SHORT_BYTES = 64 * 1024
"""A frame of a replica that is longer can only be the `Results` of a batch."""

_FAILED_BYTES = 32 * 1024
"""More than a `Failed` and its calls have, whose texts are cut."""

_LARGEST_BATCH = 1 << 17
"""Events: more than a dispatcher holds at once."""

_TYPE_CHARS, _MESSAGE_CHARS, _TRACEBACK_CHARS, _WHERE_CHARS, _REASON_CHARS = 200, 1000, 4000, 500, 1000

_ISOLATION_BYTES = 4 * 1024
"""Each report has one for every replica."""

_HEADER = struct.Struct("<BxxxI")
HEADER_BYTES = _HEADER.size

StageInput = bytes | dict[str, bytes] | list[bytes | None]
"""One event as it stands in the stage's topic; at a join by parent, those that were skipped left out. Where it is
gathered, its parts in order, None for one that died."""

MANY_BYTES = 4
"""The results of one event may have so many times the bytes of the largest one that is taken."""


class FrameError(InferlineError):
    """The other side speaks another format, or what came is no frame: the connection is of no more use."""


class Profiling(msgspec.Struct, frozen=True, array_like=True):
    """What the profiler asks about a batch."""

    sleeps_s: float = 0.0
    """Run it as on emulated hardware on which an event takes so long."""
    weighs: Literal["", "cost", "emulated"] = ""
    """Run none of it: the result of an event is the topology's word for its cost, or its weight on emulated hardware,
    in JSON."""


class Done(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag=0, gc=False):
    """An event's encoded result, and the edges that it takes."""

    value: bytes
    edges: int
    """Bit i stands for the stage's i-th edge, in the order of `Routes.children`."""
    key: bytes | None = None
    """Of its record; None for the event's own."""
    headers: tuple[tuple[str, bytes], ...] = ()
    """Of its record, beside the event's own."""


class Many(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag=2, gc=False):
    """The results of an event of which the stage gives many, or none where it filters the event."""

    results: Annotated[tuple[Done, ...], msgspec.Meta(max_length=MOST_RESULTS)] = ()


class Failed(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag=1):
    """An event that could not be decoded, or that the stage, a condition or the encoder raised on."""

    type: str
    message: str
    traceback: str
    where: str = ""
    """``file:line in function`` of the user's own innermost frame."""

    def __post_init__(self) -> None:
        _cut(self, "type", _TYPE_CHARS)
        _cut(self, "message", _MESSAGE_CHARS)
        if len(self.traceback) > _TRACEBACK_CHARS:
            msgspec.structs.force_setattr(self, "traceback", self.traceback[-_TRACEBACK_CHARS:])
        _cut(self, "where", _WHERE_CHARS)

    @property
    def summary(self) -> str:
        """The user's frame, then what was raised there."""
        raised = f"{self.type}: {self.message}"
        return f"{self.where}: {raised}" if self.where else raised


Answer = Done | Many | Failed
"""What a replica makes of an event."""


class Batch(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Dispatcher to replica: run these events and answer with `Results`, `Broken` or `Returned`."""

    epoch: int
    batch: int
    """Number within the epoch, from 1."""
    inputs: list[StageInput]
    result_bytes: int = MAX_FRAME_BYTES
    """Largest result that is taken."""
    profiling: Profiling | None = None
    version: int = 0
    """Of the stage that runs them: `fallback.MAIN` or `FALLBACK`."""


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Dispatcher to replica: there is no more work; end with exit code 0."""


class Sleep(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Dispatcher to replica: nothing has come for as long as the stage sleeps after; its server may sleep, too."""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Replica to dispatcher, first on each connection: the stage is built, the process is sealed, batches may come."""

    replica: str
    start_up_s: float
    """From the process's first instruction to being ready."""
    isolation: Enforced | None
    fallback: bool = False
    """Whether its version of the stage has a fallback."""

    def __post_init__(self) -> None:
        if self.isolation is not None and len(msgspec.json.encode(self.isolation)) > _ISOLATION_BYTES:
            raise ValueError(f"what restricts a replica takes no more than {_ISOLATION_BYTES} bytes to say")


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One call of the stage: a batch on which it raises is halved, which takes several."""

    batch_size: int
    service_s: float


class Results(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Replica to dispatcher: an outcome per event of a batch, in its order."""

    epoch: int
    batch: int
    outcomes: Annotated[list[Answer], msgspec.Meta(max_length=_LARGEST_BATCH)]
    calls: Annotated[list[Call], msgspec.Meta(max_length=2 * _LARGEST_BATCH)]
    busy_s: float
    """From having the batch to having every result encoded."""
    too_large: int = 0
    """Smallest part of the batch for which the replica's device had no memory; 0 if it had for all."""


class Broken(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Replica to dispatcher: the stage broke its contract on a batch, and the replica ends after this frame."""

    epoch: int
    batch: int
    reason: str
    memory: bool = False
    """Whether memory ran out: smaller batches may pass."""
    device: bool = False
    """Whether that was the memory of its device, on one event: whatever else holds the memory is to blame."""

    def __post_init__(self) -> None:
        _cut(self, "reason", _REASON_CHARS)


class Returned(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Replica to dispatcher: the server that it asks has not taken a batch."""

    epoch: int
    batch: int
    reason: str
    wait_s: float = 0.0
    """How long the server says to wait."""
    busy: bool = False
    """Whether the server is away or busy, so that it would not have taken any other batch either."""

    def __post_init__(self) -> None:
        _cut(self, "reason", _REASON_CHARS)


ToReplica = Batch | Leave | Sleep
ToDispatcher = Ready | Results | Broken | Returned

_encoder = msgspec.msgpack.Encoder()
_decode_to_replica = msgspec.msgpack.Decoder(ToReplica).decode
_decode_to_dispatcher = msgspec.msgpack.Decoder(ToDispatcher).decode


def answer_bytes(events: int, result_bytes: int, *, many: bool = False) -> int:
    """Return the longest frame that the results of a batch may make.

    Args:
        events: of the batch.
        result_bytes: largest result that is taken.
        many: whether an event may have many results.
    """
    return SHORT_BYTES + events * (result_bytes * (MANY_BYTES if many else 1) + _FAILED_BYTES)


def _cut(frame: Failed | Broken | Returned, name: str, chars: int) -> None:
    """Keep the beginning of a text, which may be of any length: letters, reports and datagrams hold it."""
    text: str = getattr(frame, name)
    if len(text) > chars:
        msgspec.structs.force_setattr(frame, name, text[:chars])


def encode_frame(frame: ToReplica | ToDispatcher) -> bytearray:
    """A frame with its header, ready to be sent."""
    data = bytearray(HEADER_BYTES)
    _encoder.encode_into(frame, data, HEADER_BYTES)
    _HEADER.pack_into(data, 0, FORMAT, len(data) - HEADER_BYTES)
    return data


Answerable = Callable[[int, int], int | None]
"""Gives the longest frame that may answer a batch, by epoch and number; None for a batch that nobody waits for."""


class FrameBuffer:
    """Takes bytes as they come and gives whole frames.

    Args:
        decode: of the bodies; see `to_replica` and `to_dispatcher`.
        answerable: asked about long frames before they are whole; without it, all are taken.
    """

    def __init__(self, decode: Any, answerable: Answerable | None = None) -> None:
        self._decode = decode
        self._answerable = answerable
        self._data = bytearray()
        self._unwanted_bytes = 0
        """That are still to come of a frame that nobody waits for."""

    def feed(self, data: bytes | memoryview) -> Iterator[Any]:
        """Yield every frame that is whole now.

        Raises:
            FrameError: the bytes are no frames of this format, or a frame is longer than it may be.
        """
        self._data += data
        at, size = 0, len(self._data)
        if self._unwanted_bytes:
            at = min(self._unwanted_bytes, size)
            self._unwanted_bytes -= at
        try:
            while size - at >= HEADER_BYTES:
                version, length = _HEADER.unpack_from(self._data, at)
                if version != FORMAT or length > MAX_FRAME_BYTES:
                    raise FrameError(f"a frame has format {version} and {length} bytes; this release reads {FORMAT}")
                end = at + HEADER_BYTES + length
                if length > SHORT_BYTES and self._answerable is not None:
                    if size - at < HEADER_BYTES + _ABOUT_BYTES:
                        break
                    if not self._is_wanted(at + HEADER_BYTES, length, self._answerable):
                        at, self._unwanted_bytes = min(end, size), max(0, end - size)
                        continue
                if end > size:
                    break
                with memoryview(self._data) as whole:
                    try:
                        frame = self._decode(whole[at + HEADER_BYTES : end])
                    except msgspec.MsgspecError as error:
                        raise FrameError(f"a frame cannot be read: {str(error)[:_MESSAGE_CHARS]}") from None
                at = end
                yield frame
        finally:
            del self._data[:at]

    def _is_wanted(self, at: int, length: int, answerable: Answerable) -> bool:
        """Whether a long frame answers a batch that somebody waits for."""
        epoch, batch = _answered(bytes(self._data[at : at + _ABOUT_BYTES]))
        most_bytes = answerable(epoch, batch)
        if most_bytes is not None and length > most_bytes:
            raise FrameError(f"a frame about batch {batch} has {length} bytes; {most_bytes} are taken")
        return most_bytes is not None


def to_replica() -> FrameBuffer:
    """A buffer for what a replica receives."""
    return FrameBuffer(_decode_to_replica)


def to_dispatcher(answerable: Answerable | None = None) -> FrameBuffer:
    """A buffer for what a dispatcher receives."""
    return FrameBuffer(_decode_to_dispatcher, answerable)


_ABOUT_BYTES = 24
"""More than the beginning of a frame takes up to the number of its batch, in MessagePack."""

_INTEGER_BYTES = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}


def _answered(begins: bytes) -> tuple[int, int]:
    """Return epoch and number of the batch that `Results` are about, from the beginning of their body.

    Raises:
        FrameError: it is another frame, or none.
    """
    at = {0xDC: 3, 0xDD: 5}.get(begins[0], 1)
    if begins[at] != Results.__struct_config__.tag:
        raise FrameError(f"a frame other than results has more than {SHORT_BYTES} bytes")
    numbers = []
    at += 1
    for _ in range(2):
        size = _INTEGER_BYTES.get(begins[at], 0)
        if not size and begins[at] > 0x7F:
            raise FrameError("results are about no batch")
        numbers.append(int.from_bytes(begins[at + 1 : at + 1 + size]) if size else begins[at])
        at += 1 + size
    return numbers[0], numbers[1]
