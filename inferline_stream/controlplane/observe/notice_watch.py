"""Notices that a host gives of its own spot capacity: a file that appears, or an address that answers."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

from inferline_stream.controlplane.records.control_records import Override
from inferline_stream.errors import UNREADABLE
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.spot import Spot, is_spot

LOOK_S = 2.0
"""How often is looked: the shortest notice of a large cloud is of half a minute."""

_ANSWERS_S = 1.0
_HEADERS = {"Metadata-Flavor": "Google", "Metadata": "true"}
"""Without which metadata servers of clouds refuse."""

_LONGEST_S = 1e9
"""Of a notice: an `Override` has no times after those of a calendar."""

_NOTHING = frozenset(("", "false", "none"))


class NoticeWatch:
    """Looks where `Spot.notice_at` says, and passes each notice on once.

    Args:
        kinds: hardware kinds.
        say: called with a notice.
    """

    def __init__(self, kinds: Catalogue, say: Callable[[Override], Awaitable[None]]) -> None:
        self._spots = {k.name: k.spot for k in kinds.values() if is_spot(k.name) and k.spot and k.spot.notice_at}
        self._say = say
        self._said: set[str] = set()

    @property
    def looks(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self._spots)

    async def step(self) -> None:
        """Look once at each place."""
        for kind, spot in self._spots.items():
            said, now_s = await asyncio.to_thread(_read, spot.notice_at), time.time()
            if said is None:
                self._said.discard(kind)
            elif kind not in self._said:
                left_s = _left_s(said, spot, now_s)
                await self._say(Override("notice", kind, left_s, until_s=now_s + left_s, who=spot.notice_at))
                self._said.add(kind)  # only now: where Kafka does not answer, it is said again


def _read(where: str) -> str | None:
    """Return what is said there; None where no notice is given, or nobody answers."""
    try:
        if "://" not in where:
            return Path(where).read_text(errors="replace")
        asked = urllib.request.Request(where, headers=_HEADERS)  # noqa: S310  the topology names it
        with urllib.request.urlopen(asked, timeout=_ANSWERS_S) as answer:  # noqa: S310
            said = answer.read(4096).decode(errors="replace")
    except (OSError, ValueError):
        return None
    return None if said.strip().lower() in _NOTHING else said


def _left_s(said: str, spot: Spot, now_s: float) -> float:
    """Return the seconds that are left: by the ``time`` of a JSON object, as AWS gives it; else the declared notice."""
    try:
        left_s = datetime.fromisoformat(json.loads(said)["time"]).timestamp() - now_s
        return min(max(0.0, left_s), _LONGEST_S)
    except (*UNREADABLE, TypeError, KeyError):
        return spot.notice_s
