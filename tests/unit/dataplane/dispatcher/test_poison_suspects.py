from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.poison_suspects import Probe, Suspects
from inferline_stream.dataplane.dispatcher.pool import MAX_HELD_S
from inferline_stream.pipeline.event_classes import CLASS_STRIDE


def event(name, key=None, partition=0):
    return Event(
        partition=partition,
        offsets=(name,),
        event_id=b"%d" % name,
        entry_us=0,
        entered_us=0,
        arrived_ms=0,
        taken_ms=0,
        key=key,
        headers=[],
        payload=b"payload %d" % name,
        size_bytes=1,
        records=(),
    )


def names(events):
    return [each.offsets[0] for each in events]


class Trial:
    """A batch is lost on a pool of one, and its suspects run until there are none, each kill on a fresh replica.

    Args:
        size: of the batch; its events are 0, 1, …
        killers: events that kill each replica.
        outside: numbers of runs, probes included, in which the replica ends by another cause.
    """

    def __init__(self, size, killers=(), *, outside=(), sample=b"sample", keys=None, most_runs=1000):
        self.suspects = Suspects()
        self.suspects.learn(sample)
        self.killers, self.outside = set(killers), outside
        self.now_s = 0.0
        self.passed, self.starts, self.runs = False, 0, 0
        self.cleared, self.condemned, self.waits_s, self.reasons = [], [], [], []
        self.ran = []
        self.lost([event(name, keys and keys[name]) for name in range(size)], alone=False)
        while len(self.suspects) and self.runs < most_runs:
            self.step()

    def step(self):
        task = self.suspects.next(self.passed, self.now_s)
        if task is None:
            self.waits_s.append(self.suspects.suspicion.blocked_until_s - self.now_s)
            self.reasons.append(self.suspects.suspicion.reason)
            self.now_s = self.suspects.suspicion.blocked_until_s
            return
        self.runs += 1
        dies = self.runs in self.outside
        if isinstance(task, Probe):
            if dies:
                self.passed, self.starts = False, self.starts + 1
                self.suspects.probe_failed(self.now_s)
            else:
                self.passed = True
                self.suspects.probe_passed()
            return
        self.ran.append(task.offsets[0])
        if dies or task.offsets[0] in self.killers:
            self.lost([task], alone=True)
        else:
            self.passed = True
            assert self.suspects.passed(task)
            self.cleared.append(task.offsets[0])

    def lost(self, events, *, alone):
        self.starts += 1
        lost = self.suspects.lost(events, alone=alone, memory=False, passed=self.passed, now_s=self.now_s)
        self.passed = False
        self.condemned += names(each for each, _ in lost.condemned)


# Bounds


@pytest.mark.parametrize("size", [1, 2, 3, 8, 64])
def test_a_batch_whose_events_all_kill_takes_at_most_three_starts_more_than_it_has_events(size):
    trial = Trial(size, range(size))
    assert trial.condemned == list(range(size))
    assert trial.starts <= size + 3


@pytest.mark.parametrize(("size", "culprit"), [(size, at) for size in (1, 2, 5, 16) for at in range(size)])
def test_a_single_culprit_takes_at_most_three_starts_and_the_others_are_cleared_in_order(size, culprit):
    trial = Trial(size, [culprit])
    assert trial.condemned == [culprit]
    assert trial.cleared == [name for name in range(size) if name != culprit]
    assert trial.starts <= 3


@given(st.integers(1, 20), st.sets(st.integers(0, 19)))
def test_exactly_the_events_that_kill_are_condemned(size, killers):
    killers = {name for name in killers if name < size}
    trial = Trial(size, killers)
    assert trial.condemned == sorted(killers)
    assert trial.cleared == [name for name in range(size) if name not in killers]
    assert trial.starts <= len(killers) + 3


@pytest.mark.parametrize("run", range(1, 12))
def test_an_innocent_event_is_never_condemned_for_one_kill_by_another_cause(run):
    trial = Trial(8, outside={run})
    assert (trial.condemned, len(trial.cleared)) == ([], 8)


@given(st.integers(1, 8), st.sets(st.integers(0, 7)), st.integers(1, 30))
def test_one_kill_by_another_cause_condemns_an_innocent_event_only_after_a_culprit_of_its_batch(size, killers, run):
    killers = {name for name in killers if name < size}
    trial = Trial(size, killers, outside={run})
    innocent = [name for name in trial.condemned if name not in killers]
    assert len(innocent) <= 1
    assert not innocent or trial.condemned[0] in killers
    assert sorted(trial.condemned + trial.cleared) == list(range(size))


# Replicas under suspicion


def test_a_broken_device_condemns_nothing_and_is_tried_again_ever_more_rarely():
    trial = Trial(4, outside=range(1, 16))
    assert trial.condemned == []
    assert sorted(trial.cleared) == [0, 1, 2, 3]
    assert trial.waits_s[0] == pytest.approx(0.1)
    assert all(later == pytest.approx(min(30.0, 2 * wait)) for wait, later in pairwise(trial.waits_s))
    assert trial.waits_s[-1] == 30.0
    assert "its device or its host may be at fault" in trial.reasons[0]
    assert trial.suspects.suspicion.reason == ""


