import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inferline_stream.dataplane.dispatcher.hardware_kind import MAX_WIDER_S, MIN_WIDER_S
from inferline_stream.dataplane.dispatcher.pool import DEADLINE_FACTOR, Pool
from inferline_stream.dataplane.frames import Call
from inferline_stream.dataplane.slot_grants import HardwarePlan, StagePlan

PROFILE = {1: 0.010, 4: 0.016, 8: 0.024}


def pool_of(*kinds, limit=8, service_s=None, limits=None, ready_s=0.0):
    """A pool whose replicas r0, r1, … have these kinds of hardware."""
    pool = Pool()
    times_s = {"cpu": PROFILE} if service_s is None else service_s
    limits = limits or dict.fromkeys(kinds, limit)
    plans = {kind: HardwarePlan(limits.get(kind, 1), times_s.get(kind, {})) for kind in {*limits, *times_s}}
    pool.configure(StagePlan(plans))
    for number, kind in enumerate(kinds):
        pool.attach(f"r{number}", kind, number)
        pool.ready(f"r{number}", ready_s)
    return pool


def replica(pool, number):
    return pool.replicas[f"r{number}"]


def run(pool, number, now_s, factor=1.0, size=8):
    """One batch, `factor` times as long as profiled; returns when it was finished."""
    each = replica(pool, number)
    pool.begin(each, size, now_s)
    took_s = factor * PROFILE[size]
    pool.finish(each, [Call(size, took_s)], now_s + took_s)
    return now_s + took_s


def set_pace(pool, number, pace):
    replica(pool, number).slowdown = replica(pool, number).pace = pace
    pool._compare()


def chosen(pool, now_s=0.0, queued=1):
    found = pool.choose(now_s, queued)
    return None if found is None else found.number


# Grants


def test_a_new_grant_changes_limits_and_service_times():
    pool = pool_of("cpu")
    pool.configure(StagePlan({"cpu": HardwarePlan(3, {1: 1.0})}))
    pool.begin(replica(pool, 0), 1, 0.0)
    assert (pool.limit("cpu"), pool.limit("gpu"), pool.next_deadline_s) == (3, 1, DEADLINE_FACTOR * 1.0)


# Choice


def test_the_lowest_number_gets_the_batch_so_that_idle_replicas_stay_idle():
    pool = pool_of("cpu", "cpu", "cpu")
    pool.begin(replica(pool, 0), 8, 0.0)
    pool.begin(replica(pool, 1), 8, 0.0)
    pool.finish(replica(pool, 0), [Call(8, 0.024)], 0.024)
    assert chosen(pool, 0.024) == 0


@pytest.mark.parametrize("make", ["leaving", "quarantined", "busy", "detached", "starting"])
def test_only_a_free_ready_replica_that_stays_is_chosen(make):
    pool = pool_of("cpu", "cpu")
    if make == "leaving":
        pool.retire("r0")
    elif make == "quarantined":
        replica(pool, 0).quarantined = True
    elif make == "busy":
        pool.begin(replica(pool, 0), 1, 0.0)
    else:
        pool.detach("r0")
        if make == "starting":
            pool.attach("r0", "cpu", 0)
    assert chosen(pool) == 1


def test_a_replica_that_leaves_while_busy_gets_nothing_more():
    pool = pool_of("cpu")
    pool.begin(replica(pool, 0), 1, 0.0)
    pool.retire("r0")
    pool.finish(replica(pool, 0), [Call(1, 0.01)], 0.01)
    assert chosen(pool, 0.01) is None


def test_fresh_replicas_wait_while_fresh_ones_are_under_suspicion():
    pool = pool_of("cpu", "cpu")
    run(pool, 1, 0.0)
    pool.fresh_after_s = 5.0
    assert (chosen(pool, 4.9), chosen(pool, 5.0)) == (1, 0)


def test_the_fastest_free_replica_gets_the_batch():
    pool = pool_of("cpu", "gpu", "gpu", service_s={"cpu": PROFILE, "gpu": {1: 0.001, 8: 0.002}})
    assert chosen(pool, queued=8) == 1


def test_a_difference_within_one_percent_is_a_tie():
    pool = pool_of("cpu", "gpu", limit=1, service_s={"cpu": {1: 1.0}, "gpu": {1: 0.995}})
    assert chosen(pool) == 0


def test_noise_within_a_third_changes_no_choice():
    pool = pool_of("cpu", "cpu")
    now_s = 0.0
    rng = random.Random(1)
    for _ in range(300):
        now_s = run(pool, 0, now_s, rng.uniform(0.9, 1.5))
    assert chosen(pool, now_s) == 0


