"""What passes between a stage and its model server, over HTTP or gRPC: request, answer, and what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """What is sent.

    Args:
        content: the body, or the message.
        headers: over HTTP, beside those of every request.
    """

    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """What the server says.

    Args:
        status: HTTP's; over gRPC the one that means the same.
        name: of the status, as the server's log has it.
        content: the body, the message, or an error's text.
        headers: over HTTP.
    """

    status: int
    name: str
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class NotReached(Exception):
    """There is no connection to the server."""


class ConnectionBroken(Exception):
    """The connection broke before the whole answer was there."""


class TooLong(Exception):
    """The answer is longer than the longest that is taken."""


class Transport(Protocol):
    """Carries requests to one model of a server. Made on the event loop that it is used on.

    ``token`` is the bearer token that is shown; empty for none.
    """

    async def ask(self, request: ServerRequest, token: str) -> ServerAnswer:
        """Return the server's answer, whatever it is.

        Raises:
            NotReached: there is no connection.
            ConnectionBroken: it broke.
            TimeoutError: there is no answer in time.
            TooLong: the answer is too long.
        """

    async def is_ready(self, token: str) -> bool:
        """Whether the server serves the model."""

    def lack(self, token: str) -> str:
        """Return what a server that is being started lacks still; empty where it is ready. Blocks for a few seconds."""

    async def close(self) -> None:
        """Close its connections."""


Encode = Callable[[Sequence[Any]], ServerRequest]
"""Returns the request for what several events ask; raises `ValueError` where they cannot be asked."""

Decode = Callable[[ServerAnswer, int], list[Any]]
"""Returns what an answer holds for each of so many events; raises `ValueError` where it is none to them."""
