"""Asks a model server for a batch's results: requests, retries, and whose fault it is where there are none.

| what happens                                              | then                                                |
|-----------------------------------------------------------|-----------------------------------------------------|
| the connection breaks; 500, 502, 504; a response that is  | again at once, as often as `retries` says, then     |
| cut off, or is none of the protocol                       | `ServerUnavailable`                                 |
| no response in time                                       | `ServerUnavailable`                                 |
| no connection, 429, 503, any other status                 | the same, busy, with the server's Retry-After       |
| 401 or 403, and the token's file has another token now    | again at once, with that one                        |
| 400, 413, 415, 422 while the server says that it is ready | the events' fault: the batch is halved              |
| a response that is too long                               | the events' fault, likewise                         |
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult

from inferline_stream.dataplane.replica.open_inference import decode_response, encode_request
from inferline_stream.dataplane.replica.server_process import ServerProcess
from inferline_stream.errors import InferlineError, InvalidFile, ServerUnavailable, StageFailed
from inferline_stream.pipeline.model_server import LONGEST_PAUSE_S, PORT, ModelServer
from inferline_stream.pipeline.units import duration_s

_EVENTS_FAULT = frozenset((400, 413, 415, 422))
_AGAIN = frozenset((500, 502, 504))
_TOKENS_FAULT = frozenset((401, 403))
_FIRST_PAUSE_S = 0.02
_KEEP_ALIVE_S = 60.0
_LONGEST_REASON = 200
_REMEDIES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "look at token_file",
    HTTPStatus.FORBIDDEN: "look at token_file",
    HTTPStatus.NOT_FOUND: "look at the server's url, model and path",
}


class EventRefused(Exception):
    """The server refuses an event of the batch, or its response is too long: other batches may pass."""


class ServerEnded(StageFailed):
    """The replica's own server has ended: so does the replica, and another one starts another server."""


class _BadResponse(Exception):
    """The server's fault, and perhaps gone at the next attempt."""


