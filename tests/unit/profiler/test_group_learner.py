"""What is learned of a consumer group from ends and commits, beside the simulated group's true figures."""

import math

import numpy as np
import pytest

from inferline_stream.pipeline.group_look import GroupLook, OffsetCommit
from inferline_stream.pipeline.group_profile import UNSEEN_SHARE
from inferline_stream.profiler.batch_line import batch_line
from inferline_stream.profiler.group_learner import GroupLearner
from tests.support.simulated_group import Worker, arrivals, looks, shared_looks


def _swing(t):
    return 0.7 + 0.4 * math.sin(2 * math.pi * t / 120)


def _seen(worker, load, duration_s, seed=1, **group):
    rng = np.random.default_rng(seed)
    full = 3 * worker.throughput(worker.most)
    rate = (lambda t: full * load(t)) if callable(load) else (lambda t: full * load)
    return looks(worker, arrivals(rate, duration_s, rng), duration_s, rng, **group)


def _learned(looks):
    learner = GroupLearner("group")
    for look in looks:
        learner.take(look)
    return learner.profile()


@pytest.mark.parametrize(
    ("load", "most", "cv", "within"),
    [
        (0.3, 1, 0.3, 0.1),
        (0.3, 16, 1.0, 0.1),
        (0.6, 1, 1.0, 0.05),
        (0.6, 16, 0.3, 0.05),
        (0.85, 8, 0.3, 0.05),
        (0.85, 16, 1.0, 0.05),
        (_swing, 8, 1.0, 0.05),
    ],
)
def test_commits_of_batches_show_the_throughput_after_a_minute(load, within, most, cv):
    worker = Worker(0.02, 0.01, cv, most)

    found = _learned(_seen(worker, load, 60.0))

    true = worker.throughput(found.max_batch_size)
    # Where times vary much, a minute has too few batches to be that sure; the learner's own doubt says so.
    assert abs(found.throughput.value / true - 1) < max(within, 2.5 * found.throughput.error)
    assert found.throughput.error < within * (1 if cv < 1 else 1.5)
    assert (found.source, found.workers, found.partitions) == ("commits", 3, 12)
    assert found.spread == pytest.approx(cv, rel=0.35)


@pytest.mark.parametrize(("load", "jitter"), [(0.3, 0.0), (0.85, 0.0), (0.85, 0.5)])
def test_commits_each_five_seconds_show_nothing_below_overload_rather_than_the_arrival_rate(load, jitter):
    worker = Worker(0.02, 0.01, 0.3, 8, commit_every_s=5.0, commit_jitter=jitter)

    found = _learned(_seen(worker, load, 120.0))

    assert (found.throughput, found.source) == (None, None)


@pytest.mark.parametrize(("load", "cv"), [(_swing, 0.3), (1.1, 1.0), (1.5, 0.3)])
def test_overload_shows_the_throughput_of_a_group_that_commits_each_five_seconds(load, cv):
    worker = Worker(0.02, 0.01, cv, 8, commit_every_s=5.0)

    found = _learned(_seen(worker, load, 240.0))

    assert found.source == "busy"
    assert found.throughput.value == pytest.approx(worker.throughput(8), rel=max(0.03, 2.5 * found.throughput.error))
    assert found.throughput.error < 0.05


@pytest.mark.parametrize(("load", "known"), [(0.6, False), (1.1, True), (1.5, True)])
def test_members_who_take_from_the_same_partitions_are_known_from_overload_alone(load, known):
    rng, worker = np.random.default_rng(3), Worker(0.02, 0.01, 0.3, 8)
    times = arrivals(lambda _: load * 5 * worker.throughput(8), 180.0, rng)

    found = _learned(shared_looks(worker, times, 180.0, rng, members=5, partitions=2))

    assert (found.workers, found.rebalance) == (5, UNSEEN_SHARE)
    assert (found.throughput is not None) == known
    if found.throughput is not None:
        assert found.source == "busy"
        assert found.throughput.value == pytest.approx(worker.throughput(8), rel=0.03)


