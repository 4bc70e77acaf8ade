"""How long an event takes a consumer group's worker, as the worker publishes it: asked of Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import aiohttp
import msgspec

from inferline_stream.pipeline.consumer_group import ConsumerGroup, PromQL
from inferline_stream.pipeline.group_profile import Learned

logger = logging.getLogger(__name__)

ASK_S = 5.0
_LIMIT_S = 5.0
_KEPT = 60
"""Answers: of the last five minutes."""

_FEWEST = 3
_LONGEST_ANSWER = 1 << 16
"""Bytes of an answer that are read."""


_Value = tuple[float, str]
"""When, in seconds since the epoch, and what."""


class _Series(msgspec.Struct):
    value: _Value


class _Data(msgspec.Struct):
    kind: str = msgspec.field(name="resultType")
    result: msgspec.Raw


class _Said(msgspec.Struct):
    """What Prometheus' API answers; of an error without data."""

    data: _Data | None = None
    error: str = ""


@dataclass(slots=True)
class _Asked:
    """A query, its last answers in seconds, and why there is none now."""

    query: PromQL
    answers_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    trouble: str = "it was not answered yet"


class ServiceTimeQueries:
    """Asks for the service times of groups that declare a query, again and again, from entering to leaving.

    Args:
        groups: as they are declared; those without a query are left out.
    """

    def __init__(self, groups: Iterable[ConsumerGroup]) -> None:
        self._asked = {g.name: _Asked(g.service_time) for g in groups if g.service_time is not None}
        self._asking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._asked:
            self._asking = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking

    def throughput(self, group: str) -> Learned | None:
        """Return events per second of one busy worker; None while the query has given too few answers.

        Its error is how far single answers lie apart. They are means over the query's own span, which overlap.
        """
        asked = self._asked.get(group)
        if asked is None or len(asked.answers_s) < _FEWEST:
            return None
        mean_s = statistics.fmean(asked.answers_s)
        return Learned(1.0 / mean_s, statistics.stdev(asked.answers_s) / mean_s, len(asked.answers_s))

    @property
    def trouble(self) -> dict[str, str]:
        """By group, why its query has no answer now, in words."""
        return {name: asked.trouble for name, asked in self._asked.items() if asked.trouble}

    async def _ask(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_LIMIT_S)) as session:
            while True:
                await asyncio.gather(*(self._ask_one(session, name, asked) for name, asked in self._asked.items()))
                await asyncio.sleep(ASK_S)

    async def _ask_one(self, session: aiohttp.ClientSession, name: str, asked: _Asked) -> None:
        before = asked.trouble
        try:
            asked.answers_s.append(await _answer_s(session, asked.query))
            asked.trouble = ""
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            asked.trouble = f"{asked.query.url} has no service time of it: {error or 'no answer in time'}"
            if asked.trouble != before:
                logger.warning("group %s: %s", name, asked.trouble)


async def _answer_s(session: aiohttp.ClientSession, query: PromQL) -> float:
    """Return the seconds that a query gives now.

    Raises:
        ValueError: it gives none, several, or one that is no service time.
        ClientError: there is no Prometheus.
    """
    url = f"{query.url.rstrip('/')}/api/v1/query"
    async with session.get(url, params={"query": query.query}) as answer:
        text = b""
        while part := await answer.content.read(_LONGEST_ANSWER - len(text)):  # as it comes, in pieces
            text += part
    try:
        said = msgspec.json.decode(text, type=_Said)
        if said.data is None:
            raise ValueError(said.error or f"status {answer.status}")
        kind, result = said.data.kind, said.data.result
        if kind not in ("vector", "scalar"):
            raise ValueError(f"the query gives a {kind}, not a number")
        if kind == "scalar":
            values = [msgspec.json.decode(result, type=_Value)]
        else:
            values = [series.value for series in msgspec.json.decode(result, type=list[_Series])]
    except msgspec.MsgspecError:
        raise ValueError(f"status {answer.status}, which is no answer of Prometheus") from None
    if len(values) != 1:
        raise ValueError(f"the query gives {len(values)} series; aggregate them to one")
    value_s = float(values[0][1])
    if not (math.isfinite(value_s) and value_s > 0):
        raise ValueError(f"the query gives {value_s}, which is no time of an event")
    return value_s
