import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.dataplane.dispatcher.join import FINISHED_BYTES, PLACES_BYTES, Arrival, Gathered, Join

PARENTS = ("a", "b", "c")


class Part(NamedTuple):
    offset: int


def add(join: Join, event: bytes, offset: int, **part: object) -> Gathered | Arrival:
    """Add a part; returns the event that goes on by it, if one does."""
    now_s = float(offset)
    arrival = join.add(event, record=Part(offset), now_s=now_s, size_bytes=1000, **part)  # type: ignore[arg-type]
    return join.take(now_s, lambda _: True) or arrival


def taken(give_up: Callable[[], Gathered | None]) -> list[bytes]:
    return [event.event_id for event in iter(give_up, None)]


parts = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from([*PARENTS, None]),
        st.lists(st.sampled_from(PARENTS), unique=True, max_size=2),
    ),
    max_size=60,
)


@given(parts)
def test_each_event_is_complete_once_at_the_part_that_completes_it(arriving):
    join = Join(PARENTS)
    answered: dict[int, set[str]] = {}
    finished: set[int] = set()
    for offset, (event, parent, skipped) in enumerate(arriving):
        new = ({parent} if parent else set()) | set(skipped)
        before = answered.setdefault(event, set())
        says_something = event not in finished and bool(new - before)
        before |= new
        reported = add(join, b"%d" % event, offset, parent=parent, skipped=skipped)
        if not says_something:
            assert reported is Arrival.DUPLICATE
        elif before == set(PARENTS):
            assert isinstance(reported, Gathered)
            assert join.missing(reported) == []
            finished.add(event)
        else:
            assert reported is Arrival.WAITING
    assert join.size_bytes >= 0
    assert len(join) == sum(1 for e, seen in answered.items() if e not in finished and seen)


def test_results_are_the_first_that_each_parent_gave():
    join = Join(("a", "b"))
    assert add(join, b"x", 1, parent="a") is Arrival.WAITING
    assert add(join, b"x", 2, parent="a") is Arrival.DUPLICATE
    gathered = add(join, b"x", 3, parent="b")
    assert isinstance(gathered, Gathered)
    assert (gathered.offsets, gathered.given) == ([1, 3], ["a", "b"])


def test_an_event_that_died_on_one_branch_is_dead_once_every_branch_has_answered():
    join = Join(("a", "b"))
    assert add(join, b"x", 1, skipped=["a"], dead=1) is Arrival.WAITING
    gathered = add(join, b"x", 2, parent="b")
    assert isinstance(gathered, Gathered)
    assert gathered.dead


def test_finished_events_are_remembered_for_their_time_and_then_forgotten():
    join = Join(("a",), remember_s=10.0)
    assert isinstance(add(join, b"x", 0, parent="a"), Gathered)
    assert add(join, b"x", 5, parent="a") is Arrival.DUPLICATE
    assert isinstance(add(join, b"y", 11, parent="a"), Gathered)
    assert isinstance(add(join, b"x", 12, parent="a"), Gathered)


def test_events_are_given_up_where_they_are_older_than_the_bound_and_settled():
    join = Join(("a", "b"))
    for offset, event in enumerate((b"v", b"w", b"x", b"y")):
        add(join, event, offset, parent="a")
    assert taken(lambda: join.overdue(age_s=7.0, now_s=99.0)) == [], "nobody says that no part is to come"
    join.settled = 2
    assert taken(lambda: join.overdue(age_s=7.0, now_s=8.0)) == [b"v"]
    assert taken(lambda: join.overdue(age_s=7.0, now_s=99.0)) == [b"w"]
    join.settled = 4
    assert taken(lambda: join.overdue(age_s=7.0, now_s=9.5)) == [b"x"]
    assert (len(join), join.is_overdue(7.0, 9.5), join.is_overdue(7.0, 10.5)) == (1, False, True)


def test_a_late_part_of_an_event_that_was_given_up_is_no_duplicate_and_a_replay_of_both_completes_it():
    join = Join(("a", "b"))
    add(join, b"x", 0, parent="a")
    join.settled = 1
    assert taken(lambda: join.overdue(age_s=7.0, now_s=9.0)) == [b"x"]
    assert add(join, b"x", 10, parent="b") is Arrival.LATE
    assert add(join, b"x", 11, parent="b") is Arrival.LATE
    assert add(join, b"x", 12, parent="a", replay=1) is Arrival.WAITING
    assert isinstance(add(join, b"x", 13, parent="b", replay=1), Gathered)
    assert add(join, b"x", 14, parent="b", replay=1) is Arrival.DUPLICATE


