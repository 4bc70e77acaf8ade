"""How often a batch ends dispatchers before it is skipped."""

from __future__ import annotations

import signal

import pytest

from inferline_stream.actuators.batch_deaths import HOG_S, REMEMBERED, BatchDeaths, is_batchs_doing
from inferline_stream.dataplane.process_specs import EXIT_FAILED, EXIT_FENCED
from inferline_stream.kafka.batch_mark import BatchId

ONE, OTHER_OFFSET = BatchId(0, 7, 1), BatchId(0, 9, 1)
OTHER_CONTENT, OTHER_PARTITION = BatchId(0, 7, 2), BatchId(1, 7, 1)


def after(*batches: BatchId) -> tuple[BatchId, ...]:
    deaths = BatchDeaths()
    for batch in batches:
        deaths.died_at("work", batch)
    return deaths.deadly("work")


@pytest.mark.parametrize(
    ("code", "overran", "busy_s", "blamed"),
    [
        (-signal.SIGSEGV, False, 0.0, True),
        (-signal.SIGBUS, False, 0.0, True),
        (-signal.SIGABRT, False, 0.0, True),
        (EXIT_FAILED, False, 0.0, True),
        (-signal.SIGKILL, True, 0.0, True),
        (-signal.SIGKILL, False, HOG_S, True),
        (-signal.SIGKILL, False, HOG_S - 0.1, False),
        (-signal.SIGKILL, False, 0.0, False),
        (-signal.SIGTERM, False, HOG_S, False),
        (EXIT_FENCED, False, 0.0, False),
        (5, False, 0.0, False),
    ],
)
def test_a_batch_is_blamed_for_crashes_and_for_the_time_that_it_takes_and_not_for_kills(code, overran, busy_s, blamed):
    assert is_batchs_doing(code, overran=overran, busy_s=busy_s) is blamed


def test_a_batch_is_skipped_after_two_deaths_in_a_row():
    deaths = BatchDeaths()
    assert [deaths.died_at("work", ONE) for _ in range(3)] == [False, True, False]
    assert deaths.deadly("work") == (ONE,)
    assert deaths.deadly("other stage") == ()


def test_deaths_at_different_batches_of_a_partition_skip_none():
    for other in (OTHER_OFFSET, OTHER_CONTENT):
        assert after(ONE, other, ONE, other) == ()
    assert after(ONE) == ()


def test_two_partitions_that_end_dispatchers_by_turns_are_both_skipped():
    assert after(ONE, OTHER_PARTITION, ONE, OTHER_PARTITION) == (ONE, OTHER_PARTITION)


def test_the_newest_batches_are_remembered():
    batches = [BatchId(0, at, 1) for at in range(REMEMBERED + 3)]
    assert after(*(batch for each in batches for batch in (each, each))) == tuple(batches[3:])
