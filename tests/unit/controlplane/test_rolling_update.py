from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.controlplane.apply.rolling_update import StageReplica, next_change
from tests.support.hypothesis_profiles import examples

SPEED = {"cpu": 10.0, "gpu": 80.0}


def members(count: int, hardware: str = "cpu", first: int = 0, **more: object) -> list[StageReplica]:
    return [StageReplica(f"{hardware}{first + i}", hardware, float(first + i), **more) for i in range(count)]  # type: ignore[arg-type]


def test_without_anything_old_replicas_are_added_and_taken_away_at_once() -> None:
    assert next_change({"cpu": 5}, members(2), SPEED).counts == {"cpu": 5}
    change = next_change({"cpu": 2}, members(4), SPEED)
    assert change.leaving == ("cpu3", "cpu2")
    assert change.counts == {"cpu": 2}


def test_a_place_that_waits_for_its_restart_leaves_before_those_that_work() -> None:
    held = [*members(2), StageReplica("dead", "cpu", -5.0, ready=False, waiting=True)]
    assert next_change({"cpu": 2}, held, SPEED).leaving == ("dead",)


def in_slots(*slots: int, **more: object) -> list[StageReplica]:
    return [replace(m, slot=slot) for m, slot in zip(members(len(slots), **more), slots, strict=True)]


def test_the_last_of_a_slot_stays_while_another_slot_has_two() -> None:
    assert next_change({"cpu": 3}, in_slots(0, 0, 0, 1), SPEED).leaving == ("cpu2",)
    assert next_change({"cpu": 2}, in_slots(0, 0, 1, 1), SPEED).leaving == ("cpu3", "cpu1")
    assert next_change({"cpu": 1}, in_slots(0, 1), SPEED).leaving == ("cpu1",)
    other = [*in_slots(0, 0), replace(members(1, "gpu")[0], slot=1)]
    assert next_change({"cpu": 2}, other, SPEED).leaving == ("gpu0",), "no other one is too many"


def test_a_place_that_waits_for_its_restart_leaves_before_the_last_of_a_slot() -> None:
    dead = StageReplica("dead", "cpu", -5.0, ready=False, waiting=True)
    assert next_change({"cpu": 3}, [*in_slots(0, 0, 1), dead], SPEED).leaving == ("dead",)


def test_older_code_leaves_the_slot_first_that_a_newer_replica_serves() -> None:
    held = [*in_slots(0, 1, fresh=False), StageReplica("new", "cpu", 9.0, slot=1)]
    assert next_change({"cpu": 2}, held, SPEED).leaving == ("cpu1",)
    held = [*in_slots(0, 1, fresh=False), StageReplica("new", "cpu", 9.0, slot=0)]
    assert next_change({"cpu": 2}, held, SPEED).leaving == ("cpu0",)


def test_the_first_step_of_a_replacement_adds_one_and_takes_none_away() -> None:
    change = next_change({"cpu": 3}, members(3, fresh=False), SPEED)
    assert change == type(change)((), {"cpu": 4})


def test_while_the_new_one_starts_nothing_more_happens() -> None:
    held = [*members(3, fresh=False), StageReplica("new", "cpu", 9.0, ready=False)]
    assert next_change({"cpu": 3}, held, SPEED).leaving == ()
    assert next_change({"cpu": 3}, held, SPEED).counts == {"cpu": 4}


def test_an_old_one_leaves_once_the_new_one_is_ready() -> None:
    held = [*members(3, fresh=False), StageReplica("new", "cpu", 9.0)]
    change = next_change({"cpu": 3}, held, SPEED)
    assert len(change.leaving) == 1
    assert change.leaving[0] != "new"


def test_one_faster_replica_takes_the_place_of_many() -> None:
    held = [*members(8), StageReplica("gpu", "gpu", 9.0)]
    change = next_change({"gpu": 1}, held, SPEED)
    assert set(change.leaving) == {m.replica for m in members(8)}
    assert change.counts == {"cpu": 0, "gpu": 1}


