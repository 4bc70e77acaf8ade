from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inferline_stream.dataplane.dispatcher import queue as queue_module
from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.hardware_kind import BatchNeeds
from inferline_stream.dataplane.dispatcher.queue import StageQueue
from inferline_stream.pipeline.deadline_order import FEW_LANES, HOPELESS_EVERY
from tests.support.hypothesis_profiles import examples

SLO_US = 5_000


def event(name=0, *, entry_ms=0, arrived_ms=0, taken_ms=0, key=None, partition=0, size_bytes=1):
    return Event(
        partition=partition,
        offsets=(name,),
        event_id=b"%d" % name,
        entry_us=0,
        entered_us=entry_ms * 1000,
        arrived_ms=arrived_ms,
        taken_ms=taken_ms,
        key=key,
        headers=[],
        payload=b"",
        size_bytes=size_bytes,
        records=(),
    )


def names(events):
    return [each.offsets[0] for each in getattr(events, "events", events)]


def filled(*events, keys_in_order=True, slo_us=SLO_US):
    queue = StageQueue(slo_us, keys_in_order=keys_in_order)
    for each in events:
        queue.add(each)
    return queue


def test_events_leave_by_entry_time():
    queue = filled(event(1, entry_ms=30), event(2, entry_ms=10), event(3, entry_ms=20))
    assert names(queue.take(10)) == [2, 3, 1]


def test_a_backfill_ranks_by_when_it_was_taken_in_less_the_slo_and_starves_no_live_event():
    queue = filled(event(1, entry_ms=0, taken_ms=1000), event(2, entry_ms=990, taken_ms=991))
    assert names(queue.take(1)) == [2]


def test_ties_leave_by_arrival():
    queue = filled(*(event(name, entry_ms=7) for name in range(20)))
    assert names(queue.take(20)) == list(range(20))


def test_an_event_with_a_wrong_clock_holds_back_nothing_behind_it_in_its_lane():
    queue = filled(event(1, entry_ms=10**9, key=b"k"), event(2, entry_ms=1, key=b"k"), event(3, entry_ms=2))
    assert names(queue.take(10)) == [1, 2, 3]


def test_the_rank_of_a_lane_rises_again_once_its_early_event_was_taken():
    queue = filled(event(1, entry_ms=1, key=b"k"), event(2, entry_ms=9, key=b"k"), event(3, entry_ms=5))
    queue.release(queue.take(1).events)
    assert names(queue.take(2)) == [3, 2]


@pytest.mark.parametrize(
    ("lane_ms", "taken", "rank_ms"),
    [([5, 1, 9], 1, 1), ([5, 1, 9], 2, 9), ([5, 5, 9, 9], 1, 5), ([5, 3, 3, 9], 2, 3), ([1, 7, 5, 9], 1, 5)],
)
def test_a_lane_ranks_as_its_waiting_event_of_lowest_rank(lane_ms, taken, rank_ms):
    queue = filled(*(event(9, entry_ms=at_ms, key=b"k") for at_ms in lane_ms))
    queue.release(queue.take(taken).events)
    queue.add(event(1, entry_ms=rank_ms - 1))
    queue.add(event(2, entry_ms=rank_ms))
    assert [names(queue.take(1)) for _ in range(3)] == [[1], [9], [2]]


@pytest.mark.parametrize(("lane_ms", "rank_ms"), [([1, 5, 9], 1), ([9, 5, 8], 5), ([5, 9, 9], 5), ([1, 7, 5], 1)])
def test_a_lane_ranks_as_before_once_its_events_came_back(lane_ms, rank_ms):
    queue = filled(*(event(9, entry_ms=at_ms, key=b"k") for at_ms in lane_ms))
    queue.put_back(queue.take(1).events)
    queue.add(event(1, entry_ms=rank_ms - 1))
    queue.add(event(2, entry_ms=rank_ms))
    assert [names(queue.take(1)) for _ in range(3)] == [[1], [9], [2]]


