"""Post a topic's events to an HTTP address, with retries.

    python -m inferline_stream.connectors.sinks.webhook --bootstrap-servers 127.0.0.1:9092 \
        --topic verdicts --url https://example.org/verdicts --token-file token

Each event is one POST of its value as it stands in the topic, with ``Idempotency-Key: <event id>``: a crash, or an
answer that was lost on the way, lets an event come again, and the receiver knows it by that key. What is not printable
ASCII in it is percent-encoded, and one that is longer than 1,024 characters is a digest. Events of a partition are
posted in their order, those of several partitions at once.

An answer of 2xx means that the receiver has it. Where it does not answer in time, or with 408, 425, 429 or 5xx, the
event is tried again for as long as it takes, not before ``Retry-After``, or an hour. With 401 the sink ends: the token
is wrong, and no event is to blame. Any other answer is a refusal for good: the event goes to the topic
``--dead-letters``; without one the sink ends and nothing is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import math
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp

from inferline_stream.connectors import sealed_connector
from inferline_stream.connectors.sinks import topic_sink
from inferline_stream.connectors.sinks.topic_sink import Away, Refusal, SinkCounts, event_id
from inferline_stream.errors import InvalidInput
from inferline_stream.isolation.loop_resolver import LoopResolver
from inferline_stream.isolation.name_service import Loop
from inferline_stream.kafka.records import Record

_MODULE = "inferline_stream.connectors.sinks.webhook"
_WRONG_TOKEN = 401
_TRY_AGAIN = frozenset((408, 425, 429))
_REMEMBERED = 100_000
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
_LONGEST_KEY = 1024
_AFTER_AT_MOST_S = 3600.0
_SHOWN = 200
"""Characters of an answer that are reported."""


class Webhook:
    """An HTTP address that takes one event per POST. Use as an async context manager.

    Args:
        url: where to.
        token: sent as ``Authorization: Bearer``; empty for none.
        timeout_s: longest wait for one answer.
    """

    def __init__(self, url: str, *, token: str = "", timeout_s: float = 10.0) -> None:
        self.counts = SinkCounts()
        self._url = url
        self._headers = {"Content-Type": "application/json", "User-Agent": "inferline-stream"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._taken: OrderedDict[str, tuple[int, int]] = OrderedDict()  # where each event was read; newest last
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Webhook:
        loop = asyncio.get_running_loop()
        resolver = LoopResolver() if isinstance(loop, Loop) else None
        if isinstance(loop, Loop):
            with contextlib.suppress(OSError):  # it may come up later: each attempt asks again
                await loop.addresses(str(urlsplit(self._url).hostname))
        connector = aiohttp.TCPConnector(resolver=resolver, ttl_dns_cache=10)
        # The receiver of the events may not choose where they go: redirects count as refusals.
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def store(self, records: Sequence[Record], ids_from: str) -> list[Refusal]:
        """Post every event that was not posted before; see `Store.store`."""
        by_partition: dict[int, list[Record]] = {}
        for record in records:
            by_partition.setdefault(record.partition, []).append(record)
        parts = (self._in_turn(of_partition, ids_from) for of_partition in by_partition.values())
        found = await asyncio.gather(*parts, return_exceptions=True)
        for failure in found:
            if isinstance(failure, BaseException):
                raise failure
        refusals: list[Refusal] = []
        for part in found:
            assert not isinstance(part, BaseException)
            refusals += part
        return refusals

    async def _in_turn(self, records: Sequence[Record], ids_from: str) -> list[Refusal]:
        refusals = []
        for record in records:
            known = event_id(record, ids_from)
            at = (record.partition, record.offset)
            if known in self._taken:
                self.counts.duplicates += self._taken[known] != at  # else its batch is tried again
            elif reason := await self._post(record, known):
                refusals.append(Refusal(record, reason))
            else:
                self.counts.written += 1
                self._taken[known] = at
                if len(self._taken) > _REMEMBERED:
                    self._taken.popitem(last=False)
        return refusals

    async def _post(self, record: Record, known: str) -> str:
        """Why the receiver will never take it; empty if it has."""
        assert self._session is not None
        value = b"null" if record.value is None else record.value
        headers = {**self._headers, "Idempotency-Key": _header_safe(known)}
        try:
            async with self._session.post(self._url, data=value, headers=headers, allow_redirects=False) as answer:
                if 200 <= answer.status < 300:
                    return ""
                said = (await answer.content.read(_SHOWN)).decode(errors="replace").strip()
                if answer.status == _WRONG_TOKEN:
                    raise InvalidInput(f"{self._url}: HTTP status 401 ({said}); check --token-file, and start again")
                if answer.status >= 500 or answer.status in _TRY_AGAIN:
                    raise Away(f"HTTP status {answer.status}", _after_s(answer.headers.get("Retry-After", "")))
                return f"HTTP status {answer.status}" + (f": {said}" if said else "")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Away(f"{type(error).__name__}: {error}".removesuffix(": ")) from None


def _header_safe(known: str) -> str:
    """Return an id as a header may hold it, and no other id is: ids come from users."""
    safe = quote(known, safe=_PRINTABLE)
    return safe if len(safe) <= _LONGEST_KEY else f"blake2s:{hashlib.blake2s(known.encode()).hexdigest()}"


def _after_s(header: str) -> float:
    # Dates are rare, and clocks differ; some send seconds since the epoch.
    return min(float(header), _AFTER_AT_MOST_S) if header.isdecimal() else 0.0


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  refused as it is read
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; give another --url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} must begin with https:// or http:// and name a host")
    if parts.username or parts.password:
        raise argparse.ArgumentTypeError("a password in a URL is seen by every user: give it as --token-file")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; runs until SIGINT or SIGTERM, then prints its counts as JSON."""
    parser = topic_sink.parser_of(
        _MODULE, "Post a topic's events to an HTTP address, with retries.", "<topic>-to-<host>"
    )
    parser.add_argument("--url", required=True, type=_url)
    parser.add_argument("--token-file", type=Path, help="its first line is sent as Authorization: Bearer")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="longest wait for one answer (default 10)")
    options = parser.parse_args(arguments)
    if not 0 < options.timeout_s < math.inf:
        parser.error(f"--timeout-s {options.timeout_s}: must be a number of seconds above 0")
    url: Any = urlsplit(options.url)
    files = tuple(filter(None, (options.token_file,)))
    needs = sealed_connector.Needs(reads=files, ports=(url.port or {"https": 443, "http": 80}[url.scheme],))

    async def work(seal: sealed_connector.Seal) -> None:
        token = sealed_connector.secret(options.token_file)
        to = Webhook(options.url, token=token, timeout_s=options.timeout_s)
        what, group = f"{url.scheme}://{url.netloc}", f"{options.topic}-to-{url.hostname}"
        await topic_sink.run(options, to, seal, what=what, usual_group=group)

    return sealed_connector.run(_MODULE, arguments, options, needs=needs, work=work)


if __name__ == "__main__":
    sys.exit(main())