def test_a_slow_free_replica_leaves_a_short_queue_to_a_faster_busy_one_and_helps_with_a_long_one():
    pool = pool_of("cpu", "cpu")
    set_pace(pool, 1, 3.5)
    pool.begin(replica(pool, 0), 8, 0.0)
    assert [chosen(pool, 0.012, queued) for queued in (1, 8, 16, 24, 32)] == [None, None, None, 1, 1]


def test_a_slow_free_replica_does_not_wait_for_ever_for_a_fast_one_that_hangs():
    pool = pool_of("cpu", "cpu")
    set_pace(pool, 1, 3.0)
    pool.begin(replica(pool, 0), 8, 0.0)
    now_s, asked = 0.010, 0
    while chosen(pool, now_s, 8) is None:
        asked += 1
        assert pool.next_deadline_s > now_s
        now_s = pool.next_deadline_s
        assert list(pool.overdue(now_s)) == []
    assert now_s < 0.024 + 3 * 0.024
    assert asked < 20


def test_a_slow_free_replica_does_not_wait_for_one_whose_batch_is_late():
    pool = pool_of("cpu", "cpu")
    set_pace(pool, 1, 50.0)
    pool.begin(replica(pool, 0), 8, 0.0)
    assert chosen(pool, 0.3, 1) is None
    assert list(pool.overdue(0.3)) == [(replica(pool, 0), 0, False)]
    assert chosen(pool, 0.3, 1) == 1


def test_a_replica_that_was_slow_is_tried_again_after_a_while_and_believed_once_it_is_fast():
    pool = pool_of("cpu", "cpu")
    now_s = 0.0
    for _ in range(20):
        now_s = run(pool, 0, now_s, 5.0)
    assert chosen(pool, now_s) == 1
    assert chosen(pool, now_s + 11) == 0
    assert chosen(pool, run(pool, 0, now_s + 11)) == 0


@given(
    st.lists(st.tuples(st.sampled_from([1.0, 1.5, 3.0, 9.0]), st.none() | st.floats(0.1, 30)), min_size=1, max_size=6),
    st.integers(1, 30),
)
def test_the_best_free_replica_gets_a_batch_if_it_gets_any_where_each_is_dealt_to_who_finishes_it_first(
    members, batches
):
    """By brute force: deal batch after batch, over free and busy replicas, until the queue is dealt out."""
    service_s = 1.0
    pool = pool_of(*["cpu"] * len(members), limit=1, service_s={"cpu": {1: service_s}})
    free_s = []
    for number, (pace, busy_s) in enumerate(members):
        set_pace(pool, number, pace)
        if busy_s is not None:
            pool.begin(replica(pool, number), 1, 0.0)
            replica(pool, number).hands[0].due_s = busy_s
        free_s.append(busy_s or 0.0)
    free = {number for number, (_, busy_s) in enumerate(members) if busy_s is None}
    dealt = None
    for _ in range(batches):
        finish_s = [at_s + pace * service_s for at_s, (pace, _) in zip(free_s, members, strict=True)]
        first = min(range(len(members)), key=lambda number: (finish_s[number], number))
        close = [number for number in range(len(members)) if finish_s[number] < finish_s[first] * 1.03]
        assume(len({number in free for number in close}) == 1)
        if first in free:
            dealt = first
            break
        free_s[first] = finish_s[first]
    assert chosen(pool, 0.0, batches) == dealt


# Deadlines


@pytest.mark.parametrize(
    ("kind", "size", "deadline_s"),
    [("cpu", 1, 0.3), ("gpu", 1, 5.0), ("gpu", 2, 10.0), ("gpu", 40, 60.0), ("tpu", 1, 60.0)],
)
def test_a_batch_is_late_after_ten_times_its_profile_within_bounds_and_overdue_after_ten_times_that(
    kind, size, deadline_s
):
    pool = pool_of(kind, service_s={"cpu": PROFILE, "gpu": {1: 0.5, 2: 1.0}})
    each = replica(pool, 0)
    set_pace(pool, 0, 2.0)
    pool.begin(each, size, 100.0)
    assert list(pool.overdue(100 + deadline_s * 0.99)) == []
    assert list(pool.overdue(100 + deadline_s * 1.001)) == [(each, 0, False)]
    assert list(pool.overdue(100 + deadline_s * 9.9)) == []
    assert pool.next_deadline_s == pytest.approx(100 + deadline_s * 10, rel=1e-3)
    assert list(pool.overdue(pool.next_deadline_s)) == [(each, 0, True)]
    assert pool.next_deadline_s is None