def test_a_replica_that_has_passed_is_not_asked_to_wait_or_to_run_a_sample():
    trial = Trial(2, [0], outside={2}, most_runs=2)
    assert trial.suspects.next(False, trial.now_s) is None
    assert trial.suspects.next(True, trial.now_s).offsets == (0,)


def test_a_batch_that_ends_a_fresh_replica_under_suspicion_prolongs_the_wait():
    trial = Trial(2, [0], outside={2}, most_runs=2)
    before_s = trial.suspects.suspicion.blocked_until_s
    trial.suspects.lost([event(5), event(6)], alone=False, memory=False, passed=False, now_s=before_s)
    assert trial.suspects.suspicion.blocked_until_s == pytest.approx(before_s + 0.2)


def test_kills_from_before_a_sample_ended_a_replica_count_no_more():
    """Run 1 is an event, 2 a sample that ends a replica, 3 one that passes, 4 the event again."""
    trial = Trial(2, outside={1, 2, 4})
    assert (trial.condemned, sorted(trial.cleared)) == ([], [0, 1])


def test_suspicion_ends_after_a_minute_without_another_loss():
    trial = Trial(2, [0], outside={2}, most_runs=2)
    later_s = trial.suspects.suspicion.blocked_until_s + 61
    trial.suspects.lost([event(5), event(6)], alone=False, memory=False, passed=False, now_s=later_s)
    assert (trial.suspects.suspicion.blocked_until_s, trial.suspects.suspicion.reason) == (0.0, "")


def test_an_only_replica_under_suspicion_runs_the_queue_and_a_sample_by_turns():
    trial = Trial(2, [0], outside={2}, most_runs=2)
    suspects, now_s = trial.suspects, trial.suspects.suspicion.blocked_until_s
    turns = []
    for _ in range(4):
        task = suspects.next(False, now_s, yields=True)
        turns.append(type(task).__name__)
        if task is not None:
            suspects.probe_failed(now_s)
            now_s = suspects.suspicion.blocked_until_s
    assert turns == ["NoneType", "Probe", "NoneType", "Probe"]


# Without a sample


def test_without_a_sample_nothing_is_condemned_for_ever():
    trial = Trial(3, range(3), sample=None, most_runs=60)
    assert trial.condemned == []
    assert trial.waits_s[-1] == 30.0
    assert "no event is known" in trial.suspects.suspicion.reason


def test_without_a_sample_other_suspects_run_first_and_the_first_that_passes_is_the_sample():
    trial = Trial(3, [0], sample=None)
    assert trial.ran[:2] == [0, 1]
    assert (trial.cleared, trial.condemned) == ([1, 2], [0])
    assert (trial.waits_s, trial.suspects.suspicion.reason) == ([pytest.approx(0.1)], "")


def test_an_event_that_passes_on_a_fresh_replica_ends_the_suspicion():
    trial = Trial(2, [0], sample=None)
    assert (trial.cleared, trial.condemned, trial.suspects.suspicion.reason) == ([1], [0], "")


def test_without_a_sample_no_event_overtakes_one_of_its_key():
    trial = Trial(3, [0], sample=None, keys=[b"k", b"k", b"l"])
    assert trial.ran[:2] == [0, 2]
    assert (trial.cleared, trial.condemned) == ([2, 1], [0])


# Memory


@pytest.mark.parametrize(("size", "sizes"), [(2, [1, 1]), (5, [3, 2]), (8, [4, 4])])
def test_a_batch_that_runs_out_of_memory_is_halved(size, sizes):
    lost = Suspects().lost([event(n) for n in range(size)], alone=False, memory=True, passed=True, now_s=0.0)
    assert ([len(batch) for batch in lost.again], lost.limit) == (sizes, sizes[0])
    assert [name for batch in lost.again for name in names(batch)] == list(range(size))


def test_an_event_that_runs_out_of_memory_alone_twice_is_condemned():
    suspects, only = Suspects(), event(1)
    suspects.learn(b"sample")
    assert suspects.lost([only], alone=False, memory=True, passed=True, now_s=0.0).condemned == []
    assert suspects.next(True, 0.0) is only
    lost = suspects.lost([only], alone=True, memory=True, passed=True, now_s=0.0, cause="out of memory")
    assert lost.condemned == [(only, "2 replicas ended while running this event alone: out of memory")]


# Late batches


def test_a_late_batch_runs_elsewhere_once_and_is_suspected_when_it_is_late_again():
    suspects, batch = Suspects(), [event(1), event(2)]
    assert suspects.late(batch).again == [batch]
    assert suspects.late([event(3), batch[0]]).again == []
    assert len(suspects) == 2


