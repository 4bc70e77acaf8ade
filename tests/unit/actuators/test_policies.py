"""Whom to retire, when to restart, which cores to give: the actuators' pure decisions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.actuators.actuator import LONGEST_RESTART_S, ObservedReplica, restart_in_s, surplus
from inferline_stream.actuators.devices import cores_for

STATES = st.sampled_from(["running", "retiring", "waiting"])


def replicas(states: list[str]) -> list[ObservedReplica]:
    return [ObservedReplica(f"r{i}", "a", "cpu-1", state, None, 0.0, 0) for i, state in enumerate(states)]


@given(st.lists(STATES, max_size=8), st.integers(0, 10), st.sets(st.integers(0, 9)))
def test_surplus_leaves_as_many_as_wanted(states: list[str], wanted: int, named: set[int]) -> None:
    there = replicas(states)
    leaving = surplus(there, wanted, {f"r{i}" for i in named})
    counted = [r for r in there if r.state != "retiring"]
    assert len(set(leaving)) == len(leaving) == max(0, len(counted) - wanted)
    assert set(leaving) <= {r.replica for r in counted}


@given(st.lists(STATES, max_size=8), st.integers(0, 10), st.sets(st.integers(0, 9)))
def test_nobody_leaves_before_one_with_a_better_claim(states: list[str], wanted: int, named: set[int]) -> None:
    there = replicas(states)
    leaving = surplus(there, wanted, {f"r{i}" for i in named})

    def claim(i: int) -> tuple[bool, bool, int]:
        return (i in named, states[i] == "waiting", i)

    counted = [i for i, state in enumerate(states) if state != "retiring"]
    staying = [claim(i) for i in counted if f"r{i}" not in leaving]
    assert all(claim(int(name[1:])) > max(staying) for name in leaving if staying)


@pytest.mark.parametrize(("failures", "wait_s"), [(1, 0.1), (2, 0.2), (5, 1.6), (9, 25.6), (10, 30.0), (10**6, 30.0)])
def test_waits_double_up_to_half_a_minute(failures: int, wait_s: float) -> None:
    assert restart_in_s(failures) == pytest.approx(wait_s)
    assert restart_in_s(failures) <= LONGEST_RESTART_S


@given(
    st.sets(st.integers(0, 15), min_size=1, max_size=8),
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0]), max_size=12),
)
def test_no_core_is_ever_promised_twice(machine: set[int], kinds: list[float]) -> None:
    given_so_far: list[tuple[float, frozenset[int]]] = []
    for cores in kinds:
        given_so_far.append((cores, cores_for(cores, machine, given_so_far)))
    for core in machine:
        assert sum(min(cores, 1.0) for cores, pinned in given_so_far if core in pinned) <= 1 + 1e-6
    for cores, pinned in given_so_far:
        assert pinned <= machine
        assert len(pinned) in (0, math.ceil(cores))


def test_kinds_below_one_core_share_the_fullest_core_they_fit_on() -> None:
    assert cores_for(0.5, {0, 1, 2}, [(0.25, {1}), (0.75, {2})]) == {1}


def test_one_that_does_not_fit_may_run_anywhere() -> None:
    assert cores_for(2, {0, 1}, [(1, {0})]) == frozenset()
    assert cores_for(1, {0, 1}, [(1, {0})]) == {1}


def test_emulated_hardware_is_kept_to_no_core() -> None:
    assert cores_for(0, {0, 1}, []) == frozenset()
