"""Messages between a supervisor and its dispatchers: JSON datagrams on a SOCK_SEQPACKET socket pair.

A message that hands over a replica carries the dispatcher's end of a fresh socket pair as its one file descriptor
(SCM_RIGHTS); the replica has, or is sent, the other end. The end of the channel ends the dispatcher.
"""

from __future__ import annotations

import msgspec


class Attach(msgspec.Struct, frozen=True, tag="attach"):
    """Supervisor to dispatcher, with a descriptor: here is a replica, which says `frames.Ready` once it can work."""

    replica: str
    hardware: str
    number: int
    """Its position in the pool; work goes to the lowest numbers first, so that those with the highest are idle."""
    node: str = ""
    """That it is on, in a cluster."""
    gpu: bool = False
    """Whether it loads its stage on a GPU, which may take longer."""
    again: bool = False
    """Whether it was attached before: it may have a batch in hand, and says `frames.Ready` after that."""


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """Supervisor to dispatcher: let this replica finish its batch, then send it `frames.Leave`."""

    replica: str
    moves: bool = False
    """Whether it serves another dispatcher next: its connection is closed then, and it lives on."""


class ReplicaLost(msgspec.Struct, frozen=True, tag="lost"):
    """Supervisor to dispatcher: the way to this replica broke, which says nothing of the batch that it has in hand.

    The replica's end of the socket pair stays open until the dispatcher has closed its own.
    """

    replica: str


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Supervisor to dispatcher: drain as if another dispatcher had been granted the slot, and exit."""


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """Dispatcher to supervisor: it owns its partitions now; the supervisor may attach replicas to it."""


class Replace(msgspec.Struct, frozen=True, tag="replace"):
    """Dispatcher to supervisor: end this replica now (SIGKILL) and start another one in its place."""

    replica: str
    reason: str


FromSupervisor = Attach | Retire | ReplicaLost | Stop
FromDispatcher = Serving | Replace

MAX_DATAGRAM_BYTES = 65536

decode_from_supervisor = msgspec.json.Decoder(FromSupervisor).decode
decode_from_dispatcher = msgspec.json.Decoder(FromDispatcher).decode


def encode_attachment(message: FromSupervisor | FromDispatcher) -> bytes:
    """One message as JSON."""
    return msgspec.json.encode(message)
