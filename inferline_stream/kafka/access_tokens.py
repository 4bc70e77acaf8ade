"""Access tokens for Kafka, from an OAuth 2.0 token endpoint or a program."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import time

import aiohttp
from aiokafka.abc import AbstractTokenProvider

from inferline_stream.errors import UNREADABLE, Unreachable
from inferline_stream.isolation.loop_resolver import LoopResolver
from inferline_stream.isolation.name_service import Loop
from inferline_stream.isolation.token_program import program_says
from inferline_stream.settings import KafkaSecurity

_RENEW_BEFORE_S = 30.0
_TOKEN_TIMEOUT_S = 10.0
_LONGEST_TOKEN = 1 << 20
"""Bytes of an endpoint's answer that are read."""
_NO_TOKEN = (*UNREADABLE, LookupError, TypeError, AttributeError)
"""What reading an answer without a token raises."""


class AccessTokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Access tokens from an OAuth 2.0 token endpoint (RFC 6749, section 4.4) or a program, kept until shortly before
    they end.

    Every process of a run has them renewed by itself, sealed ones included: a sealed process starts no thread, opens
    no file, looks up no name and runs no program. So all goes over its event loop, which asks outside for addresses and
    for what the program prints, and this module is imported before the seal.
    """

    def __init__(self, security: KafkaSecurity) -> None:
        self._security = security
        encrypted = security.sasl_oauthbearer_token_endpoint_url.startswith("https:")
        self._tls = ssl.create_default_context() if encrypted else None
        self._token, self._renew_at_s = "", 0.0
        self._one_at_a_time = asyncio.Lock()

    async def token(self) -> str:
        """A token that is still good for a while.

        Raises:
            Unreachable: endpoint or program gives none.
        """
        async with self._one_at_a_time:
            if time.monotonic() >= self._renew_at_s:
                began_s = time.monotonic()
                program = self._security.sasl_oauthbearer_token_program
                found = _token_of(program) if program else fetch_token(self._security, self._tls)
                self._token, lasts_s = await found
                self._renew_at_s = began_s + max(lasts_s / 2, lasts_s - _RENEW_BEFORE_S)
            return self._token


async def _token_of(program: str) -> tuple[str, float]:
    """A new access token of a program, and for how many seconds it is good.

    Raises:
        Unreachable: it prints none.
    """
    loop = asyncio.get_running_loop()
    said = await loop.token() if isinstance(loop, Loop) and loop.sealed else await program_says(program)
    try:
        return _read(said)
    except _NO_TOKEN as error:
        why = f'{type(error).__name__}; let it print {{"access_token": "...", "expires_in": 900}}'
        raise Unreachable(f"the token program {program!r} prints no token: {why}") from None


def _read(said: str | bytes) -> tuple[str, float]:
    """Read an answer.

    Raises:
        ValueError: it has no token, or one that Kafka takes from nobody, or that ends never; see also `_NO_TOKEN`.
    """
    answer = json.loads(said)
    token, lasts_s = answer["access_token"], float(answer.get("expires_in", 300.0))
    if not (isinstance(token, str) and token.isascii() and token.isprintable() and token and 0 <= lasts_s < math.inf):
        raise ValueError("no token")
    return token, lasts_s


async def fetch_token(security: KafkaSecurity, tls: ssl.SSLContext | None) -> tuple[str, float]:
    """A new access token, and for how many seconds it is good.

    Raises:
        Unreachable: the endpoint does not answer, or gives none.
    """
    form = {
        "grant_type": "client_credentials",
        "client_id": security.sasl_oauthbearer_client_id,
        "client_secret": security.sasl_oauthbearer_client_secret,
        "scope": security.sasl_oauthbearer_scope,
    }
    url = security.sasl_oauthbearer_token_endpoint_url
    resolver = LoopResolver() if isinstance(asyncio.get_running_loop(), Loop) else None
    connector = aiohttp.TCPConnector(resolver=resolver, ssl=tls or True, force_close=True)
    timeout = aiohttp.ClientTimeout(total=_TOKEN_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.post(
                url, data={name: value for name, value in form.items() if value}, allow_redirects=False
            ) as response,
        ):
            if response.status == 200:
                return _read(await _body(response.content))
            why = f"HTTP status {response.status}"
    except (aiohttp.ClientError, OSError, *_NO_TOKEN) as error:
        why = type(error).__name__
    raise Unreachable(f"{url} gives no token for client {form['client_id']!r}: {why}")


async def _body(content: aiohttp.StreamReader) -> bytes:
    """Return the whole of an answer.

    Raises:
        ValueError: it is longer than any token's.
    """
    said = b""
    async for part in content.iter_any():
        said += part
        if len(said) > _LONGEST_TOKEN:
            raise ValueError(f"more than {_LONGEST_TOKEN} bytes")
    return said