def test_of_events_that_do_not_fit_only_the_places_are_kept_of_the_newest_first_and_all_come_out():
    join = Join(("a", "b"))
    for offset in range(5):
        add(join, b"%d" % offset, offset, parent="a")
    join.fit(limit_bytes=2000 + 3 * PLACES_BYTES)
    assert join.size_bytes == 2000 + 3 * PLACES_BYTES
    came = [add(join, b"%d" % number, 5 + number, parent="b") for number in range(5)]
    assert [event.unread() for event in came] == [[], [], [2], [3], [4]]
    assert [event.offsets for event in came] == [[number, 5 + number] for number in range(5)]
    assert (join.size_bytes, join.parts, len(join)) == (0, 0, 0)


def test_finished_ids_count_in_the_bound_and_are_forgotten_oldest_first_before_a_part_is_put_aside():
    join = Join(("a", "b"))
    for offset, event in enumerate((b"x", b"y", b"z")):
        add(join, event, offset, parent="a", skipped=["b"])
    add(join, b"waits", 3, parent="a")
    join.fit(1000 + 2 * (FINISHED_BYTES + 1))
    assert (join.size_bytes, join.finished_bytes) == (1000, 2 * (FINISHED_BYTES + 1))
    assert add(join, b"z", 5, parent="b") is Arrival.DUPLICATE
    assert add(join, b"y", 6, parent="b") is Arrival.DUPLICATE
    assert add(join, b"x", 7, parent="b") is Arrival.WAITING


def test_ids_of_events_that_were_given_up_keep_their_share_however_many_parts_wait():
    join = Join(("a", "b"))
    limit = 8 * (FINISHED_BYTES + 1)
    for number in range(3):
        add(join, b"%d" % number, number, parent="a")
        join.settled = number + 1
        assert taken(lambda: join.overdue(-1.0, 9.0)) == [b"%d" % number]
    for number in range(3, 9):
        add(join, b"%d" % number, number, parent="a")
        join.fit(limit)
    assert [add(join, b"%d" % number, 9, parent="b") for number in (1, 2)] == [Arrival.LATE] * 2


def test_a_complete_event_that_may_not_go_on_waits_and_the_first_goes_first():
    join = Join(("a", "b"))
    for offset in range(3):
        add(join, b"%d" % offset, offset, parent="a")
    for number in (2, 1, 0):
        join.add(b"%d" % number, record=Part(5 - number), now_s=9.0, parent="b")
        assert join.take(9.0, lambda _: False) is None
    assert join.holds
    assert taken(lambda: join.take(9.0, lambda _: True)) == [b"0", b"1", b"2"]


def test_events_that_are_to_move_are_forgotten_but_not_their_age():
    join = Join(("a", "b"))
    for offset in range(3):
        add(join, b"%d" % offset, offset, parent="a")
    join.add(b"1", record=Part(3), now_s=3.0, parent="b")
    assert [event.event_id for event in join.withdraw([0, 3], 10**6)] == [b"0", b"1"]
    assert (len(join), join.holds) == (1, False)
    add(join, b"0", 8, parent="a")
    join.settled = 9
    assert join.overdue(7.0, 7.5).first == 8


@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["a", "b", "recall", "replay", "bound"])), max_size=60))
def test_finished_bytes_are_those_of_the_ids_that_are_remembered(arriving):
    join = Join(("a", "b"), remember_s=20.0)
    for at, (number, what) in enumerate(arriving):
        event = b"%d" % 10**number  # no two of the same length
        if what == "recall":
            join.recall(event, now_s=float(at), parent="a", skipped=["b"])
        elif what == "bound":
            join.fit(3000)
            assert join.size_bytes + join.finished_bytes <= max(3000, PLACES_BYTES * len(join) + 750)
        else:
            add(join, event, at, parent="a" if what == "replay" else what, replay=int(what == "replay"))
        assert join.finished_bytes == sum(FINISHED_BYTES + len(name) for name in join._finished)


def test_the_memory_of_finished_ids_is_within_what_is_counted():
    tracemalloc.start()
    try:
        join, before = Join(("a",)), tracemalloc.get_traced_memory()[0]
        for number in range(20_000):
            join.recall(b"orders/%d/%d" % (number % 8, number), now_s=number * 0.001, parent="a")
        assert tracemalloc.get_traced_memory()[0] - before <= join.finished_bytes
    finally:
        tracemalloc.stop()


def test_the_memory_of_places_is_within_what_is_counted():
    tracemalloc.start()
    try:
        join, before = Join(("a", "b")), tracemalloc.get_traced_memory()[0]
        for number in range(10_000):
            record = SimpleNamespace(offset=number + 10**6, value=bytes(1000))
            join.add(
                b"orders/%d/%d" % (number % 8, number), record=record, now_s=number / 7, size_bytes=1600, parent="a"
            )
            join.fit(0.0)
        assert tracemalloc.get_traced_memory()[0] - before <= join.size_bytes == 10_000 * PLACES_BYTES
    finally:
        tracemalloc.stop()