def test_where_stock_has_no_room_an_old_one_leaves_first() -> None:
    change = next_change({"gpu": 2}, members(2, "gpu", fresh=False), SPEED, room={"gpu": 0})
    assert change.leaving == ("gpu0",)


def test_the_last_one_leaves_first_where_nobody_else_makes_room_and_its_successor_then_has_its_place() -> None:
    old = members(1, "gpu", fresh=False)
    alone = next_change({"gpu": 1}, old, SPEED, room={"gpu": 0})
    assert (alone.leaving, dict(alone.counts)) == (("gpu0",), {"gpu": 0})
    waits = next_change({"gpu": 1}, old, SPEED, room={"gpu": 0}, freeing={"gpu"})
    assert (waits.leaving, dict(waits.counts)) == ((), {"gpu": 1}), "another stage's is about to leave such a place"
    assert next_change({"gpu": 1}, [], SPEED, room={"gpu": 0}).counts == {"gpu": 0}, "it still holds its place"
    assert next_change({"gpu": 1}, [], SPEED, room={"gpu": 1}).counts == {"gpu": 1}


def test_a_replica_of_another_kind_makes_room_on_the_device_that_both_take() -> None:
    speed, both = {"whole": 80.0, "half": 50.0}, {"whole", "half"}
    old = [StageReplica("old", "whole", 0.0)]
    change = next_change({"half": 1}, old, speed, room={"whole": 0, "half": 0}, rivals=dict.fromkeys(both, both))
    assert change.leaving == ("old",)
    apart = next_change({"half": 1}, old, speed, room={"whole": 0, "half": 0})
    assert apart.leaving == (), "its place is of no use to the other kind"


@given(
    old=st.lists(st.sampled_from(["cpu", "gpu"]), min_size=1, max_size=6),
    wanted=st.dictionaries(st.sampled_from(["cpu", "gpu"]), st.integers(1, 5), min_size=1),
    code=st.booleans(),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=examples(200), deadline=None)
def test_every_replacement_ends_with_what_is_wanted_and_supply_never_falls_by_it(old, wanted, code, random) -> None:
    """Plays replacements to their end, replicas getting READY in any order."""
    held = [StageReplica(f"old{i}", kind, float(i), fresh=not code) for i, kind in enumerate(old)]
    needed = sum(SPEED[kind] * count for kind, count in wanted.items())
    least = min(needed, sum(SPEED[kind] for kind in old))
    for turn in range(100):
        change = next_change(wanted, held, SPEED)
        held = [m for m in held if m.replica not in change.leaving]
        assert sum(SPEED[m.hardware] for m in held if m.ready) >= least - 1e-6
        for kind, count in change.counts.items():
            own = sum(m.hardware == kind for m in held)
            assert count >= own
            held += [StageReplica(f"new{turn}-{kind}-{i}", kind, 100.0 + turn, ready=False) for i in range(count - own)]
        done = not change.leaving and all(m.ready for m in held)
        if done and {k: sum(m.hardware == k for m in held) for k in wanted} == wanted:
            break
        starting = [m for m in held if not m.ready]
        if starting:
            up = random.choice(starting)
            held = [replace(m, ready=True) if m is up else m for m in held]
    assert {kind: sum(m.hardware == kind for m in held) for kind in SPEED} == {"cpu": 0, "gpu": 0, **wanted}
    assert all(m.fresh for m in held)


def test_code_is_replaced_one_after_another() -> None:
    """At no time is there more than one replica beyond those wanted."""
    held, most = members(4, fresh=False), 0
    for turn in range(20):
        change = next_change({"cpu": 4}, held, SPEED)
        held = [m for m in held if m.replica not in change.leaving]
        held += [StageReplica(f"new{turn}-{i}", "cpu", 10.0 + turn) for i in range(change.counts["cpu"] - len(held))]
        most = max(most, len(held))
    assert most == 5
    assert len(held) == 4
    assert all(m.fresh for m in held)
