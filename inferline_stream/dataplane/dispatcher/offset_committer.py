"""Which offsets of a slot's partitions are committed, and when: one request at a time, in the background."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping

from inferline_stream.dataplane.dispatcher.lease import Lease, LeaseExpired
from inferline_stream.dataplane.dispatcher.partition_commits import Entry, Partition
from inferline_stream.dataplane.routes import Routes
from inferline_stream.kafka.topic_reader import TopicReader
from inferline_stream.settings import Settings

logger = logging.getLogger(__name__)

COMMIT_EVERY_S = 0.02
"""Small batches are committed together for so long: at a few hundred records a second, commits are a third of all
requests."""

COMMIT_EVENTS = 512
"""So many events that wait for their commit do not wait any longer."""


class Committer:
    """Commits what is complete. Where results are exactly once, a transaction does it by `due` and `note`, not `run`.

    Args:
        routes: of the stage.
        reader: reads and writes committed offsets.
        lease: without it nothing is committed.
        settings: how often offsets are checked, and committed again.
        partitions: the slot's, as they are at any time.
        noted: called after each commit.
    """

    def __init__(
        self,
        routes: Routes,
        reader: TopicReader,
        lease: Lease,
        settings: Settings,
        partitions: Mapping[int, Partition],
        *,
        noted: Callable[[], None],
    ) -> None:
        self._routes = routes
        self._reader = reader
        self._lease = lease
        self._settings = settings
        self._partitions = partitions
        self._noted = noted
        self.wanted = asyncio.Event()
        """Something may have changed that the group does not know."""
        self._urgent = asyncio.Event()
        self._events = 0

    def urge(self) -> None:
        """Commit now: somebody waits for it."""
        self._urgent.set()
        self.wanted.set()

    def finished(self, events: int) -> None:
        """Note that so many events more need nothing but their commit."""
        self._events += events
        if self._events >= COMMIT_EVENTS:
            self._urgent.set()
        self.wanted.set()

    def due(self) -> dict[int, Entry]:
        """Return offset and metadata of every partition whose group does not know them yet."""
        return {p.number: entry for p in self._partitions.values() if (entry := p.to_commit()) is not None}

    def note(self, entries: Mapping[int, Entry]) -> None:
        """Note that Kafka has acknowledged a commit."""
        for number, entry in entries.items():
            self._partitions[number].was_committed(entry)
        self._noted()

    async def run(self) -> None:
        """Commit for ever; what completes during a request goes into the next one.

        Raises:
            LeaseExpired: there is something to commit, and no lease.
            KafkaFailed: the group refuses.
        """
        check_at_s = time.monotonic() + self._settings.offsets_check_s
        committed_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, check_at_s - time.monotonic())):
                    await self.wanted.wait()
            if time.monotonic() >= check_at_s:  # also under load: it may be an idle partition that was overwritten
                await self.check()
                check_at_s = time.monotonic() + self._settings.offsets_check_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, committed_s + COMMIT_EVERY_S - time.monotonic())):
                    await self._urgent.wait()
            self._urgent.clear()
            self.wanted.clear()
            self._events, committed_s = 0, time.monotonic()
            entries = self.due()
            if not entries:
                continue
            if not self._lease.valid():
                raise LeaseExpired
            await self._reader.commit(entries)
            self.note(entries)

    async def check(self) -> None:
        """Commit again what somebody else has overwritten: a dispatcher that had been suspended and woke up."""
        found = await self._reader.committed(p.number for p in self._partitions.values() if not p.halted)
        for partition in self._partitions.values():
            if not partition.halted and not partition.found_committed(found.get(partition.number)):
                logger.warning(
                    "%s/%d: somebody else committed %s; committed again",
                    self._routes.input_topic, partition.number, found.get(partition.number),
                )  # fmt: skip
                self.wanted.set()

    async def repeat(self) -> None:
        """Now and then commit what has not changed, too: Kafka forgets offsets that nobody commits."""
        while True:
            await asyncio.sleep(self._settings.offsets_recommit_s)
            for partition in self._partitions.values():
                partition.found_committed(None)
            self.wanted.set()
