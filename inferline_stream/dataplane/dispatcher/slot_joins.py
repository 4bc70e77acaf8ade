"""The joins of a slot's partitions: which of their events go on, which end, and what memory they take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from itertools import islice

from inferline_stream.dataplane.dispatcher.intake import Intake
from inferline_stream.dataplane.dispatcher.partition_commits import Partition
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.kafka.records import RecordsGone
from inferline_stream.kafka.topic_reader import TopicReader
from inferline_stream.settings import Settings

AT_ONCE = 1000
"""Events whose parts are read again at once, at most."""

ROOM_AGAIN_S = 0.01
"""How soon it is looked again whether there is room for events whose parts have to be read."""


class SlotJoins:
    """Keeps the joins of a slot's partitions within their bounds.

    Args:
        partitions: the slot's, as they are at any time.
        intake: lets events go on.
        reader: reads parts again.
        report: says how much waits.
        settings: the bounds.
        has_room: whether more events may end now.
        queue_has_room: whether more events may go on now.
        kick: called when events may have gone on.
        halt: called with a partition that cannot be read again, and why.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        partitions: Mapping[int, Partition],
        intake: Intake,
        reader: TopicReader,
        report: PoolReport,
        settings: Settings,
        *,
        has_room: Callable[[], bool],
        queue_has_room: Callable[[], bool],
        kick: Callable[[], None],
        halt: Callable[[Partition, str], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._partitions = partitions
        self._intake = intake
        self._reader = reader
        self._report = report
        self._age_s, self._bytes = settings.join_age_s, settings.join_bytes
        self._has_room = has_room
        self._queue_has_room = queue_has_room
        self._kick = kick
        self._halt = halt
        self._clock_s = clock_s
        self._settled: Mapping[int, tuple[int, int]] = {}
        self._has_unread = asyncio.Event()

    def learn(self, settled: Mapping[int, tuple[int, int]]) -> None:
        """Learn which parts can get no others; see `Grant.settled`."""
        self._settled = settled

    def bound(self) -> None:
        """Keep the bounds: what can never be complete ends, and of what is too much only its place is kept."""
        now_s, share_bytes = self._clock_s(), self._bytes / max(1, len(self._partitions))
        report = self._report
        report.join_events = report.join_bytes = 0
        report.join_overdue = False
        for partition in self._partitions.values():
            join = partition.join
            if join is None or partition.halted:
                continue
            settled, read = self._settled.get(partition.number, (0, 0))
            if partition.completion.position >= read:
                join.settled = max(join.settled, settled)
            while self._has_room() and (parts := join.overdue(self._age_s, now_s)) is not None:
                self._intake.give_up(partition, parts, f"waited longer than {self._age_s:g} s")
            join.fit(share_bytes)
            if not join.ordered and not partition.moving and partition.scattered:
                self._intake.move_to_end(partition)
            report.join_events += len(join)
            report.join_bytes += join.size_bytes
            report.join_overdue |= join.is_overdue(self._age_s, now_s)
        self.release()

    def release(self) -> None:
        """Let complete events go on for which a commit has room by now."""
        for partition in self._partitions.values():
            if partition.join is None or partition.halted:
                continue
            if partition.join.holds:
                partition.look_again()
                if self._intake.release(partition):
                    self._kick()
            if partition.unread:
                self._has_unread.set()

    async def read_again(self) -> None:
        """Read parts again of which only the offsets were kept and whose events go on, for ever."""
        while True:
            await self._has_unread.wait()
            self._has_unread.clear()
            for partition in self._partitions.values():
                while partition.unread and not partition.halted:
                    if self._has_room() and self._queue_has_room():
                        await self._read(partition)
                    else:
                        await asyncio.sleep(ROOM_AGAIN_S)

    async def _read(self, partition: Partition) -> None:
        events = min(AT_ONCE, len(partition.unread))
        offsets = [offset for parts, _ in islice(partition.unread, events) for offset in parts.unread()]
        try:
            found = await self._reader.read_again(partition.number, offsets) if offsets else {}
        except RecordsGone as error:
            self._halt(partition, str(error))
            return
        if not partition.halted:  # meanwhile
            self._intake.read_again(partition, events, found)
            self._kick()
