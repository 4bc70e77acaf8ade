"""Queue, pool and suspects together, in a simulated dispatcher whose replicas die, hang and run out of memory."""

import heapq
import itertools
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.poison_suspects import LostBatch, Probe, Suspects
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.queue import StageQueue
from inferline_stream.dataplane.frames import Call
from inferline_stream.dataplane.slot_grants import HardwarePlan, StagePlan

START_S, SERVICE_S, EACH_S = 0.05, 0.02, 0.005
OK, KILLS, HANGS, SLOW, MEMORY = "ok", "kills", "hangs", "slow", "memory"


@dataclass(eq=False)
class Hand:
    replica: object
    events: list
    task: Event | Probe | None
    over: bool = False


class Simulation:
    """A dispatcher and its replicas in virtual time.

    Args:
        replicas: how many.
        limit: of a batch.
        events: (key, nature) of each, in their order.
        outside_s: when a busy replica dies of another cause.
        broken_s: every replica that begins a batch before then dies, as on a broken device.
        sample: an event that is known to be processed.
    """

    def __init__(self, replicas, limit, events, *, outside_s=(), broken_s=0.0, sample=b"ok", seed=0):
        self.queue = StageQueue(100_000, keys_in_order=True)
        self.pool, self.suspects = Pool(batch_deadline_s=1.0), Suspects()
        self.pool.configure(StagePlan({"cpu": HardwarePlan(limit, {1: SERVICE_S + EACH_S, 2: SERVICE_S + 2 * EACH_S})}))
        self.suspects.learn(sample)
        self.rng = random.Random(seed)
        self.now_s, self.broken_s = 0.0, broken_s
        self.nature, self.outcomes, self.condemned, self.hit, self.events = {}, [], [], set(), []
        self.hands: dict[str, Hand] = {}
        self.starts = 0
        self.serial = itertools.count()
        self.happenings = []
        for number in range(replicas):
            self.start(f"r{number}", number)
        self.starts = 0
        for name, (key, nature) in enumerate(events):
            self.at(0.003 * name, lambda name=name, key=key, nature=nature: self.arrive(name, key, nature))
        for at_s in outside_s:
            self.at(at_s, self.kill_one)

    def at(self, at_s, what):
        heapq.heappush(self.happenings, (max(at_s, self.now_s), next(self.serial), what))

    def run(self, until_s=3000.0):
        for _ in range(100_000):
            timer_s = min(self.pool.next_deadline_s or until_s, self.blocked_s() or until_s)
            next_s = min(self.happenings[0][0] if self.happenings else until_s, timer_s)
            if next_s >= until_s or (
                not self.happenings and len(self.outcomes) == len(self.events) and not self.busy()
            ):
                return self
            self.now_s = max(self.now_s, next_s)
            while self.happenings and self.happenings[0][0] <= self.now_s:
                heapq.heappop(self.happenings)[2]()
            for replica, _, hard in self.pool.overdue(self.now_s):
                self.overdue(self.hands[replica.replica], hard)
            self.kick()
        raise AssertionError("the simulation never ends")

    def busy(self):
        return any(hand.events for hand in self.hands.values())

    def blocked_s(self):
        blocked_s = self.suspects.suspicion.blocked_until_s
        return blocked_s if blocked_s > self.now_s else None

    # What happens outside

    def start(self, name, number):
        self.starts += 1
        self.pool.attach(name, "cpu", number)
        self.at(self.now_s + START_S, lambda: self.pool.ready(name, self.now_s))

    def arrive(self, name, key, nature):
        now_ms = int(self.now_s * 1000)
        arrived = Event(
            partition=0,
            offsets=(name,),
            event_id=b"",
            entry_us=0,
            entered_us=now_ms * 1000,
            arrived_ms=now_ms,
            taken_ms=now_ms,
            key=key,
            headers=[],
            payload=b"",
            size_bytes=1,
            records=(),
        )
        self.nature[arrived] = nature
        self.events.append(arrived)
        self.queue.add(arrived)

    def kill_one(self):
        busy = sorted(self.hands)
        if busy:
            hand = self.hands[self.rng.choice(busy)]
            if isinstance(hand.task, Event):
                self.hit.add(hand.task)
            self.die(hand)

    # The dispatcher

    def kick(self):
        pool, queue, suspects = self.pool, self.queue, self.suspects
        pool.fresh_after_s = suspects.suspicion.blocked_until_s
        if not len(suspects):
            pool.lift_quarantine()
        elif replica := pool.quarantine(passed_first=bool(suspects.suspicion.reason)):
            task = suspects.next(replica.passed, self.now_s, yields=pool.single and queue.eligible > 0)
            if task is None:
                pool.lift_quarantine()
            else:
                self.hand(replica, [] if isinstance(task, Probe) else [task], task)
        while queue.eligible and (replica := pool.choose(self.now_s, queue.eligible)):
            self.hand(replica, queue.take(pool.limit(replica.hardware)), None)

    def hand(self, replica, events, task):
        keys = [event.key for other in self.hands.values() for event in other.events]
        assert not {event.key for event in events} & set(keys) - {None}, "a key is in two batches"
        assert replica.replica not in self.hands
        hand = self.hands[replica.replica] = Hand(replica, list(events), task)
        size = max(1, len(events))
        self.pool.begin(replica, size, self.now_s)
        natures = {self.nature[event] for event in events}
        takes_s = (SERVICE_S + EACH_S * size) * self.rng.uniform(0.8, 1.2)
        killing_sample = isinstance(task, Probe) and task.input == b"kills"
        if KILLS in natures or killing_sample or self.now_s < self.broken_s:
            self.at(self.now_s + takes_s / 2, lambda: self.die(hand))
        elif MEMORY in natures and size > 2:
            self.at(self.now_s + takes_s / 2, lambda: self.die(hand, memory=True))
        elif HANGS not in natures:
            late_s = 0.5 if SLOW in natures else 0.0
            self.at(self.now_s + takes_s + late_s, lambda: self.finish(hand, size, takes_s))

    def finish(self, hand, size, takes_s):
        if hand.over:
            return
        hand.over = True
        del self.hands[hand.replica.replica]
        self.pool.finish(hand.replica, [Call(size, takes_s)], self.now_s)
        if isinstance(hand.task, Probe):
            self.suspects.probe_passed()
        elif hand.events:
            if hand.task is not None:
                assert self.suspects.passed(hand.task)
            self.suspects.processed(b"ok")
            self.outcomes += hand.events
            self.queue.release(hand.events)

    def die(self, hand, memory=False):
        if hand.over:
            return
        hand.over = True
        replica = hand.replica
        del self.hands[replica.replica]
        self.pool.detach(replica.replica)
        self.start(replica.replica, replica.number)
        if isinstance(hand.task, Probe):
            self.suspects.probe_failed(self.now_s)
        elif hand.events:
            self.follow(
                self.suspects.lost(
                    hand.events,
                    alone=hand.task is not None,
                    memory=memory,
                    passed=replica.passed,
                    now_s=self.now_s,
                )
            )

    def overdue(self, hand, hard):
        if hard:
            self.die(hand)
        elif hand.task is None and not self.pool.single:
            events, hand.events = hand.events, []
            self.follow(self.suspects.late(events))

    def follow(self, lost: LostBatch):
        for batch in reversed(lost.again):
            self.queue.put_back(batch, lost.limit)
        for event, _ in lost.condemned:
            self.condemned.append(event)
            self.outcomes.append(event)
            self.queue.release([event])

    # What must hold

    def of(self, *natures):
        return {event for event in self.events if self.nature[event] in natures}

    def check_delivery(self):
        """Each event has one outcome, and those of a key come in their order."""
        assert len(set(self.outcomes)) == len(self.outcomes), "an event has two outcomes"
        assert set(self.outcomes) == set(self.events), "an event is lost"
        for key in {event.key for event in self.events} - {None}:
            assert [e for e in self.outcomes if e.key == key] == [e for e in self.events if e.key == key]
        assert (len(self.queue), len(self.suspects), self.queue._lanes, self.queue._limits) == (0, 0, {}, {})