def test_a_batch_that_is_finished_is_never_overdue():
    pool = pool_of("cpu", "cpu")
    pool.begin(replica(pool, 0), 1, 0.0)
    pool.begin(replica(pool, 1), 1, 0.2)
    pool.finish(replica(pool, 0), [Call(1, 0.01)], 0.01)
    assert list(pool.overdue(0.3)) == []
    assert pool.next_deadline_s == 0.5


def test_a_late_replica_is_free_again_after_its_late_result():
    pool = pool_of("cpu")
    pool.begin(replica(pool, 0), 1, 0.0)
    assert list(pool.overdue(0.3)) == [(replica(pool, 0), 0, False)]
    pool.finish(replica(pool, 0), [Call(1, 0.4)], 0.4)
    assert (chosen(pool, 0.4), replica(pool, 0).hands, replica(pool, 0).passed) == (0, {}, True)


def test_a_dispatcher_that_was_held_up_itself_blames_no_replica():
    pool = pool_of("cpu")
    pool.begin(replica(pool, 0), 1, 0.0)
    assert list(pool.overdue(10.0)) == []
    pool.finish(replica(pool, 0), [Call(1, 0.01)], 10.01)
    assert list(pool.overdue(10.3)) == []


# Stragglers


def run_peers(pool, until_s, factors, now_s=0.0):
    """Each replica runs batch after batch, `factors` times as long as profiled; returns all that was reported."""
    found = []
    next_s = dict.fromkeys(range(len(factors)), now_s)
    while (now_s := min(next_s.values())) < until_s:
        number = min(next_s, key=next_s.get)
        next_s[number] = run(pool, number, now_s, factors[number])
        found += pool.stragglers(now_s)
    return found


@pytest.mark.parametrize("service_s", [{"cpu": PROFILE}, {}], ids=["profile", "none"])
def test_a_replica_that_stays_behind_its_kind_is_reported_once_with_a_reason(service_s):
    found = run_peers(pool_of("cpu", "cpu", "cpu", service_s=service_s), 20, [1.0, 3.0, 1.1])
    assert [name for name, _ in found] == ["r1"]
    assert "times slower than the median of 3 replicas on 'cpu'" in found[0][1]


@pytest.mark.parametrize("factors", [[1, 1.8, 1], [3, 3, 3], [1, 3]], ids=["a little", "all of them", "of two"])
def test_a_replica_is_no_straggler(factors):
    assert run_peers(pool_of(*["cpu"] * len(factors)), 20, factors) == []


def test_a_replica_of_another_kind_is_no_peer():
    pool = pool_of("cpu", "cpu", "gpu", service_s={"cpu": PROFILE, "gpu": PROFILE})
    assert run_peers(pool, 20, [1, 1, 5]) == []


def test_a_replica_that_recovers_within_five_seconds_is_no_straggler():
    pool = pool_of("cpu", "cpu", "cpu")
    assert run_peers(pool, 4, [1, 1, 4]) == []
    assert run_peers(pool, 20, [1, 1, 1], 4.5) == []


def test_a_replica_that_is_slow_now_and_then_is_no_straggler():
    pool, found = pool_of("cpu", "cpu", "cpu"), []
    for begin_s in range(0, 24, 6):
        found += run_peers(pool, begin_s + 4, [1, 1, 4], begin_s)
        found += run_peers(pool, begin_s + 6, [1, 1, 1], begin_s + 4)
    assert found == []


def test_a_slow_replica_that_ran_nothing_more_is_no_straggler():
    pool = pool_of("cpu", "cpu", "cpu")
    run_peers(pool, 2, [1, 1, 1])
    for _ in range(5):
        run(pool, 2, 2.0, 10)
    assert pool.stragglers(3.0) == []
    assert pool.stragglers(9.0) == []


def test_a_replica_whose_last_batch_was_fast_is_no_straggler():
    pool = pool_of("cpu", "cpu", "cpu")
    assert run_peers(pool, 4, [1, 1, 4]) == []
    run(pool, 2, 10.0)
    assert replica(pool, 2).slowdown > 3
    assert pool.stragglers(11.0) == []


# Quarantine


def test_the_free_replica_of_the_highest_number_is_quarantined_and_stays_so():
    pool = pool_of("cpu", "cpu", "cpu")
    pool.begin(replica(pool, 2), 1, 0.0)
    assert pool.quarantine() is replica(pool, 1)
    pool.finish(replica(pool, 2), [], 0.1)
    assert pool.quarantine() is replica(pool, 1)
    pool.begin(replica(pool, 1), 1, 0.1)
    assert pool.quarantine() is None


