"""Replicas are dealt to slots evenly, with few moves and the lowest free numbers."""

import math

from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.pipeline.replica_slots import ReplicaSlots

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 20)),
        st.tuples(st.just("deal"), st.integers(1, 5)),
    ),
    max_size=40,
)


@given(steps)
def test_every_replica_has_a_slot_and_slots_are_even_after_a_deal(taken: list[tuple[str, int]]) -> None:
    pool, names, slots = ReplicaSlots(), iter(range(1000)), 0
    for step, number in taken:
        known = sorted(pool.members)
        if step == "add":
            free = min(set(range(len(known) + 1)) - {m.number for m in pool.members.values()})
            assert pool.add(f"r-{next(names)}").number == free
        elif step == "remove" and known:
            pool.remove(known[number % len(known)])
        elif step == "deal":
            before = {name: member.slot for name, member in pool.members.items()}
            moved = {member.replica for member in pool.deal(range(number))}
            slots = number
            assert moved == {name for name, slot in before.items() if pool.members[name].slot != slot}
            sizes = [len(pool.of(slot)) for slot in range(number)]
            assert max(sizes) - min(sizes) <= 1
            held = [sum(slot == s for slot in before.values()) for s in range(number)]
            most = math.ceil(len(before) / number)
            assert len(moved) <= len(before) - sum(min(size, most) for size in held) + number
        assert all((member.slot is None) == (slots == 0) for member in pool.members.values())
    assert len({member.number for member in pool.members.values()}) == len(pool.members)


def test_replicas_that_stay_are_dealt_evenly_whatever_leaves() -> None:
    pool = ReplicaSlots()
    pool.deal([0])
    for number in range(4):
        pool.add(f"r{number}")
    assert [member.replica for member in pool.deal(range(2), {"r2", "r3"})] == ["r1"]
    assert [[member.replica for member in pool.of(slot)] for slot in range(2)] == [["r0", "r2", "r3"], ["r1"]]
    assert [member.replica for member in pool.deal([1], {"r2", "r3"})] == ["r0", "r2", "r3"], "their slot is no more"


def test_the_fullest_slot_spares_a_replica_for_one_that_will_have_none() -> None:
    pool = ReplicaSlots()
    pool.deal(range(3))
    for number in range(7):  # slots 0, 1, 2, 0, 1, 2, 0
        pool.add(f"r{number}")
    assert pool.to_spare(()) is None
    assert pool.to_spare({"r1"}) is None, "slot 1 keeps r4"
    assert pool.to_spare({"r1", "r4"}) == "r6"
    assert pool.to_spare({"r1", "r4", "r6"}) == "r3", "slot 0 is as full as slot 2"
    assert pool.add("r7", {"r1", "r4"}).slot == 1
    assert pool.to_spare({"r1", "r4"}) is None
    assert pool.to_spare({f"r{number}" for number in range(8) if number not in (0, 2)}) is None, "none can be spared"


def test_a_replica_more_asks_of_each_other_one_once_whether_it_leaves() -> None:
    class Asked(set[str]):
        times = 0

        def __contains__(self, name: object) -> bool:
            self.times += 1
            return super().__contains__(name)

    slots, leaving = ReplicaSlots(), Asked()
    slots.deal(range(16))
    for number in range(100):
        slots.add(f"r{number}")
    slots.add("one more", leaving)
    assert leaving.times == 100