keys = st.sampled_from([None, None, b"a", b"b"])
pools = {"replicas": st.integers(1, 4), "limit": st.integers(1, 8), "seed": st.integers(0, 9)}


def events(*natures, most=40):
    nature = st.sampled_from([OK] * 6 + list(natures))
    return st.lists(st.tuples(keys, nature), min_size=1, max_size=most)


@given(events=events(KILLS), **pools)
def test_events_that_kill_are_condemned_and_no_others_within_three_starts_each(events, **pool):
    simulation = Simulation(events=events, **pool).run()
    simulation.check_delivery()
    assert set(simulation.condemned) == simulation.of(KILLS)
    assert simulation.starts <= 3 * len(simulation.of(KILLS))


@given(events=events(KILLS), outside_s=st.lists(st.floats(0, 1.5), max_size=6), **pools)
def test_deaths_by_other_causes_lose_nothing_and_condemn_only_what_they_hit_alone(events, outside_s, **pool):
    simulation = Simulation(events=events, outside_s=outside_s, **pool).run()
    simulation.check_delivery()
    assert simulation.of(KILLS) <= set(simulation.condemned) <= simulation.of(KILLS) | simulation.hit
    assert simulation.starts <= 3 * len(simulation.of(KILLS)) + 3 * len(outside_s)


