"""What is committed of the partitions that a replica holds, and when: one request at a time, in the background."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from inferline_stream.dataplane.client import Reader
from inferline_stream.dataplane.holding import LIVE, LOST, Event, Holding
from inferline_stream.dataplane.reporting import Lease
from inferline_stream.dataplane.wiring import Wiring
from inferline_stream.settings import Settings

logger = logging.getLogger(__name__)

COMMIT_EVERY_S = 0.02
"""Small batches are committed together for so long, up to the events of a full one: each commit is a request, and at a
few hundred records a second those are a third of the work that a replica makes for itself and for the broker."""


class Committing:
    """Commits of a replica's partitions.

    Args:
        wiring: the replica's stage.
        holdings: its partitions, as they are at any time.
        reader: reads and writes committed offsets.
        lease: without it nothing is committed.
        settings: how often committed offsets are checked and committed again.
        committed: called after each commit.
    """

    def __init__(
        self,
        wiring: Wiring,
        holdings: Mapping[int, Holding],
        reader: Reader,
        lease: Lease,
        settings: Settings,
        *,
        committed: Callable[[], object],
    ) -> None:
        self._wiring = wiring
        self._holdings = holdings
        self._reader = reader
        self._lease = lease
        self._settings = settings
        self._tell = committed
        self.wanted = asyncio.Event()
        self._at_once = asyncio.Event()
        self._done = asyncio.Event()
        self._uncommitted = 0

    def to_commit(self) -> dict[int, tuple[int, str]]:
        """Offset and metadata of every partition whose group does not know them yet."""
        holdings = self._holdings.values()
        return {h.partition: entry for h in holdings if not h.halted and (entry := h.to_commit()) is not None}

    def note(self, entries: dict[int, tuple[int, str]]) -> None:
        """Kafka has acknowledged a commit."""
        for partition, entry in entries.items():
            if partition in self._holdings:
                self._holdings[partition].was_committed(entry)
        self._done.set()

    async def durable(self, batch: Iterable[Event]) -> None:
        """Wait until the group knows that somebody works on these partitions, and what is attempted if they are
        suspected: should the batch kill this replica, the next owner will know.
        """
        last = {event.holding: event for event in batch}  # partitions are in order, so the last is the highest
        news = {holding for holding, event in last.items() if holding.suspects(event) and holding.attempt(event)}
        waiting = news | {holding for holding in last if not holding.opened}
        while waiting:
            self._done.clear()
            self.now()
            waiting = {h for h in waiting if h.state != LOST and (not h.opened or h.to_commit() is not None)}
            if waiting:
                await self._done.wait()

    def now(self) -> None:
        """Somebody waits for the next commit."""
        self._at_once.set()
        self.wanted.set()

    def finished(self, events: int, full: int) -> None:
        """So many events more need nothing but their commit, for which as many as ``full`` do not wait."""
        self._uncommitted += events
        if self._uncommitted >= full:
            self._at_once.set()
        self.wanted.set()

    def lapse(self) -> None:
        """Nothing is held any more: nobody is to wait for a commit."""
        self._done.set()

    async def run(self) -> None:
        """Commit for ever, one request at a time; what completes in the meantime goes into the next one."""
        check_at_s = time.monotonic() + self._settings.offsets_check_s
        committed_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, check_at_s - time.monotonic())):
                    await self.wanted.wait()
            if time.monotonic() >= check_at_s:  # also under load: it may be an idle partition that was overwritten
                await self._check()
                check_at_s = time.monotonic() + self._settings.offsets_check_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, committed_s + COMMIT_EVERY_S - time.monotonic())):
                    await self._at_once.wait()
            self._at_once.clear()
            self.wanted.clear()
            self._uncommitted, committed_s = 0, time.monotonic()
            entries = self.to_commit()
            if entries and self._lease.valid():
                try:
                    async with asyncio.timeout(self._lease.left_s):
                        await self._reader.commit(entries)
                except TimeoutError:
                    self.now()
                    continue
                self.note(entries)
            self._tell()

    async def _check(self) -> None:
        """Commit again what somebody else has overwritten: a zombie that woke up."""
        holdings = [h for h in self._holdings.values() if h.state == LIVE and not h.halted and h.opened]
        if not holdings or not self._lease.valid():
            return
        try:
            async with asyncio.timeout(self._lease.left_s):
                found = await self._reader.committed(h.partition for h in holdings)
        except TimeoutError:
            return
        for holding in holdings:
            if not holding.found_committed(found.get(holding.partition)):
                logger.warning(
                    "%s/%d: somebody else committed %s; overwritten",
                    self._wiring.input_topic, holding.partition, found.get(holding.partition),
                )  # fmt: skip

    async def recommit(self) -> None:
        """Commit for ever, now and then, what has not changed, too: Kafka forgets offsets that nobody commits."""
        while True:
            await asyncio.sleep(self._settings.offsets_recommit_s)
            for holding in self._holdings.values():
                holding.found_committed(None)  # as if that had happened already
            self.wanted.set()
