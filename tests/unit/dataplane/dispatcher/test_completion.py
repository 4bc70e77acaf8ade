import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inferline_stream.dataplane.dispatcher import completion as completion_module
from inferline_stream.dataplane.dispatcher.completion import Completion
from inferline_stream.kafka.offset_metadata import METADATA_LIMIT_BYTES, Committed, decode_metadata, encode_metadata
from inferline_stream.pipeline.deadline_order import OFFSETS_SPAN

offsets = st.lists(st.integers(0, 400), unique=True, max_size=60).map(sorted)
steps = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), max_size=40)


def runs_of(offset, steps):
    runs = []
    for gap, length in steps:
        runs.append((offset + gap, offset + gap + length))
        offset += gap + length
    return tuple(runs)


def complete_offsets(committed: Committed, end: int) -> set[int]:
    """What a commit says, offset by offset."""
    below = set(range(committed.offset))
    return below | {offset for first, last in committed.runs for offset in range(first, min(last, end))}


def fits(completion: Completion, owner: str = "") -> bool:
    """Whether a commit now says everything."""
    committed = completion.committed(owner=owner)
    metadata = encode_metadata(committed)
    return len(metadata) <= METADATA_LIMIT_BYTES and decode_metadata(committed.offset, metadata) == committed


@given(st.integers(0, 10**12), steps, st.sampled_from(["", "rank-0-a1"]), st.integers(0, 2**63 - 1))
def test_metadata_says_again_what_was_encoded(offset, steps, owner, forget_below):
    committed = Committed(offset, runs_of(offset, steps), owner, forget_below, owner and "gPBN2fhF", len(steps))
    assert decode_metadata(offset, encode_metadata(committed)) == committed


def test_scattered_offsets_and_runs_far_above_them_fit_a_commit_together():
    scattered = [(offset, offset + 1) for offset in range(1, 20_000, 2)]
    committed = Committed(0, (*scattered, (500_000, 510_000), (900_000, 900_001)))
    metadata = encode_metadata(committed)
    assert len(metadata) < 20_000 / 6 + 30
    assert decode_metadata(0, metadata) == committed


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3000), st.integers(10, 4096))
def test_metadata_never_exceeds_its_limit_and_keeps_the_lowest_runs(steps, limit):
    runs = runs_of(7, steps)
    metadata = encode_metadata(Committed(7, runs), limit)
    assert len(metadata) <= max(limit, len("i1;r="))
    kept = decode_metadata(7, metadata).runs
    assert kept == runs[: len(kept)]


def test_every_second_offset_of_24000_fits_as_a_bitmap():
    runs = tuple((offset, offset + 1) for offset in range(1, 24_000, 2))
    metadata = encode_metadata(Committed(0, runs))
    assert len(metadata) <= METADATA_LIMIT_BYTES
    assert decode_metadata(0, metadata).runs == runs


@given(offsets, st.randoms(use_true_random=False))
def test_a_commit_says_exactly_which_offsets_are_complete_in_any_order_of_completion(read, rng):
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
        said = complete_offsets(committed, 401)
        assert said.isdisjoint(set(read) - done)
        assert done <= said
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
        said = complete_offsets(second.committed(), 401)
        assert done <= said
        assert said.isdisjoint(set(read) - done)
    for offset in sorted(set(read) - done):
        second.complete(offset)
        assert complete_offsets(second.committed(), 401) >= done
    assert second.watermark == (read[-1] + 1 if read else 0)


def test_where_a_source_begins_again_is_handed_on_with_every_commit():
    second = Completion(decode_metadata(5, encode_metadata(Committed(5, forget_below=9))))
    assert second.committed(owner="me") == Committed(5, owner="me", forget_below=9)


def test_offsets_below_the_committed_one_are_skipped_and_not_counted():
    completion = Completion(Committed(10))
    assert not completion.read(7)
    assert completion.watermark == 10
    assert completion.read(10)
    assert completion.open_count == 1


def test_offsets_that_complete_in_order_leave_nothing_behind():
    completion = Completion(Committed(0))
    for offset in range(100_000):
        completion.read(offset)
        completion.complete(offset)
    assert completion.committed() == Committed(100_000)
    assert completion.open_count == 0


def test_a_full_bitmap_of_the_owner_before_is_skipped_offset_by_offset():
    completion = Completion(Committed(0, tuple((offset, offset + 1) for offset in range(1, 24_000, 2))))
    read = [offset for offset in range(24_000) if completion.read(offset)]
    assert read == list(range(0, 24_000, 2))


@pytest.mark.parametrize(
    "foreign",
    [
        *("", "hello", "i1;r=%%%", "i2;r=AAEC", "i1;r=gIA", "i1;n=x", "i1;n=-4", "i1;n=" + "9" * 5000, "i1;r=é"),
        "i1;r=" + base64.b64encode(bytes([0xFF] * 12 + [1, 1])).decode().rstrip("="),
        "i1;b=" + "/" * 20_000,
    ],
)
def test_foreign_broken_or_hostile_metadata_counts_as_none(foreign):
    assert decode_metadata(5, foreign) == Committed(5)


