"""Frames that a replica sends, whose code may be anybody's: what of them a dispatcher holds and believes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from inferline_stream.dataplane.frames import (
    FORMAT,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    Batch,
    Broken,
    Call,
    Done,
    Failed,
    FrameBuffer,
    FrameError,
    Ready,
    Results,
    Returned,
    answer_bytes,
    encode_frame,
    to_dispatcher,
)
from inferline_stream.isolation.enforced import Enforced

MIB = 1 << 20
CHUNK_BYTES = 1 << 18


def forged(*fields: Any, zeros: int = 0) -> bytes:
    """A frame as no code of ours would make it; zeros at its end are fields that nobody knows."""
    body = bytearray(msgspec.msgpack.encode(fields)) + bytes(zeros)
    return bytes([FORMAT, 0, 0, 0]) + len(body).to_bytes(4, "little") + body


def answerable(epoch: int, batch: int) -> int | None:
    return answer_bytes(2, MIB) if (epoch, batch) == (7, 3) else None


def fed(buffer: FrameBuffer, *frames: bytes | bytearray) -> Iterator[Any]:
    """Feed frames as they come through a socket."""
    data = b"".join(frames)
    for at in range(0, len(data), CHUNK_BYTES):
        yield from buffer.feed(data[at : at + CHUNK_BYTES])


def heard(*frames: bytes | bytearray) -> list[Any]:
    return list(fed(to_dispatcher(answerable), *frames))


def test_texts_of_a_replica_are_cut_wherever_it_sends_them() -> None:
    long = "x" * 2 * MIB
    (failed,) = next(to_dispatcher().feed(forged(4, 7, 3, [[1, long, long, long + "end", long]], [], 0.1))).outcomes
    (broken,) = to_dispatcher().feed(forged(5, 7, 3, long))
    (returned,) = to_dispatcher().feed(forged(6, 7, 3, long, 1.0))
    assert [len(text) for text in (failed.type, failed.message, failed.traceback, failed.where)] == [
        200, 1000, 4000, 500,
    ]  # fmt: skip
    assert failed.traceback.endswith("end"), "where it was raised stands at its end"
    assert (len(broken.reason), len(returned.reason)) == (1000, 1000)


def test_a_replica_itself_sends_no_longer_texts() -> None:
    long = "x" * MIB
    assert len(encode_frame(Results(1, 1, [Failed(long, long, long, long)], [], 0.1))) < 10_000
    assert max(len(encode_frame(frame)) for frame in (Broken(1, 1, long), Returned(1, 1, long))) < 10_000


@pytest.mark.parametrize(
    "isolation",
    [
        Enforced(level="x" * MIB),
        Enforced(missing=("x",) * MIB),
        Enforced(limits={str(number): number for number in range(9999)}),
    ],
)
def test_a_replica_that_says_endlessly_what_restricts_it_is_not_heard(isolation: Enforced) -> None:
    with pytest.raises(FrameError, match="no more than 4096 bytes"):
        list(to_dispatcher().feed(forged(3, "r-1", 0.1, isolation)))
    usual = Enforced("sandbox", 5, tuple(range(8000, 8100)), 60, {"memory_bytes": 1 << 40}, missing=("x" * 99,) * 5)
    assert len(list(to_dispatcher().feed(encode_frame(Ready("r-1", 0.1, usual))))) == 1


def test_a_long_answer_to_a_batch_in_hand_is_whole_and_one_that_nobody_waits_for_is_passed_over() -> None:
    value = bytes(MIB - 1000)
    stale, answer = (Results(7, batch, [Done(value, 0)] * 2, [Call(2, 0.1)], 0.1) for batch in (2, 3))
    short = Returned(7, 4, "not now")
    assert heard(encode_frame(stale), encode_frame(answer), encode_frame(short)) == [answer, short]
    earlier = Results(6, 3, answer.outcomes, answer.calls, 0.1)
    assert heard(encode_frame(earlier), encode_frame(answer)) == [answer]


@pytest.fixture
def peak_bytes() -> Iterator[Callable[[], int]]:
    """Most memory that was taken since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


LONG = forged(4, 7, 3, [], [], 0.1, zeros=40 * MIB)


def test_a_frame_of_40_mb_is_refused_before_it_is_held(peak_bytes: Callable[[], int]) -> None:
    refused = f"a frame about batch 3 has {len(LONG) - HEADER_BYTES} bytes; 2228224 are taken"
    with pytest.raises(FrameError, match=refused):
        next(to_dispatcher(answerable).feed(memoryview(LONG)[:CHUNK_BYTES]))
    assert peak_bytes() < 2 * MIB


def test_a_frame_of_40_mb_that_nobody_waits_for_is_never_held(peak_bytes: Callable[[], int]) -> None:
    unwanted = memoryview(LONG.replace(msgspec.msgpack.encode([7, 3])[1:], msgspec.msgpack.encode([7, 2])[1:], 1))
    buffer = to_dispatcher(answerable)
    for at in range(0, len(unwanted), CHUNK_BYTES):
        assert not list(buffer.feed(unwanted[at : at + CHUNK_BYTES]))
    assert list(buffer.feed(encode_frame(Returned(7, 3, "next")))) == [Returned(7, 3, "next")]
    assert peak_bytes() < 42 * MIB, "the test's own copy, and little else"


@pytest.mark.parametrize("begins", [(3, "r-1"), (5, 7, 3), (4, "7", 3), (4, -1, 3), (4, None, 3)])
def test_a_long_frame_that_is_no_answer_ends_the_connection(begins: tuple[Any, ...]) -> None:
    with pytest.raises(FrameError):
        heard(forged(*begins, zeros=MIB))


def test_more_outcomes_or_calls_than_any_batch_has_are_not_decoded() -> None:
    for outcomes, calls in (([[0, b"", 0]] * 200_000, []), ([], [[1, 0.1]] * 300_000)):
        with pytest.raises(FrameError, match="length"):
            list(to_dispatcher().feed(forged(4, 7, 3, outcomes, calls, 0.1)))


def test_an_answer_is_as_long_as_it_may_be_only_with_results_that_no_topic_takes() -> None:
    failed = Failed("x" * 9999, "\U0001f600" * 9999, "\U0001f600" * 9999, "\U0001f600" * 9999)
    full = Results(7, 3, [Done(bytes(MIB), 0), failed], [Call(1, 0.1)] * 4, 0.1)
    assert len(encode_frame(full)) < answer_bytes(2, MIB)
    unlimited = answer_bytes(1, Batch(7, 3, [b"1"]).result_bytes)
    assert unlimited > MAX_FRAME_BYTES, "who names no limit takes all that can be sent"
