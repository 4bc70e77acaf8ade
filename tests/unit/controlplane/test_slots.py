"""Grants of slots: examples of each way that a slot changes hands, and every way in any order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inferline_stream.controlplane.apply import slots
from inferline_stream.controlplane.apply.slots import KnownDispatchers, SlotOrders, SlotTable, StageSlots, recovered
from inferline_stream.dataplane.slot_grants import Grant, HardwarePlan, StagePlan, partitions_of
from tests.support.hypothesis_profiles import examples

PARTITIONS = 6


class Leader:
    """A step after the other, with names ``a-<slot>-<n>``; what is asked of the actuator runs at once."""

    def __init__(self, table: SlotTable = SlotTable(1), ours: Iterable[str] = ()) -> None:  # noqa: B008  immutable
        self.table, self.ours, self.wanted = table, set(ours), StageSlots()
        self._numbers = itertools.count(1)

    def step(self, settled: bool = True, idle: Mapping[str, int] | None = None, **seen: Iterable[str]) -> SlotOrders:
        known = {name: frozenset(names) for name, names in seen.items()}
        number = self.table.number if settled else 0
        found = KnownDispatchers(frozenset(self.ours), idle=idle or {}, settled=number, **known)
        self.table, orders = slots.step(self.table, {"a": self.wanted}, found, str(next(self._numbers)))
        self.ours = set(orders.dispatchers["a"])
        return orders

    def granted(self, orders: SlotOrders) -> list[tuple[int, int, str, bool]]:
        return [(g.slot, g.slots, g.dispatcher, g.begins) for g in orders.grants]


def test_the_first_dispatcher_of_a_slot_begins_at_once() -> None:
    leader = Leader()
    assert leader.granted(leader.step()) == [(0, 1, "a-0-1", True)]
    assert leader.step().grants == ()


def test_after_a_fenced_dispatcher_a_new_one_begins_at_once() -> None:
    leader = Leader()
    leader.step()
    leader.ours = set()
    assert leader.granted(leader.step(ended={"a-0-1"})) == [(0, 1, "a-0-2", True)]


def test_what_a_grant_says_is_written_again_when_it_changes_and_the_dispatcher_goes_on() -> None:
    leader = Leader()
    leader.step()
    leader.wanted = StageSlots(1, plan := StagePlan({"cpu": HardwarePlan(8, {1: 0.1})}, sample=b"sample"))
    (grant,) = leader.step().grants
    assert (grant.dispatcher, grant.begins, grant.plan) == ("a-0-1", True, plan)
    assert leader.step().grants == ()


def test_a_new_term_keeps_the_dispatchers_of_its_own_host() -> None:
    leader = Leader(recovered(2, [Grant("a", 0, 1, "x", 1, 7)]), ours={"x"})
    assert leader.step().grants == ()


def test_a_new_term_takes_slots_from_another_host_and_waits_until_its_dispatcher_is_gone() -> None:
    leader = Leader(recovered(2, [Grant("a", 0, 1, "theirs", 1, 7)]))
    assert leader.granted(leader.step()) == [(0, 1, "a-0-1", False)]
    assert leader.step().grants == ()
    assert leader.granted(leader.step(ended={"theirs"})) == [(0, 1, "a-0-1", True)]


def test_a_silent_dispatcher_of_another_host_loses_its_slot_first_and_is_given_up_if_it_stays_silent() -> None:
    leader = Leader(recovered(2, [Grant("a", 0, 1, "theirs", 1, 7)]))
    assert leader.granted(leader.step(silent={"theirs"})) == [(0, 1, "a-0-1", False)]
    assert leader.granted(leader.step(silent={"theirs"})) == [(0, 1, "a-0-1", True)]


def test_a_silent_dispatcher_is_not_given_up_before_its_reports_from_before_the_grant_were_read() -> None:
    leader = Leader(recovered(2, [Grant("a", 0, 1, "theirs", 1, 7)]))
    leader.step(silent={"theirs"})
    assert leader.step(silent={"theirs"}, settled=False).grants == ()


def test_a_silent_dispatcher_of_its_own_host_keeps_its_slot_because_it_is_killed_and_started_again() -> None:
    leader = Leader()
    leader.step()
    assert leader.step(silent={"a-0-1"}).grants == ()


def test_a_dispatcher_that_lost_its_slot_before_it_served_is_not_waited_for_once_it_knows() -> None:
    leader = Leader(recovered(2, [Grant("a", 0, 1, "theirs", 1, 7)]))
    leader.step()
    assert leader.step(idle={"theirs": 7}).grants == ()
    assert leader.granted(leader.step(idle={"theirs": 8})) == [(0, 1, "a-0-1", True)]


def test_a_dispatcher_that_serves_without_a_grant_in_the_log_is_waited_for() -> None:
    leader = Leader(slots.met(SlotTable(2), "unknown", "a", 3))
    assert leader.granted(leader.step()) == [(0, 1, "a-0-1", False)]
    assert leader.granted(leader.step(ended={"unknown"})) == [(0, 1, "a-0-1", True)]


def test_a_new_term_waits_for_a_holder_that_the_log_names_no_more() -> None:
    leader = Leader(recovered(2, [Grant("a", 0, 1, "next", 1, 7, begins=False)]), ours={"next"})
    assert leader.step().grants == ()
    assert leader.granted(leader.step(silent={"?a/0"})) == [(0, 1, "next", True)]


def test_more_slots_are_granted_once_the_old_ones_are_gone() -> None:
    leader = Leader()
    leader.step()
    leader.wanted = StageSlots(2)
    orders = leader.step()
    assert (leader.granted(orders), dict(orders.dispatchers["a"])) == ([(0, 1, "", False)], {})
    assert leader.step().grants == ()
    assert leader.granted(leader.step(ended={"a-0-1"})) == [(0, 2, "a-0-4", True), (1, 2, "a-1-4", True)]


def test_fewer_slots_are_granted_once_every_old_one_is_gone() -> None:
    leader = Leader()
    leader.wanted = StageSlots(2)
    leader.step()
    leader.wanted = StageSlots(1)
    assert leader.granted(leader.step()) == [(0, 2, "", False), (1, 2, "", False)]
    assert leader.step(ended={"a-1-1"}).grants == ()
    orders = leader.step(ended={"a-0-1", "a-1-1"})
    assert (leader.granted(orders), orders.forgotten) == ([(0, 1, "a-0-4", True)], ("a/1",))


def test_an_outdated_dispatcher_serves_until_its_heir_stands_by() -> None:
    leader = Leader()
    leader.step()
    orders = leader.step(outdated={"a-0-1"})
    assert (orders.grants, dict(orders.dispatchers["a"])) == ((), {"a-0-1": 0, "a-0-2": 0})
    assert leader.granted(leader.step(outdated={"a-0-1"}, standing_by={"a-0-2"})) == [(0, 1, "a-0-2", False)]
    assert leader.granted(leader.step(ended={"a-0-1"})) == [(0, 1, "a-0-2", True)]


def test_of_several_outdated_dispatchers_one_is_replaced_at_a_time() -> None:
    leader = Leader()
    leader.wanted = StageSlots(3)
    old = set(leader.step().dispatchers["a"])
    assert len(leader.step(outdated=old).dispatchers["a"]) == 4
    assert len(leader.step(outdated=old).dispatchers["a"]) == 4


def test_the_end_of_a_stage_leaves_no_grant_behind() -> None:
    leader = Leader()
    leader.step()
    leader.wanted = StageSlots(0)
    assert leader.granted(leader.step()) == [(0, 1, "", False)]
    orders = leader.step(ended={"a-0-1"})
    assert (orders.forgotten, leader.table.grants, leader.table.holders) == (("a/0",), {}, {})


def test_grants_of_a_stage_that_the_pipeline_no_longer_has_are_taken_back_and_forgotten() -> None:
    leader = Leader(recovered(2, [Grant("removed", 0, 1, "theirs", 1, 7)]))
    orders = leader.step()
    assert [(g.stage, g.dispatcher) for g in orders.grants] == [("a", "a-0-1"), ("removed", "")]
    assert orders.dispatchers["removed"] == {}
    orders = leader.step(ended={"theirs"})
    assert (orders.forgotten, set(leader.table.grants)) == (("removed/0",), {"a"})


@dataclass
class Process:
    """A dispatcher as its contract says: see `grants.Grant`."""

    name: str
    slot: int
    read: int = 0
    """Records of the log that it has read."""
    grant: Grant | None = None
    serves: bool = False
    leased: bool = True
    awake: bool = True
    stopping: bool = False
    partitions: set[int] = field(default_factory=set)


class Slots(RuleBasedStateMachine):
    """Leaders, hosts and dispatchers in any order; `slots.step` decides."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Grant] = []
        self.tombstones: set[str] = set()
        self.table = SlotTable(1)
        self.slots = 1
        self.processes: dict[str, Process] = {}
        self.ours: set[str] = set()
        self.ended: set[str] = set()
        self.silent: set[str] = set()
        self.outdated: set[str] = set()
        self.unread: set[str] = set()
        """Dispatchers with a report that the leader has not read."""
        self.idle: dict[str, int] = {}
        self.settled = 0
        self._numbers = itertools.count(1)

    # -- the leader ----------------------------------------------------------------------------------

    @rule(written=st.sampled_from([True, True, True, False]))
    def lead(self, written: bool) -> None:
        ours = frozenset(d for d in self.ours if not self.processes[d].stopping)
        standing_by = frozenset(d for d, p in self.processes.items() if p.awake and not p.serves)
        seen = KnownDispatchers(
            ours, frozenset(self.ended), frozenset(self.silent), standing_by, frozenset(self.outdated), self.idle,
            self.settled,
        )  # fmt: skip
        table, orders = slots.step(self.table, {"a": StageSlots(self.slots)}, seen, str(next(self._numbers)))
        if not written:
            return
        self.table = table
        self.log += orders.grants
        asked = orders.dispatchers["a"]
        for name, slot in asked.items():
            if name not in self.ours:
                self.processes[name] = Process(name, slot)
                self.ours.add(name)
        for name in self.ours - asked.keys():
            self.processes[name].stopping = True

    @rule(same_host=st.booleans(), knows=st.booleans())
    def another_term(self, same_host: bool, knows: bool) -> None:
        """A new leader: another process on this host, one on another host, or this one after an unsettled write."""
        newest = {grant.slot: grant for grant in self.log}
        before = self.table if knows and same_host else None
        self.table = recovered(self.table.term + 1, newest.values(), before)
        self.settled = 0
        if before is None:
            self.silent.clear()
            self.ended.clear()
            if not same_host:
                self.ours.clear()

    @rule(slots=st.integers(1, 3))
    def another_number_of_slots(self, slots: int) -> None:
        self.slots = slots

    @rule()
    def newer_code(self) -> None:
        self.outdated = set(self.ours)

    @rule()
    def a_moment_passes(self) -> None:
        """Every report that was sent has been read."""
        for name in self.unread:
            self._heard(name)
        self.unread.clear()
        self.settled = self.table.number

    @rule()
    def a_while_passes(self) -> None:
        """Longer than a lease: who lives has reported, who is suspended has lost its lease and is silent."""
        for process in list(self.processes.values()):
            if process.awake:
                self._heard(process.name)
            elif process.name in self.ours:
                self.processes[process.name] = Process(process.name, process.slot, stopping=process.stopping)
            else:
                process.leased = process.serves = False
                self.silent.add(process.name)
        self.silent |= {name for name in self.table.holders if name not in self.processes} - self.ended
        self.a_moment_passes()

    def _heard(self, name: str) -> None:
        if name in self.ended or name not in self.processes:
            return
        self.silent.discard(name)
        self.idle.pop(name, None)
        if (grant := self.processes[name].grant) is not None and not self.processes[name].serves:
            self.idle[name] = grant.number
        elif self.processes[name].serves:
            self.table = slots.met(self.table, name, "a", self.processes[name].slot)

    # -- dispatchers ---------------------------------------------------------------------------------

    def _pick(self, data: st.DataObject, **having: bool) -> Process | None:
        found = [p for p in self.processes.values() if all(getattr(p, k) == v for k, v in having.items())]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(data=st.data())
    def reads_grants(self, data: st.DataObject) -> None:
        if (p := self._pick(data, awake=True)) is None:
            return
        own = [g for g in self.log[p.read :] if g.slot == p.slot]
        p.read, p.grant = len(self.log), own[-1] if own else p.grant
        if not p.leased:
            p.leased = True
            self.unread.add(p.name)  # its report was acknowledged before it read to the end
        if p.grant is not None and p.grant.dispatcher == p.name and p.grant.begins and not p.stopping:
            if not p.serves:
                p.serves, p.partitions = True, set(partitions_of(p.slot, p.grant.slots, PARTITIONS))
        elif p.serves or p.stopping:
            self._ends(p)

    @rule(data=st.data(), restarted=st.booleans())
    def dies(self, data: st.DataObject, restarted: bool) -> None:
        if (p := self._pick(data)) is None:
            return
        if p.name not in self.ours:  # its host is another: nobody hears of its end
            del self.processes[p.name]
        elif restarted and not p.stopping:
            self.processes[p.name] = Process(p.name, p.slot)
        else:
            self._ends(p)

    def _ends(self, p: Process) -> None:
        del self.processes[p.name]
        self.ours.discard(p.name)
        self.ended.add(p.name)

    @rule(data=st.data())
    def is_suspended(self, data: st.DataObject) -> None:
        if (p := self._pick(data, awake=True)) is not None:
            p.awake = False

    @rule(data=st.data())
    def wakes(self, data: st.DataObject) -> None:
        if (p := self._pick(data, awake=False)) is not None:
            p.awake = True

    # -- what must hold ------------------------------------------------------------------------------

    @invariant()
    def no_partition_has_two_dispatchers(self) -> None:
        owned = [partition for p in self.processes.values() if p.serves for partition in p.partitions]
        assert len(owned) == len(set(owned)), {p.name: p.partitions for p in self.processes.values() if p.serves}

    @precondition(lambda self: self.table.term < 6)
    @rule()
    def left_alone_every_partition_gets_a_dispatcher(self) -> None:
        self.outdated.clear()
        for _ in range(6):
            for p in self.processes.values():
                p.awake = True
            self.a_while_passes()
            self.lead(True)
            for p in list(self.processes.values()):
                own = [g for g in self.log if g.slot == p.slot]
                p.read, p.leased, p.grant = len(self.log), True, own[-1] if own else None
                named = bool(own) and own[-1].dispatcher == p.name and not p.stopping
                if (p.serves and not (named and own[-1].begins)) or p.stopping:
                    self._ends(p)
                elif named and own[-1].begins:
                    p.serves, p.partitions = True, set(partitions_of(p.slot, own[-1].slots, PARTITIONS))
        owned = sorted(partition for p in self.processes.values() if p.serves for partition in p.partitions)
        assert owned == list(range(PARTITIONS))


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=examples(200), stateful_step_count=40, deadline=None)
