"""Carries requests of the Open Inference Protocol to a model server over gRPC."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import urlsplit

import grpc
import grpc.aio

from inferline_stream.dataplane.replica import open_inference_grpc as protocol
from inferline_stream.dataplane.replica.host_addresses import Found, HostAddresses
from inferline_stream.dataplane.replica.server_exchange import (
    ConnectionBroken,
    NotReached,
    ServerAnswer,
    ServerRequest,
    TooLong,
)
from inferline_stream.pipeline.model_server import ModelServer
from inferline_stream.pipeline.units import duration_s

_GLANCE_S = 5.0

_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.ABORTED: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.CANCELLED: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""HTTP's status of the same meaning, after google.rpc.Code; others are a failure of the server, 500."""

_NOT_CONNECTED = ("failed to connect", "connections to all backends failing", "DNS resolution failed")
_BROKEN = ("Stream removed", "Socket closed", "reset by peer", "GOAWAY")
"""Of UNAVAILABLE, which gRPC gives these failures and a busy server's answer alike: what its own texts hold."""

_TOO_LONG = "larger than max"
_OURS_TOO_LONG = "CLIENT"


class GrpcTransport:
    """A `Transport`.

    Args:
        server: what is asked, and what limits answers.
        url: ``grpc://`` or ``grpcs://``, host and port.
        certificates: that the server's must be signed by, as PEM; None for the system's.
    """

    def __init__(self, server: ModelServer, url: str, certificates: str | None) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._ready = protocol.ready_request(server.model, server.version)
        self._timeout_s = duration_s(server.timeout)
        self._credentials = None
        if parts.scheme == "grpcs":
            pem = None if certificates is None else certificates.encode()
            self._credentials = grpc.ssl_channel_credentials(root_certificates=pem)
        self._options = [
            ("grpc.default_authority", parts.netloc),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),  # what is tried again is the stage's affair
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.max_receive_message_length", server.max_response_bytes),
            ("grpc.max_send_message_length", -1),
        ]
        # gRPC's own resolver would need sockets that a sealed process cannot make.
        self._addresses = HostAddresses(self._host)
        self._connect((self._targets(self._addresses.known) or [f"ipv4:127.0.0.1:{self._port}"])[0])

    def _targets(self, found: Sequence[Found]) -> list[str]:
        """Return what channels are made to: the addresses of one family each."""
        hosts: dict[str, dict[str, None]] = {}
        for family, *_, where in found:
            scheme, form = ("ipv6", "[{}]:{}") if family == socket.AF_INET6 else ("ipv4", "{}:{}")
            hosts.setdefault(scheme, {})[form.format(where[0], self._port)] = None
        return [f"{scheme}:{','.join(each)}" for scheme, each in hosts.items()]

    def _connect(self, target: str) -> None:
        self._target = target
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=self._options)
        else:
            self._channel = grpc.aio.secure_channel(target, self._credentials, options=self._options)

    async def ask(self, request: ServerRequest, token: str) -> ServerAnswer:
        """Ask for an inference, as `Transport.ask`."""
        channel = self._channel
        try:
            return ServerAnswer(HTTPStatus.OK, "OK", await self._call("ModelInfer", request.content, token))
        except grpc.aio.AioRpcError as error:
            code, said = error.code(), error.details() or ""
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from error
            if code is grpc.StatusCode.UNAVAILABLE and any(each in said for each in _NOT_CONNECTED):
                await self._look_again(channel)
                raise NotReached(said.rpartition("last error: ")[2].rpartition("remote host: ")[2]) from error
            if code is grpc.StatusCode.UNAVAILABLE and any(each in said for each in _BROKEN):
                raise ConnectionBroken(said) from error
            if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LONG in said:
                if _OURS_TOO_LONG in said:
                    raise TooLong from error
                return ServerAnswer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, code.name, said.encode())
            return ServerAnswer(_STATUS.get(code, HTTPStatus.INTERNAL_SERVER_ERROR), code.name, said.encode())

    async def _call(self, method: str, content: bytes, token: str) -> bytes:
        call = self._channel.unary_unary(f"{protocol.SERVICE}/{method}")
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        answer: bytes = await call(content, timeout=self._timeout_s, metadata=metadata)
        return answer

    async def _look_again(self, failing: grpc.aio.Channel) -> None:
        """Look the host up again, and connect to what it stands for now, or to its addresses of another family."""
        with contextlib.suppress(OSError):
            targets = self._targets(await self._addresses.look_up())
            if failing is not self._channel:
                return  # another request has seen to it
            at = targets.index(self._target) + 1 if self._target in targets else 0
            if (target := targets[at % len(targets)]) != self._target:
                self._connect(target)
                await failing.close(grace=self._timeout_s)

    async def is_ready(self, token: str) -> bool:
        """Whether the server serves the model."""
        try:
            return protocol.is_ready(await self._call("ModelReady", self._ready, token))
        except (grpc.aio.AioRpcError, ValueError):
            return False

    def lack(self, token: str) -> str:
        """Return what a server that is being started lacks still, as `Transport.lack`."""
        with grpc.insecure_channel(self._target, options=self._options) as channel:
            asked = channel.unary_unary(f"{protocol.SERVICE}/ModelReady")
            metadata = (("authorization", f"Bearer {token}"),) if token else ()
            try:
                ready = protocol.is_ready(asked(self._ready, timeout=_GLANCE_S, metadata=metadata))
            except grpc.RpcError as error:
                return f"{self._host}:{self._port} answers {error.code().name} {error.details()}"
            return "" if ready else f"{self._host}:{self._port} says that the model is not ready"

    async def close(self) -> None:
        """Close its connections."""
        await self._channel.close()