@pytest.mark.parametrize(("protocol", "members"), [("eager", 4), ("kip848", 4), ("eager", 2)])
def test_a_change_of_members_shows_its_pause_and_is_no_service_time(protocol, members):
    worker = Worker(0.02, 0.01, 0.3, 8)
    group = {"members": ((0.0, 3), (20.0, members), (40.0, 3)), "pause_s": 3.0, "protocol": protocol}

    found = _learned(_seen(worker, 0.6, 60.0, **group))

    assert found.rebalance.protocol == protocol
    assert found.rebalance.pause_s.count == 2
    assert found.rebalance.pause_s.value == pytest.approx(3.0, abs=0.08)
    assert 2.7 < found.rebalance.longest_s < 3.6
    assert found.throughput.value == pytest.approx(worker.throughput(found.max_batch_size), rel=0.05)


def test_a_hole_begins_no_sooner_than_there_is_something_to_do():
    group = {"members": ((0.0, 3), (60.0, 4), (120.0, 3)), "pause_s": 1.0}

    found = _learned(_seen(Worker(0.02, 0.01, 0.3, 1), 0.01, 180.0, **group))

    assert found.rebalance is None or found.rebalance.longest_s < 1.1


def test_a_brokers_clock_that_is_a_little_off_is_no_service_time():
    worker = Worker(0.02, 0.01, 0.3, 1)
    learner = GroupLearner("group")
    for look in _seen(worker, 0.3, 60.0):
        later = tuple(OffsetCommit(each.at_s + 0.04, each.partition, each.offset) for each in look.commits)
        learner.take(GroupLook(look.at_s, look.ends, later, look.assignments))

    assert learner.profile().throughput.value == pytest.approx(worker.throughput(1), rel=0.1)


def test_a_new_member_shows_how_long_it_takes_to_its_first_commit():
    group = {"members": ((0.0, 3), (20.0, 4)), "start_up_s": 2.0}

    found = _learned(_seen(Worker(0.02, 0.01, 0.3, 8), 0.6, 60.0, **group))

    assert found.start_up_s.value == pytest.approx(2.0, abs=0.3)


def test_latency_is_from_append_to_commit():
    """A deterministic worker of one second that gets a record each two seconds has a latency of one second."""
    rng = np.random.default_rng(1)

    found = _learned(looks(Worker(1.0, 0.0, 0.0, 1), np.arange(1.0, 300.0, 2.0), 301.0, rng, members=((0.0, 1),)))

    assert found.latency_p99_s.value == pytest.approx(1.0, abs=0.02)


def test_an_offset_that_is_set_back_one_of_an_unknown_partition_and_a_topic_made_again_stop_nothing():
    learner, worker = GroupLearner("group"), Worker(0.02, 0.01, 0.3, 8)
    learner.take(GroupLook(-1.0, (10**9,) * 13))  # the topic before
    for number, look in enumerate(_seen(worker, 0.6, 60.0)):
        if number in (1000, 1500):
            wrong = (OffsetCommit(look.at_s, 0, 0), OffsetCommit(look.at_s, 99, 5))
            look = GroupLook(look.at_s, look.ends, (*look.commits, *wrong), look.assignments)
        learner.take(look)

    found = learner.profile(entered=learner.appended // 2)

    assert found.throughput.value == pytest.approx(worker.throughput(found.max_batch_size), rel=0.06)
    assert found.visit_ratio.value == pytest.approx(2.0, rel=0.01)


def test_partitions_that_a_topic_was_given_before_the_first_look_have_no_past():
    learner = GroupLearner("enrich")
    learner.take(GroupLook(1.0, (5, 5), past=((0.0, (2,)),)))
    assert learner.appended == 0


def test_a_line_that_would_fall_or_begin_below_zero_is_none():
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 9, 400).astype(float)

    falling = batch_line(sizes, 1.0 - 0.02 * sizes, 8)
    steep = batch_line(sizes, 0.1 * sizes - 0.05, 8)

    assert (falling.per_event_s, steep.fixed_s) == (0.0, 0.0)
    assert falling.throughput.value == pytest.approx(8 / 0.91, rel=0.1)
