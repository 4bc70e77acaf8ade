"""Partitions to replicas: complete, balanced and steady."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.pipeline.assignment import assign

RATES = st.lists(st.integers(0, 100).map(float), min_size=1, max_size=12)
THROUGHPUTS = st.dictionaries(st.sampled_from("abcde"), st.sampled_from([1.0, 2.0, 5.0]), min_size=1, max_size=5)


def loads(owner: dict[int, str], rates: list[float], throughputs: dict[str, float]) -> dict[str, float]:
    load = dict.fromkeys(throughputs, 0.0)
    for partition, replica in owner.items():
        load[replica] += rates[partition] / throughputs[replica]
    return load


@given(RATES, THROUGHPUTS, st.dictionaries(st.integers(0, 15), st.sampled_from("abcdexy"), max_size=15))
def test_every_partition_has_one_owner_that_exists(
    rates: list[float], throughputs: dict[str, float], current: dict[int, str]
) -> None:
    owner = assign(rates, throughputs, current)
    assert sorted(owner) == list(range(len(rates)))
    assert set(owner.values()) <= set(throughputs)


@given(RATES, THROUGHPUTS, st.dictionaries(st.integers(0, 15), st.sampled_from("abcdexy"), max_size=15))
def test_assigning_again_moves_nothing(
    rates: list[float], throughputs: dict[str, float], current: dict[int, str]
) -> None:
    owner = assign(rates, throughputs, current)
    assert assign(rates, throughputs, owner) == owner


@given(st.integers(1, 24), st.integers(1, 8))
def test_equal_partitions_differ_by_at_most_one(partitions: int, replicas: int) -> None:
    names = {f"r{i}": 10.0 for i in range(replicas)}
    held = Counter(assign([1.0] * partitions, names).values())
    assert max(held.values()) - min(held[name] for name in names) <= 1


@given(st.integers(1, 24), st.integers(1, 8), st.integers(0, 7))
def test_losing_a_replica_moves_only_what_it_held_where_partitions_are_equal(
    partitions: int, replicas: int, lost: int
) -> None:
    names = {f"r{i}": 10.0 for i in range(replicas + 1)}
    before = assign([1.0] * partitions, names)
    gone = f"r{lost % (replicas + 1)}"
    left = {name: throughput for name, throughput in names.items() if name != gone}
    after = assign([1.0] * partitions, left, before)
    assert all(after[p] == replica for p, replica in before.items() if replica != gone)


@given(st.integers(1, 24), st.integers(1, 8))
def test_a_new_replica_takes_no_more_than_its_share_and_nobody_else_gains(partitions: int, replicas: int) -> None:
    names = {f"r{i}": 10.0 for i in range(replicas)}
    before = assign([1.0] * partitions, names)
    after = assign([1.0] * partitions, {**names, "new": 10.0}, before)
    moved = [p for p in after if after[p] != before[p]]
    assert all(after[p] == "new" for p in moved)
    assert len(moved) == partitions // (replicas + 1)


@given(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=6), st.integers(1, 3))
def test_the_heaviest_load_is_within_twice_the_best_possible(rates: list[float], replicas: int) -> None:
    """Local search by single moves on identical machines stays below 2 − 2/(m+1) of the optimum."""
    names = {f"r{i}": 1.0 for i in range(replicas)}
    mine = max(loads(assign(rates, names), rates, names).values())
    best = min(
        max(loads(dict(enumerate(owners)), rates, names).values())
        for owners in itertools.product(names, repeat=len(rates))
    )
    assert mine <= best * (2 - 2 / (replicas + 1)) + 0.01 * sum(rates)


@given(RATES, THROUGHPUTS)
def test_no_single_move_off_the_most_loaded_replica_helps(rates: list[float], throughputs: dict[str, float]) -> None:
    rates = [rate + 1 for rate in rates]  # none so small that it counts as the floor
    owner = assign(rates, throughputs)
    load = loads(owner, rates, throughputs)
    heaviest = max(load.values())
    for partition, replica in owner.items():
        if load[replica] < heaviest:
            continue
        for other, throughput in throughputs.items():
            after = load[other] + rates[partition] / throughput
            assert other == replica or after >= heaviest * (1 - 1e-6)


def test_a_faster_replica_carries_more() -> None:
    held = Counter(assign([1.0] * 12, {"slow": 1.0, "fast": 3.0}).values())
    assert held == {"slow": 3, "fast": 9}


def test_partitions_without_records_are_spread_too() -> None:
    assert sorted(Counter(assign([0.0] * 4, {"a": 1.0, "b": 1.0}).values()).values()) == [2, 2]


def test_without_replicas_nobody_owns_anything() -> None:
    assert assign([1.0, 2.0], {}, {0: "gone"}) == {}


@pytest.mark.parametrize("partitions", [0, 1, 5])
def test_one_replica_owns_everything(partitions: int) -> None:
    assert assign([1.0] * partitions, {"a": 1.0}) == dict.fromkeys(range(partitions), "a")