# Drop


def test_the_suspects_of_a_dropped_partition_count_no_more():
    suspects, batch = Suspects(), [event(1), event(2, partition=1)]
    suspects.lost(batch, alone=False, memory=False, passed=True, now_s=0.0)
    running = suspects.next(True, 0.0)
    assert suspects.drop(0) == [running]
    assert not suspects.passed(running)
    assert suspects.next(True, 0.0) is batch[1]


def test_a_dropped_suspect_that_kills_is_not_suspected_again():
    suspects, batch = Suspects(), [event(1), event(2)]
    suspects.lost(batch, alone=False, memory=False, passed=True, now_s=0.0)
    running = suspects.next(True, 0.0)
    running.kills = 1
    suspects.drop()
    assert suspects.lost([running], alone=True, memory=False, passed=True, now_s=0.0).condemned == []
    assert len(suspects) == 0


def test_an_event_that_waits_for_memory_waits_longer_each_time_and_holds_back_its_own_key_alone():
    suspects = Suspects()
    suspects.learn(b"sample")
    huge, behind, other = event(0, b"k"), event(1, b"k"), event(2)
    waits_s = []
    suspects.no_memory(huge, alone=False, now_s=0.0)
    suspects.lost([behind, other], alone=False, memory=False, passed=True, now_s=0.0)
    assert suspects.next(True, 0.0) is other
    assert suspects.passed(other)
    now_s = 0.0
    for _ in range(12):
        assert suspects.next(True, now_s) is None
        waits_s.append(suspects.again_s(True, now_s) - now_s)
        now_s = suspects.again_s(True, now_s)
        assert suspects.next(True, now_s) is huge
        suspects.no_memory(huge, alone=True, now_s=now_s)
    assert waits_s == sorted(waits_s)
    assert waits_s[-1] == pytest.approx(30.0)
    assert huge.kills == 0
    assert suspects.drop() == [huge, behind]
    assert (suspects.trouble, suspects.again_s(True, now_s)) == ("", 0.0)


def test_a_suspect_that_its_server_does_not_take_lets_the_queue_have_its_turn_and_is_not_blamed():
    suspects = Suspects()
    suspects.learn(b"sample")
    refused = event(0)
    suspects.lost([refused], alone=False, memory=False, passed=True, now_s=0.0)
    for attempt in range(20):
        now_s = 10.0 * attempt
        assert suspects.next(True, now_s) is refused
        suspects.not_taken(now_s)
        assert suspects.next(True, now_s + MAX_HELD_S) is None
    assert suspects.next(True, suspects.again_s(True, now_s)) is refused
    assert suspects.passed(refused)
    assert (len(suspects), suspects.trouble, refused.kills) == (0, "", 1)


def test_one_that_waits_for_memory_holds_up_none_that_is_due_once_fresh_replicas_may_run():
    suspects = Suspects()
    huge, due = event(0), event(1)
    for attempt in range(9):
        suspects.no_memory(huge, alone=attempt > 0, now_s=0.0)
        suspects.next(True, 60.0 * (attempt < 8))
    assert suspects.again_s(True, 0.0) == 30.0
    suspects.lost([due], alone=False, memory=False, passed=False, now_s=0.0)
    assert 0.0 < suspects.suspicion.blocked_until_s < 1.0
    assert suspects.next(False, 0.0) is None
    assert suspects.again_s(False, 0.0) == suspects.suspicion.blocked_until_s
    assert suspects.next(False, suspects.again_s(False, 0.0)) is due


def test_a_replica_that_has_passed_waits_for_no_block_but_for_the_first_that_waits():
    suspects = Suspects()
    first, second = event(0), event(1)
    suspects.no_memory(first, alone=False, now_s=0.0)
    suspects.no_memory(second, alone=False, now_s=0.1)
    suspects.suspicion.blocked_until_s = 9.0
    assert suspects.again_s(True, 0.15) == pytest.approx(0.2)
    assert suspects.again_s(False, 0.15) == 9.0
    assert suspects.next(True, suspects.again_s(True, 0.15)) is first


def test_a_background_event_that_no_device_has_memory_for_holds_back_no_live_one_of_its_key():
    suspects = Suspects()
    suspects.no_memory(event(0, b"k", partition=CLASS_STRIDE), alone=False, now_s=0.0)
    suspects.suspect([[event(1, b"k")]], passed=True, now_s=0.0)
    assert suspects.next(True, 0.0).offsets == (1,)


def test_live_suspects_run_before_background_ones_and_those_wait_for_the_queue_of_the_only_replica():
    suspects = Suspects({1})
    old, new = event(0, partition=CLASS_STRIDE), event(1)
    suspects.suspect([[old], [new]], passed=True, now_s=0.0)
    assert suspects.next(True, 0.0, yields=True) is new
    assert suspects.passed(new)
    assert suspects.next(True, 0.0, yields=True) is None
    assert suspects.next(True, 0.0) is old
