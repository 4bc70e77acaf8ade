"""Records become events: headers taken apart, the parts of a join gathered. Payloads stay bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from inferline_stream.dataplane.dispatcher.completion import Partition
from inferline_stream.dataplane.dispatcher.event import Dead, Ending, Event, Late, Moved, Requeued, Skipped
from inferline_stream.dataplane.dispatcher.join import Arrival, Gathered
from inferline_stream.dataplane.frames import Failed, StageInput
from inferline_stream.dataplane.headers import (
    FALLBACK,
    LATEST_MS,
    ReadHeaders,
    bound_id,
    event_headers,
    read_headers,
    timestamp_us,
    with_fallback,
)
from inferline_stream.dataplane.lineage import gathered
from inferline_stream.dataplane.routes import Routes
from inferline_stream.kafka.fetched_batches import SkippedBatch
from inferline_stream.kafka.records import Header, Record, record_bytes
from inferline_stream.pipeline.names import event_id_prefix

logger = logging.getLogger(__name__)

RECORD_OVERHEAD_BYTES, KEY_OVERHEAD_BYTES, HEADER_OVERHEAD_BYTES = 500, 380, 150
"""What a record and its event cost in memory beyond key, value and headers; a key, with its lane; and each header."""

MOVED_BYTES = 4 * 1024 * 1024
"""Parts of a join that are moved to the end of their partition at once."""

SAID_AGAIN_S = 60.0
"""How long the largest error of a record's time is remembered, and how often it is logged."""

NOTEWORTHY_S = 5.0
"""A smaller error is what clocks that are kept in step may differ by: it is measured and not warned of."""

STEP_MS = 50
"""A larger change of the wall clock is a step. Smaller ones hold or hurry an event by no more than that."""


