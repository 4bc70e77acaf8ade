"""Whatever happens to a slot, and in whatever order: the promises of docs/explanation/delivery.md, without IO.

Each rule is one thing that Kafka, the supervisor, a replica, the network or an operator may do. At the end, faults end.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from inferline_stream.dataplane.dispatcher import doubtful_batches, join_bounds, queue, result_delivery
from inferline_stream.dataplane.dispatcher import session as session_module
from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.frames import Batch, Broken, Call, Done, Failed, Leave, Ready, Results, Returned
from inferline_stream.dataplane.slot_grants import LeaderHeartbeat
from inferline_stream.kafka.topic_state import TopicState
from inferline_stream.settings import Settings
from tests.support.hypothesis_profiles import examples
from tests.unit.dataplane.dispatcher.doubles import WALL_S, Replica
from tests.unit.dataplane.dispatcher.simulated_kafka import JoinKafka, Kafka
from tests.unit.dataplane.dispatcher.test_join_bounds import join_routes
from tests.unit.dataplane.dispatcher.watched_slot import HOPELESS_EVERY, UNSENT_BYTES, WatchedSlot

OK, RAISES, KILLS, REFUSED = b"ok", b"raises", b"kills", b"refused"

EVENT_BYTES, FETCH = 1_400, 8
"""What an event takes here, and how many a fetch brings."""

QUEUE_BYTES = 17 * EVENT_BYTES


class SlotLaws(RuleBasedStateMachine):
    """Rules by which things happen, and what then still holds."""

    transactional = False
    kafka_of: type[Kafka] = Kafka
    how: Mapping[str, Any] = {}
    """Of the slot."""

    @initialize(concurrency=st.sampled_from([1, 1, 3]), limit=st.sampled_from([1, 4]), sample=st.booleans(),
                profiled=st.booleans())  # fmt: skip
    def begin(self, concurrency: int, limit: int, sample: bool, profiled: bool) -> None:
        self.rng = random.Random(1)
        self.kafka = self.kafka_of(transactional=self.transactional)
        self.read: dict[int, int] = {}
        self.clock_s = 1000.0
        self.planned = {"limit": limit, "concurrency": concurrency, "sample": b"sample" if sample else None}
        self.service_s = {1: 0.02, 8: 0.2} if profiled else {}
        self.heard: list[Any] = []
        self.serial = 0
        self.refused: set[str] = set()
        """Replicas whose server has not taken a batch."""
        self.start()
        self.replica()
        self.replica()

    def start(self) -> None:
        """Start a dispatcher's process, and its first session."""
        self.slot = WatchedSlot(self.kafka, **self.how)
        self.slot.now_s = self.clock_s
        self.plan()
        self.session()

    def plan(self) -> None:
        self.slot.plan(**self.planned, service_s=self.service_s)

    def session(self) -> None:
        self.serial += 1
        self.slot._epoch = self.serial
        self.slot.held.clear()
        self.slot.begin()
        self.slot.since_late_turn = self.slot.without_late = 0
        self.read = dict(self.slot.held)

    def replica(self) -> Replica:
        self.serial += 1
        return self.slot.attached(f"r{self.serial}")

    def replicas(self) -> list[Replica]:
        return [each for each in self.slot.replicas.values() if each.connected]

    # What happens to records

    @rule(partition=st.integers(0, 2), key=st.sampled_from([None, b"a", b"b"]), count=st.integers(1, 12),
          nature=st.sampled_from([OK] * 5 + [RAISES, KILLS, REFUSED]),
          age_s=st.sampled_from([0.0, 0.0, 0.7, 3600.0]))  # fmt: skip
    def records_come(self, partition: int, key: bytes | None, count: int, nature: bytes, age_s: float) -> None:
        for at in range(count):
            odd = nature if at == 0 else OK
            entered_s = WALL_S + self.slot.now_s - (age_s if at % 2 else 0.0)
            self.kafka.append(partition % self.kafka.topic.partitions, key, odd, entered_s)
        self.fetch(partition % self.kafka.topic.partitions)

    @rule(partition=st.integers(0, 2))
    def records_are_read(self, partition: int) -> None:
        self.fetch(partition)

    def fetch(self, partition: int) -> bool:
        """Read some records, if there may be any; return whether there were some."""
        slot = self.slot
        if partition not in slot.held or partition in slot.slot.full():
            return False
        queue = slot.session.queue
        assert queue.size_bytes < QUEUE_BYTES or queue.bytes_of(partition) < QUEUE_BYTES / 2, "it reads on"
        at = self.read.setdefault(partition, slot.held[partition])
        records = self.kafka.log[partition][at : at + FETCH]
        self.read[partition] = at + len(records)
        slot.read({partition: records} if records else {}, {partition: self.read[partition]})
        return bool(records)

    # What replicas do

    @rule(choice=st.integers(0, 9), honest=st.integers(0, 9))
    def a_replica_answers(self, choice: int, honest: int) -> None:
        busy = [each for each in self.replicas() if each.frames]
        if busy:
            replica = busy[choice % len(busy)]
            if len(replica.frames) > 1 and honest > 6:  # in another order
                replica.frames.rotate(-1)
            self.answers(replica)

    def answers(self, replica: Replica) -> None:
        batch = replica.frames.popleft()
        if isinstance(batch, Leave):
            replica.die()
            return
        natures = [each["left"] if isinstance(each, dict) else each for each in batch.inputs]
        if KILLS in natures:
            replica.die()
        elif REFUSED in natures:
            self.refused.add(replica.name)
            self.say(
                replica, Returned(batch.epoch, batch.batch, "the server answers 500", busy=self.rng.random() < 0.2)
            )
        else:
            outcomes = [Failed("E", "no", "") if each == RAISES else Done(b"result", 0) for each in natures]
            self.say(replica, Results(batch.epoch, batch.batch, outcomes, [Call(len(outcomes), 0.01)], 0.01))

    def say(self, replica: Replica, frame: Any) -> None:
        self.heard.append(frame)
        replica.say(frame)

    @precondition(lambda self: self.heard)
    @rule(
        choice=st.integers(0, 99),
        who=st.integers(0, 9),
        how=st.sampled_from(["again", "epoch", "batch", "more", "broken", "returned", "ready"]),
    )
    def a_frame_is_late_or_forged(self, choice: int, who: int, how: str) -> None:
        replicas = self.replicas()
        if not replicas:
            return
        replicas = [each for each in replicas if each.frames] or replicas
        replica, frame = replicas[who % len(replicas)], self.heard[-1 - choice % len(self.heard)]
        held = next((each for each in replica.frames if isinstance(each, Batch)), frame)
        done = [Done(b"forged", 0)] * (len(held.inputs) if isinstance(held, Batch) else 1)
        match how:
            case "epoch":
                frame = Results(held.epoch - 1, held.batch, done, [], 0.0)
            case "batch":
                frame = Results(held.epoch, held.batch + 10_000, done, [], 0.0)
            case "more":
                frame = Results(held.epoch, held.batch, [*done, *done], [], 0.0)
            case "broken":
                frame = Broken(frame.epoch, frame.batch + 10_000, "it broke")
            case "returned":
                frame = Returned(frame.epoch, frame.batch, "late", 1.0)
            case "ready":
                frame = Ready("another", 1.0, None)
        replica.say(frame)

    @rule(
        choice=st.integers(0, 9),
        how=st.sampled_from(["dies", "breaks", "memory", "network", "garbles", "retires", "moves"]),
    )
    def a_replica_ends(self, choice: int, how: str) -> None:
        replicas = self.replicas()
        if not replicas:
            return
        if choice > 4:  # rather one that has something to lose, or of which a batch is in doubt
            doubted = choice > 7
            replicas = [
                each for each in replicas if (each.name in self.refused if doubted else each.frames)
            ] or replicas
        replica = replicas[choice % len(replicas)]
        held = [frame for frame in replica.frames if isinstance(frame, Batch)]
        match how:
            case "network":
                self.slot.lost(replica.name)
            case "retires" | "moves":
                self.slot.retire(replica.name, moves=how == "moves")
                return
            case "garbles":
                replica.die("no frame")
            case "breaks" | "memory" if held:
                replica.say(Broken(held[0].epoch, held[0].batch, how, memory=how == "memory"))
            case _:
                replica.die()
        self.replica()

    @rule(ready=st.booleans())
    def a_replica_comes(self, ready: bool) -> None:
        if len(self.replicas()) < 4:
            self.serial += 1
            self.slot.attached(f"r{self.serial}", ready=ready)

    @rule(choice=st.integers(0, 9))
    def a_replica_is_attached_again(self, choice: int) -> None:
        replicas = self.replicas()
        if replicas:
            before = replicas[choice % len(replicas)]
            self.slot.attached(before.name, again=True, hardware=before.hardware)

    # What Kafka and time do

    @rule(count=st.integers(1, 3))
    def kafka_answers(self, count: int) -> None:
        for _ in range(count):
            self.slot.answers()

    @rule(by_s=st.sampled_from([0.0, 0.001, 0.003, 0.02, 0.5, 5.0, 70.0]))
    def time_passes(self, by_s: float) -> None:
        self.slot.advance(by_s)
        self.clock_s = self.slot.now_s

    @rule(partition=st.integers(0, 1))
    def somebody_overwrites_an_offset(self, partition: int) -> None:
        if not self.transactional:
            self.kafka.entries[partition] = self.kafka.beginning

    @rule()
    def the_topic_grows(self) -> None:
        if self.kafka.topic.partitions == 2:
            self.kafka.topic = TopicState(self.kafka.topic.id, 3)
            self.slot.grow(self.kafka.topic)

    @rule(limit=st.sampled_from([1, 2, 8]), hold_s=st.sampled_from([0.0, 0.0, 0.05]))
    def the_plan_changes(self, limit: int, hold_s: float) -> None:
        self.planned |= {"limit": limit, "hold_s": hold_s}
        self.plan()

    @rule(rest_s=st.sampled_from([0.0, 0.1, 0.3]))
    def the_leader_says_what_later_stages_take(self, rest_s: float) -> None:
        self.slot.feed(LeaderHeartbeat(1, "c", rest_s={self.slot.routes.stage: rest_s}))

    @rule(partition=st.integers(0, 2))
    def records_are_gone_before_they_were_read(self, partition: int) -> None:
        slot = self.slot
        if partition in slot.held:
            slot.feed(on.RecordsRead({}, {}, {partition: "gone"}, slot.now_s + WALL_S))
            assert partition not in slot.held
            self.kafka.halted.add(partition)

    @precondition(lambda self: self.slot.report.halted)
    @rule()
    def somebody_says_where_to_go_on_and_starts_it_again(self) -> None:
        for partition in self.slot.report.halted:
            self.kafka.entries.setdefault(partition, self.kafka.beginning)
        self.the_dispatcher_dies()
        assert not self.slot.report.halted

    @rule()
    def the_topic_is_created_again(self) -> None:
        slot, kafka = self.slot, self.kafka
        slot.feed(on.TopicGone("another topic has its name"))
        assert not slot.held
        assert slot.report.halted.keys() == set(slot.numbers)
        kafka.recreate()
        slot.topic, slot.numbers = kafka.topic, [0, 1]
        for beginning in (None, kafka.beginning):  # the old offsets mean nothing, until somebody says where to begin
            kafka.void(self.rng)
            slot.drop()
            slot.lease_lost = False
            if beginning is not None:
                kafka.entries.clear()
                kafka.entries.update({0: beginning, 1: beginning})
            self.session()
            assert len(slot.held) == (0 if beginning is None else 2), slot.report.halted
        kafka.may_repeat = not self.transactional

    # Sessions end

    @rule(answers=st.integers(0, 2), kept=st.booleans(), noticed=st.booleans())
    def the_lease_expires(self, answers: int, kept: bool, noticed: bool) -> None:
        slot = self.slot
        slot.has_lease = False
        slot.advance(3.0)
        for _ in range(answers):
            slot.answers()
        for replica in [each for each in self.replicas() if each.frames and not noticed]:
            self.answers(replica)
        slot.has_lease = slot.lease_lost = True  # again, but somebody else may have served meanwhile
        slot.feed(on.LeaseLost())
        for partition in list(slot.held):
            self.fetch(partition)
        for replica in [each for each in self.replicas() if each.frames][:answers]:  # the others answer a later session
            self.answers(replica)
        slot.advance(1.0)
        if kept:
            slot.lease_lost = False
            self.clock_s = slot.now_s
            slot.feed(on.LeaseRegained())
            return
        self.kafka.void(self.rng)
        slot.drop()
        slot.lease_lost = False
        self.clock_s = slot.now_s
        self.session()

    @rule()
    def the_dispatcher_dies(self) -> None:
        before = self.replicas()
        self.kafka.void(self.rng)
        self.clock_s = self.slot.now_s
        self.start()
        for each in before:  # alive, with their batches in hand; they answer the next dispatcher
            again = self.slot.attached(each.name, again=True, hardware=each.hardware)
            for frame in each.frames:
                if isinstance(frame, Batch):
                    again.say(Results(frame.epoch, frame.batch, [Done(b"earlier", 0)] * len(frame.inputs), [], 0.1))

    @rule()
    def another_dispatcher_takes_over_in_order(self) -> None:
        slot = self.slot
        slot.feed(on.Drained())
        self.runs_until(lambda: slot.drained)
        slot.drained = False
        assert all(type(answer) is on.ReadAgain for answer in slot._answers), "it leaves with work under way"
        slot._answers.clear()  # nobody waits for these any more
        self.session()

    # What holds

    @invariant()
    def no_event_and_no_key_is_in_two_batches_at_once(self) -> None:
        replicas = self.slot.pool.replicas.values()
        in_hand = [event for replica in replicas for hand in replica.hands.values() for event in hand.events]
        assert len({id(event) for event in in_hand}) == len(in_hand)
        of_key = Counter(
            key for replica in replicas for hand in replica.hands.values() for key in {e.key for e in hand.events}
        )
        of_key.pop(None, None)
        assert all(count == 1 for count in of_key.values()), of_key

    @invariant()
    def nothing_of_a_halted_partition_waits(self) -> None:
        assert not any(self.slot.session.queue.bytes_of(number) for number in self.slot.report.halted)

    @invariant()
    def memory_is_bounded(self) -> None:
        session = self.slot.session
        one_fetch = EVENT_BYTES * FETCH * 3
        assert session.queue.size_bytes <= QUEUE_BYTES + one_fetch + EVENT_BYTES * 64

    @invariant()
    def results_of_a_key_are_in_order(self) -> None:
        firsts = [place for place in dict.fromkeys(self.kafka.out) if place not in self.kafka.letters]
        of_key: defaultdict[Any, list[int]] = defaultdict(list)
        for partition, offset in firsts:
            key = self.kafka.key_of[partition, offset]
            if key is not None:
                of_key[partition, key].append(self.kafka.turn((partition, offset)))
        for offsets in of_key.values():
            assert offsets == sorted(offsets)

    @invariant()
    def nothing_is_sent_twice(self) -> None:
        if not self.kafka.may_repeat:
            out = [place for place in self.kafka.out if place[0] not in self.kafka.halted]
            assert len(set(out)) == len(out)

    # Faults end

    def runs_until(self, holds: Any) -> None:
        """Let everything work until something holds; events may do what they do."""
        slot = self.slot
        for _ in range(2_000):
            if holds():
                return
            busy = next((each for each in self.replicas() if each.frames), None)
            if slot.answers():
                continue
            if busy is not None:
                self.answers(busy)
            elif sum(each.name in slot.pool.replicas for each in self.replicas()) < 2:
                self.replica()
            elif not any([self.fetch(partition) for partition in list(slot.held)]):
                assert slot._timer_s is not None, "nothing is to happen any more"
                slot.advance(max(0.0, slot._timer_s - slot.now_s))
            self.clock_s = slot.now_s
        session = slot.session
        raise AssertionError(
            f"no progress: {len(session.queue)} queued, {len(session.suspects)} suspects, {slot.pool.replicas}, "
            f"{slot.entries} of {[(p, len(each)) for p, each in self.kafka.log.items()]}, halted "
            f"{slot.report.halted}, trouble {session.trouble()!r} {slot.trouble!r}"
        )

    def everything_has_come(self) -> None:
        """Let everything come that is still to come."""

    def teardown(self) -> None:
        if not hasattr(self, "slot"):
            return
        if self.slot.report.halted:
            self.somebody_says_where_to_go_on_and_starts_it_again()
        slot, kafka = self.slot, self.kafka
        self.planned |= {"sample": b"sample"}
        self.plan()
        self.everything_has_come()
        every = kafka.events()
        self.runs_until(lambda: all(p in slot.held for p in kafka.log) and every <= set(kafka.out))
        self.runs_until(lambda: all(kafka.entries.get(p, kafka.beginning)[0] == len(kafka.log[p]) for p in kafka.log))
        self.nothing_is_sent_twice()
        self.results_of_a_key_are_in_order()
        assert (len(slot.session.queue), len(slot.session.suspects), slot.session.queue._lanes) == (0, 0, {})
        slot.replay()
        assert not any(hand.events for each in slot.pool.replicas.values() for hand in each.hands.values())