def test_waiting_events_of_a_key_go_together_before_others_of_lower_rank():
    queue = filled(event(1, key=b"k"), event(2, entry_ms=1), event(3, entry_ms=9, key=b"k"))
    assert names(queue.take(2)) == [1, 3]


def test_a_busy_key_holds_back_only_its_own_events():
    queue = filled(event(1, key=b"k"), event(2, key=b"k"), event(3, entry_ms=9, key=b"l"))
    queue.take(1)
    assert (queue.eligible, names(queue.take(10)), names(queue.take(10)), len(queue)) == (1, [3], [], 1)


def test_without_key_order_a_key_may_be_in_two_batches():
    queue = filled(event(1, key=b"k"), event(2, key=b"k"), keys_in_order=False)
    assert [names(queue.take(1)), names(queue.take(1))] == [[1], [2]]


def test_a_batch_that_was_too_large_comes_back_in_parts_that_stay_small():
    queue = filled(*(event(name) for name in range(6)))
    queue.put_back(queue.take(4).events, limit=2)
    first, second, rest = (queue.take(8).events for _ in range(3))
    assert [names(first), names(second), names(rest)] == [[0, 1], [2, 3], [4, 5]]
    queue.put_back(first)
    assert names(queue.take(8)) == [0, 1]


def test_a_key_whose_events_are_all_released_leaves_nothing_behind():
    queue = filled(*(event(name, key=b"%d" % (name % 50)) for name in range(500)))
    while len(queue):
        queue.release(queue.take(7).events)
    assert (queue._lanes, queue._live.heap, queue.size_bytes) == ({}, [], 0)


@pytest.mark.parametrize("keys_in_order", [True, False])
class TestAgainstAModel:
    """Random operations on the queue and on a list that is searched for what the rules allow."""

    @pytest.mark.parametrize("machine", ["QueueMachine", "DeadlineMachine"])
    def test_every_operation_does_what_the_rules_say(self, machine, keys_in_order, monkeypatch):
        monkeypatch.setattr(queue_module, "FEW_LANES", 3)
        monkeypatch.setattr(queue_module, "HOPELESS_EVERY", 3)
        machine = type("Machine", (globals()[machine],), {"keys_in_order": keys_in_order})
        machine.TestCase.settings = settings(max_examples=examples(80), stateful_step_count=40)
        machine.TestCase("runTest").runTest()


