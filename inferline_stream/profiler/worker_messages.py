"""What is said between the profiler and its worker processes: MessagePack, each message after its length."""

from __future__ import annotations

import struct

import msgspec

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.pipeline.hardware import Hardware

_LENGTH = struct.Struct("<I")

SAMPLE_BATCH = 16
"""Events in one batch where the sample is run."""


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Load the topology and build the stage; answered by `StageBuilt`.

    Args:
        topology: the file.
        stage: the stage's name.
        confinement: what the process may touch, see `isolation.confinement`.
        build_only: whether nothing will be asked of the stage, so that the pipeline around it need not be valid.
    """

    topology: str
    stage: str
    confinement: str
    build_only: bool = False


class ProcessEvents(msgspec.Struct, frozen=True, tag=True):
    """Run these events once; answered by `Outcomes`."""

    inputs: list[StageInput]


class Measure(msgspec.Struct, frozen=True, tag=True):
    """Time batches of one size; answered by `Times`.

    Args:
        inputs: taken in turn, again from the start when they end.
        hardware: paces or emulates as a replica on it does.
        emulated_s: service times of emulated hardware.
        batch_size: events per batch.
        seconds: time to spend, the warming batch left out.
        fewest: batches to run in any case.
        most: batches that are enough.
        concurrency: batches that the replica has in hand all the time.
    """

    inputs: list[StageInput]
    hardware: Hardware
    emulated_s: dict[int, float]
    batch_size: int
    seconds: float
    fewest: int
    most: int
    concurrency: int = 1


class Weigh(msgspec.Struct, frozen=True, tag=True):
    """Say of each event what the topology says of it; answered by `Weights`.

    Args:
        inputs: the events.
        emulated: whether to give its weight on emulated hardware, rather than its cost.
    """

    inputs: list[StageInput]
    emulated: bool = False


class StageBuilt(msgspec.Struct, frozen=True, tag=True):
    """The stage is built."""


class EventOutcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of one event: its encoded result and the children it goes to, or why it failed."""

    value: bytes
    taken: list[str]
    error: str = ""


class Outcomes(msgspec.Struct, frozen=True, tag=True):
    """In the order of the inputs."""

    outcomes: list[EventOutcome]


class Times(msgspec.Struct, frozen=True, tag=True):
    """Service time of each batch, in seconds, in order.

    Args:
        service_s: from handing a batch over to having the results.
        network_s: what the way to a replica on another host and back took of each besides, and is left out of it.
    """

    service_s: list[float]
    network_s: list[float] = []


class Weights(msgspec.Struct, frozen=True, tag=True):
    """In the order of the inputs; none where the topology says nothing."""

    weights: list[float] | None


class Failure(msgspec.Struct, frozen=True, tag=True):
    """It could not be done.

    Args:
        message: why, without the stage's name.
        memory: whether for lack of memory.
        unavailable: whether because what the stage asks does not answer, or takes no more at once.
        ended: whether because the replica has ended, of which nothing else is known here.
    """

    message: str
    memory: bool = False
    unavailable: bool = False
    ended: bool = False


Request = Begin | ProcessEvents | Measure | Weigh
Answer = StageBuilt | Outcomes | Times | Weights | Failure

_encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode

LENGTH_BYTES = _LENGTH.size

ANSWER_BYTES = 1 << 28
"""The longest answer: far more than the results of a sample, so that no length fills the profiler's memory."""


def framed(message: Request | Answer) -> bytes:
    """A message after its length."""
    data = _encode(message)
    return _LENGTH.pack(len(data)) + data


def length_of(header: bytes) -> int:
    """Bytes of the message that follows."""
    length: int = _LENGTH.unpack(header)[0]
    return length
