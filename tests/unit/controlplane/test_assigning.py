"""Assignments in virtual time: replicas that apply them late, die, fall silent and wake; never two owners."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from inferline_stream.controlplane.assigning import (
    Assigning,
    SeenReplica,
    StageWanted,
    Told,
    recovered,
    step,
)
from inferline_stream.dataplane.protocol import Assignment

PARTITIONS = 8
WANTED = {"s": StageWanted((1.0,) * PARTITIONS, {"cpu": 1.0, "gpu": 4.0}, {"cpu": 4, "gpu": 8})}


def ready(name: str, applied: int = 0, held: set[int] | None = None, hardware: str = "cpu") -> SeenReplica:
    return SeenReplica(name, "s", hardware, "ready", applied, frozenset(held or ()))


def seen(*replicas: SeenReplica) -> dict[str, SeenReplica]:
    return {r.replica: r for r in replicas}


def test_the_first_ready_replica_gets_every_partition() -> None:
    state, deal = step(Assigning(term=1), seen(ready("a")), WANTED)
    assert [(a.replica, a.partitions, a.sequence, a.term) for a in deal.assignments] == [
        ("a", tuple(range(PARTITIONS)), 1, 1)
    ]
    assert step(state, seen(ready("a")), WANTED)[1].assignments == ()


def test_a_starting_replica_gets_nothing() -> None:
    starting = replace(ready("a"), phase="starting")
    assert step(Assigning(term=1), seen(starting), WANTED)[1].assignments == ()


def test_a_partition_is_taken_and_granted_at_once_and_the_new_owner_waits_for_the_old() -> None:
    state, _ = step(Assigning(term=1), seen(ready("a")), WANTED)
    everything = set(range(PARTITIONS))
    state, deal = step(state, seen(ready("a", 1, everything), ready("b")), WANTED)
    revoked, granted = deal.assignments
    assert (revoked.replica, granted.replica) == ("a", "b")
    assert len(revoked.partitions) == PARTITIONS // 2
    moving = everything - set(revoked.partitions)
    assert granted.awaits == dict.fromkeys(moving, (1, revoked.sequence)) == dict.fromkeys(granted.partitions, (1, 2))
    assert revoked.heirs == dict.fromkeys(moving, "b")
    assert not granted.heirs
    # Neither the report that has not applied the revocation changes anything, nor one that still holds a part.
    state, deal = step(state, seen(ready("a", 1, everything), ready("b", granted.sequence, moving)), WANTED)
    assert deal.assignments == ()
    still = {min(moving)}
    kept = set(revoked.partitions)
    state, deal = step(
        state, seen(ready("a", 2, kept | still), replace(ready("b", 3, moving), working=frozenset(moving))), WANTED
    )
    assert deal.assignments == ()


def test_a_partition_on_the_move_is_not_moved_again_before_it_has_arrived() -> None:
    state, _ = step(Assigning(term=1), seen(ready("a")), WANTED)
    a = ready("a", 1, set(range(PARTITIONS)))
    state, deal = step(state, seen(a, ready("b")), WANTED)
    moving = set(deal.assignments[1].partitions)
    state, deal = step(state, seen(a, ready("b"), ready("c")), WANTED)
    assert "b" not in {t.replica for t in deal.assignments}
    left = set(next(t for t in deal.assignments if t.replica == "a").partitions)
    b = replace(ready("b", 3, moving), working=frozenset(moving))
    granted = set(range(PARTITIONS)) - left - moving
    c = replace(ready("c", 5, granted), working=frozenset(granted))
    state, deal = step(state, seen(ready("a", 4, left), b, c), WANTED)
    shares = {t.replica: len(t.partitions) for t in deal.assignments}
    assert shares["b"] < len(moving)  # once they have arrived, the load is evened out


def test_a_new_owner_that_waits_in_vain_is_told_to_wait_no_more() -> None:
    state, _ = step(Assigning(term=1), seen(ready("a")), WANTED)
    state, deal = step(state, seen(ready("a", 1, set(range(PARTITIONS))), ready("b")), WANTED)
    revoked, granted = deal.assignments
    moving, kept = set(granted.partitions), set(revoked.partitions)
    one = min(moving)
    # The old owner has let all of it go; the new one has found that out for all but one of them.
    now = seen(ready("a", 2, kept), replace(ready("b", 3, moving), working=frozenset(moving - {one})))
    assert step(state, now, WANTED, patient=True)[1].assignments == ()
    state, deal = step(state, now, WANTED)
    (again,) = deal.assignments
    assert (again.replica, set(again.partitions), again.awaits.keys()) == ("b", moving, moving - {one})
    # The old owner dies: the rest is nobody's.
    state, deal = step(state, now, WANTED, ended=frozenset({"a"}), patient=True)
    (again,) = deal.assignments
    assert set(again.partitions) == set(range(PARTITIONS))
    assert again.awaits.keys() == moving - {one}


def test_a_partition_that_moves_twice_at_once_is_granted_when_only_one_may_hold_it() -> None:
    state, _ = step(Assigning(term=1), seen(ready("a")), WANTED)
    a, b, c = ready("a", 1, set(range(PARTITIONS))), ready("b"), ready("c")
    state, deal = step(state, seen(a, b), WANTED)
    moving = set(deal.assignments[1].partitions)
    state, deal = step(state, seen(a, b, c), WANTED, draining=frozenset({"b"}))
    told = {t.replica: t for t in deal.assignments}
    assert told["b"].drain
    assert "c" not in told  # both a and b may hold what it is to have
    now = seen(a, replace(ready("b", told["b"].sequence), phase="draining"), c)
    state, deal = step(state, now, WANTED, draining=frozenset({"b"}))
    told = {t.replica: t for t in deal.assignments}
    granted = moving & set(told["c"].partitions)
    assert granted
    assert {told["c"].awaits[p] for p in granted} == {(1, 2)}  # a's first revocation, still to be followed


def test_partitions_of_a_replica_that_ended_go_at_once_to_the_living() -> None:
    state, _ = step(Assigning(term=1), seen(ready("a")), WANTED)
    both = seen(ready("a", 1, set(range(PARTITIONS))), ready("b"))
    state, deal = step(state, both, WANTED, ended=frozenset({"a"}))
    assert [(a.replica, a.partitions) for a in deal.assignments] == [("b", tuple(range(PARTITIONS)))]
    assert deal.forgotten == ("a",)
    assert step(state, both, WANTED, ended=frozenset({"a"}))[1] == type(deal)()


def test_a_silent_replica_is_told_to_leave_before_its_partitions_are_granted() -> None:
    state, _ = step(Assigning(term=1), seen(ready("a")), WANTED)
    both = seen(ready("a", 1, set(range(PARTITIONS))), ready("b"))
    state, deal = step(state, both, WANTED, silent=frozenset({"a"}))
    assert [(a.replica, a.partitions, a.drain) for a in deal.assignments] == [
        ("a", (), True),
        ("b", tuple(range(PARTITIONS)), False),
    ]
    # It wakes and reports what it held; it stays told to leave and nothing is taken from the new owner.
    assert step(state, both, WANTED, silent=frozenset({"a"}))[1].assignments == ()


def test_a_later_term_does_not_wait_for_one_whose_lease_had_run_out() -> None:
    state, _ = step(Assigning(term=1), seen(ready("a")), WANTED)
    _, deal = step(state, seen(ready("a", 1, set(range(PARTITIONS)))), WANTED, silent=frozenset({"a"}))
    (lapsed,) = deal.assignments
    assert lapsed.lapsed
    for last, granted in ((lapsed, tuple(range(PARTITIONS))), (msgspec.structs.replace(lapsed, lapsed=False), ())):
        later = recovered(2, [last], {"s": PARTITIONS})
        later, deal = step(later, seen(ready("b")), WANTED)
        assert [a.partitions for a in deal.assignments if a.replica == "b"] == ([granted] if granted else [])
    # One that was told to leave and then fell silent is written down anew.
    state, _ = step(Assigning(term=1), seen(ready("a")), WANTED)
    held = seen(ready("a", 1, set(range(PARTITIONS))))
    state, deal = step(state, held, WANTED, draining=frozenset({"a"}))
    (leaving,) = deal.assignments
    assert (leaving.drain, leaving.lapsed) == (True, False)
    (written,) = step(state, held, WANTED, silent=frozenset({"a"}))[1].assignments
    assert (written.drain, written.lapsed) == (True, True)


def test_a_replica_that_dropped_everything_is_told_once_more_under_a_new_number() -> None:
    state, _ = step(Assigning(term=1), seen(ready("a")), WANTED)
    state, deal = step(state, seen(ready("a", 1, set())), WANTED)
    assert [(a.sequence, a.partitions) for a in deal.assignments] == [(2, tuple(range(PARTITIONS)))]
    assert step(state, seen(ready("a", 1, set())), WANTED)[1].assignments == ()


def test_a_draining_replica_releases_everything_and_leaves_while_others_never_stop() -> None:
    state, deal = step(Assigning(term=1), seen(ready("a"), ready("b")), WANTED)
    held = {a.replica: set(a.partitions) for a in deal.assignments}
    now = seen(ready("a", 1, held["a"]), ready("b", 2, held["b"]))
    state, deal = step(state, now, WANTED, draining=frozenset({"b"}))
    leave, granted = deal.assignments
    assert (leave.replica, leave.partitions, leave.drain) == ("b", (), True)
    assert (granted.replica, granted.partitions) == ("a", tuple(range(PARTITIONS)))
    assert granted.awaits == dict.fromkeys(held["b"], (1, leave.sequence))
    now = seen(
        replace(ready("a", granted.sequence, set(range(PARTITIONS))), working=frozenset(range(PARTITIONS))),
        replace(ready("b", leave.sequence), phase="draining"),
    )
    assert step(state, now, WANTED, draining=frozenset({"b"}))[1].assignments == ()


def test_a_starting_replica_that_is_no_longer_wanted_is_told_to_leave() -> None:
    starting = replace(ready("b"), phase="starting")
    _, deal = step(Assigning(term=1), seen(starting), WANTED, draining=frozenset({"b"}))
    assert [(a.replica, a.drain) for a in deal.assignments] == [("b", True)]


def test_faster_hardware_gets_more_partitions() -> None:
    _, deal = step(Assigning(term=1), seen(ready("a"), ready("b", hardware="gpu")), WANTED)
    shares = {a.replica: len(a.partitions) for a in deal.assignments}
    assert shares["b"] > 2 * shares["a"]
    assert sum(shares.values()) == PARTITIONS


def test_a_changed_batch_limit_is_told_without_moving_a_partition() -> None:
    state, deal = step(Assigning(term=1), seen(ready("a")), WANTED)
    larger = {"s": replace(WANTED["s"], max_batch_sizes={"cpu": 16, "gpu": 8})}
    _, after = step(state, seen(ready("a", 1, set(range(PARTITIONS)))), larger)
    assert [(a.max_batch_size, a.partitions) for a in after.assignments] == [(16, deal.assignments[0].partitions)]


@pytest.mark.parametrize(("hot", "moves"), [(1.05, False), (9.0, True)])
def test_a_rebalance_moves_partitions_only_where_it_pays(hot: float, moves: bool) -> None:
    state, deal = step(Assigning(term=1), seen(ready("a"), ready("b")), WANTED)
    held = {a.replica: set(a.partitions) for a in deal.assignments}
    rates = tuple(hot if p in held["a"] else 1.0 for p in range(PARTITIONS))
    skewed = {"s": replace(WANTED["s"], partition_rates=rates, rebalance=True)}
    _, after = step(state, seen(ready("a", 1, held["a"]), ready("b", 2, held["b"])), skewed)
    assert bool(after.assignments) is moves


def test_a_new_term_grants_nothing_that_an_unheard_replica_may_hold() -> None:
    # Compaction kept only the revocation; the old owner may still work on every partition of the stage.
    last = Assignment("a", "s", term=1, sequence=7, partitions=(0, 1), max_batch_size=4)
    state = recovered(2, [last], {"s": PARTITIONS})
    state, deal = step(state, seen(ready("b")), WANTED)
    assert all(a.partitions == () for a in deal.assignments)
    now = seen(ready("a", 7, {0, 1}), ready("b"))
    state, deal = step(state, now, WANTED)
    granted = {p for a in deal.assignments if a.replica == "b" for p in a.partitions}
    assert granted
    assert not granted & {0, 1}
    assert all(a.sequence > 7 and a.term == 2 for a in deal.assignments)


@dataclass
class Worker:
    """A replica that applies assignments late, finishes a batch before it releases, and may be frozen.

    After it has slept over its lease it holds nothing until it is told anew: what it was told before may be another's.
    The group's commits are in `freed`: by partition, for which assignment its last owner has let it go.
    """

    name: str
    born: int
    freed: dict[int, tuple[int, int] | None]
    inbox: list[tuple[int, Assignment]] = field(default_factory=list)
    draining: bool = False
    applied: int = 0
    working: set[int] = field(default_factory=set)
    waiting: dict[int, tuple[int, int]] = field(default_factory=dict)
    releasing: dict[int, tuple[int, tuple[int, int]]] = field(default_factory=dict)
    frozen_until: int = -1
    lease_until: int = 0
    gone: bool = False

    def tick(self, now: int, rng: random.Random) -> SeenReplica | None:
        """Returns the report sent, if any."""
        if self.gone or now < self.frozen_until:
            return None
        if now > self.lease_until:
            self.working.clear()
            self.waiting.clear()
            self.releasing.clear()
            self.applied = max((a.sequence for _, a in self.inbox), default=self.applied)
            self.draining |= any(a.drain for _, a in self.inbox)
            self.inbox.clear()
        for _, told in sorted((m for m in self.inbox if m[0] <= now), key=lambda m: m[1].sequence):
            if told.sequence > self.applied:
                self.follow(told, now, rng)
        self.inbox = [m for m in self.inbox if m[0] > now]
        for partition, (when, by) in list(self.releasing.items()):
            if when <= now:
                del self.releasing[partition]
                self.working.discard(partition)
                self.freed[partition] = by
        for partition, by in list(self.waiting.items()):
            if self.freed.get(partition) == by and partition not in self.working:
                self.take_up(partition)
        self.lease_until = now + 20
        phase = "starting" if now < self.born + 10 else "ready"
        if self.draining:
            self.gone = not self.working
            phase = "gone" if self.gone else "draining"
        working = frozenset(self.working)
        return SeenReplica(self.name, "s", "cpu", phase, self.applied, working | self.waiting.keys(), working)

    def follow(self, told: Assignment, now: int, rng: random.Random) -> None:
        self.applied = told.sequence
        for partition in self.working - set(told.partitions):
            self.releasing.setdefault(partition, (now + rng.randint(0, 4), (told.term, told.sequence)))
        self.waiting = {p: by for p, by in told.awaits.items() if p not in self.working or p in self.releasing}
        for partition in told.partitions:
            if partition not in self.working and partition not in self.waiting:
                self.take_up(partition)
            elif partition in self.releasing and partition not in self.waiting:
                self.waiting[partition] = self.releasing[partition][1]  # once the release is through
        self.draining = told.drain

    def take_up(self, partition: int) -> None:
        self.waiting.pop(partition, None)
        self.working.add(partition)
        self.freed[partition] = None


@pytest.mark.parametrize("seed", range(40))
def test_no_partition_ever_has_two_owners_and_all_are_owned_in_the_end(seed: int) -> None:
    """Ticks of 0.1 s; lease 2 s, dead after 3 s; reports and assignments travel for up to 0.5 s."""
    rng = random.Random(seed)
    state = Assigning(term=1)
    workers: dict[str, Worker] = {}
    reports: list[tuple[int, SeenReplica]] = []
    replicas: dict[str, SeenReplica] = {}
    heard: dict[str, int] = {}
    freed: dict[int, tuple[int, int] | None] = {}
    ended: set[str] = set()
    silent: set[str] = set()
    draining: set[str] = set()
    born = 0
    for now in range(600):
        settled = now > 450  # no more faults: the rest must come to rest
        living = [w for w in workers.values() if not w.gone and w.name not in draining]
        if len(living) < (2 if settled else 4) and (settled or rng.random() < 0.1):
            born += 1
            workers[f"w{born}"] = Worker(f"w{born}", now, freed, lease_until=now + 20)
        if not settled and living and rng.random() < 0.05:
            victim = rng.choice(living)
            fault = rng.choice(["kill", "freeze", "drain"])
            if fault == "kill":
                victim.gone = True
                victim.working.clear()
                ended.add(victim.name)
            elif fault == "freeze":
                victim.frozen_until = now + rng.randint(5, 80)
            else:
                draining.add(victim.name)
        for worker in workers.values():
            report = worker.tick(now, rng)
            if report is not None and (now % 5 == 0 or replicas.get(worker.name) != report):
                reports.append((now + rng.randint(0, 5), report))
        for when, report in sorted([r for r in reports if r[0] <= now], key=lambda r: r[0]):
            reports.remove((when, report))
            old = replicas.get(report.replica)
            if old is None or report.applied >= old.applied:
                replicas[report.replica] = report
            heard[report.replica] = now
            if report.phase == "gone":
                ended.add(report.replica)
        silent |= {r for r, when in heard.items() if now - when > 30 and r not in ended}
        if not settled and rng.random() < 0.02:  # a new controller, from the compacted topic
            state = recovered(state.term + 1, [t.assignment for t in state.told.values()], {"s": PARTITIONS})
        state, deal = step(
            state,
            replicas,
            WANTED,
            ended=frozenset(ended),
            silent=frozenset(silent),
            draining=frozenset(draining),
            patient=rng.random() < 0.8,
        )
        for assignment in deal.assignments:
            if assignment.replica in workers:
                workers[assignment.replica].inbox.append((now + rng.randint(0, 5), assignment))
        owners: dict[int, list[str]] = {}
        for worker in workers.values():
            if not worker.gone and now <= worker.lease_until and now >= worker.frozen_until:
                for partition in worker.working:
                    owners.setdefault(partition, []).append(worker.name)
        twice = {p: names for p, names in owners.items() if len(names) > 1}
        assert not twice, f"tick {now}: {twice}"
    assert set(owners) == set(range(PARTITIONS))


def test_what_a_replica_may_hold_is_never_forgotten_before_it_has_reported() -> None:
    told = Told(Assignment("a", "s", 1, 3, (), 4), frozenset({5}))
    state = Assigning(1, 3, {"a": told}, {"s": {}}, {})
    _, deal = step(state, seen(ready("a", 2, set()), ready("b")), WANTED)
    assert all(5 not in a.partitions for a in deal.assignments if a.replica == "b")