class QueueMachine(RuleBasedStateMachine):
    keys_in_order = True

    def __init__(self):
        super().__init__()
        self.queue = StageQueue(SLO_US, keys_in_order=self.keys_in_order)
        self.waiting: list[Event] = []
        self.batches: list[list[Event]] = []
        self.limits: dict[Event, int] = {}
        self.order: dict[bytes, list[int]] = {}
        self.count = 0

    def lane(self, each):
        return each.key if self.keys_in_order else None

    @property
    def busy(self):
        return {self.lane(each) for batch in self.batches for each in batch} - {None}

    def rank(self, each):
        """Of an event's lane, were it eligible."""
        lane = self.lane(each)
        behind = [other for other in self.waiting if self.lane(other) == lane] if lane is not None else [each]
        return min(max(other.entered_us, other.taken_ms * 1000 - SLO_US) for other in behind)

    def eligible(self):
        return [each for each in self.waiting if self.lane(each) not in self.busy]

    @rule(
        entry_ms=st.integers(0, 20),
        arrived_ms=st.integers(0, 30),
        taken_ms=st.integers(0, 30),
        key=st.sampled_from([None, b"a", b"b", b"c"]),
        partition=st.integers(0, 2),
        size_bytes=st.integers(0, 9),
    )
    def add(self, **fields):
        self.count += 1
        added = event(self.count, **fields)
        self.queue.add(added)
        self.waiting.append(added)

    @rule(limit=st.integers(1, 6))
    def take(self, limit):
        batch = self.queue.take(limit).events
        taken = Counter(names(batch))
        assert max(taken.values(), default=1) == 1
        lowest_limit = limit
        lane = None
        for at, each in enumerate(batch):
            lowest_limit = min(lowest_limit, self.limits.get(each, limit))
            behind = [other for other in self.waiting if lane is not None and self.lane(other) == lane]
            if behind:
                assert each is behind[0]
            else:
                candidates = self.eligible()
                assert each in candidates
                lane = self.lane(each)
                assert lane is None or all(self.lane(other) != lane for other in batch[:at])
                assert self.rank(each) == min(self.rank(other) for other in candidates)
                if lane is not None:
                    assert each is next(other for other in self.waiting if self.lane(other) == lane)
            self.waiting.remove(each)
        assert len(batch) <= lowest_limit
        left = [each for each in self.eligible() if lane is None or self.lane(each) != lane]
        assert bool(batch) or not left
        if len(batch) < lowest_limit and not self.limits:
            taken_lanes = {self.lane(each) for each in batch}
            assert not [each for each in left if self.lane(each) is None or self.lane(each) not in taken_lanes]
        if batch:
            self.batches.append(batch)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), limit=st.sampled_from([0, 0, 1, 2]))
    def finish(self, data, limit):
        """The first events of a batch are released, the others come back."""
        batch = data.draw(st.sampled_from(self.batches))
        released = data.draw(st.integers(0, len(batch)))
        self.batches.remove(batch)
        self.queue.release(batch[:released])
        self.queue.put_back(batch[released:], limit)
        self.waiting[:0] = batch[released:]
        for each in batch[:released]:
            self.limits.pop(each, None)
        if limit:
            for each in batch[released:]:
                self.limits[each] = min(limit, self.limits.get(each, limit))

    @rule(partition=st.integers(0, 2))
    def drop(self, partition):
        dropped = self.queue.drop(partition)
        expected = [each for each in self.waiting if each.partition == partition]
        assert sorted(names(dropped)) == sorted(names(expected))
        for each in expected:
            self.waiting.remove(each)
            self.limits.pop(each, None)

    @invariant()
    def sums_are_exact(self):
        assert len(self.queue) == len(self.waiting)
        assert self.queue.size_bytes == sum(each.size_bytes for each in self.waiting)
        for partition in range(3):
            own = sum(each.size_bytes for each in self.waiting if each.partition == partition)
            assert self.queue.bytes_of(partition) == own

    @invariant()
    def eligible_events_are_counted(self):
        eligible = self.eligible()
        assert self.queue.eligible == len(eligible)
        assert self.queue.oldest_ms() == min((each.arrived_ms for each in eligible), default=None)


# Hopeless last


def needs(*times_ms, cap=None):
    """A batch of b needs the b-th of these times until its events are in the sink."""
    return BatchNeeds(len(times_ms), cap or len(times_ms), [0.0, *(1e3 * each for each in times_ms)])


def taken(queue, limit, of, at_ms):
    batch = queue.take(limit, of, at_ms * 1e3)
    return names(batch), batch.hopeful


def test_what_can_no_longer_be_on_time_goes_after_what_can():
    queue = filled(event(1, entry_ms=0), event(2, entry_ms=3))
    assert [taken(queue, 1, needs(3), 4) for _ in range(3)] == [([2], 1), ([1], 0), ([], 0)]


@pytest.mark.parametrize(("at_ms", "first"), [(2.0, 1), (2.1, 2)])
def test_an_event_that_is_just_in_time_is_hopeful(at_ms, first):
    queue = filled(event(1, entry_ms=0), event(2, entry_ms=2))
    assert taken(queue, 1, needs(3), at_ms)[0] == [first]


