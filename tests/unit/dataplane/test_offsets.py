import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.dataplane.offsets import (
    METADATA_LIMIT_BYTES,
    Committed,
    Completion,
    decode_metadata,
    encode_metadata,
)

offsets = st.lists(st.integers(0, 400), unique=True, max_size=60).map(sorted)


def complete_offsets(committed: Committed, end: int) -> set[int]:
    """What a commit says, offset by offset."""
    below = set(range(committed.offset))
    return below | {offset for first, last in committed.runs for offset in range(first, min(last, end))}


@given(st.integers(0, 10**12), st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), max_size=40))
def test_metadata_says_again_what_was_encoded(offset, steps):
    runs, position = [], offset
    for gap, length in steps:
        runs.append((position + gap, position + gap + length))
        position += gap + length
    committed = Committed(offset, tuple(runs))
    assert decode_metadata(offset, encode_metadata(committed)) == committed


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3000), st.integers(10, 4096))
def test_metadata_never_exceeds_its_limit_and_keeps_the_lowest_runs(steps, limit):
    runs, position = [], 7
    for gap, length in steps:
        runs.append((position + gap, position + gap + length))
        position += gap + length
    metadata = encode_metadata(Committed(7, tuple(runs)), limit)
    assert len(metadata) <= max(limit, len("i1;r="))
    kept = decode_metadata(7, metadata).runs
    assert kept == tuple(runs[: len(kept)])


def test_every_second_offset_of_24000_fits_as_a_bitmap():
    runs = tuple((offset, offset + 1) for offset in range(1, 24_000, 2))
    metadata = encode_metadata(Committed(0, runs))
    assert len(metadata) <= METADATA_LIMIT_BYTES
    assert decode_metadata(0, metadata).runs == runs


@given(offsets, st.randoms(use_true_random=False))
def test_a_commit_tells_exactly_the_complete_offsets_whatever_the_order_of_completion(read, rng):
    completion = Completion(Committed(0))
    done: set[int] = set()
    order = list(read)
    for offset in read:
        assert completion.read(offset)
    rng.shuffle(order)
    for offset in order:
        completion.complete(offset)
        done.add(offset)
        committed = completion.committed()
        told = complete_offsets(committed, 401)
        assert told.isdisjoint(set(read) - done)
        assert done <= told
        assert committed.offset == min(set(read) - done, default=read[-1] + 1)


@given(offsets, st.data())
def test_the_next_owner_skips_what_was_complete_and_its_own_commits_lose_none_of_it(read, data):
    first = Completion(Committed(0))
    for offset in read:
        first.read(offset)
    done = set(data.draw(st.lists(st.sampled_from(read), unique=True))) if read else set()
    for offset in done:
        first.complete(offset)
    handed = decode_metadata(first.committed().offset, encode_metadata(first.committed()))
    second = Completion(handed)
    for offset in (o for o in read if o >= handed.offset):
        assert second.read(offset) == (offset not in done)
        told = complete_offsets(second.committed(), 401)
        assert done <= told
        assert told.isdisjoint(set(read) - done)
    for offset in sorted(set(read) - done):
        second.complete(offset)
    assert second.watermark == (read[-1] + 1 if read else 0)


def test_from_where_on_events_come_anew_is_handed_on_with_every_commit():
    second = Completion(decode_metadata(5, encode_metadata(Committed(5, anew=9))))
    assert second.committed(owner="me") == Committed(5, owner="me", anew=9)


def test_offsets_below_the_committed_one_are_recalled_but_not_counted():
    completion = Completion(Committed(10))
    assert not completion.read(7)
    assert completion.watermark == 10
    assert completion.read(10)
    assert completion.open_count == 1


def test_a_million_offsets_complete_in_order_leave_nothing_behind():
    completion = Completion(Committed(0))
    for offset in range(0, 100_000):
        completion.read(offset)
        completion.complete(offset)
    assert completion.committed() == Committed(100_000)
    assert completion.open_count == 0


@pytest.mark.parametrize("foreign", ["", "hello", "i1;r=%%%", "i1;a=x", "i2;r=AAEC", "i1;r=gIA"])
def test_foreign_or_broken_metadata_counts_as_none(foreign):
    assert decode_metadata(5, foreign) == Committed(5)


def test_random_bytes_as_metadata_never_raise():
    rng = random.Random(1)
    for _ in range(500):
        noise = "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(30)))
        decode_metadata(3, f"i1;r={noise}")
        decode_metadata(3, f"i1;b={noise}")
