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
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec

from inferline_stream.dataplane.replica import open_inference, tensorflow_protocol
from inferline_stream.dataplane.replica.http_transport import HttpTransport
from inferline_stream.dataplane.replica.server_exchange import (
    ConnectionBroken,
    Decode,
    Encode,
    NotReached,
    ServerAnswer,
    ServerRequest,
    TooLong,
    Transport,
)
from inferline_stream.dataplane.replica.server_process import ServerProcess
from inferline_stream.errors import InferlineError, InvalidFile, ServerUnavailable, StageFailed
from inferline_stream.pipeline.model_server import GRPC_SCHEMES, LONGEST_PAUSE_S, PORT, ModelServer

logger = logging.getLogger(__name__)

_EVENTS_FAULT = frozenset((400, 413, 415, 422))
_AGAIN = frozenset((500, 502, 504))
_TOKENS_FAULT = frozenset((401, 403))
_FIRST_PAUSE_S = 0.02
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
        self._with_event = _takes_event(server.response)
        self._folder = folder
        self._token = self._read_token()
        self._unread = ""
        """Why the token's file could not be read again, and what to do; empty if it could."""
        certificates = _read(server.ca_file, folder) if server.ca_file else None
        self._url, self._transport, self._encode, self._decode = _spoken(server, url.rstrip("/"), certificates)
        self._turn = asyncio.Lock()
        """Of those that put the server to sleep, or wake it."""
        if self.process is not None:
            self.process.await_ready(partial(self._transport.lack, self._token))
            if server.wake:
                self.process.wake = self._wake
        # What a first request imports cannot be imported once the process is sealed.
        self._first = asyncio.get_running_loop().create_task(self._transport.is_ready(self._token))

    async def __call__(self, events: list[Any]) -> list[Any]:
        """Return one result per event.

        Raises:
            ServerUnavailable: the batch is to run again later.
            EventRefused: the server refuses it.
            StageFailed: the server that this replica has started has ended.
        """
        if self.process is not None and self.process.wake is not None:
            await self.process.wake()
        asked = [self._server.request(event) for event in events]
        outputs = list[Any]()
        for each in [asked] if self._server.batches else [[one] for one in asked]:
            outputs += await self._asked(self._encode(each), len(each))
        if self._with_event:
            return [self._server.response(event, output) for event, output in zip(events, outputs, strict=True)]
        return [self._server.response(output) for output in outputs]

    async def sleep(self) -> None:
        """Have the server sleep, if it can, until the next batch."""
        async with self._turn:
            if self.process is not None and self._server.sleep and not self.process.asleep:
                self.process.asleep = await self._posted(self._server.sleep)
                says = {True: "sleeps", False: "does not sleep", None: "has not said whether it sleeps"}
                logger.info("server %s %s", self._url, says[self.process.asleep])

    async def _wake(self) -> None:
        """Have it serve again.

        Raises:
            ServerUnavailable: it does not.
        """
        async with self._turn:
            assert self.process is not None, "it is a server's of ours that sleeps"
            if self.process.asleep is False:
                return
            woken = await self._posted(self._server.wake)
            if woken is None:
                self.process.asleep = None  # it may wake by this all the same
            if woken is None or (self.process.asleep and not woken):
                raise self._unavailable(f"sleeps, and does not wake by {self._server.wake}", busy=True)
            self.process.asleep = False

    async def _posted(self, path: str) -> bool | None:
        assert isinstance(self._transport, HttpTransport), "validation refuses sleep= of others"
        return await self._transport.posted(path, self._token)

    async def _asked(self, request: ServerRequest, events: int) -> list[Any]:
        """Send a request until there is a response to it, or no attempt is left."""
        pause_s = _FIRST_PAUSE_S
        for left in range(self._server.retries, -1, -1):
            try:
                return await self._attempt(request, events)
            except (_BadResponse, ConnectionBroken) as error:
                if not left:
                    raise self._unavailable(str(error)) from error
            except TimeoutError as error:
                raise self._unavailable(f"gives no answer within its timeout of {self._server.timeout}") from error
            except NotReached as error:
                raise self._unavailable(f"cannot be reached: {error}", busy=True) from error
            except TooLong:
                most = self._server.max_response_bytes
                said = f"{self._url} answers more than {most} bytes; raise max_response_bytes"
                raise EventRefused(said) from None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, request: ServerRequest, events: int) -> list[Any]:
        token = self._token
        answer = await self._transport.ask(request, token)
        if answer.status in _TOKENS_FAULT and self._has_other_token(token):
            answer = await self._transport.ask(request, self._token)
        status = answer.status
        if status == HTTPStatus.OK:
            try:
                return self._decode(answer, events)
            except ValueError as error:
                raise _BadResponse(f"answers what is no response: {error}") from None
        moved = answer.headers.get("Location", "")
        said = f"answers {answer.name} {f'and names {moved}' if moved else _said(answer.content)}".rstrip()
        if status in _AGAIN:
            raise _BadResponse(said)
        if status in _EVENTS_FAULT and await self._transport.is_ready(self._token):
            raise EventRefused(f"{self._url} {said}")
        remedy = f"; {_REMEDIES[status]}" if status in _REMEDIES else ""
        unread = self._unread if status in _TOKENS_FAULT else ""
        raise self._unavailable(said + remedy + unread, _retry_after_s(answer), busy=True)

    def _read_token(self) -> str:
        """Return the token; empty without one."""
        if not self._server.token_file:
            return ""
        token = _read(self._server.token_file, self._folder)
        if not token or not token.isprintable():
            raise InvalidFile(f"{self._server.token_file}: needs one token on one line, and nothing else")
        return token

    def _has_other_token(self, refused: str) -> bool:
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

    def _unavailable(self, why: str, wait_s: float = 0.0, *, busy: bool = False) -> InferlineError:
        ended = "" if self.process is None else self.process.ended()
        if ended:
            return ServerEnded(ended)
        return ServerUnavailable(f"server {self._url} {why}", wait_s, busy=busy)