def test_a_replica_that_has_passed_is_preferred_while_fresh_ones_are_under_suspicion():
    pool = pool_of("cpu", "cpu", "cpu")
    run(pool, 0, 0.0)
    assert pool.quarantine(passed_first=True) is replica(pool, 0)


def test_a_replica_that_was_quarantined_serves_again_once_that_is_lifted():
    pool = pool_of("cpu")
    assert pool.single
    pool.quarantine()
    assert chosen(pool) is None
    pool.lift_quarantine()
    assert chosen(pool) == 0


def test_a_batch_that_a_device_has_no_memory_for_lowers_the_limit_of_its_kind_whatever_a_plan_says() -> None:
    pool = pool_of("cpu", "gpu", limit=32)
    pool.too_large("gpu", 20, 0.0)
    assert (pool.limit("gpu"), pool.limit("cpu")) == (10, 32)
    assert pool.tight == (
        "the memory of gpu has room for batches of 10, and the plan has 32: profile again on a device that nobody "
        "else uses"
    )
    pool.too_large("gpu", 30, 0.0)
    pool.configure(StagePlan({"cpu": HardwarePlan(32), "gpu": HardwarePlan(64)}))
    assert pool.limit("gpu") == 10
    pool.configure(StagePlan({"cpu": HardwarePlan(32), "gpu": HardwarePlan(8)}))
    assert (pool.limit("gpu"), pool.tight) == (8, "")
    pool.too_large("gpu", 1, 0.0)
    assert pool.limit("gpu") == 1


def finishes(pool: Pool, now_s: float) -> int:
    """A batch comes back; returns the limit from then on."""
    pool.begin(replica(pool, 0), 1, now_s)
    pool.finish(replica(pool, 0), [Call(1, 0.01)], now_s)
    return pool.limit("gpu")


def test_a_limit_that_memory_has_lowered_rises_again_step_by_step_while_batches_come_back() -> None:
    pool = pool_of("gpu", limit=32)
    pool.too_large("gpu", 20, 0.0)
    assert finishes(pool, MIN_WIDER_S - 1) == 10
    assert finishes(pool, MIN_WIDER_S) == 20
    assert finishes(pool, 2 * MIN_WIDER_S - 1) == 20
    assert (finishes(pool, 2 * MIN_WIDER_S), pool.tight) == (32, "")


def test_a_device_that_stays_too_small_is_tried_ever_more_rarely_and_one_that_was_large_enough_soon_again() -> None:
    pool, now_s, waits = pool_of("gpu", limit=32), 0.0, []
    for _ in range(9):
        began_s = now_s
        for _ in range(3):  # several batches were under way, and each of them says so
            pool.too_large("gpu", 32, now_s)
        while finishes(pool, now_s) < 32:
            now_s += 1.0
        waits.append(now_s - began_s)
    assert waits == [min(MIN_WIDER_S * 2**times, MAX_WIDER_S) for times in range(9)]
    now_s += 2 * MAX_WIDER_S
    pool.too_large("gpu", 32, now_s)
    assert finishes(pool, now_s + MIN_WIDER_S) == 32


# Servers that take nothing


def test_pauses_grow_to_a_second_at_most_and_last_as_long_as_the_server_says_within_that():
    pool, now_s, pauses = pool_of("cpu"), 0.0, []
    for wait_s in (0.0, 0.0, 0.0, 3600.0, 0.0, 0.0):
        assert chosen(pool, now_s) == 0
        pool.begin(replica(pool, 0), 1, now_s)
        pool.give_back(replica(pool, 0), 0, now_s, wait_s)
        until_s = replica(pool, 0).held_until_s
        assert chosen(pool, until_s - 0.001) is None
        pauses.append(until_s - now_s)
        now_s = until_s
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 1.0, 0.8, 1.0])


def test_batches_that_come_back_together_lengthen_the_pause_once():
    pool = pool_of("cpu")
    pool.configure(StagePlan({"cpu": HardwarePlan(concurrency=3)}))
    for batch in range(3):
        pool.begin(replica(pool, 0), 1, 0.0, batch)
    for batch in range(3):
        pool.give_back(replica(pool, 0), batch, 0.001 * batch, 0.0)
    assert replica(pool, 0).held_until_s == pytest.approx(0.05)
    run(pool, 0, 0.05, size=1)
    assert (replica(pool, 0).gave_back, chosen(pool, 1.0)) == (0, 0)
