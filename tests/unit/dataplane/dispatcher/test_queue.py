from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.queue import StageQueue

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
    return [each.offsets[0] for each in events]


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
    queue.release(queue.take(1))
    assert names(queue.take(2)) == [3, 2]


@pytest.mark.parametrize(
    ("lane_ms", "taken", "rank_ms"),
    [([5, 1, 9], 1, 1), ([5, 1, 9], 2, 9), ([5, 5, 9, 9], 1, 5), ([5, 3, 3, 9], 2, 3), ([1, 7, 5, 9], 1, 5)],
)
def test_a_lane_ranks_as_its_waiting_event_of_lowest_rank(lane_ms, taken, rank_ms):
    queue = filled(*(event(9, entry_ms=at_ms, key=b"k") for at_ms in lane_ms))
    queue.release(queue.take(taken))
    queue.add(event(1, entry_ms=rank_ms - 1))
    queue.add(event(2, entry_ms=rank_ms))
    assert [names(queue.take(1)) for _ in range(3)] == [[1], [9], [2]]


@pytest.mark.parametrize(("lane_ms", "rank_ms"), [([1, 5, 9], 1), ([9, 5, 8], 5), ([5, 9, 9], 5), ([1, 7, 5], 1)])
def test_a_lane_ranks_as_before_once_its_events_came_back(lane_ms, rank_ms):
    queue = filled(*(event(9, entry_ms=at_ms, key=b"k") for at_ms in lane_ms))
    queue.put_back(queue.take(1))
    queue.add(event(1, entry_ms=rank_ms - 1))
    queue.add(event(2, entry_ms=rank_ms))
    assert [names(queue.take(1)) for _ in range(3)] == [[1], [9], [2]]


def test_waiting_events_of_a_key_go_together_before_others_of_lower_rank():
    queue = filled(event(1, key=b"k"), event(2, entry_ms=1), event(3, entry_ms=9, key=b"k"))
    assert names(queue.take(2)) == [1, 3]


def test_a_busy_key_holds_back_only_its_own_events():
    queue = filled(event(1, key=b"k"), event(2, key=b"k"), event(3, entry_ms=9, key=b"l"))
    queue.take(1)
    assert (queue.eligible, names(queue.take(10)), queue.take(10), len(queue)) == (1, [3], [], 1)


def test_without_key_order_a_key_may_be_in_two_batches():
    queue = filled(event(1, key=b"k"), event(2, key=b"k"), keys_in_order=False)
    assert [names(queue.take(1)), names(queue.take(1))] == [[1], [2]]


def test_a_batch_that_was_too_large_comes_back_in_parts_that_stay_small():
    queue = filled(*(event(name) for name in range(6)))
    queue.put_back(queue.take(4), limit=2)
    first, second, rest = queue.take(8), queue.take(8), queue.take(8)
    assert [names(first), names(second), names(rest)] == [[0, 1], [2, 3], [4, 5]]
    queue.put_back(first)
    assert names(queue.take(8)) == [0, 1]


def test_a_key_whose_events_are_all_released_leaves_nothing_behind():
    queue = filled(*(event(name, key=b"%d" % (name % 50)) for name in range(500)))
    while len(queue):
        queue.release(queue.take(7))
    assert (queue._lanes, queue._heap, queue.size_bytes) == ({}, [], 0)


@pytest.mark.parametrize("keys_in_order", [True, False])
class TestAgainstAModel:
    """Random operations on the queue and on a list that is searched for what the rules allow."""

    def test_every_operation_does_what_the_rules_say(self, keys_in_order):
        machine = type("Machine", (QueueMachine,), {"keys_in_order": keys_in_order})
        machine.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
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
        batch = self.queue.take(limit)
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
