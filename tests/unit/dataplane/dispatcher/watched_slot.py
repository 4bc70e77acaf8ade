"""A slot whose every action is checked: leases, halted partitions, memory, and which events go first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.frames import Batch
from tests.unit.dataplane.dispatcher.doubles import PlayedSlot
from tests.unit.dataplane.dispatcher.simulated_kafka import Kafka

UNSENT_BYTES = 24_000

SLO_S, HOPELESS_EVERY = 1.0, 4

LONGEST_S = 0.5
"""Longest that a batch and the rest of its way take, by what plans and leaders say here."""


class WatchedSlot(PlayedSlot):
    """A slot that asks Kafka for nothing that it must not ask for.

    Args:
        kafka: what Kafka has.
        how: see `PlayedSlot`.
    """

    def __init__(self, kafka: Kafka, **how: Any) -> None:
        super().__init__(kafka.entries, transactional=kafka.transactional, batch_deadline_s=3.0, **how)
        self.kafka = kafka
        self.entries = kafka.entries
        self.numbers = list(range(kafka.topic.partitions))
        self.topic = kafka.topic
        self.acknowledges = False
        self.since_late_turn = self.without_late = 0
        """Batches since one of hopeless events went first, and in a row without a late event while one waited."""
        self.said_again = Counter[tuple[int, int]]()
        """By session and partition, commits of what the group has."""
        self.waited: set[Any] = set()
        """Events that waited before this step: others may have come after some of its batches."""

    def perform(self, actions: Iterable[on.Action]) -> None:
        actions = list(actions)
        self.check_order(actions)
        for action in actions:
            if isinstance(action, on.Produce):
                assert self.has_the_lease(), "it sends without a lease"
                self.kafka.begin(action.outgoing)
            elif isinstance(action, on.Commit):
                assert self.has_the_lease(), "it commits without a lease"
                self.kafka.check(action.entries)
                self.check_news(action.entries)
                assert not action.entries.keys() & self.report.halted.keys(), "a halted partition's offset moves"
            elif isinstance(action, on.SendFrame) and isinstance(action.frame, Batch):
                delivery = self.session.delivery
                assert delivery._finished_bytes + delivery._sending_bytes < UNSENT_BYTES, "too much is unsent"
            elif isinstance(action, on.LookAgain):
                found = {offset: self.kafka.log[action.partition][offset] for offset in action.offsets}
                self._answers.append(on.ReadAgain(action.partition, found))
                continue
            super().perform([action])

    def check_news(self, entries: Mapping[int, Any]) -> None:
        """A commit says what the group does not know, but for the first of a session."""
        for partition, entry in entries.items():
            if self.entries.get(partition) == entry:
                self.said_again[self.session.epoch, partition] += 1
        assert all(times == 1 for times in self.said_again.values()), "what was acknowledged is committed again"

    def check_order(self, actions: Iterable[on.Action]) -> None:
        """What can be on time goes first, and what cannot has its turn: by events without a key, which wait alone."""
        if not hasattr(self, "without_late"):  # what the first grant asks for
            return
        waiting = {event for room in self.rooms() for event in room.waiting() if event.key is None}
        formed = []
        for action in reversed(list(actions)):
            if isinstance(action, on.SendFrame) and isinstance(action.frame, Batch):
                hand = self.pool.replicas[action.replica].hands[action.frame.batch]
                halted = {event.partition for event in hand.events} & self.report.halted.keys()
                assert not halted, "events of a halted partition are handed out"
                if not hand.alone and hand.events:
                    formed.append((hand.events, set(waiting)))
                    waiting.update(event for event in hand.events if event.key is None)
        for events, left in reversed(formed):
            entered_s = [event.entered_us / 1e6 for event in events]
            late = [self.now_s - at_s > SLO_S for at_s in entered_s]
            in_time = any(self.now_s - event.entered_us / 1e6 + LONGEST_S < SLO_S for event in left)
            if all(late) and in_time and not self.session.queue.hurries:
                assert self.since_late_turn >= HOPELESS_EVERY - 1, "late events go before others"
                self.since_late_turn = -1
            self.since_late_turn += 1
            late_waits = any(self.now_s - event.entered_us / 1e6 > SLO_S for event in left & self.waited)
            if all(event.key is None for event in events):  # a key may go by an event that waits behind its first
                self.without_late = self.without_late + 1 if late_waits and not any(late) else 0
            assert self.without_late < HOPELESS_EVERY, "late events wait for ever"
        self.waited = waiting

    def rooms(self) -> Iterable[Any]:
        return (self.session.queue._live, self.session.queue._aside)

    def has_the_lease(self) -> bool:
        """Whether it has the lease, and nobody else may have served since the session began."""
        return self.lease.valid_at(self.now_s) and not self.lease_lost

    def answers(self) -> bool:
        """Let Kafka answer what it was asked first; return whether there is such a thing."""
        if not self._answers:
            return False
        match self._answers[0]:
            case on.Produced():
                self.kafka.acknowledge()
            case on.OffsetsCommitted():
                self.kafka.end()
        self.answer_one()
        return True
