from types import SimpleNamespace

import pytest

from inferline_stream.dataplane.ahead import AHEAD_BYTES, Ahead


class Released:
    """What a reader was told to read no more."""

    def __init__(self) -> None:
        self.partitions: list[int] = []

    def release(self, partitions) -> None:
        self.partitions += partitions


@pytest.fixture
def released() -> Released:
    return Released()


@pytest.fixture
def ahead(released: Released) -> Ahead:
    found = Ahead(released)  # type: ignore[arg-type]
    found.begin([0, 1])
    return found


def record(size_bytes: int = 1) -> SimpleNamespace:
    return SimpleNamespace(value=b"v" * size_bytes)


def test_what_was_read_is_taken_in_order_and_reading_goes_on(ahead: Ahead, released: Released) -> None:
    first, second = record(), record()
    ahead.add(1, [first])
    ahead.add(1, [second])
    assert ahead.take(1) == [first, second]
    assert ahead.take(0) == []
    assert released.partitions == []
    assert not ahead


def test_what_is_dropped_is_read_no_more_and_what_was_never_begun_is_left_alone(
    ahead: Ahead, released: Released
) -> None:
    ahead.drop([1, 7])
    assert list(ahead) == [0]
    assert released.partitions == [1]


def test_a_partition_whose_reading_failed_gives_nothing_so_that_it_is_read_anew(
    ahead: Ahead, released: Released
) -> None:
    ahead.add(0, [record()])
    ahead.stop(0)
    assert released.partitions == [0]
    assert ahead.take(0) is None
    ahead.begin([0])
    assert ahead.take(0) == []


def test_what_waits_is_bounded_in_bytes_and_what_was_taken_or_dropped_counts_no_more(ahead: Ahead) -> None:
    ahead.add(0, [record(AHEAD_BYTES - 1), SimpleNamespace(value=None)])
    assert not ahead.full()
    ahead.add(1, [record()])
    assert ahead.full() == {0, 1}
    ahead.take(0)
    assert not ahead.full()
    ahead.add(1, [record(AHEAD_BYTES)])
    assert ahead.full() == {1}
    ahead.drop([1])
    ahead.begin([2])
    assert not ahead.full()
