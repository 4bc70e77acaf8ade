"""The way of results out of a slot: sent, then complete, then committed. It is one way in two modes.

|                       | at least once                     | exactly once                                  |
|-----------------------|-----------------------------------|-----------------------------------------------|
| a send begins         | once the one before is over       | the same, and a transaction with it           |
| offsets are complete  | once Kafka has acknowledged it    | the same                                      |
| the send is over      | then                              | once the transaction is committed             |
| a commit begins       | spaced, beside the sends          | with the acknowledgement; ends the transaction |

Nothing is sent or committed without the lease.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

from inferline_stream.dataplane.dispatcher.completion import Partition
from inferline_stream.dataplane.dispatcher.event import Event, Outcome, Requeued
from inferline_stream.dataplane.dispatcher.report_counts import count_latency
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.dispatcher.slot_events import Commit, LeaseLost, LookUp, Produce
from inferline_stream.dataplane.frames import Done, Failed, Many
from inferline_stream.kafka.offset_metadata import Entry
from inferline_stream.observability.latency_histogram import latency_bounds_s
from inferline_stream.pipeline.event_classes import CLASS_STRIDE

logger = logging.getLogger(__name__)

UNSENT_BYTES = 8 * 1024 * 1024
"""Results that are not acknowledged yet; beyond it no batch is handed out, and nothing is fetched."""

SEND_BYTES = 4 * 1024 * 1024
"""Results that are sent at once, apart from the last of them: as records they take several times the memory."""

LETTER_BYTES = 2048
"""What a dead letter's headers, and the note that its event has ended, add to an event."""

COMMIT_EVERY_S = 0.02
"""Small batches are committed together for so long: at a few hundred records a second, commits are a third of all
requests."""

COMMIT_EVENTS = 512
"""So many events that wait for their commit do not wait any longer."""

CONFIRM_EVERY_S = 0.005
"""How often it is looked whether others can read the offsets of a transaction."""


PACE_S = 0.002
"""Where requests to Kafka follow each other faster, a few results or records wait for so long after the last one: at a
thousand records a second, requests are most of a dispatcher's work. What comes after a pause does not wait."""

FEW = 64
"""So many results or records are worth a request of their own."""


class Pace:
    """Spaces requests of one kind, see `PACE_S`."""

    def __init__(self) -> None:
        self._last_s = -math.inf
        self._fast = False

    def wait_s(self, count: int, now_s: float) -> float:
        """Return how long to wait before a request for so many records, or after one that brought them."""
        left_s = self._last_s + PACE_S - now_s
        fast, self._fast = self._fast, left_s > 0
        wait_s = left_s if fast and left_s > 0 and count < FEW else 0.0
        self._last_s = now_s + wait_s
        return wait_s