@example("", "r", b"\0\0", 5)
@example("", "r", b"\0\1\0\1", 5)
@given(st.text(), st.sampled_from("rbnofa"), st.binary(max_size=60), st.integers(0, 2**63 - 1))
def test_no_metadata_makes_the_decoder_or_the_completion_fail(text, field, data, offset):
    for body in (text, base64.b64encode(data).decode().rstrip("=")):
        found = decode_metadata(offset, f"i1;{field}={body}")
        assert found.offset == offset
        assert all(a < b for run in zip(found.runs, found.runs[1:], strict=False) for a, b in [(run[0][1], run[1][0])])
        assert all(offset <= first < end for first, end in found.runs)
        completion = Completion(found)
        completion.read(offset)
        assert completion.committed().offset >= offset


@given(
    st.integers(0, 10**12),
    steps,
    st.lists(st.integers(1, 40_000), max_size=400),
    st.randoms(use_true_random=False),
    st.sampled_from([1, 2, 30]),
)
def test_no_order_of_completion_makes_the_runs_larger_than_their_bound(start, steps, gaps, rng, spread):
    completion = Completion(Committed(start, runs_of(start, steps[:5])))
    offset, read = start, []
    for gap in gaps:
        offset += max(1, gap // 1000 if spread == 1 else gap % spread)
        if completion.read(offset):
            read.append(offset)
    bound = completion.most_bytes()
    rng.shuffle(read)
    for offset in read:
        completion.complete(offset)
        committed = completion.committed()
        assert len(encode_metadata(committed, 10**9)) <= len("i1;r=") + completion.most_bytes()
        assert completion.most_bytes() <= bound
        bound = completion.most_bytes()


@given(st.lists(st.booleans(), max_size=200), st.randoms(use_true_random=False))
def test_while_some_events_wait_the_others_make_no_more_runs_than_are_counted(waits, rng):
    completion = Completion(Committed(0))
    for offset in range(len(waits)):
        completion.read(offset)
    going = [offset for offset, waiting in enumerate(waits) if not waiting]
    rng.shuffle(going)
    bound = completion.most_bytes(waiting=sum(waits))
    for offset in going:
        completion.complete(offset)
        committed = completion.committed()
        assert len(encode_metadata(committed, 10**9)) <= len("i1;r=") + completion.most_bytes(waiting=sum(waits))
        assert completion.most_bytes(waiting=sum(waits)) <= bound
    assert completion.most_bytes(waiting=completion.open_count) == completion.most_bytes(waiting=sum(waits))


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=200),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_what_holds_no_record_or_was_complete_before_makes_no_more_runs_than_are_counted(read, was_complete, rng):
    between, offsets, end = [], [], 0
    for _, gap in read:
        if gap > 1:
            between.append((end, end + gap - 1))
        offsets.append(end + gap - 1)
        end += gap
    completion = Completion(Committed(0, tuple(between) if was_complete else ()))
    for offset in offsets:
        assert completion.read(offset)
    waiting = sum(waits for waits, _ in read)
    going = [offset for offset, (waits, _) in zip(offsets, read, strict=True) if not waits]
    rng.shuffle(going)
    bound = completion.most_bytes(waiting=waiting)
    for offset in going:
        completion.complete(offset)
        assert len(encode_metadata(completion.committed(), 10**9)) <= len("i1;r=") + bound


def test_a_commit_looks_at_runs_and_not_at_every_offset_that_waits():
    completion = Completion(Committed(0))
    for offset in range(200_000):
        completion.read(offset)
    completion.complete(199_999)
    completion._open = NeverRead(completion._open)  # type: ignore[assignment]
    assert completion.runs() == ((199_999, 200_000),)


class NeverRead(list[int]):
    def __iter__(self):
        raise AssertionError("each offset that waits was looked at")


def test_offsets_between_runs_are_all_but_those_in_the_longest_rows(monkeypatch):
    monkeypatch.setattr(completion_module, "RUNS_LEFT", 1)
    completion = Completion(Committed(0))
    for offset in range(10):
        completion.read(offset)
    for offset in (1, 5, 6, 8):
        completion.complete(offset)
    assert sorted(completion.between_runs()) == [0, 7, 9]


def test_a_partition_is_crowded_before_its_runs_would_not_fit_and_until_half_of_that_is_free():
    completion = Completion(Committed(0))
    offset = 0
    while not completion.crowded:
        completion.read(offset)
        offset += 1
    assert fits(completion)
    for done in range(1, offset):
        completion.complete(done)
        if not completion.crowded:
            break
    assert completion.most_bytes() < METADATA_LIMIT_BYTES / 4 + 2
    assert not completion.crowded


def test_one_stuck_event_never_crowds_a_partition_whose_other_events_complete():
    completion = Completion(Committed(0))
    completion.read(0)
    for offset in range(1, 2_000_000, 7):
        completion.read(offset)
        completion.complete(offset)
    assert not completion.crowded
    assert fits(completion)


def test_runs_that_do_not_fit_are_seen():
    completion = Completion(Committed(0))
    for offset in range(0, 60_000):
        completion.read(offset)
    for offset in range(1, 60_000, 2):
        completion.complete(offset)
    assert not fits(completion)


def test_hopeless_events_go_first_from_the_span_on_that_replay_has():
    for span, pressed in ((round(0.99 * OFFSETS_SPAN), False), (round(1.01 * OFFSETS_SPAN), True)):
        completion = Completion(Committed(0))
        for offset in range(span):
            completion.read(offset)
        assert (completion.pressed, completion.crowded) == (pressed, False)