class ExactlyOnceLaws(SlotLaws):
    """The same, where one transaction holds results and offsets."""

    transactional = True


class JoinLaws(SlotLaws):
    """The same, of a join that keeps the order of keys and has little memory."""

    kafka_of = JoinKafka
    how = {"stage": join_routes(ordered=True), "settings": Settings(join_bytes=3_000)}  # noqa: RUF012  is never changed

    @rule(count=st.integers(1, 20), order=st.randoms(use_true_random=False))
    def parts_come(self, count: int, order: random.Random) -> None:
        """In any order."""
        for _ in range(min(count, len(self.kafka.owed))):
            self.kafka.arrive(*self.kafka.owed.pop(order.randrange(len(self.kafka.owed))))

    def everything_has_come(self) -> None:
        self.parts_come(len(self.kafka.owed), random.Random(2))

    def memory_is_bounded(self) -> None:
        """An event that is complete may let any number go on that waited for its turn; see `test_join_bounds.py`."""


class ExactlyOnceJoinLaws(JoinLaws):
    """The same, in transactions."""

    transactional = True


@pytest.mark.parametrize("laws", [SlotLaws, ExactlyOnceLaws, JoinLaws, ExactlyOnceJoinLaws])
def test_whatever_happens_to_a_slot_it_keeps_its_promises(laws, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (join_bounds, session_module):
        monkeypatch.setattr(module, "QUEUE_BYTES", QUEUE_BYTES)
    monkeypatch.setattr(result_delivery, "UNSENT_BYTES", UNSENT_BYTES)
    monkeypatch.setattr(session_module, "HURRY_BYTES", QUEUE_BYTES * 3 // 4)
    monkeypatch.setattr(queue, "HOPELESS_EVERY", HOPELESS_EVERY)
    monkeypatch.setattr(queue, "FEW_LANES", 2)
    monkeypatch.setattr(doubtful_batches, "BLAMELESS_ASIDE_S", (0.1, 1.0))
    run_state_machine_as_test(laws, settings=settings(max_examples=examples(80), stateful_step_count=50, deadline=None))