class ResultDelivery:
    """Sends what is finished and commits what is complete.

    Args:
        slot: whose session it is.
        partitions: the session's, as they are at any time.
        completed: called when offsets have become complete.
    """

    def __init__(self, slot: SlotContext, partitions: Mapping[int, Partition], completed: Callable[[], None]) -> None:
        self._slot = slot
        self._partitions = partitions
        self._completed = completed
        self._bounds_s = [latency_bounds_s(of.slo_s) for of in slot.routes.classes]
        """Of the buckets of latencies, by class."""
        self._finished: list[tuple[Event, Outcome]] = []
        self._finished_bytes = 0
        self._sending: list[tuple[Event, Outcome]] | None = None
        self._sending_bytes = 0
        self._acknowledged = False
        """Whether Kafka has the records that are being sent, in a transaction that is not committed yet."""
        self._committing: Mapping[int, Entry] | None = None
        self._looks_up = False
        self._wanted = False
        """Something may have changed that the group does not know."""
        self._urgent = False
        self._uncommitted = 0
        """Events sent since the last commit began."""
        self._pace = Pace()
        self._send_at_s = -math.inf
        self._committed_s = -math.inf
        self._check_at_s = slot.now_s + slot.settings.offsets_check_s
        self._repeat_at_s = slot.now_s + slot.settings.offsets_recommit_s
        self._confirm_at_s = -math.inf
        self._confirmed = False
        self._lapsed = False
        """Whether there was no lease: another one may serve by now, even if there is one again, until that is known."""

    def has_room(self) -> bool:
        """Return whether more events may end."""
        return self._finished_bytes + self._sending_bytes < UNSENT_BYTES

    def finished(self, events: Sequence[Event], outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes of events, in their order."""
        self._finished.extend(zip(events, outcomes, strict=True))
        self._finished_bytes += sum(map(_size_bytes, events, outcomes))

    def want(self) -> None:
        """Commit soon: something may have changed that the group does not know."""
        self._wanted = True

    def step(self, *, over: bool) -> None:
        """Begin what is due, or say when it is.

        Args:
            over: whether the moment is over at which results finished: those of one moment are sent together.
        """
        slot = self._slot
        if self._lapsed or not self._partitions:
            return
        if over and self._repeat_at_s <= slot.now_s:  # Kafka forgets offsets that nobody commits
            self._repeat_at_s = slot.now_s + slot.settings.offsets_recommit_s
            for partition in self._partitions.values():
                partition.found_committed(None)
            self._wanted = True
        slot.wake_at(self._repeat_at_s)
        if self._sending is None and slot.transactional:
            if (self._finished or self._wanted) and self._is_due(slot.now_s, over=over):
                self._wanted = False
                if self._finished or self._due():
                    self._send()
        elif self._sending is None and self._finished and self._is_due(self._send_at_s, over=over):
            if self._send_at_s == -math.inf and (wait_s := self._pace.wait_s(len(self._finished), slot.now_s)):
                self._send_at_s = slot.now_s + wait_s
                slot.wake_at(self._send_at_s)
            else:
                self._send_at_s = -math.inf
                self._send()
        if not slot.transactional and self._committing is None and not self._looks_up:
            # Also under load: it may be an idle partition that was overwritten.
            if self._is_due(self._check_at_s, over=over):
                self._check_at_s = slot.now_s + slot.settings.offsets_check_s
                self._look_up()
                return
            commit_at_s = -math.inf if self._urgent else self._committed_s + COMMIT_EVERY_S
            if self._wanted and self._is_due(commit_at_s, over=over):
                self._wanted = self._urgent = False
                self._uncommitted, self._committed_s = 0, slot.now_s
                if entries := self._due():
                    self._begin_commit(entries)

    def _is_due(self, at_s: float, *, over: bool) -> bool:
        now_s = self._slot.now_s
        if over and at_s <= now_s:
            return True
        self._slot.wake_at(at_s if at_s > now_s else now_s)
        return False

    def _send(self) -> None:
        slot = self._slot
        if not self._leased():
            return
        count, size_bytes = len(self._finished), self._finished_bytes
        if size_bytes > SEND_BYTES:
            sizes = itertools.accumulate(itertools.starmap(_size_bytes, self._finished))
            count, size_bytes = next((at, size) for at, size in enumerate(sizes, 1) if size >= SEND_BYTES)
        self._sending, self._finished = self._finished[:count], self._finished[count:]
        self._sending_bytes, self._finished_bytes = size_bytes, self._finished_bytes - size_bytes
        add = slot.emitter.add
        for event, outcome in self._sending:
            add(event, outcome)
        outgoing = slot.emitter.take()
        if outgoing or slot.transactional:
            slot.ask(Produce(outgoing))
        else:
            self.sent()
            slot.wake_at(slot.now_s)

    def sent(self) -> None:
        """Kafka has the records of the last send: the events' offsets are complete."""
        sending, slot = self._sending, self._slot
        if sending is None:
            return
        for event, outcome in sending:
            partition = self._partitions[event.partition]
            for offset in event.offsets:
                partition.completion.complete(offset)
            if type(outcome) is Requeued:
                partition.moving -= len(event.offsets)
        self._completed()
        if slot.transactional:
            self._acknowledged = True
            self._begin_commit(self._due())
            return
        self._wanted = True
        self._uncommitted += len(sending)
        self._urgent = self._urgent or self._uncommitted >= COMMIT_EVENTS
        self._end_send(sending)

    def _begin_commit(self, entries: Mapping[int, Entry]) -> None:
        if self._leased():
            self._committing = entries
            self._slot.ask(Commit(entries))

    def committed(self) -> None:
        """Kafka has acknowledged the last commit."""
        for number, entry in (self._committing or {}).items():
            self._partitions[number].was_committed(entry)
        self._committing = None
        if self._slot.transactional and self._sending is not None:
            self._end_send(self._sending)

    def _end_send(self, sent: Sequence[tuple[Event, Outcome]]) -> None:
        self._sending, self._sending_bytes, self._acknowledged = None, 0, False
        self._measure(sent)

    def _measure(self, sent: Sequence[tuple[Event, Outcome]]) -> None:
        """Count end-to-end latencies of live events, once Kafka has the results."""
        routes, report = self._slot.routes, self._slot.report
        if not routes.sink:
            return
        now_us = self._slot.now_s * 1e6
        # Where a header holds the entry time, it may be of any age and says nothing of when the event came here.
        live_since_us = self._slot.live_since_us if routes.entry_time_header is None else 0.0
        counts, bounds_s, backgrounds = report.counts, self._bounds_s[0], routes.backgrounds
        for event, outcome in sent:
            results = 1 if type(outcome) is Done else len(outcome.results) if type(outcome) is Many else 0
            if not results or event.replayed or (backgrounds and event.partition // CLASS_STRIDE in backgrounds):
                continue
            if event.entry_us < live_since_us:
                counts.backlog += results
                continue
            count_latency(counts, bounds_s, max(0.0, (now_us - event.entered_us) / 1e6), results)
            if report.latencies:
                number = event.partition // CLASS_STRIDE
                of_class = routes.classes[number]
                latency_s = (now_us - event.entered_us) / 1e6 + of_class.slo_s - routes.slo_s
                report.latencies[of_class.source][bisect.bisect_left(self._bounds_s[number], latency_s)] += results

    # What the group knows

    def _due(self) -> dict[int, Entry]:
        """Return offset and metadata of every partition whose group does not know them yet."""
        return {p.number: entry for p in self._partitions.values() if (entry := p.to_commit()) is not None}

    def _look_up(self) -> None:
        self._looks_up = True
        self._slot.ask(LookUp([p.number for p in self._partitions.values() if not p.halted]))

    def found(self, entries: Mapping[int, Entry]) -> None:
        """Take note of what the group has committed, and commit again what somebody else has overwritten."""
        self._looks_up = False
        theirs = [p for p in self._partitions.values() if not p.halted]
        if self._slot.transactional:  # `settle` asked
            self._confirmed = all(entries.get(p.number) == p.entry() for p in theirs)
            self._confirm_at_s = self._slot.now_s + CONFIRM_EVERY_S
            return
        for partition in theirs:
            entry = entries.get(partition.number)
            if not partition.found_committed(entry):  # a dispatcher that had been suspended and woke up
                where = self._slot.routes.place(partition.number)
                logger.warning("%s: somebody else committed %s; committed again", where, entry)
                self._wanted = True

    def settle(self) -> bool:
        """Send and commit all there is, at once; return whether that is done and others can read it."""
        if self._finished or self._sending is not None or self._committing is not None or self._looks_up:
            return False
        if self._due():
            self._wanted = self._urgent = True
            return False
        if not self._slot.transactional or self._confirmed:
            return True
        if self._slot.now_s < self._confirm_at_s:
            self._slot.wake_at(self._confirm_at_s)
        elif self._leased():  # without it a successor may have committed: these offsets would never be seen again
            self._look_up()
        return False

    # The lease

    def lapse(self) -> None:
        """Send and commit nothing: another one may serve."""
        self._lapsed = True

    def go_on(self) -> None:
        """Send and commit again: no other one has served."""
        self._lapsed, self._wanted = False, True
        if self._acknowledged and self._committing is None:
            self._begin_commit(self._due())

    def _leased(self) -> bool:
        if not self._lapsed and not self._slot.lease.valid_at(self._slot.now_s):
            self._lapsed = True
            self._slot.ask(LeaseLost())
        return not self._lapsed


def _size_bytes(event: Event, outcome: Outcome) -> int:
    """Return about what an event and its results take until Kafka has these."""
    if type(outcome) is Done:
        return event.size_bytes + len(outcome.value)
    if isinstance(outcome, Many):
        return event.size_bytes + sum(len(result.value) + event.size_bytes for result in outcome.results)
    if isinstance(outcome, Failed):
        return event.size_bytes + LETTER_BYTES + len(outcome.message) + len(outcome.traceback)
    return event.size_bytes