def test_the_batch_that_would_be_formed_decides_how_long_an_event_needs():
    """Two together take 4 ms and the first has 3 ms left; alone the second has more than it needs."""
    queue = filled(event(1, entry_ms=0), event(2, entry_ms=1))
    assert taken(queue, 2, needs(1, 4), 2) == ([2, 1], 1)
    queue = filled(event(1, entry_ms=0), event(2, entry_ms=1))
    assert taken(queue, 2, needs(1, 4, cap=1), 2) == ([1], 1)


def test_a_batch_is_filled_with_hopeless_events_while_its_first_one_still_makes_it():
    late = [event(name, entry_ms=0) for name in (1, 2, 3)]
    queue = filled(*late, event(4, entry_ms=5), event(5, entry_ms=5))
    assert taken(queue, 4, needs(1, 2, 3, 4), 6) == ([4, 5, 1, 2], 2)  # of four, the first is done after 5 ms
    queue = filled(*late, event(4, entry_ms=5), event(5, entry_ms=5))
    assert taken(queue, 4, needs(1, 2, 4.5, 4.6), 6) == ([4, 5], 2)


def test_hopeless_events_fill_no_batch_beyond_the_largest_that_one_of_its_events_may_be_in():
    """Larger ones had no memory: they would end a replica again and again."""
    queue = filled(event(1), event(2), event(3, entry_ms=8), event(4, entry_ms=8))
    queue.put_back(queue.take(2, needs(1, 1), 9_000).events, 2)
    assert taken(queue, 4, needs(1, 1, 1, 1), 9) == ([3, 4], 2)


def test_one_batch_in_some_goes_to_hopeless_events_so_that_none_waits_for_ever():
    queue = filled(*(event(name, entry_ms=0) for name in range(3)), slo_us=1_000)
    for turn in range(1, 2 * HOPELESS_EVERY + 1):
        queue.add(event(100 + turn, entry_ms=50, taken_ms=50))
        served = taken(queue, 1, needs(1), 50)
        assert (served[0][0] < 100) == (turn % HOPELESS_EVERY == 0), (turn, served)


def test_where_hopeless_events_hold_up_reading_they_go_first():
    queue = filled(event(1, entry_ms=0), event(2, entry_ms=20))
    queue.hurries = True
    assert [taken(queue, 2, needs(1, 1), 20) for _ in range(2)] == [([1], 0), ([2], 1)]


def test_an_hour_old_event_ranks_as_it_was_taken_in_among_those_that_are_hopeless():
    queue = filled(event(1, entry_ms=-3_600_000, taken_ms=90), event(2, entry_ms=80, taken_ms=80))
    assert taken(queue, 2, needs(1, 1), 100) == ([2, 1], 0)


@pytest.fixture
def many_lanes(monkeypatch):
    """As if many keys carried the stage."""
    monkeypatch.setattr(queue_module, "FEW_LANES", 0)


@pytest.mark.parametrize("lanes", [FEW_LANES - 1, FEW_LANES])
def test_where_few_keys_carry_the_stage_a_lane_goes_last_only_if_all_of_its_next_events_are_hopeless(lanes):
    queue = filled(event(1, entry_ms=0, key=b"k"), event(2, entry_ms=8, key=b"k"))
    for other in range(3, lanes + 2):
        queue.add(event(other, entry_ms=8, key=b"%d" % other))
    batch = taken(queue, 2, needs(1, 1), 9)[0]
    assert batch == ([1, 2] if lanes < FEW_LANES else [3, 4])


@pytest.mark.parametrize("cap", [1, 2])
def test_of_a_lane_only_the_events_that_the_batch_would_hold_count(cap):
    queue = filled(event(1, entry_ms=0, key=b"k"), event(2, entry_ms=8, key=b"k"), event(3, entry_ms=8))
    assert taken(queue, cap, needs(*[1] * cap), 9)[0] == ([3], [1, 2])[cap - 1]


