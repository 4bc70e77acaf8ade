import tracemalloc
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.dataplane.dispatcher.join import FINISHED_BYTES, Arrival, Gathered, Join

PARENTS = ("a", "b", "c")


def add(join: Join, event: bytes, offset: int, **part: object) -> Gathered | Arrival:
    return join.add(event, record=offset, now_s=float(offset), size_bytes=10, **part)  # type: ignore[arg-type]


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
        reported = add(join, b"%d" % event, offset, parent=parent, result=offset, skipped=skipped)
        if not says_something:
            assert reported is Arrival.DUPLICATE
        elif before == set(PARENTS):
            assert isinstance(reported, Gathered)
            assert reported.results.keys() | reported.skipped == set(PARENTS)
            finished.add(event)
        else:
            assert reported is Arrival.WAITING
    assert join.size_bytes >= 0
    assert len(join) == sum(1 for e, seen in answered.items() if e not in finished and seen)


def test_results_are_the_first_that_each_parent_gave():
    join = Join(("a", "b"))
    assert add(join, b"x", 1, parent="a", result="first") is Arrival.WAITING
    assert add(join, b"x", 2, parent="a", result="second") is Arrival.DUPLICATE
    gathered = add(join, b"x", 3, parent="b", result="other")
    assert isinstance(gathered, Gathered)
    assert gathered.results == {"a": "first", "b": "other"}
    assert gathered.records == [1, 3]


def test_an_event_that_died_on_one_branch_is_dead_once_every_branch_has_answered():
    join = Join(("a", "b"))
    assert add(join, b"x", 1, skipped=["a"], dead=1) is Arrival.WAITING
    gathered = add(join, b"x", 2, parent="b", result=1)
    assert isinstance(gathered, Gathered)
    assert gathered.dead


def test_finished_events_are_remembered_for_their_time_and_then_forgotten():
    join = Join(("a",), remember_s=10.0)
    assert isinstance(add(join, b"x", 0, parent="a", result=1), Gathered)
    assert add(join, b"x", 5, parent="a", result=1) is Arrival.DUPLICATE
    assert isinstance(add(join, b"y", 11, parent="a", result=1), Gathered)
    assert isinstance(add(join, b"x", 12, parent="a", result=1), Gathered)


def test_events_older_than_the_bound_are_given_up_oldest_first():
    join = Join(("a", "b"))
    for offset, event in enumerate((b"x", b"y", b"z")):
        add(join, event, offset, parent="a", result=1)
    assert taken(lambda: join.overdue(age_s=7.0, now_s=9.0)) == [b"x", b"y"]
    assert len(join) == 1
    assert add(join, b"x", 9, parent="b", result=1) is Arrival.DUPLICATE


def test_a_state_that_is_too_large_gives_up_its_oldest_events_until_the_rest_fits():
    join = Join(("a", "b"))
    for offset in range(5):
        add(join, b"%d" % offset, offset, parent="a", result=1)
    assert join.size_bytes == 50
    assert taken(lambda: join.over(limit_bytes=25, now_s=9.0)) == [b"0", b"1", b"2"]
    assert join.size_bytes == 20


def test_finished_ids_count_in_the_bound_and_are_forgotten_oldest_first_before_an_event_is_given_up():
    join = Join(("a", "b"))
    for offset, event in enumerate((b"x", b"y", b"z")):
        add(join, event, offset, parent="a", result=1, skipped=["b"])
    add(join, b"waits", 3, parent="a", result=1)
    limit = 10 + 2 * (FINISHED_BYTES + 1)
    assert taken(lambda: join.over(limit, now_s=4.0)) == []
    assert (join.size_bytes, join.finished_bytes) == (10, 2 * (FINISHED_BYTES + 1))
    assert add(join, b"z", 5, parent="b", result=1) is Arrival.DUPLICATE
    assert add(join, b"y", 6, parent="b", result=1) is Arrival.DUPLICATE
    assert add(join, b"x", 7, parent="b", result=1) is Arrival.WAITING