def test_an_event_recalled_from_an_earlier_owner_makes_late_parts_duplicates():
    join = Join(("a", "b"))
    join.recall(b"x", now_s=0.0, parent="a")
    assert add(join, b"x", 1, parent="a") is Arrival.DUPLICATE
    assert add(join, b"x", 2, parent="b") is Arrival.LATE, "it may have been given up"


def test_a_part_that_came_twice_or_was_moved_is_not_taken_for_one_of_a_finished_event():
    join = Join(("a", "b"))
    add(join, b"x", 0, parent="a")
    join.recall(b"x", now_s=1.0, parent="a")
    assert isinstance(add(join, b"x", 2, parent="b"), Gathered)
    join.recall(b"y", now_s=3.0, parent="a")
    assert add(join, b"y", 9, parent="a", moved=4) is Arrival.WAITING
    assert add(join, b"y", 10, parent="a", moved=4) is Arrival.DUPLICATE
    assert isinstance(add(join, b"y", 11, parent="b"), Gathered)
    assert add(join, b"y", 12, parent="b", moved=5) is Arrival.DUPLICATE


def test_a_replay_of_a_finished_event_is_gathered_again_once_and_its_own_repeats_are_duplicates():
    join = Join(("a", "b"))
    add(join, b"x", 0, parent="a")
    assert isinstance(add(join, b"x", 1, skipped=["b"], dead=2), Gathered)
    assert add(join, b"x", 2, parent="a") is Arrival.DUPLICATE
    assert add(join, b"x", 3, parent="a", replay=1) is Arrival.WAITING
    again = add(join, b"x", 4, parent="b", replay=1)
    assert isinstance(again, Gathered)
    assert (again.offsets, again.dead, again.replay) == ([3, 4], 0, 1)
    assert add(join, b"x", 5, parent="b", replay=1) is Arrival.DUPLICATE
    join.recall(b"x", now_s=6.0, parent="a")  # recalled from before: the later replay is still the one that counts
    assert add(join, b"x", 7, parent="b", replay=1) is Arrival.DUPLICATE
    assert add(join, b"x", 8, parent="b", replay=2) is Arrival.WAITING


@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["a", "b", "give up"])), max_size=60))
def test_in_an_ordered_join_events_of_a_key_come_out_in_the_order_of_their_first_parts(arriving):
    """Against the rule itself: nothing comes out while an earlier event of its key is still in."""
    join = Join(("a", "b"), ordered=True)
    firsts: list[int] = []
    seen: dict[int, set[str]] = {}
    out: list[int] = []

    for at, (number, parent) in enumerate(arriving):
        if parent == "give up":
            join.settled = at
            given_up = join.overdue(-1.0, float(at))
            out += [] if given_up is None else [int(given_up.event_id)]
        else:
            if number not in out and number not in firsts:
                firsts.append(number)
            seen.setdefault(number, set()).add(parent)
            join.add(
                b"%d" % number, record=Part(at), now_s=float(at), size_bytes=10, parent=parent, key=b"%d" % (number % 3)
            )
        out += [int(event) for event in taken(lambda now_s=float(at): join.take(now_s, lambda _: True))]
        for key in range(3):
            order = [n for n in firsts if n % 3 == key]
            gone = [n for n in out if n % 3 == key]
            assert gone == order[: len(gone)]
            if len(gone) < len(order):  # the next one lacks a part
                assert seen[order[len(gone)]] != {"a", "b"}
    assert join.size_bytes == 10 * sum(len(seen[n]) for n in firsts if n not in out)


def test_events_without_a_key_wait_for_nobody():
    join = Join(("a", "b"), ordered=True)
    add(join, b"x", 0, parent="a")
    add(join, b"y", 1, parent="a")
    assert isinstance(add(join, b"y", 2, parent="b"), Gathered)


def test_an_event_that_is_held_up_and_whose_dead_part_comes_again_goes_on_once():
    join = Join(("a", "b"))
    join.add(b"x", record=Part(0), now_s=0.0, skipped=("a",), dead=2)
    join.add(b"x", record=Part(1), now_s=0.0, parent="b")
    assert join.take(0.0, lambda _: False) is None, "it is complete, and a commit has no room for it"
    assert join.add(b"x", record=Part(2), now_s=0.0, parent="a", replay=1) is Arrival.WAITING
    went = join.take(0.0, lambda _: True)
    assert went is not None
    assert (went.offsets, went.dead) == ([0, 1, 2], 0)
    assert join.take(0.0, lambda _: True) is None
    assert not join.holds
