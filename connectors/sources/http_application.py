"""The HTTP application that takes events: who may send, how much, and what is answered."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec
from aiohttp import web

from inferline_stream.connectors.sources.delivery import key_of
from inferline_stream.dataplane.headers import bound_id
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.record_producer import RecordProducer, RecordRefused
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.observability.connections import Connections
from inferline_stream.pipeline.names import EVENT_ID
from inferline_stream.pipeline.units import count_of

_KEY = re.compile(r"[!-~]{1,200}")
_SENDER = 16
"""Hexadecimal digits of a token's digest: enough to tell tokens apart."""
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])")


@dataclass(frozen=True, slots=True)
class Refused:
    """An HTTP answer that says no.

    Args:
        status: of HTTP.
        message: what was wrong, and the remedy.
        again_after_s: when to try again, in whole seconds; None for never.
    """

    status: int
    message: str
    again_after_s: int | None = None


class BearerTokens:
    """Bearer tokens that may send; kept as digests, compared in constant time.

    Args:
        tokens: any of them will do: each client has its own, and old ones are replaced one by one.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def sender(self, authorization: str) -> str | Refused:
        """Return a digest of the token in this ``Authorization`` header, or what to answer to one that may not send."""
        scheme, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        known = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them, whichever fits
        if scheme.lower() == "bearer" and any(known):
            return given.hex()[:_SENDER]
        return Refused(401, "send Authorization: Bearer with one of the tokens of --token-file")


class Bucket:
    """A token bucket: so many events a second in the long run, and a second's worth at once.

    Args:
        rate: events per second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate)
        self._left = self._most
        self._at_s = 0.0

    def take(self, now_s: float) -> bool:
        """Whether one more event may come now.

        Args:
            now_s: on a clock that never goes back.
        """
        self._left = min(self._most, self._left + max(0.0, now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def event_id_of(idempotency_key: str | None, sender: str) -> str | Refused:
    """Return the event's id: what the client says, so that it may send it again, or a new one.

    Args:
        idempotency_key: of the request.
        sender: digest of its token, so that a key means nothing to those who have another; empty where there are none.
    """
    if idempotency_key is None:
        return uuid.uuid4().hex
    if not _KEY.fullmatch(idempotency_key):
        return Refused(400, "Idempotency-Key must be 1 to 200 printable ASCII characters without spaces")
    return f"{sender}/{idempotency_key}" if sender else idempotency_key


def wait_s_of(prefer: str, longest_s: float) -> float:
    """How long a client wants to wait for the result, by its ``Prefer: wait=SECONDS`` header (RFC 7240); 0 for not."""
    found = _WAIT.search(prefer)
    return min(float(found[1]), longest_s) if found else 0.0


logger = logging.getLogger(__name__)

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Server": "inferline-stream",
}
LOOK_AGAIN_S = 0.5
"""How often results, and how far the pipeline is behind, are looked at, s."""
_AGAIN_AFTER_S = 1
_PORT = re.compile(r":\d*$")
_OWN_NAMES = frozenset(("localhost", "127.0.0.1", "[::1]"))

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpCounts(msgspec.Struct):
    """What became of the requests."""

    accepted: int = 0
    """Events that are in Kafka."""
    answered: int = 0
    """Of them, those whose result was waited for and came in time."""
    refused: int = 0
    """Requests that were wrong, or nobody's who may send."""
    held_off: int = 0
    """Requests that were asked to come again."""


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """How much is taken.

    Args:
        body_bytes: the largest event.
        pending: most events at once that wait for Kafka or for a result.
        rate: events per second; 0 for any.
        behind: most events that the pipeline may be behind; 0 for any.
        acknowledge_s: longest wait for Kafka.
        wait_s: longest that a client may wait for a result.
        body_s: longest that a body may take to come.
        idle_s: longest that headers may take to come, from connecting or from the last answer.
        requests: most requests at once.
        connections: most connections at once, those without a request included.
    """

    body_bytes: int = 1 << 20
    pending: int = 1000
    rate: float = 0.0
    behind: int = 0
    acknowledge_s: float = 10.0
    wait_s: float = 60.0
    body_s: float = 10.0
    idle_s: float = 15.0
    requests: int = 800
    connections: int = 900

    def admission(self) -> Connections:
        """Return the connections of a server that has none yet."""
        request_s = self.body_s + self.acknowledge_s + self.wait_s + self.idle_s
        return Connections(self.requests, self.connections, self.idle_s, request_s)


class AwaitedResults:
    """Results of events as they come to a pipeline's sink topic, for those who wait for them.

    Args:
        follower: of the sink topic.
        topic: that the events are sent into. A pipeline of several source topics binds their ids to it (`bound_id`).
    """

    def __init__(self, follower: TopicFollower, topic: str) -> None:
        self._follower = follower
        self._topic = topic
        self._waiting: dict[bytes, set[asyncio.Future[bytes]]] = {}

    @contextlib.contextmanager
    def expected(self, event_id: bytes) -> Iterator[asyncio.Future[bytes]]:
        """The event's result, once it is there; ask before the event is sent."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        names = {event_id, bound_id(self._topic, event_id)}
        for name in names:
            self._waiting.setdefault(name, set()).add(future)
        try:
            yield future
        finally:
            future.cancel()
            for name in names:
                waiting = self._waiting[name]
                waiting.discard(future)
                if not waiting:
                    del self._waiting[name]

    async def follow(self) -> None:
        """Hand out results for ever.

        Raises:
            Unreachable: the topic cannot be read.
        """
        while True:
            for record in await self._follower.read(LOOK_AGAIN_S):
                for future in self._waiting.get(record.header(EVENT_ID) or b"", ()):
                    if not future.done():
                        future.set_result(b"null" if record.value is None else record.value)


class Ingest:
    """The HTTP application.

    Args:
        producer: connected.
        topic: to send into.
        tokens: who may send; None for everybody who asks for this machine by its own name.
        limits: how much.
        key_field: field of each event that becomes its record's key.
        results: where results come from; None if nobody may wait.
    """

    def __init__(
        self,
        producer: RecordProducer,
        topic: str,
        tokens: BearerTokens | None,
        limits: IngestLimits,
        *,
        key_field: str | None = None,
        results: AwaitedResults | None = None,
    ) -> None:
        self.counts = HttpCounts()
        self.open = False
        """Whether events are taken: after the seal, and until it has to leave."""
        self.behind = 0
        """Events that the pipeline is behind."""
        self._producer = producer
        self._topic = topic
        self._tokens = tokens
        self._limits = limits
        self._key_field = key_field
        self._results = results
        self._bucket = Bucket(limits.rate) if limits.rate else None
        self._pending = 0
        self.connections = limits.admission()

    def application(self) -> web.Application:
        """Its routes."""
        found = web.Application(client_max_size=self._limits.body_bytes, middlewares=[_answered, self._admitted])
        found.router.add_post("/events", self._take)
        found.router.add_get("/health", self._health)
        found.on_response_prepare.append(_safe)
        return found

    @web.middleware
    async def _admitted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        loop, connection = asyncio.get_running_loop(), request.protocol
        try:
            if not self.connections.began(connection, loop.time()):
                refused = self._refused(Refused(503, f"{self._limits.requests} requests are under way", _AGAIN_AFTER_S))
                refused.force_close()
                return refused
            return await handler(request)
        finally:
            self.connections.ended(connection, loop.time())

    async def _health(self, _: web.Request) -> web.Response:
        return _json({"open": self.open, "pending": self._pending, "behind": self.behind}, 200 if self.open else 503)

    async def _take(self, request: web.Request) -> web.Response:
        arrived_ms = time.time_ns() // 1_000_000
        event_id = self._event_id(request)
        if isinstance(event_id, Refused):
            return self._refused(event_id)
        self._pending += 1
        try:
            body = await _body(request, self._limits)
            if isinstance(body, Refused):
                return self._refused(body)
            wait_s = wait_s_of(request.headers.get("Prefer", ""), self._limits.wait_s) if self._results else 0.0
            if not wait_s or self._results is None:
                return self._refused(no) if (no := await self._send(event_id, body, arrived_ms)) else _taken(event_id)
            with self._results.expected(event_id.encode()) as result:
                if no := await self._send(event_id, body, arrived_ms):
                    return self._refused(no)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        value = await result
                    self.counts.answered += 1
                    return _result(event_id, value)
            return _taken(event_id)
        finally:
            self._pending -= 1

    def _event_id(self, request: web.Request) -> str | Refused:
        """Before the body is read: who it is, whether there is room, and what the event is known by."""
        sender = ""
        if self._tokens is not None:
            known = self._tokens.sender(request.headers.get("Authorization", ""))
            if isinstance(known, Refused):
                return known
            sender = known
        elif _PORT.sub("", request.headers.get("Host", "")).lower() not in _OWN_NAMES:
            # A page of another site could otherwise send through a name of its own that resolves to this machine.
            return Refused(421, "without --token-file events are taken only by this machine's own name")
        if request.content_type != "application/json":  # which no page of another site can send without asking
            return Refused(415, "send Content-Type: application/json")
        if not self.open:
            return Refused(503, "no events are taken now", _AGAIN_AFTER_S)
        if self._pending >= self._limits.pending:
            return Refused(429, f"{count_of(self._pending, 'event')} in hand already", _AGAIN_AFTER_S)
        if self._limits.behind and self.behind > self._limits.behind:
            return Refused(429, f"the pipeline is {count_of(self.behind, 'event')} behind", _AGAIN_AFTER_S)
        if self._bucket is not None and not self._bucket.take(time.monotonic()):
            return Refused(429, f"more than {self._limits.rate:g} events a second", _AGAIN_AFTER_S)
        return event_id_of(request.headers.get("Idempotency-Key"), sender)

    async def _send(self, event_id: str, body: bytes, arrived_ms: int) -> Refused | None:
        """Send an event; returns once Kafka has it, or with what to answer instead."""
        try:
            async with asyncio.timeout(self._limits.acknowledge_s):
                await self._producer.deliver(
                    self._topic,
                    body,
                    key=key_of(body, self._key_field),
                    timestamp_ms=arrived_ms,
                    headers=[(EVENT_ID, event_id.encode())],
                )
        except RecordRefused:
            return Refused(413, "Kafka refuses the event: it is too large for the topic")
        except (Unreachable, TimeoutError):
            return Refused(503, "Kafka has not acknowledged; send it again by the same Idempotency-Key", _AGAIN_AFTER_S)
        self.counts.accepted += 1
        return None

    def _refused(self, refusal: Refused) -> web.Response:
        if refusal.again_after_s is None:
            self.counts.refused += 1
        else:
            self.counts.held_off += 1
        return _no(refusal)


async def _body(request: web.Request, limits: IngestLimits) -> bytes | Refused:
    """The body, if it is one JSON value."""
    try:
        async with asyncio.timeout(limits.body_s):
            body = await request.read()
    except TimeoutError:
        return Refused(408, f"the body did not come within {limits.body_s:g} s")
    except (web.RequestPayloadError, ConnectionError) as error:  # the client has gone, or packs it in another way
        return Refused(400, f"the body cannot be read ({error}); send all of it, as Content-Encoding says")
    except web.HTTPRequestEntityTooLarge:
        return Refused(413, f"an event may have {limits.body_bytes} bytes")
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Refused(400, f"the body is no JSON: {error}")
    return body


def _json(reported: object, status: int, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(reported) + b"\n", status=status, headers=headers, content_type="application/json"
    )


def _taken(event_id: str) -> web.Response:
    return _json({"event_id": event_id}, 202)


def _result(event_id: str, value: bytes) -> web.Response:
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _taken(event_id)  # the sink has another format, which we do not know
    return _json({"event_id": event_id, "result": msgspec.Raw(value)}, 200, {"Preference-Applied": "wait"})


def _no(refusal: Refused) -> web.Response:
    headers = {}
    if refusal.again_after_s is not None:
        headers["Retry-After"] = str(refusal.again_after_s)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _json({"error": refusal.message}, refusal.status, headers)


async def _safe(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as JSON too; what went wrong in here is for the log alone."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _json({"error": error.reason}, error.status)
    except Exception:
        logger.exception("a request failed")
        return _json({"error": "it is our fault; see the log"}, 500)