def _spoken(server: ModelServer, url: str, certificates: str | None) -> tuple[str, Transport, Encode, Decode]:
    """Return where requests go, what carries them, and the two functions that lay them out."""
    version = f"/versions/{server.version}" if server.version else ""
    if urlsplit(url).scheme in GRPC_SCHEMES:
        try:
            from inferline_stream.dataplane.replica import open_inference_grpc
            from inferline_stream.dataplane.replica.grpc_transport import GrpcTransport
        except ModuleNotFoundError as error:
            raise StageFailed(f"server {url} cannot be asked: {error}; pip install 'inferline-stream[grpc]'") from None

        carries = GrpcTransport(server, url, certificates)
        asks = partial(open_inference_grpc.encode_request, model=server.model, version=server.version)
        return f"{url}/{server.model}{version}", carries, asks, open_inference_grpc.decode_answer
    serves: Callable[[bytes], bool] = _anything
    encode: Encode
    decode: Decode
    if server.protocol == "open_inference":
        base = f"{url}/v2/models/{server.model}{version}"
        asked, ready = base + (server.path or "/infer"), f"{base}/ready"
        encode, decode = partial(open_inference.encode_request, binary=server.binary), open_inference.decode_answer
    elif server.protocol == "tensorflow":
        ready = f"{url}/v1/models/{server.model}{version}"
        asked, serves = ready + (server.path or ":predict"), tensorflow_protocol.is_served
        encode, decode = tensorflow_protocol.encode_request, tensorflow_protocol.decode_answer
    else:
        openai = server.protocol == "openai"
        asked, ready = url + server.path, f"{url}/v1/models" if openai else ""
        encode, decode = partial(_body, more={"model": server.model} if openai else {}), _decoded
    return asked, HttpTransport(server, asked, ready, serves, certificates), encode, decode


def _anything(content: bytes) -> bool:
    return True


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

        async def sleep(self) -> None:
            await self._model.sleep()

    return Served


def _takes_event(response: Callable[..., Any]) -> bool:
    try:
        inspect.signature(response).bind(object(), object())
    except TypeError:
        return False
    return True


def _body(asked: Sequence[Any], more: dict[str, str]) -> ServerRequest:
    """Return a request of one event: what the user returned, with the model's name where the protocol has it.

    Raises:
        ValueError: it is no body of OpenAI's interface.
    """
    (body,) = asked
    if not more:
        return ServerRequest(msgspec.json.encode(body))
    if not isinstance(body, Mapping):
        raise ValueError(f"request returned {type(body).__qualname__}; return a dict, the body of the request")
    if body.get("stream"):
        raise ValueError("request asks for a stream; leave 'stream' out: a result is one response")
    return ServerRequest(msgspec.json.encode({**more, **body}))


def _decoded(answer: ServerAnswer, events: int) -> list[Any]:
    try:
        return [msgspec.json.decode(answer.content)]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"no JSON ({error})") from None


def _said(content: bytes) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(content[: 4 * _LONGEST_REASON].decode(errors="replace").split())[:_LONGEST_REASON]


def _retry_after_s(answer: ServerAnswer) -> float:
    try:
        return max(0.0, float(answer.headers.get("Retry-After", "0")))
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
