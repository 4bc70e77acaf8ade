"""A dispatcher's time with a slot, from the first fetch to the last commit: its partitions, queue and suspects.

A session ends in order, when another dispatcher is to serve the slot, or is dropped, when the lease has expired: what
it had queued or in hand is then worth nothing, and the next session reads it again from the committed offsets.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from inferline_stream.dataplane.dispatcher.background import WAITING_BYTES, BackgroundQueues
from inferline_stream.dataplane.dispatcher.completion import Partition
from inferline_stream.dataplane.dispatcher.event import Ending, Event, Expired, Outcome
from inferline_stream.dataplane.dispatcher.hardware_kind import BatchNeeds
from inferline_stream.dataplane.dispatcher.intake import Intake
from inferline_stream.dataplane.dispatcher.join import Join
from inferline_stream.dataplane.dispatcher.join_bounds import HURRY_BYTES, QUEUE_BYTES, JoinBounds
from inferline_stream.dataplane.dispatcher.poison_suspects import Suspects
from inferline_stream.dataplane.dispatcher.queue import FallbackTerms, StageQueue, Taken
from inferline_stream.dataplane.dispatcher.result_delivery import ResultDelivery
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.dispatcher.slot_events import Hold, Owned, ReadAgain, RecordsRead, Release
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.dataplane.slot_grants import Grant
from inferline_stream.kafka.offset_metadata import Entry, decode_metadata, known_partitions
from inferline_stream.kafka.topic_state import recreated
from inferline_stream.pipeline.deadline_order import DEMAND_AFTER_SLOS, Stay
from inferline_stream.pipeline.event_classes import CLASS_STRIDE, class_of

logger = logging.getLogger(__name__)

JOIN_RECALL_RECORDS = 1000
"""A join's new owner reads this many records before the committed offset again, to know finished events by id."""

SUM_STAYS_S = 0.01
"""How often the stays of batches are summed: they are forgotten by half seconds, and the sum takes a microsecond."""


