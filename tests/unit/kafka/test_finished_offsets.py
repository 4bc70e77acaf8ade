"""What several groups of one partition have finished, all of them or any; a set of offsets is the oracle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.kafka.offset_metadata import Committed, finished_by_all, finished_by_any, merged

END = 40


@st.composite
def groups(draw: st.DrawFn) -> list[Committed]:
    found = []
    for _ in range(draw(st.integers(1, 3))):
        offset = draw(st.integers(-1, END))
        done = draw(st.sets(st.integers(max(offset, 0) + 1, END + 1)))
        found.append(Committed(offset, merged(((at, at + 1) for at in sorted(done)), offset), owner="me"))
    return found


def finished(group: Committed) -> set[int]:
    return set(range(group.offset)) | {at for first, end in group.runs for at in range(first, end)}


def canonical(group: Committed, offsets: set[int]) -> None:
    assert finished(group) == offsets
    assert group.offset == min(set(range(END + 3)) - offsets), "it is the lowest that is not finished"
    assert group == Committed(group.offset, merged(group.runs, group.offset)), "runs are apart, nothing else is kept"


@given(groups())
def test_all_have_finished_what_each_has(found: list[Committed]) -> None:
    sets = [finished(group) for group in found]
    canonical(finished_by_all(found), set.intersection(*sets))


@given(groups())
def test_any_has_finished_what_one_has(found: list[Committed]) -> None:
    sets = [finished(group) for group in found]
    canonical(finished_by_any(found), set.union(*sets))


@given(groups())
def test_what_is_unfinished_is_what_no_offset_says(found: list[Committed]) -> None:
    for group in found:
        assert [group.unfinished(end) for end in range(END)] == [
            len(set(range(end)) - finished(group)) for end in range(END)
        ]
