"""Take events over HTTP: each POST becomes a record.

    python -m inferline_stream.connectors.sources.http --bootstrap-servers 127.0.0.1:9092 \
        --topic posts --listen 127.0.0.1:8080 --token-file tokens --results verdicts

    curl -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" -H "Prefer: wait=5" \
        -d '{"text": "hello"}' http://127.0.0.1:8080/events

``202 {"event_id": ...}`` says that Kafka has the event on all replicas in sync: it will not be lost. With
``--results`` and ``Prefer: wait=5`` the answer is ``200`` with the pipeline's result, if that comes in time. A client
that got no answer sends the same event again with the same token and ``Idempotency-Key``: joins and sinks drop what
they have seen. The event's id is a digest of the token, ``/`` and the key, so that nobody with another token can send
an event of that id, or wait for its result; without ``--token-file`` it is the key. ``GET /health`` says whether
events are taken.

| status | when |
|---|---|
| 400, 413, 415, 408 | the body is no JSON, too large, not sent as JSON, or does not come in time |
| 401 | no token of ``--token-file`` |
| 429 | ``--rate`` is used up, ``--most-pending`` events wait for Kafka, or the pipeline is ``--most-behind`` |
| 503 | Kafka does not acknowledge in time, 800 requests are under way, or we are leaving; send it again by its key |

A connection that sends no whole request for 15 s is closed, and earlier where 900 are open.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
import sys
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from inferline_stream.connectors import sealed_connector
from inferline_stream.connectors.sources.http_application import (
    LOOK_AGAIN_S,
    AwaitedResults,
    BearerTokens,
    HttpCounts,
    Ingest,
    IngestLimits,
)
from inferline_stream.errors import InvalidFile, Unreachable, UsageError
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.observability.connections import Connections
from inferline_stream.settings import from_environment

_MODULE = "inferline_stream.connectors.sources.http"
_SWEEP_S = 0.5
_AGAIN_S = 0.1


class Listener:
    """Hands accepted connections to a server. aiohttp and asyncio accept any number, and wait for headers for ever.

    Args:
        server: handles requests; it reports them to `connections`.
        listening: the socket.
        tls: of HTTPS; None for HTTP.
        connections: who is connected.
    """

    def __init__(
        self, server: web.Server, listening: socket.socket, tls: ssl.SSLContext | None, connections: Connections
    ) -> None:
        self._server, self._listening, self._tls, self._connections = server, listening, tls, connections
        self._greeted: set[asyncio.Task[None]] = set()
        """Connections whose TLS handshake is under way."""

    async def run(self) -> None:
        """Accept until cancelled."""
        self._listening.setblocking(False)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep())
            tasks.create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listening)
            except OSError:  # the client has gone already, or there is no descriptor left
                await asyncio.sleep(_AGAIN_S)
                continue
            greeting = loop.create_task(self._greet(accepted))
            self._greeted.add(greeting)
            greeting.add_done_callback(self._greeted.discard)
            self._connections.keep({*self._server.connections, *self._greeted})
            self._connections.opened(greeting, loop.time())
            for connection in self._connections.in_excess():
                _close(connection)

    async def _greet(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # no TLS, or it has gone; the transport has closed the socket
            _, handler = await loop.connect_accepted_socket(self._server, accepted, ssl=self._tls)
            self._connections.opened(handler, loop.time())

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._connections.keep({*self._server.connections, *self._greeted})
            for connection in self._connections.overdue(loop.time()):
                _close(connection)


def _close(connection: Hashable) -> None:
    if isinstance(connection, asyncio.Task):
        connection.cancel()
    elif isinstance(connection, RequestHandler) and connection.transport is not None:
        connection.transport.abort()  # what it has not read of its answer is not waited for


logger = logging.getLogger(__name__)

_LEAVE_S = 15.0


async def _look_behind(ingest: Ingest, offsets: Offsets, group: str, topic: str) -> None:
    """Keep how far the pipeline is behind."""
    partitions = await offsets.partitions(topic)
    while True:
        with contextlib.suppress(Unreachable):  # what Kafka does not tell does not change
            ends = (await offsets.ends({topic: partitions}))[topic]
            done = await offsets.committed(group, topic, partitions)
            ingest.behind = sum(at.unfinished(end) for end, at in zip(ends, done, strict=True))
        await asyncio.sleep(LOOK_AGAIN_S)


async def serve(options: argparse.Namespace, seal: sealed_connector.Seal) -> HttpCounts:
    """Take events until stopped.

    Raises:
        Unreachable: Kafka does not answer, or has no such topic.
        UsageError: the port is taken.
        InvalidFile: a token or certificate cannot be read.
    """
    stop, where = sealed_connector.stopping(), options.bootstrap_servers
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # what a client sends that is no HTTP is its affair
    tokens = BearerTokens(_tokens(options.token_file)) if options.token_file else None
    tls = _context(options.certificate, options.key)
    async with contextlib.AsyncExitStack() as stack:
        producer = await stack.enter_async_context(RecordProducer(where, options.topic))
        results = None
        if options.results:
            follower = TopicFollower(where, options.results, "latest", gapless=True)
            results = AwaitedResults(await stack.enter_async_context(follower), options.topic)
        limits = IngestLimits(
            body_bytes=options.most_body_bytes,
            pending=options.most_pending,
            rate=options.rate,
            behind=options.most_behind,
        )
        ingest = Ingest(producer, options.topic, tokens, limits, key_field=options.key_field, results=results)
        work = [results.follow()] if results is not None else []
        if options.most_behind:
            offsets = await stack.enter_async_context(Offsets(where, from_environment().connect_timeout_s))
            work.append(_look_behind(ingest, offsets, options.group, options.topic))
        runner = web.AppRunner(ingest.application(), access_log=None, shutdown_timeout=_LEAVE_S)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listening = stack.enter_context(_listening(*options.listen))
        assert runner.server is not None, "it is set up"
        seal()
        work.append(Listener(runner.server, listening, tls, ingest.connections).run())
        tasks = [asyncio.create_task(each) for each in work]
        ingest.open = True
        host, port = listening.getsockname()[:2]
        logger.info("events are taken at http%s://%s:%d/events", "s" if tls else "", host, port)
        try:
            await asyncio.wait((asyncio.create_task(stop.wait()), *tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            ingest.open = False
            for task in tasks:
                task.cancel()
    return ingest.counts


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --listen") from None


def _tokens(file: Path) -> list[str]:
    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(f"{file}: cannot be read ({error}); give a token a line") from None
    if not found or any(len(token) < 16 for token in found):
        raise InvalidFile(f"{file}: needs a token a line, each of 16 characters or more, e.g. `openssl rand -hex 32`")
    return found


def _context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, "")  # without a password OpenSSL asks the terminal for one, and waits
    except OSError as error:
        raise InvalidFile(
            f"{certificate}: no certificate with its key, unencrypted ({error}); give its key as --key"
        ) from None
    return context


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    try:
        address, number = str(ipaddress.ip_address(host.strip("[]"))), int(port)
    except ValueError:
        address, number = "", -1
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} must be an address and a port, e.g. 127.0.0.1:8080")
    return address, number


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {least} or more")
        return int(text)

    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; runs until SIGINT or SIGTERM, then prints its counts as JSON."""
    parser = sealed_connector.parser_of(_MODULE, "Take events over HTTP: each POST to /events becomes a record.")
    parser.add_argument("--topic", required=True, help="to send into; must exist")
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 8080), metavar="ADDRESS:PORT")
    parser.add_argument("--token-file", type=Path, help="a token a line; needed wherever others can connect")
    parser.add_argument("--certificate", type=Path, help="PEM file, for HTTPS")
    parser.add_argument("--key", type=Path, help="PEM file of its key, if that is another one")
    parser.add_argument("--results", metavar="TOPIC", help="the pipeline's sink: clients may wait for results")
    parser.add_argument("--key-field", help="field of each event that becomes the record's key")
    parser.add_argument("--most-body-bytes", type=_at_least(1), default=1 << 20, help="of one event (default 1 MiB)")
    parser.add_argument("--most-pending", type=_at_least(1), default=1000, help="events at once (default 1000)")
    parser.add_argument("--rate", type=_at_least(0), default=0, help="events per second (default: any)")
    parser.add_argument(
        "--most-behind", type=_at_least(0), default=0, help="events that --group has unfinished (default: any)"
    )
    parser.add_argument("--group", help="of the pipeline's first stage: <pipeline>.<stage>")
    options = parser.parse_args(arguments)
    if options.token_file is None and not ipaddress.ip_address(options.listen[0]).is_loopback:
        parser.error(f"--listen {options.listen[0]}: others can connect, so that --token-file is needed")
    if options.key and not options.certificate:
        parser.error(f"--key {options.key}: HTTPS needs its --certificate, too")
    if options.most_behind and not options.group:
        parser.error("--most-behind needs --group, of the pipeline's first stage: <pipeline>.<stage>")

    async def work(seal: sealed_connector.Seal) -> None:
        sealed_connector.tell(await serve(options, seal))

    files = tuple(filter(None, (options.token_file, options.certificate, options.key)))
    needs = sealed_connector.Needs(reads=files, listens=(options.listen[1],))
    return sealed_connector.run(_MODULE, arguments, options, needs=needs, work=work)


if __name__ == "__main__":
    sys.exit(main())