@pytest.mark.usefixtures("many_lanes")
def test_a_lane_goes_last_as_a_whole_by_its_first_event_and_is_judged_again_once_some_of_it_was_taken():
    queue = filled(event(1, entry_ms=0, key=b"k"), event(2, entry_ms=8, key=b"k"), event(3, entry_ms=8, key=b"l"))
    assert taken(queue, 1, needs(1), 9) == ([3], 1)
    assert taken(queue, 1, needs(1), 9) == ([1], 0)
    queue.add(event(4, entry_ms=0, key=b"m"))
    queue.release([event(1, key=b"k")])
    assert taken(queue, 1, needs(1), 9) == ([2], 1)


def test_what_comes_for_a_lane_that_waits_aside_waits_there_in_its_order():
    queue = filled(event(1, entry_ms=0, key=b"k"), event(2, entry_ms=9))
    assert taken(queue, 1, needs(1), 9) == ([2], 1)
    queue.add(event(3, entry_ms=9, key=b"k"))
    queue.add(event(4, entry_ms=9))
    assert (queue.eligible, names(queue.hopeless())) == (1, [1, 3])
    assert [taken(queue, 1, needs(1), 9), taken(queue, 9, needs(*[1] * 9), 9)] == [([4], 1), ([1, 3], 0)]


@pytest.mark.usefixtures("many_lanes")
def test_a_lane_that_stood_at_the_same_place_before_waits_in_one_room_only():
    queue = filled(*(event(name, entry_ms=at_ms, key=b"k") for name, at_ms in ((1, 8), (2, 5), (3, 3))))
    assert taken(queue, 1, needs(1), 8) == ([1], 1)
    queue.release([event(1, key=b"k")])  # the second event's entry from before counts again
    queue.add(event(4, entry_ms=10))
    assert taken(queue, 1, needs(1), 11) == ([4], 1)
    assert (queue.eligible, sorted(names(queue.hopeless())), queue.due_ms(1, 5)) == (2, [2, 3], -float("inf"))
    assert taken(queue, 9, needs(*[1] * 9), 11) == ([2, 3], 0)


def test_nothing_holds_where_only_hopeless_events_wait():
    queue = filled(event(1, entry_ms=0, arrived_ms=0), event(2, entry_ms=9, arrived_ms=9))
    taken(queue, 1, needs(1), 9)
    assert (queue.eligible, queue.due_ms(4, 50.0)) == (1, -float("inf"))


def test_an_event_that_comes_back_is_judged_again():
    queue = filled(event(1, entry_ms=0), event(2, entry_ms=8))
    late = queue.take(9, needs(*[1] * 9), 9_000).events
    queue.put_back(late)
    assert (queue.eligible, taken(queue, 1, needs(1), 9)) == (2, ([2], 1))


