"""Access tokens of an OAuth 2.0 endpoint, as a sealed process gets them: no thread, no file, no name looked up."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from inferline_stream.errors import Unreachable
from inferline_stream.isolation.name_service import Loop, NameService
from inferline_stream.kafka.access_tokens import AccessTokens
from inferline_stream.settings import KafkaSecurity

T = TypeVar("T")
HOST = "tokens.invalid"  # no resolver knows it: looking it up here fails


@asynccontextmanager
async def endpoint(answer: Callable[[int], bytes]) -> AsyncIterator[tuple[KafkaSecurity, list[bytes]]]:
    """Gives the answer to its n-th request; yields how to reach it and what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        asked.append(head + await reader.readexactly(length))
        writer.write(answer(len(asked)))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, family=socket.AF_INET)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield (
            KafkaSecurity(
                security_protocol="SASL_PLAINTEXT",
                sasl_mechanism="OAUTHBEARER",
                sasl_oauthbearer_token_endpoint_url=f"http://{HOST}:{port}/token?realm=a",
                sasl_oauthbearer_client_id="alice",
                sasl_oauthbearer_client_secret="open sesame",
            ),
            asked,
        )


async def sealed(work: Callable[[], Awaitable[T]], monkeypatch: pytest.MonkeyPatch, program: str = "") -> T:
    """What a sealed process comes to, which asks the one that started it for addresses, and for a program's token."""
    service = NameService(program)

    async def known(host: str, port: object, **options: object) -> list[Any]:
        return [(2, 1, 6, "", ("127.0.0.1", 0))] if host == HOST else []

    monkeypatch.setattr(service._loop, "getaddrinfo", known, raising=False)

    async def inside() -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.channel, loop.sealed = service.theirs, True
        return await asyncio.wait_for(work(), 20)

    def run() -> T:
        with asyncio.Runner(loop_factory=Loop) as runner:
            return runner.run(inside())

    try:
        return await asyncio.to_thread(run)
    finally:
        service.close()


def answer(token: str, lasts_s: object = 3600, form: str = "length") -> bytes:
    body = json.dumps({"access_token": token, "expires_in": lasts_s}).encode()
    if form == "chunked":
        half = len(body) // 2
        parts = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:half], body[half:], b""))
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + parts
    length = b"Content-Length: %d\r\n" % len(body) if form == "length" else b""
    return b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + body


@pytest.mark.parametrize("form", ["length", "chunked", "until it closes"])
async def test_a_sealed_process_gets_a_token_from_an_endpoint_that_it_knows_by_name(monkeypatch, form: str) -> None:
    async with endpoint(lambda n: answer(f"token-{n}", form=form)) as (security, asked):
        credentials = AccessTokens(security)

        async def twice() -> list[str]:
            return [await credentials.token(), await credentials.token()]

        assert await sealed(twice, monkeypatch) == ["token-1", "token-1"]
    (request,) = asked
    assert request.startswith(b"POST /token?realm=a HTTP/1.1\r\nHost: tokens.invalid:")
    assert request.endswith(b"\r\n\r\ngrant_type=client_credentials&client_id=alice&client_secret=open+sesame")


async def test_it_renews_tokens_that_end_for_as_long_as_it_lives(monkeypatch) -> None:
    async with endpoint(lambda n: answer(f"token-{n}", lasts_s="0.02")) as (security, asked):
        credentials = AccessTokens(security)

        async def many() -> str:
            while (token := await credentials.token()) != "token-20":
                await asyncio.sleep(0.005)
            return token

        assert await sealed(many, monkeypatch) == "token-20"
    assert len(asked) == 20


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "HTTP status 401"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "KeyError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n[17]", "TypeError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n" + b"[" * 4000, "RecursionError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{", "ClientPayloadError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{", "ClientResponseError"),
        (b"HTTP/1.1\r\n\r\n", "ClientResponseError"),
        (b"\x00" * 100_000, "ClientResponseError"),
        (b"", "ServerDisconnectedError"),
    ],
)
async def test_an_endpoint_that_gives_none_is_named_without_the_secret(monkeypatch, answer: bytes, why: str) -> None:
    async with endpoint(lambda n: answer) as (security, _):
        with pytest.raises(Unreachable, match=rf"^http://tokens.*gives no token for client 'alice': {why}$") as raised:
            await sealed(AccessTokens(security).token, monkeypatch)
    assert "sesame" not in str(raised.value)


def printing(folder: Path, code: str) -> KafkaSecurity:
    """A program of which each run is counted in the folder."""
    (folder / "token.py").write_text(
        f"import json, sys\nwith open({str(folder / 'runs')!r}, 'a') as runs:\n    runs.write('x')\n"
        f"n = len(open({str(folder / 'runs')!r}).read())\n{code}"
    )
    program = f"{sys.executable} -I {folder / 'token.py'}"
    return KafkaSecurity(sasl_mechanism="OAUTHBEARER", sasl_oauthbearer_token_program=program)


SHORT = "print(json.dumps({'access_token': f'token-{n}', 'expires_in': 0.02}))"


@pytest.mark.parametrize("is_sealed", [True, False])
async def test_a_program_is_run_again_when_its_token_ends_also_for_a_sealed_process(monkeypatch, tmp_path, is_sealed):
    security = printing(tmp_path, SHORT)
    assert security.security_protocol == "SASL_SSL"
    tokens = AccessTokens(security)

    async def twice() -> list[str]:
        first = await tokens.token()
        await asyncio.sleep(0.03)
        return [first, await tokens.token()]

    program = security.sasl_oauthbearer_token_program
    assert await (sealed(twice, monkeypatch, program) if is_sealed else twice()) == ["token-1", "token-2"]


async def test_a_token_that_is_good_for_ever_is_taken(tmp_path) -> None:
    tokens = AccessTokens(
        printing(tmp_path, "print(json.dumps({'access_token': f'token-{n}', 'expires_in': 2**31 - 1}))")
    )
    assert [await tokens.token(), await tokens.token()] == ["token-1", "token-1"]


async def test_a_process_whose_starter_gives_no_tokens_gets_none(monkeypatch, tmp_path) -> None:
    """As a replica's: it may ask for host names alone."""
    with pytest.raises(Unreachable, match="prints no token"):
        await sealed(AccessTokens(printing(tmp_path, SHORT)).token, monkeypatch)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("sys.exit(3)", "ends with code 3"),
        ("print('secret')", "prints no token: JSONDecodeError"),
        ("print('{}')", "prints no token: KeyError"),
        ("print('x' * 40_000)", "prints 40001 bytes"),
        ("""print('{"access_token": "secret", "expires_in": NaN}')""", "prints no token: ValueError"),
        ("""print('{"access_token": "secret", "expires_in": 1e999}')""", "prints no token: ValueError"),
        ("""print('{"access_token": "secret", "expires_in": 1%s}' % ("0" * 400))""", "prints no token: OverflowError"),
        ("""print('{"access_token": null}')""", "prints no token: ValueError"),
        ('print(chr(123) + \'"access_token": "secret\\\\ud800"\' + chr(125))', "prints no token: ValueError"),
    ],
)
async def test_a_program_that_gives_no_token_is_named_without_what_it_prints(tmp_path, code: str, why: str) -> None:
    with pytest.raises(Unreachable, match=why) as raised:
        await AccessTokens(printing(tmp_path, code)).token()
    assert "secret" not in str(raised.value)
    with pytest.raises(Unreachable, match="cannot be run"):
        await AccessTokens(
            KafkaSecurity(sasl_mechanism="OAUTHBEARER", sasl_oauthbearer_token_program="/nowhere")
        ).token()
