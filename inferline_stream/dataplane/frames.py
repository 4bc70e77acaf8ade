"""Frames between a dispatcher and its replicas: MessagePack after a header of format and length.

Every frame names the epoch, the dispatcher session that it belongs to, so that a result of an earlier session is
recognised and dropped. A frame of another format is refused. Fields that a newer release has added at a frame's end
are ignored by an older one, and have their defaults where they are missing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from inferline_stream.errors import InferlineError
from inferline_stream.isolation.enforced import Enforced

FORMAT = 1
"""Version of the frames' layout."""

MAX_FRAME_BYTES = 1 << 30
"""A longer frame is refused: its length field is damaged."""

_HEADER = struct.Struct("<BxxxI")
HEADER_BYTES = _HEADER.size

StageInput = bytes | dict[str, bytes]
"""One event as it stands in the stage's topic; at a join by parent, those that were skipped left out."""


class FrameError(InferlineError):
    """The other side speaks another format, or what came is no frame: the connection is of no more use."""


class Batch(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Dispatcher to replica: run these events and answer with `Results`, `Broken` or `Returned`."""

    epoch: int
    batch: int
    """Number within the epoch, from 1."""
    inputs: list[StageInput]


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Dispatcher to replica: there is no more work; end with exit code 0."""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Replica to dispatcher, first on each connection: the stage is built, the process is sealed, batches may come."""

    replica: str
    start_up_s: float
    """From the process's first instruction to being ready."""
    isolation: Enforced | None


class Done(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag=0, gc=False):
    """An event's encoded result, and the edges that it takes."""

    value: bytes
    edges: int
    """Bit i stands for the stage's i-th edge, in the order of `Routes.children`."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag=1):
    """An event that could not be decoded, or that the stage, a condition or the encoder raised on."""

    type: str
    message: str
    traceback: str
    where: str = ""
    """``file:line in function`` of the user's own innermost frame."""

    @property
    def summary(self) -> str:
        """The user's frame, then what was raised there."""
        raised = f"{self.type}: {self.message}"
        return f"{self.where}: {raised}" if self.where else raised


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One call of the stage: a batch on which it raises is halved, which takes several."""

    batch_size: int
    service_s: float


class Results(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Replica to dispatcher: an outcome per event of a batch, in its order."""

    epoch: int
    batch: int
    outcomes: list[Done | Failed]
    calls: list[Call]
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


class Returned(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Replica to dispatcher: the server that it asks has not taken a batch, through no fault of its events."""

    epoch: int
    batch: int
    reason: str
    wait_s: float = 0.0
    """How long the server says to wait."""


ToReplica = Batch | Leave
ToDispatcher = Ready | Results | Broken | Returned

_encoder = msgspec.msgpack.Encoder()
_decode_to_replica = msgspec.msgpack.Decoder(ToReplica).decode
_decode_to_dispatcher = msgspec.msgpack.Decoder(ToDispatcher).decode


def encode_frame(frame: ToReplica | ToDispatcher) -> bytearray:
    """A frame with its header, ready to be sent."""
    data = bytearray(HEADER_BYTES)
    _encoder.encode_into(frame, data, HEADER_BYTES)
    _HEADER.pack_into(data, 0, FORMAT, len(data) - HEADER_BYTES)
    return data


class FrameBuffer:
    """Takes bytes as they come and gives whole frames.

    Args:
        decode: of the bodies; see `to_replica` and `to_dispatcher`.
    """

    def __init__(self, decode: Any) -> None:
        self._decode = decode
        self._data = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[Any]:
        """Yield every frame that is whole now.

        Raises:
            FrameError: the bytes are no frames of this format.
        """
        self._data += data
        at, size = 0, len(self._data)
        try:
            while size - at >= HEADER_BYTES:
                version, length = _HEADER.unpack_from(self._data, at)
                if version != FORMAT or length > MAX_FRAME_BYTES:
                    raise FrameError(f"a frame has format {version} and {length} bytes; this release reads {FORMAT}")
                end = at + HEADER_BYTES + length
                if end > size:
                    break
                with memoryview(self._data) as whole:
                    try:
                        frame = self._decode(whole[at + HEADER_BYTES : end])
                    except msgspec.MsgspecError as error:
                        raise FrameError(f"a frame cannot be read: {error}") from None
                at = end
                yield frame
        finally:
            del self._data[:at]


def to_replica() -> FrameBuffer:
    """A buffer for what a replica receives."""
    return FrameBuffer(_decode_to_replica)


def to_dispatcher() -> FrameBuffer:
    """A buffer for what a dispatcher receives."""
    return FrameBuffer(_decode_to_dispatcher)