class DeadlineMachine(RuleBasedStateMachine):
    """The rule of `pipeline.deadline_order` as it stands there, by looking at every event that waits."""

    keys_in_order = True

    def __init__(self):
        super().__init__()
        self.queue = StageQueue(SLO_US, keys_in_order=self.keys_in_order)
        self.lanes: dict[object, list[Event]] = {}
        self.aside: set[object] = set()
        self.in_hand: dict[object, list[Event]] = {}
        self.now_us = self.count = self.mixed = 0

    def key(self, each):
        return each.key if self.keys_in_order and each.key is not None else each.offsets

    def in_order(self, *, aside):
        """Lanes that may be taken, by rank; an event without a key is one of its own."""
        free = [lane for lane, own in self.lanes.items() if own and lane not in self.in_hand]
        mine = [lane for lane in free if (lane in self.aside) == aside]

        return sorted(mine, key=lambda lane: min(each.entered_us for each in self.lanes[lane]))

    @rule(age_ms=st.integers(0, 8), key=st.sampled_from([None, b"a", b"b", b"c"]), partition=st.integers(0, 1))
    def add(self, age_ms, key, partition):
        self.count += 1
        added = event(self.count, taken_ms=-100, key=key, partition=partition)
        added.entered_us = self.now_us - 1000 * age_ms + self.count  # no two have the same rank
        self.queue.add(added)
        self.lanes.setdefault(self.key(added), []).append(added)

    @rule(by_ms=st.sampled_from([0, 1, 1, 2, 4]))
    def time_passes(self, by_ms):
        self.now_us += 1000 * by_ms

    @rule(hurries=st.booleans())
    def reading_is_held_up(self, hurries):
        self.queue.hurries = hurries

    @rule(
        limit=st.integers(1, 6),
        cap=st.integers(1, 6),
        grows_ms=st.sampled_from([0, 0.5, 1]),
        rest_ms=st.sampled_from([0, 1, 2]),
    )
    def take(self, limit, cap, grows_ms, rest_ms):
        cap, times_us = min(cap, limit), [1e3 * (rest_ms + 1 + b * grows_ms) for b in range(limit + 1)]
        batch = self.queue.take(limit, BatchNeeds(limit, cap, times_us), self.now_us)
        while hopeful := self.in_order(aside=False):
            waiting = sum(len(self.lanes[lane]) for lane in hopeful)
            size, own = min(cap, waiting), self.lanes[hopeful[0]]
            few = len(hopeful) < queue_module.FEW_LANES
            entered_us = max(each.entered_us for each in own[:size]) if few else own[0].entered_us
            if self.now_us - entered_us + times_us[size] <= SLO_US:
                break
            self.aside.add(hopeful[0])
        hopeless, size = self.in_order(aside=True), 0
        if hopeful:
            size = min(cap, waiting)
            self.mixed += bool(hopeless)
            if hopeless and (self.queue.hurries or self.mixed == queue_module.HOPELESS_EVERY):
                self.mixed = size = 0
        expected = [each for lane in hopeful for each in self.lanes[lane]][:size]
        total = limit
        if size:
            total = size
            while total < limit and self.now_us - expected[0].entered_us + times_us[total + 1] <= SLO_US:
                total += 1
        expected += [each for lane in hopeless for each in self.lanes[lane]][: total - size]
        assert (names(batch), batch.hopeful) == (names(expected), size)
        for each in expected:
            lane = self.key(each)
            self.lanes[lane].remove(each)
            self.in_hand.setdefault(lane, []).append(each)

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def finish(self, data):
        """What is in hand of a lane has its results, but for the last events, which come back."""
        lane = data.draw(st.sampled_from(sorted(self.in_hand, key=str)))
        batch = self.in_hand.pop(lane)
        back = data.draw(st.integers(0, len(batch)))
        done, again = batch[: len(batch) - back], batch[len(batch) - back :]
        self.queue.release(done)
        self.queue.put_back(again)
        self.lanes[lane][:0] = again
        self.aside.discard(lane)

    @rule(partition=st.integers(0, 1))
    def drop(self, partition):
        dropped = self.queue.drop(partition)
        expected = [each for own in self.lanes.values() for each in own if each.partition == partition]
        assert sorted(names(dropped)) == sorted(names(expected))
        for lane, own in self.lanes.items():
            self.lanes[lane] = [each for each in own if each.partition != partition]
            if isinstance(lane, bytes) and lane not in self.in_hand:
                self.aside.discard(lane)

    @invariant()
    def everything_that_waits_is_counted(self):
        free = [each for lane, own in self.lanes.items() if lane not in self.in_hand for each in own]
        aside = [each for lane in self.aside if lane not in self.in_hand for each in self.lanes[lane]]
        first = len(free) - len(aside) or len(aside)
        assert (len(self.queue), self.queue.eligible) == (sum(map(len, self.lanes.values())), first)
        assert sorted(names(self.queue.hopeless())) == sorted(names(aside))
        assert (self.queue._live.eligible, self.queue._aside.eligible) == (len(free) - len(aside), len(aside))