class Session:
    """Moves the records of a slot's partitions through the stage.

    Args:
        slot: whose it is.
        epoch: names it in frames; 0 for that of a slot which nobody serves.
    """

    def __init__(self, slot: SlotContext, epoch: int = 0) -> None:
        routes, slo_us = slot.routes, round(slot.routes.slo_s * 1e6)
        self._slot = slot
        self.epoch = epoch
        self.queue = StageQueue(slo_us, keys_in_order=routes.keys_in_order)
        """Of live events."""
        self.background = BackgroundQueues(routes.backgrounds, slo_us, keys_in_order=routes.keys_in_order)
        self._longer_us = [round((of.slo_s - routes.slo_s) * 1e6) for of in routes.classes]
        """How much longer the SLO of each class is than the pipeline's."""
        self.suspects = Suspects(routes.backgrounds)
        self.partitions: dict[int, Partition] = {}
        self._stay = Stay()
        self._stayed = 0
        self._stays_s = 0.0
        """Events since then, and how long they stayed in all."""
        self._stayed_until_s = self._sum_stays_at_s = -math.inf
        self.closed = not epoch
        """Whether nothing is handed out or taken in any more."""
        self.delivery = ResultDelivery(slot, self.partitions, self._completed)
        self._intakes: dict[int, Intake] = {}
        """By class, once it is owned."""
        self._joins = JoinBounds(slot, self.partitions, self._intakes, self.delivery, self._may_wait)

    # Partitions

    def own(self, owned: Owned) -> None:
        """Own these partitions of a class from the offsets that its group has committed."""
        slot, topic, begins = self._slot, owned.topic, owned.beginnings
        class_number = owned.class_number
        for partition in self.partitions.values():
            if partition.class_number == class_number:
                partition.grown(topic)
        self.delivery.want()
        if not owned.numbers:
            return
        if class_number not in self._intakes:
            routes = slot.routes.classes[class_number]
            add = self._queue_of(class_number * CLASS_STRIDE).add
            self._intakes[class_number] = Intake(
                routes, add, self._ends, topic_id=topic.id, longer_us=self._longer_us[class_number]
            )
        committed = dict(owned.committed)
        committed |= {
            number: (begins[number], "") for number in added(owned.numbers, committed, owned.partitions_before)
        }
        positions = {}
        for number in [each for each in owned.numbers if each not in self.partitions]:
            entry = committed.get(number)
            found = decode_metadata(*(entry or (0, "")))
            join = None
            if slot.routes.is_join:
                ordered = slot.routes.stage in slot.routes.ordered
                heard = slot.routes.classes[class_of(number)].heard
                join = Join(heard, remember_s=slot.settings.join_age_s, ordered=ordered)
            partition = self.partitions[number] = Partition(number, found, slot.owner, join, topic)
            if entry is None:
                self._halt(partition, "its group has committed no offset")
            elif topic.replaces(found.topic_id):
                self._halt(partition, recreated(found.topic_id, topic.id))
            elif slot.routes.is_join and not slot.transactional:
                again = max(begins.get(number, 0), found.forget_below, found.offset - JOIN_RECALL_RECORDS)
                positions[number] = min(found.offset, again)
            else:
                positions[number] = found.offset
        slot.ask(Hold(positions))

    def halt(self, why: str, class_number: int) -> None:
        """Stop reading every partition of a class."""
        for partition in self.partitions.values():
            if partition.class_number == class_number and partition.halted != why:
                self._halt(partition, why)

    def _halt(self, partition: Partition, why: str) -> None:
        """Stop reading a partition: reading on anywhere else would lose events silently."""
        partition.halted = why
        self._slot.ask(Release([partition.number]))
        queue = self._queue_of(partition.number)
        queue.drop(partition.number)
        queue.release(self.suspects.drop(partition.number))
        self._slot.report.halted[partition.number] = why
        logger.error("%s", self.trouble())

    def leave_halted(self) -> None:
        """Suspect no event of a halted partition: it may have been in hand then, and its replica has ended since."""
        for number, partition in self.partitions.items():
            if partition.halted:
                self._queue_of(number).release(self.suspects.drop(number))

    def trouble(self) -> str:
        """Return what is wrong with the slot now, in words; empty where nothing is."""
        routes = self._slot.routes
        for partition in self.partitions.values():
            if partition.halted:
                where, group = routes.place(partition.number), routes.classes[partition.class_number].group
                return f"{where} is halted: {partition.halted}; set an offset of group {group} and restart"
        return f"stage {routes.stage}: {self.suspects.trouble}" if self.suspects.trouble else ""

    def learn(self, grant: Grant) -> None:
        """Learn what a grant says of the stage's events."""
        self._joins.learn(grant.settled)
        self.suspects.learn(grant.plan.sample)
        self.background.closed, self.background.slots = grant.background_waits, max(1, grant.slots)

    def close(self) -> None:
        """Take in and hand out nothing more."""
        self.closed = True
        self._slot.ask(Release(list(self.partitions)))
        for number in self.partitions:
            self._queue_of(number).drop(number)
        self.suspects.drop()

    def _queue_of(self, partition: int) -> StageQueue:
        return self.background.queue_of(partition) if self._is_background(partition) else self.queue

    def _is_background(self, partition: int) -> bool:
        return partition >= CLASS_STRIDE and class_of(partition) in self._slot.routes.backgrounds

    def _may_wait(self, partition: int) -> bool:
        """Return whether more events of a partition may wait for replicas, by their size."""
        most = WAITING_BYTES if self._is_background(partition) else QUEUE_BYTES
        return self._queue_of(partition).size_bytes < most

    # What is reported

    def fill(self, report: PoolReport, now_s: float) -> None:
        """Say what waits, and how long what could be on time has stayed lately."""
        report.held = {number: each.completion.watermark for number, each in self.partitions.items()}
        report.queued, report.suspects = len(self.queue), len(self.suspects)
        report.background_queued = len(self.background)
        now_us = now_s * 1e6
        old_us = now_us - DEMAND_AFTER_SLOS * self._slot.routes.slo_s * 1e6
        entered_us, waited_for = defaultdict[int, list[int]](list), set[int]()
        for event in self.queue.hopeless():  # there may be ten thousand
            number = event.partition
            entered_us[number].append(event.entered_us)
            if report.held[number] in event.offsets:
                waited_for.add(number)
        report.hopeless = {number: len(each) for number, each in entered_us.items()}
        report.hidden = {number: sum([us >= old_us for us in each]) for number, each in entered_us.items()}
        report.waited_for = sorted(waited_for)
        if (first := self.queue.first()) is not None:
            entered_us[first.partition].append(first.entered_us)
        # Of a class with an SLO of its own, that is when they would have entered for the pipeline's.
        waits_us = [now_us - min(each) + self._longer_us[class_of(number)] for number, each in entered_us.items()]
        report.oldest_wait_s = max([0.0, *waits_us]) / 1e6
        self._sum_stays()
        stay = self._stay
        report.stay = (stay.sum_s, stay.events, min(0.0, stay.last_s - now_s)) if stay.events else None

    # Take in

    def full(self, most_background: int = 0) -> frozenset[int]:
        """Return the partitions that are not to be fetched now.

        Args:
            most_background: events of each background class that may wait for replicas alone.
        """
        if not self.delivery.has_room():
            return frozenset(self.partitions)
        full, share = set[int](), QUEUE_BYTES / max(1, len(self.partitions))
        if self.queue.size_bytes >= QUEUE_BYTES:
            full = {number for number in self.partitions if self.queue.bytes_of(number) > share / 2}
        if self._slot.routes.is_join:  # what waits there may wait for what comes after it; what goes on does not
            full |= {number for number, partition in self.partitions.items() if partition.unread_bytes > share}
        else:
            full |= {number for number, partition in self.partitions.items() if partition.completion.crowded}
        if self._slot.routes.backgrounds:
            background = filter(self._is_background, self.partitions)
            full |= {number for number in background if self.background.full(number, most_background)}
        return frozenset(full)

    def take_in(self, read: RecordsRead) -> None:
        """Take in what a fetch has brought."""
        if self.closed:
            return
        slot = self._slot
        for intake in self._intakes.values():
            intake.at(slot.now_s, read.wall_s)
        for number, records in read.records.items():
            partition = self.partitions.get(number)
            if partition is not None and not partition.halted:
                intake, counts = self._intakes[partition.class_number], slot.counts[partition.class_number]
                for record in records:
                    counts.records += 1
                    intake.take_in(partition, record)
        live = [intake for number, intake in self._intakes.items() if number not in slot.routes.backgrounds]
        if live:
            slot.report.clock_lead_s = max(intake.clock_lead_s() for intake in live)
            slot.report.clock_lag_s = max(intake.clock_lag_s() for intake in live)
        for number, position in read.positions.items():
            partition = self.partitions.get(number)
            if partition is not None and position is not None and position > partition.completion.position:
                partition.completion.read_to(position)
                self.delivery.want()
        self.queue.hurries = self._held_up()
        for number, why in read.lost.items():
            if number in self.partitions:
                self._halt(self.partitions[number], why)
        if slot.routes.is_join:
            self._joins.bound()
            for counts in slot.counts:
                counts.duplicates = sum(
                    intake.duplicates for number, intake in self._intakes.items() if slot.counts[number] is counts
                )
            if read.records:
                self.delivery.want()

    def _held_up(self) -> bool:
        """Return whether hopeless events take so much of what is bounded that reading would have to pause for them."""
        if self.queue.size_bytes >= HURRY_BYTES:
            return True
        # What waits in a join keeps its offsets however long it does: there, complete events are held up instead.
        pressed = {
            number
            for number, each in self.partitions.items()
            if not (each.halted or self._is_background(number))
            and (each.completion.pressed if each.join is None else each.join.holds)
        }
        # Something else may hold up an offset: it would not come sooner for hopeless events of other partitions.
        return bool(pressed) and any(event.partition in pressed for event in self.queue.hopeless())

    def _ends(self, event: Event, outcome: Ending | Expired) -> None:
        self.delivery.finished((event,), (outcome,))

    def read_again(self) -> None:
        """Have parts of joins read again that are needed by now."""
        if not self.closed:
            self._joins.read_again()

    def found_again(self, again: ReadAgain) -> None:
        """Take in parts that were read again."""
        partition = self.partitions.get(again.partition)
        if partition is None:
            return
        if again.gone:
            self._halt(partition, again.gone)
        self._intakes[partition.class_number].at(self._slot.now_s)
        self._joins.found(partition, None if again.gone else again.found)

    def _completed(self) -> None:
        if self._slot.routes.is_join and not self.closed:
            for intake in self._intakes.values():
                intake.at(self._slot.now_s)
            self._joins.release()

    # Hand out

    def open(self) -> bool:
        """Return whether batches may be handed out now."""
        return not self.closed and self.delivery.has_room()

    def take(self, limit: int, needs: BatchNeeds | None = None, terms: FallbackTerms | None = None) -> Taken:
        """Take the next batch of live events from the queue; those that are past the SLO may end here instead."""
        return self._in_time(self.queue.take(limit, needs, self._slot.now_s * 1e6, terms))

    def _in_time(self, taken: Taken) -> Taken:
        routes = self._slot.routes
        if routes.on_expired != "process":
            oldest_us = (self._slot.now_s - routes.slo_s) * 1e6
            late = [event for event in taken.events if event.entered_us < oldest_us and not event.replayed]
            if late:
                self.queue.release(late)
                for event in late:
                    self._ends(event, Expired(routes.on_expired == "dlq"))
                left = [event for event in taken.events if event not in late]
                hopeful = taken.hopeful - sum(event in late for event in taken.events[: taken.hopeful])
                return Taken(left, hopeful, taken.version)
        return taken

    def stayed(self, events: Sequence[Event]) -> None:
        """Note that events have been served that could be on time."""
        now_s = self._slot.now_s
        if now_s >= self._sum_stays_at_s:
            self._sum_stays()
            self._sum_stays_at_s = now_s + SUM_STAYS_S
        self._stayed += len(events)
        self._stayed_until_s = now_s
        now_ms, sum_ms = now_s * 1e3, 0.0
        for event in events:
            sum_ms += now_ms - event.taken_ms
        self._stays_s += sum_ms / 1e3

    def _sum_stays(self) -> None:
        if self._stayed:
            mean_s = max(0.0, self._stays_s / self._stayed)
            self._stay = self._stay.add(mean_s, self._stayed, self._stayed_until_s)
            self._stayed, self._stays_s = 0, 0.0

    def requeue(self, events: Sequence[Event], limit: int = 0) -> None:
        """Queue events again, the latest of a key first, unless their partition is halted."""
        halted = [event for event in events if self.partitions[event.partition].halted]
        self._release(halted)
        for queue, of_class in self._by_queue([event for event in events if event not in halted]):
            queue.put_back(of_class, limit)

    def finished(self, events: Sequence[Event], outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes of events, in their order."""
        self._release(events)
        self.delivery.finished(events, outcomes)

    def _release(self, events: Sequence[Event]) -> None:
        for queue, of_class in self._by_queue(events):
            queue.release(of_class)

    def _by_queue(self, events: Sequence[Event]) -> Iterator[tuple[StageQueue, Sequence[Event]]]:
        """Yield each queue with its events, in their order."""
        if not self._slot.routes.backgrounds:
            yield self.queue, events
            return
        by_queue: dict[int, tuple[StageQueue, list[Event]]] = {}
        for event in events:
            queue = self._queue_of(event.partition)
            by_queue.setdefault(id(queue), (queue, []))[1].append(event)
        yield from by_queue.values()


def added(numbers: Sequence[int], committed: Mapping[int, Entry], partitions_before: int) -> list[int]:
    """Return those of a slot's partitions that were added to the topic after the group last committed.

    Args:
        numbers: the slot's.
        committed: what the group has committed.
        partitions_before: that the topic is known to have had; what commits say of it counts, too.
    """
    known = max(partitions_before, known_partitions(committed.values()))
    return [number for number in numbers if number not in committed and 0 < known <= number % CLASS_STRIDE]
