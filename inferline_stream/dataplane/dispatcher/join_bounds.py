"""The joins of a slot's partitions: which of their events go on, which end, and what memory they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

from inferline_stream.dataplane.dispatcher.completion import Partition
from inferline_stream.dataplane.dispatcher.intake import Intake
from inferline_stream.dataplane.dispatcher.result_delivery import ResultDelivery
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.dispatcher.slot_events import LookAgain
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.deadline_order import QUEUE_EVENTS

HURRY_BYTES = 1024 * QUEUE_EVENTS
"""Events that wait for replicas, from which those that can no longer be on time go first: they would hide the others
behind them."""

QUEUE_BYTES = HURRY_BYTES * 4 // 3
"""The same, beyond which only partitions with little of their own waiting are fetched."""

AT_ONCE = 1000
"""Events whose parts are read again at once, at most."""


class JoinBounds:
    """Keeps the joins of a session's partitions within their bounds.

    Args:
        slot: whose session it is.
        partitions: the session's, as they are at any time.
        intakes: let events go on, by class.
        delivery: says whether more events may end.
        may_wait: says whether more events of a partition may wait for replicas.
    """

    def __init__(
        self,
        slot: SlotContext,
        partitions: Mapping[int, Partition],
        intakes: Mapping[int, Intake],
        delivery: ResultDelivery,
        may_wait: Callable[[int], bool],
    ) -> None:
        self._slot = slot
        self._partitions = partitions
        self._intakes = intakes
        self._delivery = delivery
        self._may_wait = may_wait
        self._settled: Mapping[int, tuple[int, int]] = {}
        self._reading = 0
        """Events whose parts are being read again."""

    def learn(self, settled: Mapping[int, tuple[int, int]]) -> None:
        """Learn which parts can get no others; see `Grant.settled`."""
        self._settled = settled

    def bound(self) -> None:
        """Keep the bounds: what can never be complete ends, and of what is too much only its place is kept."""
        now_s, report, settings = self._slot.now_s, self._slot.report, self._slot.settings
        age_s, share_bytes = settings.join_age_s, settings.join_bytes / max(1, len(self._partitions))
        report.join_events = report.join_bytes = 0
        report.join_overdue = False
        for partition in self._partitions.values():
            join = partition.join
            if join is None or partition.halted:
                continue
            settled, read = self._settled.get(partition.number, (0, 0))
            if partition.completion.position >= read:
                join.settled = max(join.settled, settled)
            while self._delivery.has_room() and (parts := join.overdue(age_s, now_s)) is not None:
                self._intakes[partition.class_number].give_up(partition, parts, f"waited longer than {age_s:g} s")
            join.fit(share_bytes)
            if not join.ordered and not partition.moving and partition.scattered:
                self._intakes[partition.class_number].move_to_end(partition)
            report.join_events += len(join)
            report.join_bytes += join.size_bytes
            report.join_overdue |= join.is_overdue(age_s, now_s)
        self.release()

    def release(self) -> None:
        """Let complete events go on for which a commit has room by now."""
        for partition in self._partitions.values():
            if partition.join is not None and not partition.halted and partition.join.holds:
                partition.look_again()
                self._intakes[partition.class_number].release(partition)

    def read_again(self) -> None:
        """Have parts read again of which only the offsets were kept and whose events go on, as far as there is room."""
        if self._reading:
            return
        for partition in self._partitions.values():
            while partition.unread and not partition.halted and self._has_room(partition):
                events = min(AT_ONCE, len(partition.unread))
                offsets = [offset for parts, _ in islice(partition.unread, events) for offset in parts.unread()]
                if offsets:
                    self._reading = events
                    self._slot.ask(LookAgain(partition.number, offsets))
                    return
                self._intakes[partition.class_number].read_again(partition, events, {})

    def found(self, partition: Partition, records: Mapping[int, Record] | None) -> None:
        """Let the events go on whose parts were read again; None where Kafka no longer has them."""
        events, self._reading = self._reading, 0
        if events and records is not None and not partition.halted:  # meanwhile
            self._intakes[partition.class_number].read_again(partition, events, records)

    def _has_room(self, partition: Partition) -> bool:
        return self._delivery.has_room() and self._may_wait(partition.number)
