"""The round trip of a batch from a dispatcher to a replica that does nothing, by what carries it.

``socketpair`` is a pool on one machine. ``tls frames`` are pods: both hosts between the two, frames inside TLS.
``tls frames, no dispatcher host`` has the dispatcher hold the connection itself, keys included. ``https`` is HTTP/1.1
by aiohttp within TLS: the dispatcher is a client of the replica's host.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web

from inferline_stream.actuators.network.credentials import dispatcher_context, new_credential, replica_context
from inferline_stream.actuators.network.host_link import HostHello, HostLink
from inferline_stream.dataplane.dispatcher.replica_connection import ReplicaConnection
from inferline_stream.dataplane.frames import (
    HEADER_BYTES,
    Batch,
    Done,
    Ready,
    Results,
    ToDispatcher,
    encode_frame,
    to_dispatcher,
)
from inferline_stream.dataplane.replica.replica import _Server, _Stage
from inferline_stream.dataplane.replica.stage_call import Settled

RECORD = b"x" * 1024
TRANSPORTS = ("socketpair", "tls frames", "tls frames, no dispatcher host", "https")
BATCHES = (1, 8)

Trip = Callable[[Batch], Awaitable[Results]]
"""Sends a batch and returns its results."""


def measure(quick: bool) -> dict[str, float]:
    """Return milliseconds that each transport adds to the socket pair's P50, and its P99, by batch size."""
    return uvloop.run(_measured(rounds=2 if quick else 5, trips=200 if quick else 1000))


async def _measured(rounds: int, trips: int) -> dict[str, float]:
    times_s: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        credential = new_credential("benchmark")
        for side, files in (("dispatcher", credential.dispatcher), ("replica", credential.replica)):
            (Path(folder) / side).mkdir()
            for name, content in files.items():
                (Path(folder) / side / name).write_bytes(content)
        for _, transport in itertools.product(range(rounds), TRANSPORTS):
            async with AsyncExitStack() as stack:
                trip = await stack.enter_async_context(_transport(transport, Path(folder)))
                for size in BATCHES:
                    found = times_s.setdefault((transport, size), [])
                    batch = Batch(1, 1, [RECORD] * size)
                    for number in range(trips + 50):
                        began_s = time.perf_counter()
                        results = await trip(batch)
                        if number >= 50:
                            found.append(time.perf_counter() - began_s)
                        assert len(results.outcomes) == size
    figures = {}
    for (transport, size), found in times_s.items():
        local_s = statistics.median(times_s["socketpair", size])
        name = transport.replace(", ", "_").replace(" ", "_")
        if transport == "socketpair":
            figures[f"local_ms_{size}"] = round(local_s * 1e3, 3)
            continue
        figures[f"remote_added_ms_{name}_{size}"] = round((statistics.median(found) - local_s) * 1e3, 3)
        figures[f"remote_p99_ms_{name}_{size}"] = round(statistics.quantiles(found, n=100)[98] * 1e3, 3)
    return figures


@asynccontextmanager
async def _transport(name: str, folder: Path) -> AsyncIterator[Trip]:
    async with AsyncExitStack() as held:

        def pair() -> tuple[socket.socket, socket.socket]:
            ours, theirs = socket.socketpair()
            return held.enter_context(ours), held.enter_context(theirs)

        def start(what: str, *socks: socket.socket, port: int = 0) -> None:
            held.callback(_end, _process(what, *socks, folder=folder, port=port))

        ours, theirs = pair()
        start("replica", theirs)
        if name == "socketpair":
            yield await held.enter_async_context(_connected(ours))
            return
        listening = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listening.getsockname()[1]
        if name == "https":
            start("http", ours, listening)
            connector = aiohttp.TCPConnector(ssl=replica_context(folder / "replica"))
            session = await held.enter_async_context(aiohttp.ClientSession(connector=connector))
            yield functools.partial(_posted, session, f"https://127.0.0.1:{port}/batch")
            return
        start("replica host", ours, port=port)
        near, far = pair()
        if name == "tls frames":
            start("dispatcher host", far, listening)
        else:
            server = await _accept(far, listening, dispatcher_context(folder / "dispatcher"))
            held.callback(server.close)
        yield await held.enter_async_context(_connected(near))


