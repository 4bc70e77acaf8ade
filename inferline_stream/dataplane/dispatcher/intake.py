"""Records become events: headers taken apart, the parts of a join gathered. Payloads stay bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.join import Arrival, Gathered
from inferline_stream.dataplane.dispatcher.outcomes import Again, Dead, Skipped
from inferline_stream.dataplane.dispatcher.partition import Partition
from inferline_stream.dataplane.frames import Failed
from inferline_stream.dataplane.headers import Found, entry_headers, read_headers, timestamp_us
from inferline_stream.dataplane.routes import Routes
from inferline_stream.dataplane.sizes import record_bytes

RECORD_OVERHEAD_BYTES = 600
"""What a record costs in memory beyond key, value and headers; above what Kafka adds to it, too."""

Ending = Failed | Skipped | Dead | Again


class Intake:
    """Turns what was read into events for the stage, or into endings where the stage is not needed.

    Args:
        routes: of the stage.
        ready: takes an event that waits for the stage.
        ended: takes an event that ends, or goes on, without it.
        clock_s: monotonic seconds, for the age of parts that wait.
    """

    def __init__(
        self,
        routes: Routes,
        ready: Callable[[Event], None],
        ended: Callable[[Event, Ending], None],
        clock_s: Callable[[], float],
    ) -> None:
        self._routes = routes
        self._ready = ready
        self._ended = ended
        self._clock_s = clock_s
        self._is_entry, self._is_join = routes.is_entry, routes.is_join
        self._source = routes.input_topic.encode()
        self.duplicates = 0

    def take_in(self, partition: Partition, record: Any) -> None:
        """Take in the next record of a partition."""
        if not partition.completion.read(record.offset):
            self._recall(partition, record)
            return
        found = read_headers(record.headers)
        if found.version != self._routes.version and self._is_foreign(found):
            self._ended(self._event(partition, record, found), _foreign(found, self._routes))
            return
        if self._is_join:
            self._gather(partition, record, found)
            return
        event = self._event(partition, record, found)
        limit_bytes = self._routes.source_max_bytes
        if limit_bytes is not None:
            size_bytes = record_bytes(record.key, record.value, record.headers)
            if size_bytes > limit_bytes:
                why = f"the record has {size_bytes} bytes with its headers, {limit_bytes} are taken"
                self._ended(event, Failed("Oversize", why, ""))
                return
        self._ready(event)

    def give_up(self, partition: Partition, parts: Gathered, why: str) -> None:
        """Make a dead letter of a join's event that cannot be completed."""
        missing = [p for p in self._routes.parents if p not in parts.results and p not in parts.skipped]
        error = Failed("IncompleteJoin", f"{why}; nothing came from {', '.join(missing)}", "")
        self._ended(self._joined(partition, parts), error)
        self._follow(partition, parts)

    def move_to_end(self, partition: Partition) -> None:
        """Have the parts that hold up a join's partition appended at its end again, so that its offset can advance.

        Where keys keep their order that would change it: there the event is given up.
        """
        assert partition.join is not None
        offset = partition.completion.watermark
        if self._routes.stage not in self._routes.ordered:
            parts = partition.join.withdraw(offset)
            if parts is not None:
                self._ended(self._joined(partition, parts), Again())
        elif (parts := partition.join.waiting_at(offset)) is not None:
            partition.join.give_up(parts, self._clock_s())
            self.give_up(partition, parts, "so many later events are complete that a commit cannot hold them all")

    def _is_foreign(self, found: Found) -> bool:
        """Whether another topology wrote the record; who sends one again has decided that it is still of use."""
        return found.version is not None and not self._is_entry and not found.replay

    def _recall(self, partition: Partition, record: Any) -> None:
        """A record that was complete before: only a join's memory of finished events needs it."""
        if partition.join is not None:
            found = read_headers(record.headers)
            if found.event_id is not None:
                partition.join.finished(found.event_id, self._clock_s(), found.replay)

    def _event(self, partition: Partition, record: Any, found: Found) -> Event:
        routes = self._routes
        event_id = found.event_id
        if event_id is None:
            event_id = b"%s/%d/%d" % (self._source, record.partition, record.offset)
        headers, entry_us = found.onward, found.entry_us
        timestamp = record.timestamp
        if self._is_entry:
            entry_us = timestamp * 1000
            if routes.entry_time_header is not None:
                entry_us = timestamp_us(headers, routes.entry_time_header) or entry_us
            headers = entry_headers(found, event_id, entry_us, routes.version)
        elif entry_us is None:
            entry_us = timestamp * 1000
        value, key = record.value or b"", record.key
        return Event(
            record.partition,
            (record.offset,),
            event_id,
            entry_us,
            timestamp,
            key,
            headers,
            value,
            _size_bytes(key, value, headers),
            (record,),
            found.replay > 0,
        )

    def _gather(self, partition: Partition, record: Any, found: Found) -> None:
        assert partition.join is not None
        if found.event_id is None:
            self._ended(self._event(partition, record, found), Failed("NoEventId", "the record names no event", ""))
            return
        parts = partition.join.add(
            found.event_id,
            record=record,
            now_s=self._clock_s(),
            size_bytes=_size_bytes(record.key, record.value or b"", record.headers),
            parent=found.parent,
            result=record.value or b"",
            skipped=found.skipped,
            dead=found.dead,
            replay=found.replay,
            key=record.key,
        )
        if parts is Arrival.DUPLICATE:
            self.duplicates += 1
            partition.completion.complete(record.offset)
        elif isinstance(parts, Gathered):
            self._complete(partition, parts)
            self._follow(partition, parts)

    def _follow(self, partition: Partition, parts: Gathered) -> None:
        """Let those go on that were complete and waited for their turn after this one."""
        assert partition.join is not None
        following: Gathered | None = parts
        while following is not None and (following := partition.join.follow(following, self._clock_s())) is not None:
            self._complete(partition, following)

    def _complete(self, partition: Partition, parts: Gathered) -> None:
        event = self._joined(partition, parts)
        if parts.dead:
            self._ended(event, Dead(parts.dead))
        elif not parts.results:
            self._ended(event, Skipped())
        else:
            self._ready(event)

    def _joined(self, partition: Partition, parts: Gathered) -> Event:
        first, last = parts.records[0], parts.records[-1]
        found = read_headers(first.headers)
        return Event(
            partition.number,
            tuple(record.offset for record in parts.records),
            parts.event_id,
            first.timestamp * 1000 if found.entry_us is None else found.entry_us,
            last.timestamp,
            first.key,
            found.onward,
            parts.results,
            parts.size_bytes,
            tuple(parts.records),
            parts.replay > 0,
        )


def _size_bytes(key: bytes | None, value: bytes, headers: Any) -> int:
    size_bytes = RECORD_OVERHEAD_BYTES + len(value) + len(key or b"")
    for name, content in headers:
        size_bytes += len(name) + len(content or b"") + 10
    return size_bytes


def _foreign(found: Found, routes: Routes) -> Failed:
    wrote, reads = (found.version or b"").decode("utf-8", "replace"), routes.version.decode()
    why = f"written by version {wrote} of the pipeline, this is {reads}; send it again if it is still of use"
    return Failed("OtherTopology", why, "")
