"""Carries requests to a model server over HTTP/1.1."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from inferline_stream.dataplane.replica.host_addresses import HostAddresses
from inferline_stream.dataplane.replica.server_exchange import (
    ConnectionBroken,
    NotReached,
    ServerAnswer,
    ServerRequest,
    TooLong,
)
from inferline_stream.pipeline.model_server import ModelServer
from inferline_stream.pipeline.units import duration_s

_KEEP_ALIVE_S = 60.0
_GLANCE_S = 5.0


class HttpTransport:
    """A `Transport`. Redirects are not followed: they would take the token, and the events, elsewhere.

    Args:
        server: what limits answers.
        url: of requests.
        ready_url: asked by GET for whether the model is served; empty where the protocol has no such question: a server
            that answers at all is ready then.
        serves: whether the content of an answer with status 200 from there says that it is.
        certificates: that the server's must be signed by, as PEM; None for the system's.
    """

    def __init__(
        self,
        server: ModelServer,
        url: str,
        ready_url: str,
        serves: Callable[[bytes], bool],
        certificates: str | None,
    ) -> None:
        self._url = url
        self._ready_url = ready_url
        self._serves = serves
        self._most_bytes = server.max_response_bytes
        self._timeout_s = duration_s(server.timeout)
        parts = urlsplit(url)
        self._tls = ssl.create_default_context(cadata=certificates) if parts.scheme == "https" else True
        self._resolver = _Resolver(parts.hostname or "")

    @cached_property
    def _session(self) -> aiohttp.ClientSession:
        """Made when it is first used: not where a server that is being started never gets ready."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=self._tls, keepalive_timeout=_KEEP_ALIVE_S, resolver=self._resolver
            ),
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            auto_decompress=True,
        )

    async def ask(self, request: ServerRequest, token: str) -> ServerAnswer:
        """Post a request, as `Transport.ask`."""
        headers = {**request.headers, **_shown(token)}
        try:
            async with self._session.post(
                self._url, data=request.content, headers=headers, allow_redirects=False
            ) as response:
                return ServerAnswer(
                    response.status, str(response.status), await self._content(response), response.headers
                )
        except TimeoutError:
            raise
        except aiohttp.ClientConnectorError as error:
            raise NotReached(_why(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionBroken(f"{type(error).__name__}: {error}") from error

    async def _content(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the whole body, unless it is too long; of an error its beginning is enough."""
        found = bytearray()
        async for chunk in response.content.iter_any():
            found += chunk
            if len(found) > self._most_bytes:
                response.close()
                if response.status != HTTPStatus.OK:
                    break
                raise TooLong
        return bytes(found)

    async def posted(self, path: str, token: str) -> bool | None:
        """POST a path of the server that has no body; returns whether it does so, None where it has not said."""
        parts = urlsplit(self._url)
        url = f"{parts.scheme}://{parts.netloc}{path}"
        try:
            async with self._session.post(url, headers=_shown(token), allow_redirects=False) as response:
                return response.status < HTTPStatus.MULTIPLE_CHOICES
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def is_ready(self, token: str) -> bool:
        """Whether the server serves the model."""
        headers = _shown(token)
        try:
            if not self._ready_url:
                async with self._session.options(self._url, headers=headers, allow_redirects=False):
                    return True
            async with self._session.get(self._ready_url, headers=headers, allow_redirects=False) as response:
                return response.status == HTTPStatus.OK and self._serves(await self._content(response))
        except (aiohttp.ClientError, TimeoutError, OSError, TooLong):
            return False

    def lack(self, token: str) -> str:
        """Return what a server that is being started lacks still, as `Transport.lack`."""
        asked = self._ready_url or self._url
        parts = urlsplit(asked)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_GLANCE_S)
        try:
            connection.request("GET", parts.path, headers=dict(_shown(token)))
            response = connection.getresponse()
            if not self._ready_url or (response.status == HTTPStatus.OK and self._serves(response.read())):
                return ""
            return f"{asked} answers {response.status}"
        except (OSError, http.client.HTTPException) as error:
            return f"{asked} {error}"
        finally:
            connection.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()


class _Resolver(AbstractResolver):
    """Looks the server's own name up, and no other."""

    def __init__(self, host: str) -> None:
        self._addresses = HostAddresses(host)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return every address of the host.

        Raises:
            OSError: none is known.
        """
        return [
            ResolveResult(hostname=host, host=str(where[0]), port=port, family=kind, proto=protocol, flags=0)
            for kind, _, protocol, _, where in await self._addresses.look_up()
        ]

    async def close(self) -> None:
        """Nothing is held."""


def _shown(token: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _why(error: aiohttp.ClientConnectorError) -> str:
    """Why there is no connection; `asyncio` words it in its own way, with the address again."""
    number = error.os_error.errno
    if isinstance(error, aiohttp.ClientSSLError) or number is None:
        return str(error.os_error)
    return os.strerror(number) if number > 0 else str(error.os_error)
