"""Records become events: headers taken apart, values decoded, the parts of a join gathered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inferline_stream.dataplane.headers import Found, entry_headers, read_headers, timestamp_us
from inferline_stream.dataplane.holding import Dead, Event, Holding, Skipped
from inferline_stream.dataplane.join import Arrival, Gathered
from inferline_stream.dataplane.sizes import record_bytes
from inferline_stream.dataplane.wiring import Wiring
from inferline_stream.dataplane.worker import Failed

RECORD_OVERHEAD_BYTES = 600
"""What a record costs in memory beyond its key and value: objects, headers, the decoded value's frame."""

Ending = Failed | Skipped | Dead


class Intake:
    """Turns what was read into events for the stage, or into endings where the stage is not needed.

    Args:
        wiring: the stage and its surroundings.
        ready: takes an event that waits for the stage.
        ended: takes an event that ends, or goes on, without it.
        clock_s: monotonic seconds, for the age of parts that wait.
    """

    def __init__(
        self,
        wiring: Wiring,
        ready: Callable[[Event], None],
        ended: Callable[[Event, Ending], None],
        clock_s: Callable[[], float],
    ) -> None:
        self._wiring = wiring
        self._ready = ready
        self._ended = ended
        self._clock_s = clock_s
        self._decode = wiring.decoders.get(None)
        self._limit_bytes = wiring.pipeline.source.max_bytes if wiring.is_entry else None
        self.duplicates = 0

    def take_in(self, holding: Holding, record: Any) -> None:
        """Take in the next record of a partition."""
        if not holding.completion.read(record.offset):
            self._recall(holding, record)
            return
        found = read_headers(record.headers)
        if found.version != self._wiring.version and self._is_foreign(found):
            self._ended(self._event(holding, record, found), _foreign(found, self._wiring))
            return
        if self._wiring.is_join:
            self._gather(holding, record, found)
            return
        event = self._event(holding, record, found)
        if self._limit_bytes is not None:
            size_bytes = record_bytes(record.key, record.value, record.headers)
            if size_bytes > self._limit_bytes:
                why = f"the record has {size_bytes} bytes with its headers, {self._limit_bytes} are taken"
                self._ended(event, Failed("Oversize", why, ""))
                return
        try:
            assert self._decode is not None
            event.value = self._decode(record.value)
        except Exception as error:
            self._ended(event, Failed.of(error))
        else:
            self._ready(event)

    def give_up(self, holding: Holding, parts: Gathered, why: str) -> None:
        """A join's event that cannot be completed becomes a dead letter."""
        missing = [p for p in self._wiring.parents if p not in parts.results and p not in parts.skipped]
        error = Failed("IncompleteJoin", f"{why}; nothing was heard of {', '.join(missing)}", "")
        self._ended(self._joined(holding, parts), error)
        self._follow(holding, parts)

    def _is_foreign(self, found: Found) -> bool:
        """Whether another topology wrote the record; who sends one again has decided that it is still of use."""
        return found.version is not None and not self._wiring.is_entry and not found.replay

    def _recall(self, holding: Holding, record: Any) -> None:
        """A record that was complete before: only a join's memory of finished events needs it."""
        if holding.join is not None:
            found = read_headers(record.headers)
            if found.event_id is not None:
                holding.join.finished(found.event_id, self._clock_s(), found.replay)

    def _event(self, holding: Holding, record: Any, found: Found) -> Event:
        wiring = self._wiring
        event_id = found.event_id
        if event_id is None:
            event_id = b"%s/%d/%d" % (record.topic.encode(), record.partition, record.offset)
        headers, entry_us = found.onward, found.entry_us
        if wiring.is_entry:
            entry_us = record.timestamp * 1000
            if wiring.entry_time_header is not None:
                entry_us = timestamp_us(headers, wiring.entry_time_header) or entry_us
            headers = entry_headers(found, event_id, entry_us, wiring.version)
        elif entry_us is None:
            entry_us = record.timestamp * 1000
        return Event(
            holding=holding,
            offsets=(record.offset,),
            event_id=event_id,
            entry_us=entry_us,
            entered_ms=record.timestamp,
            key=record.key,
            headers=headers,
            value=None,
            size_bytes=RECORD_OVERHEAD_BYTES + len(record.value or b"") + len(record.key or b""),
            records=(record,),
            replayed=found.replay > 0,
        )

    def _gather(self, holding: Holding, record: Any, found: Found) -> None:
        assert holding.join is not None
        result = None
        if found.event_id is None:
            self._ended(self._event(holding, record, found), Failed("NoEventId", "the record names no event", ""))
            return
        failure = None
        if found.parent is not None:
            try:
                result = self._wiring.decoders[found.parent](record.value)
            except Exception as error:  # its event fails once every part is there
                failure = Failed.of(error)
        parts = holding.join.add(
            found.event_id,
            record=record,
            now_s=self._clock_s(),
            size_bytes=RECORD_OVERHEAD_BYTES + len(record.value or b"") + len(record.key or b""),
            parent=found.parent,
            result=result,
            skipped=found.skipped,
            dead=found.dead,
            failure=failure,
            replay=found.replay,
            key=record.key,
        )
        if parts is Arrival.DUPLICATE:
            self.duplicates += 1
            holding.completion.complete(record.offset)
        elif isinstance(parts, Gathered):
            self._complete(holding, parts)
            self._follow(holding, parts)

    def _follow(self, holding: Holding, parts: Gathered) -> None:
        """Let those go on that were complete and waited for their turn after this one."""
        assert holding.join is not None
        following: Gathered | None = parts
        while following is not None and (following := holding.join.follow(following, self._clock_s())) is not None:
            self._complete(holding, following)

    def _complete(self, holding: Holding, parts: Gathered) -> None:
        event = self._joined(holding, parts)
        if parts.dead:
            self._ended(event, Dead(parts.dead))
        elif parts.failure is not None:
            self._ended(event, parts.failure)
        elif not parts.results:
            self._ended(event, Skipped())
        else:
            try:
                event.value = self._wiring.join_input(parts.results)
            except Exception as error:
                self._ended(event, Failed.of(error))
            else:
                self._ready(event)

    def _joined(self, holding: Holding, parts: Gathered) -> Event:
        first, last = parts.records[0], parts.records[-1]
        found = read_headers(first.headers)
        return Event(
            holding=holding,
            offsets=tuple(record.offset for record in parts.records),
            event_id=parts.event_id,
            entry_us=first.timestamp * 1000 if found.entry_us is None else found.entry_us,
            entered_ms=last.timestamp,
            key=first.key,
            headers=found.onward,
            value=None,
            size_bytes=parts.size_bytes,
            records=tuple(parts.records),
            replayed=parts.replay > 0,
        )


def _foreign(found: Found, wiring: Wiring) -> Failed:
    wrote, reads = (found.version or b"").decode("utf-8", "replace"), wiring.version.decode()
    why = f"written by version {wrote} of the pipeline, this is {reads}; send it again if it is still of use"
    return Failed("OtherTopology", why, "")