@asynccontextmanager
async def _connected(sock: socket.socket) -> AsyncIterator[Trip]:
    heard: asyncio.Queue[ToDispatcher | str] = asyncio.Queue()
    connection = ReplicaConnection(sock, heard.put_nowait, heard.put_nowait)
    async with asyncio.timeout(30):
        first = await heard.get()
    assert isinstance(first, Ready), f"the replica has ended: {first}"

    async def trip(batch: Batch) -> Results:
        connection.send(batch)
        found = await heard.get()
        assert isinstance(found, Results), f"the replica has ended: {found}"
        return found

    yield trip
    connection.close()


async def _posted(session: aiohttp.ClientSession, url: str, batch: Batch) -> Results:
    while True:
        try:
            async with session.post(url, data=bytes(encode_frame(batch))) as response:
                results: Results
                (results,) = to_dispatcher().feed(await response.read())
                return results
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(0.05)


async def _accept(sock: socket.socket, listening: socket.socket, context: ssl.SSLContext) -> asyncio.Server:
    """Carry what each connection brings after its `HostHello` to a socket, as a dispatcher's host does."""

    def made() -> HostLink:
        return HostLink(lambda link, message: link.carry(sock.dup()), lambda link, why: None)

    return await asyncio.get_running_loop().create_server(made, sock=listening, ssl=context)


def _process(what: str, *socks: socket.socket, folder: Path, port: int) -> subprocess.Popen[bytes]:
    files = [sock.fileno() for sock in socks]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks._transports", what, str(folder), str(port), *map(str, files)],
        pass_fds=files,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def serve_idly(sock: socket.socket) -> None:
    """Be a replica that returns what it gets, and end with the connection."""

    def process(batch: Batch) -> Settled:
        return Settled([Done(value, 0) for value in batch.inputs if isinstance(value, bytes)], [])

    _Server(_Stage(process, None), Ready("r", 0.0, None), None, sock).run()
    os._exit(0)


def _main(what: str, folder: Path, port: int, *socks: socket.socket) -> None:
    if what == "replica":
        serve_idly(socks[0])
    uvloop.run(_serve(what, folder, port, socks))


async def _serve(what: str, folder: Path, port: int, socks: tuple[socket.socket, ...]) -> None:
    if what == "replica host":
        link = HostLink(lambda link, message: None, lambda link, why: os._exit(0))
        await asyncio.get_running_loop().create_connection(
            lambda: link, "127.0.0.1", port, ssl=replica_context(folder / "replica")
        )
        link.send(HostHello("r", "idle"))
        link.carry(socks[0])
    elif what == "dispatcher host":
        await _accept(socks[0], socks[1], dispatcher_context(folder / "dispatcher"))
    else:
        await _http(socks[0], socks[1], dispatcher_context(folder / "dispatcher"))
    await asyncio.Event().wait()


async def _http(sock: socket.socket, listening: socket.socket, context: ssl.SSLContext) -> None:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    data = bytearray()

    async def frame() -> bytes:
        while len(data) < HEADER_BYTES or len(data) < HEADER_BYTES + int.from_bytes(data[4:8], "little"):
            data.extend(await loop.sock_recv(sock, 1 << 18))
        whole = bytes(data[: HEADER_BYTES + int.from_bytes(data[4:8], "little")])
        del data[: len(whole)]
        return whole

    async def answer(request: web.Request) -> web.Response:
        await loop.sock_sendall(sock, await request.read())
        return web.Response(body=await frame())

    await frame()  # that it is ready
    app = web.Application(client_max_size=1 << 30)
    app.add_routes([web.post("/batch", answer)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listening, ssl_context=context).start()


if __name__ == "__main__":
    _, role, where, at, *numbers = sys.argv
    _main(role, Path(where), int(at), *(socket.socket(fileno=int(number)) for number in numbers))