class Intake:
    """Turns what was read into events for the stage, or into endings where the stage is not needed.

    Args:
        routes: of the stage.
        ready: takes an event that waits for the stage.
        ended: takes an event that ends, or goes on, without it.
        topic_id: of the incarnation of the input topic that is read.
        longer_us: how much longer the SLO of its events is than the pipeline's.
    """

    def __init__(
        self,
        routes: Routes,
        ready: Callable[[Event], None],
        ended: Callable[[Event, Ending], None],
        *,
        topic_id: str = "",
        longer_us: int = 0,
    ) -> None:
        self._routes = routes
        self._ready = ready
        self._ended = ended
        self._now_s = self._wall_s = 0.0
        self._wall_ms = self._wall_us = 0
        self._longer_us = longer_us
        self._is_entry, self._is_join = routes.is_entry, routes.is_join
        self._binds_ids = routes.is_entry and bool(routes.others)
        self._moves = routes.moves
        self._ids_from = event_id_prefix(routes.input_topic, topic_id).encode()
        self._lead = ClockError(routes.input_topic, _AHEAD)
        self._lag = ClockError(routes.input_topic, _BEHIND)
        self._tells_age = routes.is_entry and routes.entry_time_header is None
        self._ahead_ms = 0
        """How far the monotonic clock is ahead of the wall clock; the same until that one is stepped. Events of one
        clock keep their order to the microsecond that way."""
        self.duplicates = 0

    def at(self, now_s: float, wall_s: float | None = None) -> None:
        """Take note of what time it is.

        Args:
            now_s: monotonic, for the age of what waits.
            wall_s: seconds since the epoch; None where that clock has gone on as the other one.
        """
        self._wall_s = self._wall_s + now_s - self._now_s if wall_s is None else wall_s
        self._now_s = now_s
        self._wall_ms, self._wall_us = int(self._wall_s * 1e3), int(self._wall_s * 1e6)
        ahead_ms = round((now_s - self._wall_s) * 1e3)
        if abs(ahead_ms - self._ahead_ms) > STEP_MS:
            self._ahead_ms = ahead_ms

    def take_in(self, partition: Partition, record: Record) -> None:
        """Take in the next record of a partition. One that cannot be taken in becomes a dead letter."""
        is_new = partition.completion.read(record.offset)
        try:
            if is_new:
                self._take_in(partition, record)
            else:
                self._recall(partition, record)
        except Exception as error:  # a record is its sender's: whatever it holds must not stop those behind it
            where = f"{self._routes.input_topic}/{record.partition}/{record.offset}"
            logger.exception("record %s cannot be taken in", where)
            join = partition.join
            if is_new and (join is None or join.waiting_at(record.offset) is None):
                failed = Failed("Unreadable", f"{type(error).__name__}: {error}", "")
                self._ended(self._unread(partition, record), failed)

    def clock_lead_s(self) -> float:
        """Return how far the times of records were ahead of this host's clock in the last minute; 0 where none was."""
        return self._lead.seconds(self._wall_s)

    def clock_lag_s(self) -> float:
        """Return how much older records were than one before them in the last minute; 0 where none was."""
        return self._lag.seconds(self._wall_s)

    def _take_in(self, partition: Partition, record: Record) -> None:
        found = read_headers(record.headers, entry=self._is_entry)
        if type(record.value) is SkippedBatch:
            self._ended(self._event(partition, record, found), Failed(record.value.kind, record.value.reason, ""))
            return
        if found.version != self._routes.version and self._is_foreign(found):
            self._ended(self._event(partition, record, found), _foreign(found, self._routes))
            return
        if self._is_join:
            self._gather(partition, record, found)
            return
        event = self._event(partition, record, found)
        if self._moves:
            of_class = next((self._moves[header] for header in found.own if header in self._moves), None)
            if of_class is not None:
                self._ended(event, Moved(of_class))
                return
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
        assert partition.join is not None
        missing = ", ".join(partition.join.missing(parts))
        self._go_on(partition, parts, Failed("IncompleteJoin", f"{why}; nothing came from {missing}", ""))

    def release(self, partition: Partition) -> bool:
        """Let those of a join's events go on that are complete; return whether there were any."""
        join, any_went = partition.join, False
        assert join is not None
        while (parts := join.take(self._now_s, partition.has_room)) is not None:
            any_went = True
            self._go_on(partition, parts, None)
        return any_went

    def move_to_end(self, partition: Partition) -> None:
        """Have the parts that wait between complete offsets appended at the partition's end again, next to each other.

        The offsets that they had are then complete, so that a commit says with fewer runs what is. Events that are
        complete and for which it has no room move, too: their parts are then next to each other.
        """
        assert partition.join is not None
        moved = Requeued(partition.completion.position)
        for parts in partition.join.withdraw(partition.completion.between_runs(), MOVED_BYTES):
            partition.moving += len(parts.records)
            self._go_on(partition, parts, moved)

    def read_again(self, partition: Partition, events: int, found: Mapping[int, Record]) -> None:
        """Let so many events go on whose parts were read again."""
        for _ in range(events):
            parts, ending = partition.unread.popleft()
            partition.unread_bytes -= parts.size_bytes
            parts.records = [found[record] if isinstance(record, int) else record for record in parts.records]
            self._leave_join(partition, parts, ending)

    def _is_foreign(self, found: ReadHeaders) -> bool:
        """Whether another topology wrote the record; who sends one again has decided that it is still of use."""
        return found.version is not None and not self._is_entry and not found.replay

    def _recall(self, partition: Partition, record: Record) -> None:
        """A record that was complete before: only a join's memory of finished events needs it."""
        if partition.join is not None:
            found = read_headers(record.headers)
            if found.event_id is not None:
                partition.join.recall(
                    found.event_id,
                    now_s=self._now_s,
                    parent=found.parent,
                    skipped=found.skipped,
                    replay=found.replay,
                    moved=found.moved,
                    part=self._part(found),
                )

    def _part(self, found: ReadHeaders) -> tuple[int, int] | None:
        return found.part if self._routes.gathers else None

    def _event(self, partition: Partition, record: Record, found: ReadHeaders) -> Event:
        routes = self._routes
        event_id = found.event_id or self._place(record)
        if self._binds_ids:
            event_id = bound_id(routes.input_topic, event_id)
        entry_us, entered_us, arrived_ms, taken_ms = self._times(partition, record, found)
        version = routes.version if self._is_entry else found.version
        value, key, headers = record.value or b"", record.key, event_headers(found, event_id, entry_us, version)
        return Event(
            partition.number,
            (record.offset,),
            event_id,
            entry_us,
            entered_us,
            arrived_ms,
            taken_ms,
            key,
            headers,
            value,
            _size_bytes(key, value, headers),
            (record,),
            found.replay > 0,
        )

    def _times(self, partition: Partition, record: Record, found: ReadHeaders) -> tuple[int, int, int, int]:
        """Return `entry_us`, `entered_us`, `arrived_ms` and `taken_ms` of a record's event.

        Its writer says when it entered and arrived. Nothing does after it is taken in, and Kafka appends in the order
        of arrival, so neither a clock that is ahead nor one wrong time among right ones counts.
        """
        taken_ms, before_ms, ahead_ms = self._wall_ms, partition.arrived_ms, self._ahead_ms
        stamp_ms = record.timestamp_ms
        if stamp_ms is None or not 0 <= stamp_ms <= LATEST_MS:  # old formats have none
            stamp_ms = taken_ms
        entry_us = found.entry_us
        if self._is_entry and self._routes.entry_time_header is not None:
            own_us = timestamp_us(found.own, self._routes.entry_time_header)
            entry_us = entry_us if own_us is None else own_us
        if entry_us is None:
            entry_us = stamp_ms * 1000
        # Calls of min and max would take longer than all else here.
        if stamp_ms > taken_ms or entry_us > taken_ms * 1000 + 999:
            self._lead.note(record.partition, (max(stamp_ms, entry_us // 1000) - taken_ms) / 1e3, self._wall_s)
        if self._tells_age and stamp_ms < before_ms:
            self._lag.note(record.partition, (before_ms - stamp_ms) / 1e3, self._wall_s)
        arrived_ms = stamp_ms if stamp_ms > before_ms else before_ms
        # The clock may have been set back since the newest record was taken in.
        arrived_ms = partition.arrived_ms = arrived_ms if arrived_ms <= taken_ms else taken_ms
        entry_us = entry_us if entry_us <= self._wall_us else self._wall_us
        entered_us = entry_us + 1000 * ahead_ms + self._longer_us
        return entry_us, entered_us, arrived_ms + ahead_ms, taken_ms + ahead_ms

    def _place(self, record: Record) -> bytes:
        return b"%s/%d/%d" % (self._ids_from, record.partition, record.offset)

    def _unread(self, partition: Partition, record: Record) -> Event:
        """An event of which nothing is known but its place."""
        event_id, now_ms = self._place(record), self._wall_ms
        clock_ms = now_ms + self._ahead_ms
        nothing = read_headers(())
        return Event(
            partition.number,
            (record.offset,),
            event_id,
            now_ms * 1000,
            clock_ms * 1000 + self._longer_us,
            clock_ms,
            clock_ms,
            record.key,
            event_headers(nothing, event_id, now_ms * 1000, self._routes.version),
            b"",
            RECORD_OVERHEAD_BYTES + len(record.value or b""),
            (record,),
        )

    def _gather(self, partition: Partition, record: Record, found: ReadHeaders) -> None:
        assert partition.join is not None
        if found.event_id is None:
            self._ended(self._event(partition, record, found), Failed("NoEventId", "the record names no event", ""))
            return
        if self._routes.gathers and found.part is None:
            why = "the record names no place among the results of its event"
            self._ended(self._event(partition, record, found), Failed("NoPlace", why, ""))
            return
        arrival = partition.join.add(
            found.event_id,
            record=record,
            now_s=self._now_s,
            size_bytes=_size_bytes(record.key, record.value or b"", record.headers),
            parent=found.parent,
            skipped=found.skipped,
            dead=found.dead,
            replay=found.replay,
            moved=found.moved,
            key=record.key,
            part=self._part(found),
        )
        if arrival is Arrival.DUPLICATE:
            self.duplicates += 1
            partition.completion.complete(record.offset)
        elif arrival is Arrival.LATE:
            self._ended(self._event(partition, record, found), Late())
        else:
            self.release(partition)

    def _go_on(self, partition: Partition, parts: Gathered, ending: Ending | None) -> None:
        """Let a join's event go on, behind those before it whose parts have to be read again."""
        if partition.unread or parts.unread():
            partition.unread.append((parts, ending))
            partition.unread_bytes += parts.size_bytes
        else:
            self._leave_join(partition, parts, ending)

    def _leave_join(self, partition: Partition, parts: Gathered, ending: Ending | None) -> None:
        event = self._joined(partition, parts)
        if type(ending) is Failed and self._went_on(event):
            self._ended(event, Late("it was sent again after its event had gone on with None in its place"))
        elif ending is not None:
            self._ended(event, ending)
        elif parts.dead and not self._routes.fills:
            self._ended(event, Dead(parts.dead))
        elif not event.payload and not self._routes.gathers:
            self._ended(event, Skipped())
        else:
            self._ready(event)

    def _went_on(self, event: Event) -> bool:
        """Whether an event that is given up went on before, without parts that were sent again after they had died."""
        return self._routes.fills and all(read_headers(record.headers).replay for record in event.records)

    def _joined(self, partition: Partition, parts: Gathered) -> Event:
        records = tuple(record for record in parts.records if not isinstance(record, int))
        first, last = records[0], records[-1]
        every = [read_headers(record.headers) for record in (records if self._routes.gathers else (first,))]
        first, found = min(zip(records, every, strict=False), key=lambda pair: pair[1].part or (0, 0))
        entry_us, entered_us, _, _ = self._times(partition, first, found)
        _, _, arrived_ms, taken_ms = self._times(partition, last, found)
        headers = event_headers(found, parts.event_id, entry_us, found.version)
        for record in records:
            fallback = next((value for name, value in record.headers if name == FALLBACK and value), None)
            if fallback and record is not first:
                headers = with_fallback(headers, *fallback.split(b","))
        results: StageInput
        if self._routes.gathers:
            results = _results(parts, records, every)
        else:
            results = {p: r.value or b"" for p, r in zip(parts.given, records, strict=True) if p is not None}
        return Event(
            partition.number,
            tuple(record.offset for record in records),
            parts.event_id,
            entry_us,
            entered_us,
            arrived_ms,
            taken_ms,
            first.key,
            headers,
            results,
            sum(_size_bytes(record.key, record.value or b"", record.headers) for record in records),
            records,
            parts.replay > 0,
        )


_AHEAD = (
    "%s/%d: a record's time lies %.1f s ahead of this host's clock. Such records count from when they are read. "
    "Correct the clock of their producer, or this host's"
)

_BEHIND = (
    "%s/%d: a record's time lies %.1f s before that of one which was there first. Such records count as so old, and go "
    "last where they can no longer be on time. Correct the clock of their producer, or find what holds them up there"
)


class ClockError:
    """How far the times of records lie from what they could be: the largest error of the last minute.

    Args:
        topic: whose records they are, for the log.
        words: what is logged, with room for topic, partition and seconds.
    """

    def __init__(self, topic: str, words: str) -> None:
        self._topic = topic
        self._words = words
        self._error_s = 0.0
        self._seen_s = 0.0
        self._said_s = float("-inf")

    def note(self, partition: int, error_s: float, now_s: float) -> None:
        """Note a record whose time is so wrong.

        Args:
            partition: of the record.
            error_s: positive.
            now_s: this host's clock, seconds since the epoch.
        """
        if error_s >= self.seconds(now_s):
            self._error_s, self._seen_s = error_s, now_s
        if error_s >= NOTEWORTHY_S and not 0 <= now_s - self._said_s < SAID_AGAIN_S:
            self._said_s = now_s
            logger.warning(self._words, self._topic, partition, error_s)

    def seconds(self, now_s: float) -> float:
        """Return the largest error of the last minute; 0 where there was none."""
        return self._error_s if 0 <= now_s - self._seen_s < SAID_AGAIN_S else 0.0


def _size_bytes(key: bytes | None, value: bytes, headers: Iterable[Header]) -> int:
    size_bytes = RECORD_OVERHEAD_BYTES + len(value)
    if key is not None:
        size_bytes += KEY_OVERHEAD_BYTES + len(key)
    for name, content in headers:
        size_bytes += HEADER_OVERHEAD_BYTES + len(name) + len(content or b"")
    return size_bytes


def _results(parts: Gathered, records: Sequence[Record], headers: Sequence[ReadHeaders]) -> list[bytes | None]:
    """Return the results of one event in order, with None for those that died."""
    given: dict[int, bytes] = {}
    dead = set[int]()
    for name, record, found in zip(parts.given, records, headers, strict=True):
        at = 0 if found.part is None else found.part[0]
        if name is not None:
            given[at] = record.value or b""
        elif found.dead and parts.died >> at & 1:
            dead.add(at)
    return gathered(given, frozenset(dead))


def _foreign(found: ReadHeaders, routes: Routes) -> Failed:
    wrote, reads = (found.version or b"").decode("utf-8", "replace"), routes.version.decode()
    why = f"written by version {wrote} of the pipeline, this is {reads}; send it again if it is still of use"
    return Failed("OtherTopology", why, "")