class ServedModel:
    """A stage's code where its model is behind a server. Built on the event loop that it is called on.

    Args:
        server: what is asked.
        folder: of the topology, which files are relative to.
        process: the server that the replica has started already, for another model of it.

    Raises:
        InvalidFile: a file cannot be read.
    """

    def __init__(self, server: ModelServer, folder: str, process: ServerProcess | None = None) -> None:
        self._server = server
        self.process = ServerProcess(server.command, folder) if server.command else process
        """That the replica has started; None where somebody else runs the server."""
        url = server.url if self.process is None else server.url.replace(PORT, str(self.process.port))
        base, path = url.rstrip("/"), server.path
        if server.protocol == "open_inference":
            version = f"/versions/{server.version}" if server.version else ""
            base = f"{base}/v2/models/{server.model}{version}"
            self._ready_url, path = f"{base}/ready", path or "/infer"
        else:
            self._ready_url = f"{base}/v1/models" if server.protocol == "openai" else ""
        self._url = base + path
        self._with_event = _takes_event(server.response)
        self._folder = folder
        self._token = self._read_token()
        self._unread = ""
        """Why the token's file could not be read again, and what to do; empty if it could."""
        tls: ssl.SSLContext | bool = True
        if urlsplit(url).scheme == "https":
            tls = ssl.create_default_context(cadata=_read(server.ca_file, folder) if server.ca_file else None)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                ssl=tls,
                keepalive_timeout=_KEEP_ALIVE_S,
                resolver=_Addresses(urlsplit(url).hostname or ""),
            ),
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=duration_s(server.timeout)),
            auto_decompress=True,
        )

        if self.process is not None:
            where = self._ready_url or url
            self.process.await_ready(where, headers=self._token, any_answer=not self._ready_url)
        # What a first request imports cannot be imported once the process is sealed.
        self._first = asyncio.get_running_loop().create_task(self._is_ready())

    async def __call__(self, events: list[Any]) -> list[Any]:
        """Return one result per event.

        Raises:
            ServerUnavailable: the batch is to run again later.
            EventRefused: the server refuses it.
            StageFailed: the server that this replica has started has ended.
        """
        asked = [self._server.request(event) for event in events]
        if self._server.batches:
            outputs = await self._asked(encode_request(asked), lambda body: decode_response(body, len(events)))
        else:
            more = {"model": self._server.model} if self._server.protocol == "openai" else {}
            outputs = [await self._asked(_body(each, more), _decoded) for each in asked]
        if self._with_event:
            return [self._server.response(event, output) for event, output in zip(events, outputs, strict=True)]
        return [self._server.response(output) for output in outputs]

    async def _asked(self, body: bytes, decode: Callable[[bytes], Any]) -> Any:
        """Send a request until there is a response to it, or no attempt is left."""
        pause_s = _FIRST_PAUSE_S
        for left in range(self._server.retries, -1, -1):
            try:
                return await self._attempt(body, decode)
            except _BadResponse as error:
                if not left:
                    raise self._unavailable(str(error)) from error
            except TimeoutError as error:
                raise self._unavailable(f"gives no answer within its timeout of {self._server.timeout}") from error
            except aiohttp.ClientConnectorError as error:
                raise self._unavailable(f"cannot be reached: {_why(error)}", busy=True) from error
            except (aiohttp.ClientError, OSError) as error:
                if not left:
                    raise self._unavailable(f"{type(error).__name__}: {error}") from error
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, body: bytes, decode: Callable[[bytes], Any]) -> Any:
        token = self._token
        response, content = await self._posted(body)
        if response.status in _TOKENS_FAULT and self._has_other_token(token):
            response, content = await self._posted(body)
        status = response.status
        if status == HTTPStatus.OK:
            try:
                return decode(content)
            except ValueError as error:
                raise _BadResponse(f"answers what is no response: {error}") from None
        moved = response.headers.get("Location", "")
        said = f"answers {status} {f'and names {moved}' if moved else _said(content)}".rstrip()
        if status in _AGAIN:
            raise _BadResponse(said)
        if status in _EVENTS_FAULT and await self._is_ready():
            raise EventRefused(f"{self._url} {said}")
        remedy = f"; {_REMEDIES[status]}" if status in _REMEDIES else ""
        unread = self._unread if status in _TOKENS_FAULT else ""
        raise self._unavailable(said + remedy + unread, _retry_after_s(response), busy=True)

    async def _posted(self, body: bytes) -> tuple[aiohttp.ClientResponse, bytes]:
        """Send one request. Redirects are not followed: they would take the token, and the events, elsewhere."""
        async with self._session.post(self._url, data=body, headers=self._token, allow_redirects=False) as response:
            return response, await self._content(response)

    def _read_token(self) -> dict[str, str]:
        """Return the header that shows the token; nothing without one."""
        if not self._server.token_file:
            return {}
        token = _read(self._server.token_file, self._folder)
        if not token or not token.isprintable():
            raise InvalidFile(f"{self._server.token_file}: needs one token on one line, and nothing else")
        return {"Authorization": f"Bearer {token}"}

    def _has_other_token(self, refused: Mapping[str, str]) -> bool:
        """Whether the file has another token than the one that the server refuses."""
        self._unread = ""
        try:
            self._token = self._read_token()
        except InvalidFile as error:  # somebody may be writing it: there is another attempt later
            self._unread = f", which can no longer be used: {error}"
            if isinstance(error.__cause__, OSError):
                folder = os.path.dirname(os.path.abspath(_path(self._server.token_file, self._folder)))
                self._unread += (
                    f". If isolation keeps it from the replica, grant its folder: Isolation(reads=[{folder!r}])"
                )
        return self._token != refused

    async def _content(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the whole body, unless it is too long."""
        most = self._server.max_response_bytes
        found = bytearray()
        async for chunk in response.content.iter_any():
            found += chunk
            if len(found) > most:
                response.close()
                if response.status != HTTPStatus.OK:
                    break
                raise EventRefused(f"{self._url} answers more than {most} bytes; raise max_response_bytes")
        return bytes(found)

    async def _is_ready(self) -> bool:
        """Whether the server serves the model: what it refuses then is the request's own fault."""
        try:
            if not self._ready_url:
                async with self._session.options(self._url, headers=self._token, allow_redirects=False):
                    return True
            async with self._session.get(self._ready_url, headers=self._token, allow_redirects=False) as response:
                return response.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def _unavailable(self, why: str, wait_s: float = 0.0, *, busy: bool = False) -> InferlineError:
        ended = "" if self.process is None else self.process.ended()
        if ended:
            return ServerEnded(ended)
        return ServerUnavailable(f"server {self._url} {why}", wait_s, busy=busy)


class _Addresses(AbstractResolver):
    """A host's addresses as they are now, or as they were at the start: a sealed process cannot look names up."""

    def __init__(self, host: str) -> None:
        self._known: list[tuple[Any, ...]] = []
        with contextlib.suppress(OSError):
            self._known = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return every address of the host.

        Raises:
            OSError: none is known.
        """
        with contextlib.suppress(OSError):
            self._known = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        if not self._known:
            raise OSError(f"{host}: no such host is known")
        return [
            ResolveResult(hostname=host, host=str(where[0]), port=port, family=kind, proto=protocol, flags=0)
            for kind, _, protocol, _, where in self._known
        ]

    async def close(self) -> None:
        """Nothing is held."""


def served(server: ModelServer, folder: str, *, beside: Any = None) -> type:
    """Return a class without arguments, as stages are built of.

    Args:
        server: what is asked.
        folder: of the topology.
        beside: such a class, built before, that may have started the server.
    """

    class Served:
        process: ServerProcess | None = None

        def __init__(self) -> None:
            self._model = ServedModel(server, folder, None if beside is None else beside.process)
            Served.process = self._model.process

        async def __call__(self, events: list[Any]) -> list[Any]:
            return await self._model(events)

    return Served


def _takes_event(response: Callable[..., Any]) -> bool:
    try:
        inspect.signature(response).bind(object(), object())
    except TypeError:
        return False
    return True


def _body(asked: Any, more: dict[str, str]) -> bytes:
    """Return a request's body: what the user's function returned, with the model's name where the protocol has one.

    Raises:
        ValueError: it is no body of OpenAI's interface.
    """
    if not more:
        return msgspec.json.encode(asked)
    if not isinstance(asked, Mapping):
        raise ValueError(f"request returned {type(asked).__qualname__}; return a dict, the body of the request")
    if asked.get("stream"):
        raise ValueError("request asks for a stream; leave 'stream' out: a result is one response")
    return msgspec.json.encode({**more, **asked})


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"no JSON ({error})") from None


def _why(error: aiohttp.ClientConnectorError) -> str:
    """Why there is no connection; `asyncio` words it in its own way, with the address again."""
    number = error.os_error.errno
    if isinstance(error, aiohttp.ClientSSLError) or number is None:
        return str(error.os_error)
    return os.strerror(number) if number > 0 else str(error.os_error)


def _said(content: bytes) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(content[: 4 * _LONGEST_REASON].decode(errors="replace").split())[:_LONGEST_REASON]


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0  # a date: the pauses that grow of themselves will do


def _path(file: str, folder: str) -> str:
    return os.path.join(folder, os.path.expanduser(file))


def _read(file: str, folder: str) -> str:
    path = _path(file, folder)
    try:
        with open(path, encoding="utf-8") as opened:
            return opened.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(f"{path}: cannot be read ({error}); the stage's server needs it") from error