def test_ids_of_events_that_were_given_up_keep_their_share_however_many_parts_wait():
    join = Join(("a", "b"))
    limit = 8 * (FINISHED_BYTES + 1)
    given_up: list[bytes] = []
    for number in range(9):
        join.add(b"%d" % number, record=number, now_s=0.0, size_bytes=limit // 4, parent="a")
        given_up += taken(lambda: join.over(limit, now_s=1.0))
    assert given_up == [b"%d" % number for number in range(6)]
    assert [join.add(name, record=9, now_s=2.0, parent="b") for name in given_up[-2:]] == [Arrival.DUPLICATE] * 2


@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["a", "b", "recall", "replay", "bound"])), max_size=60))
def test_finished_bytes_are_those_of_the_ids_that_are_remembered(arriving):
    join = Join(("a", "b"), remember_s=20.0)
    for at, (number, what) in enumerate(arriving):
        event = b"%d" % 10**number  # no two of the same length
        if what == "recall":
            join.finished(event, float(at))
        elif what == "bound":
            taken(lambda now_s=float(at): join.over(600, now_s))
            assert join.size_bytes + join.finished_bytes <= 600
        else:
            add(join, event, at, parent="a" if what == "replay" else what, result=1, replay=int(what == "replay"))
        assert join.finished_bytes == sum(FINISHED_BYTES + len(name) for name in join._finished)


def test_the_memory_of_finished_ids_is_within_what_is_counted():
    tracemalloc.start()
    try:
        join, before = Join(("a",)), tracemalloc.get_traced_memory()[0]
        for number in range(20_000):
            join.finished(b"orders/%d/%d" % (number % 8, number), number * 0.001)
        assert tracemalloc.get_traced_memory()[0] - before <= join.finished_bytes
    finally:
        tracemalloc.stop()


def test_an_event_recalled_from_an_earlier_owner_makes_late_parts_duplicates():
    join = Join(("a", "b"))
    join.finished(b"x", 0.0)
    assert add(join, b"x", 1, parent="a", result=1) is Arrival.DUPLICATE


def test_a_replay_of_a_finished_event_is_gathered_again_once_and_its_own_repeats_are_duplicates():
    join = Join(("a", "b"))
    add(join, b"x", 0, parent="a", result=1)
    assert isinstance(add(join, b"x", 1, skipped=["b"], dead=2), Gathered)
    assert add(join, b"x", 2, parent="a", result=1) is Arrival.DUPLICATE
    assert add(join, b"x", 3, parent="a", result=1, replay=1) is Arrival.WAITING
    again = add(join, b"x", 4, parent="b", result=2, replay=1)
    assert isinstance(again, Gathered)
    assert (again.results, again.dead, again.replay) == ({"a": 1, "b": 2}, 0, 1)
    assert add(join, b"x", 5, parent="b", result=2, replay=1) is Arrival.DUPLICATE
    join.finished(b"x", 6.0)  # recalled from before: the later replay is still the one that counts
    assert add(join, b"x", 7, parent="b", result=2, replay=1) is Arrival.DUPLICATE
    assert add(join, b"x", 8, parent="b", result=2, replay=2) is Arrival.WAITING


@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["a", "b", "give up"])), max_size=60))
def test_in_an_ordered_join_events_of_a_key_come_out_in_the_order_of_their_first_parts(arriving):
    """Against the rule itself: nothing comes out while an earlier event of its key is still in."""
    join = Join(("a", "b"), ordered=True)
    firsts: list[int] = []
    seen: dict[int, set[str]] = {}
    out: list[int] = []

    def take_out(event: Gathered | None, now_s: float) -> None:
        while event is not None:
            out.append(int(event.event_id))
            event = join.follow(event, now_s)

    for at, (number, parent) in enumerate(arriving):
        if parent == "give up":
            take_out(join.overdue(-1.0, float(at)), float(at))
            continue
        if number not in out and number not in firsts:
            firsts.append(number)
        reported = add(join, b"%d" % number, at, parent=parent, result=1, key=b"%d" % (number % 3))
        seen.setdefault(number, set()).add(parent)
        take_out(reported if isinstance(reported, Gathered) else None, float(at))
        for key in range(3):
            order = [n for n in firsts if n % 3 == key]
            gone = [n for n in out if n % 3 == key]
            assert gone == order[: len(gone)]
            if len(gone) < len(order):  # the next one lacks a part
                assert seen[order[len(gone)]] != {"a", "b"}
    assert join.size_bytes == 10 * sum(len(seen[n]) for n in firsts if n not in out)


def test_events_without_a_key_wait_for_nobody():
    join = Join(("a", "b"), ordered=True)
    add(join, b"x", 0, parent="a", result=1)
    add(join, b"y", 1, parent="a", result=1)
    assert isinstance(add(join, b"y", 2, parent="b", result=1), Gathered)
