"""What is lost with replicas that die, hang and run out of memory: who is blamed, and how many replicas that costs."""

import heapq
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.frames import Batch, Broken, Call, Done, Failed, Results
from tests.support.hypothesis_profiles import examples
from tests.unit.dataplane.dispatcher.doubles import PlayedSlot

START_S, SERVICE_S, EACH_S = 0.05, 0.02, 0.005
OK, KILLS, HANGS, SLOW, MEMORY = b"ok", b"kills", b"hangs", b"slow", b"memory"


class Simulation(PlayedSlot):
    """A slot and its replicas in virtual time.

    Args:
        replicas: how many.
        limit: of a batch.
        events: (key, nature) of each, in their order.
        outside_s: when a busy replica dies of another cause.
        broken_s: every replica that begins a batch before then dies, as on a broken device.
        sample: an event that is known to be processed.
    """

    def __init__(self, replicas, limit, events, *, outside_s=(), broken_s=0.0, sample=b"ok", seed=0):
        super().__init__({0: (0, "")}, batch_deadline_s=1.0)
        self.plan(limit=limit, sample=sample, service_s={1: SERVICE_S + EACH_S, 2: SERVICE_S + 2 * EACH_S})
        self.rng = random.Random(seed)
        self.began_s, self.broken_s = self.now_s, self.now_s + broken_s
        self.given, self.outcomes, self.condemned, self.hit = events, [], [], set()
        self.batches: dict[str, Batch] = {}
        self.serial = itertools.count()
        self.happenings = []
        self.begin()
        finished = self.session.delivery.finished

        def note(ended, outcomes):
            for event, outcome in zip(ended, outcomes, strict=True):
                self.outcomes.append(event.offsets[0])
                if isinstance(outcome, Failed):
                    self.condemned.append(event.offsets[0])
            finished(ended, outcomes)

        self.session.delivery.finished = note
        for number in range(replicas):
            self.start(f"r{number}")
        self.starts = 0
        for number, (key, nature) in enumerate(events):
            self.at(
                0.003 * number,
                lambda number=number, key=key, nature=nature: self.fetched(nature, first=number, key=key),
            )
        for at_s in outside_s:
            self.at(at_s, self.kill_one)

    def at(self, at_s, what):
        heapq.heappush(self.happenings, (max(self.began_s + at_s, self.now_s), next(self.serial), what))

    def after(self, in_s, what):
        self.at(self.now_s - self.began_s + in_s, what)

    def run(self, until_s=3000.0):
        until_s += self.began_s
        for _ in range(100_000):
            if not self.happenings and len(self.outcomes) == len(self.given) and not self.busy():
                return self
            next_s = min(self.happenings[0][0] if self.happenings else until_s, self._timer_s or until_s)
            if next_s >= until_s:
                return self
            self.advance(max(0.0, next_s - self.now_s))
            while self.happenings and self.happenings[0][0] <= self.now_s:
                heapq.heappop(self.happenings)[2]()
            for name in self.replaced:
                self.die(name, self.batches.get(name))
            self.replaced.clear()
        raise AssertionError("the simulation never ends")

    def busy(self):
        return any(hand.events for replica in self.pool.replicas.values() for hand in replica.hands.values())

    # What happens outside

    def start(self, name):
        replica = self.attached(name, ready=False)
        self.after(START_S, replica.ready)

    def kill_one(self):
        busy = sorted(self.batches)
        if busy:
            name = self.rng.choice(busy)
            hands = self.pool.replicas[name].hands.values()
            self.hit |= {event.offsets[0] for hand in hands if hand.alone for event in hand.events}
            self.die(name, self.batches[name])

    def perform(self, actions):
        for action in actions:
            super().perform([action])
            if isinstance(action, on.SendFrame):
                assert action.replica not in self.batches
                self.batches[action.replica] = action.frame
                self.begins(action.replica, action.frame)

    def begins(self, name, batch):
        size, natures = len(batch.inputs), set(batch.inputs)
        takes_s = (SERVICE_S + EACH_S * size) * self.rng.uniform(0.8, 1.2)
        if KILLS in natures or self.now_s < self.broken_s:
            self.after(takes_s / 2, lambda: self.die(name, batch))
        elif MEMORY in natures and size > 2:
            self.after(takes_s / 2, lambda: self.die(name, batch, memory=True))
        elif HANGS not in natures:
            self.after(takes_s + (0.5 if SLOW in natures else 0.0), lambda: self.finish(name, batch, takes_s))

    def finish(self, name, batch, takes_s):
        if self.batches.get(name) is batch:
            del self.batches[name]
            done = [Done(b"", 0)] * len(batch.inputs)
            self.replicas[name].say(Results(batch.epoch, batch.batch, done, [Call(len(done), takes_s)], takes_s))

    def die(self, name, batch, *, memory=False):
        if self.batches.get(name) is batch:
            self.batches.pop(name, None)
            replica = self.replicas[name]
            if memory:
                replica.say(Broken(batch.epoch, batch.batch, "out of memory", memory=True))
            else:
                replica.die()
            self.starts += 1
            self.start(name)

    # What must hold

    def of(self, *natures):
        return {number for number, (_, nature) in enumerate(self.given) if nature in natures}

    def check_delivery(self):
        """Each event has one outcome, and those of a key come in their order."""
        assert sorted(self.outcomes) == [*range(len(self.given))], "an event is lost, or has two outcomes"
        for key in {key for key, _ in self.given} - {None}:
            of_key = [number for number in self.outcomes if self.given[number][0] == key]
            assert of_key == sorted(of_key)
        assert (len(self.session.queue), len(self.session.suspects), self.session.queue._lanes) == (0, 0, {})


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


@settings(max_examples=examples(60))
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