@given(events=events(OK), outside_s=st.floats(0, 0.5), **pools)
def test_one_death_by_another_cause_condemns_nothing(events, outside_s, **pool):
    simulation = Simulation(events=events, outside_s=[outside_s], **pool).run()
    simulation.check_delivery()
    assert simulation.condemned == []
    assert simulation.starts <= 1


@settings(max_examples=60)
@given(events=events(HANGS, SLOW, most=25), **pools)
def test_events_that_hang_are_condemned_and_slow_ones_are_not(events, **pool):
    simulation = Simulation(events=events, **pool).run()
    simulation.check_delivery()
    assert set(simulation.condemned) == simulation.of(HANGS)
    assert simulation.starts <= 5 * len(simulation.of(HANGS))


@given(events=events(MEMORY), **pools)
def test_events_that_need_too_much_memory_together_pass_in_smaller_batches(events, **pool):
    simulation = Simulation(events=events, **pool).run()
    simulation.check_delivery()
    assert simulation.condemned == []


@given(events=events(OK), broken_s=st.floats(0.1, 20), **pools)
def test_a_broken_device_condemns_nothing_and_is_tried_ever_more_rarely(events, broken_s, **pool):
    simulation = Simulation(events=events, broken_s=broken_s, **pool).run()
    simulation.check_delivery()
    assert simulation.condemned == []
    assert simulation.starts <= pool["replicas"] * 15


@pytest.mark.parametrize("replicas", [1, 3])
def test_without_a_sample_the_events_that_pass_give_one(replicas):
    simulation = Simulation(replicas, 4, [(None, KILLS), *[(None, OK)] * 10], sample=None).run()
    simulation.check_delivery()
    assert set(simulation.condemned) == simulation.of(KILLS)


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_sample_that_kills_stops_neither_the_queue_nor_the_verdict(replicas):
    simulation = Simulation(replicas, 4, [(None, KILLS), *[(None, OK)] * 10], sample=b"kills").run(until_s=60)
    simulation.check_delivery()
    assert set(simulation.condemned) == simulation.of(KILLS)


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_producer_that_sends_only_killers_is_served(replicas):
    simulation = Simulation(replicas, 8, [(None, KILLS)] * 100).run()
    simulation.check_delivery()
    assert set(simulation.condemned) == simulation.of(KILLS)


def test_other_replicas_serve_the_queue_while_suspects_run():
    simulation = Simulation(3, 1, [(None, KILLS), *[(None, OK)] * 50])
    simulation.run(until_s=0.35)
    assert len(simulation.outcomes) >= 20
