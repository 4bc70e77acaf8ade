"""Whether replicas have the cores that they were planned with."""

import pytest

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.controlplane.core_use import CALM_S, LOOK_S, CoreUse
from inferline_stream.controlplane.observe.live_profile import slowdown
from inferline_stream.observability.stage_counts import BatchStats
from inferline_stream.pipeline.profile import Profile, ServiceTime


def replica(name: str, ran_s: float, waited_s: float = 0.0) -> ObservedReplica:
    return ObservedReplica(name, "a", "cpu-0.5", "running", 1, 0.0, 0, ran_s=ran_s, waited_s=waited_s)


class Machine:
    """Two cores; replicas that were planned with 1.25 use half of that; how much others take is set."""

    def __init__(self) -> None:
        self.time_s = self.taken_s = self.ran_s = 0.0
        self.use = CoreUse(2.0, lambda: self.taken_s)

    def run(self, seconds: float, others: float) -> list[bool]:
        found = []
        for _ in range(round(seconds / 0.25)):
            self.time_s += 0.25
            self.ran_s += 0.25 * 0.625
            self.taken_s += 0.25 * (others + 0.625)
            self.use.add(self.time_s, [replica("r", self.ran_s)], 1.25)
            found.append(bool(self.use.crowded))
        return found


def test_a_core_that_others_take_is_said_within_seconds_and_taken_back_once_it_is_free() -> None:
    machine = Machine()
    assert not any(machine.run(20.0, others=0.6))
    assert machine.run(LOOK_S + 1.5, others=1.6)[-1]
    assert "takes 1." in machine.use.crowded
    assert all(machine.run(60.0, others=1.6))
    assert not machine.run(LOOK_S + CALM_S, others=0.6)[-1]


def test_cores_that_replicas_were_planned_with_and_leave_idle_are_no_lack() -> None:
    machine = Machine()
    machine.run(10.0, others=0.6)
    assert not any(machine.run(20.0, others=1.1))


def test_a_moment_is_no_lack_of_cores() -> None:
    machine = Machine()
    machine.run(10.0, others=0.6)
    assert not any(machine.run(0.5, others=1.4) + machine.run(10.0, others=0.6))


def test_where_nothing_is_known_of_the_machine_nothing_is_said() -> None:
    use = CoreUse()
    for second in range(20):
        use.add(float(second), [replica("r", second * 9.0)], 99.0)
    assert use.crowded == ""


def test_replicas_that_end_and_begin_are_summed_and_the_last_seconds_are_theirs() -> None:
    use = CoreUse()
    use.add(0.0, [replica("r", 100.0, 10.0)], 0.5)
    use.add(5.0, [replica("r", 102.0, 11.0), replica("s", 1.0)], 0.5)
    use.add(9.0, [replica("s", 2.0, 0.5)], 0.5)
    assert (use.recent("a", "cpu-0.5").ran_s, use.recent("a", "cpu-0.5").waited_s) == pytest.approx((4.0, 1.5))
    assert use.total("a").ran_s == pytest.approx(104.0)
    assert use.recent("b", "cpu-0.5").ran_s == 0.0


PROFILE = Profile("a", "cpu-0.5", (ServiceTime(1, 0.1),), waited_share=0.1)
TEN = {1: BatchStats(batches=10, service_s=2.0)}
"""Twice what was profiled."""


def test_a_model_that_runs_longer_is_slower_and_one_that_waits_for_a_core_is_not() -> None:
    assert slowdown(PROFILE, TEN, 1) == pytest.approx(2.0)
    assert slowdown(PROFILE, TEN, 1, waited_s=0.1) == pytest.approx(2.0)  # as profiled
    assert slowdown(PROFILE, TEN, 1, waited_s=0.6) == pytest.approx(1.5)
    assert slowdown(PROFILE, TEN, 1, waited_s=50.0) == pytest.approx(1.0)  # a start's waiting makes nothing faster
    assert slowdown(PROFILE, {1: BatchStats(10, 0.8)}, 1, waited_s=5.0) == pytest.approx(0.8)
