"""What a controller and its host's supervisor say to each other: JSON lines over a Unix socket."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from inferline_stream.actuators.actuator import DispatcherExit, ProcessTerms, ReplicaExit
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec

LONGEST_LINE_BYTES = 1 << 26

SUPERSEDED = "another controller has come"
"""Error of a reply with number 0: a supervisor sends it to a controller before it closes the connection, and again if
that one comes back, since it may not have read it."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First line of a controller. A supervisor that has begun looks at identity, controller and term alone."""

    terms: ProcessTerms
    """A supervisor that has another identity drains and ends."""
    listen: str = ""
    """Path of a Unix socket at which a later controller may come; empty for none."""
    controller: str = ""
    """Unique: one that was superseded may not come back."""
    term: int = 0
    """Of its leadership: one of an older term than that of the controller that is served was deposed before it came."""


class Request(msgspec.Struct, frozen=True, tag="request"):
    """A call, with a number that its answer carries."""

    number: int
    method: str
    """Of `Actuator`, a key of `ARGUMENTS`; after the answer to ``aclose`` the supervisor ends."""
    arguments: msgspec.Raw = msgspec.Raw(b"[]")
    """JSON of what `ARGUMENTS` says: read by its types, such as objects whose keys are numbers."""


ARGUMENTS: dict[str, Any] = {
    "know": tuple[list[tuple[tuple[str, str], ReplicaSpec]]],  # no key of a JSON object is a pair
    "scale": tuple[str, str, int, list[str]],
    "dispatch": tuple[str, list[DispatcherSpec]],
    "replace_dispatcher": tuple[str],
    "observe": tuple[()],
    "dispatchers": tuple[()],
    "capacity": tuple[()],
    "devices": tuple[()],
    "drain": tuple[float],
    "aclose": tuple[()],
}
"""Types of each method's arguments."""

LEFT_TO_THE_NEXT = ("scale", "dispatch")
"""Methods that a supervisor leaves unanswered while it drains: it starts nothing any more, and its controller asks the
next supervisor once the connection has ended."""


def request(number: int, method: str, *arguments: Any) -> Request:
    """Return a call of a method."""
    return Request(number, method, msgspec.Raw(msgspec.json.encode(arguments)))


def arguments_of(call: Request) -> tuple[Any, ...]:
    """Return the arguments of a call."""
    found: tuple[Any, ...] = msgspec.json.decode(call.arguments, type=ARGUMENTS[call.method])
    return (dict(*found),) if call.method == "know" else found


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """The answer to a request, or, with number 0, to `Hello`."""

    number: int
    result: Any = None
    error: str = ""
    """A ValueError's message, or why a hello is refused."""


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """One process has ended."""

    replica: ReplicaExit | None = None
    dispatcher: DispatcherExit | None = None


decode_from_controller = msgspec.json.Decoder(Hello | Request).decode
decode_from_supervisor = msgspec.json.Decoder(Reply | Ended).decode
_encode = msgspec.json.Encoder().encode


async def next_line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line; an empty one at the end, also where that comes in the middle of a line: who was killed as
    it wrote has said nothing that can be read.

    Raises:
        ConnectionError: the connection is broken.
    """
    line = await reader.readline()
    return line if line.endswith(b"\n") else b""


def encode_line(message: Hello | Request | Reply | Ended) -> bytes:
    """One message as a line."""
    return _encode(message) + b"\n"
