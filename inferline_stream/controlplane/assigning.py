"""Who holds which partition, as one pure step: never two at once.

A partition that moves is taken from its owner and granted to the next in the same breath: the new owner waits until the
group's commit says that the old one has let it go for that very assignment, so that nobody waits for the controller.
Where that cannot be told (its owner died, or was never heard), it is granted once nobody else may hold it any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from inferline_stream.dataplane.protocol import Assignment, ReplicaPhase
from inferline_stream.pipeline.assignment import assign

REBALANCE_GAIN = 0.2
"""A rebalance for load alone must lower the most loaded replica's load by this share: each move costs a stall."""


Share = dict[int, tuple[int, int] | None]
"""Partitions of a replica; of those that another is to let go first: term and sequence of what takes it away."""


@dataclass(frozen=True, slots=True)
class SeenReplica:
    """A replica as its newest report tells."""

    replica: str
    stage: str
    hardware: str
    phase: ReplicaPhase
    applied: int
    """Sequence of the last assignment that it has applied."""
    held: frozenset[int]
    """Partitions not yet released."""
    working: frozenset[int] = frozenset()
    """Those of them that it has taken up."""


@dataclass(frozen=True, slots=True)
class StageWanted:
    """What a stage's partitions are dealt by.

    Args:
        partition_rates: records per second of each partition; equal values where nothing is known.
        throughputs: µ of one replica by hardware kind, at its batch limit.
        max_batch_sizes: batch limit by hardware kind.
        max_wait_s: longest wait for a fuller batch.
        rebalance: look for a better balance even though no replica came or went.
    """

    partition_rates: tuple[float, ...]
    throughputs: Mapping[str, float]
    max_batch_sizes: Mapping[str, int]
    max_wait_s: float = 0.0
    rebalance: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """The last assignment written for a replica, and every partition that it may still be working on.

    Args:
        assignment: as written.
        may_hold: its partitions, and those taken away of which the replica has not yet reported the release.
        taken: of the latter, term and sequence of the assignment that took them away, where that is known.
    """

    assignment: Assignment
    may_hold: frozenset[int]
    taken: Mapping[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assigning:
    """Memory of the step.

    Args:
        term: of the controller that writes.
        sequence: of the newest assignment written, in any term.
        told: by replica; those that have ended are missing.
        owners: partition → replica that shall hold it, by stage.
        members: replicas, with their throughput, that `owners` was dealt to, by stage.
    """

    term: int
    sequence: int = 0
    told: Mapping[str, Told] = field(default_factory=dict)
    owners: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    members: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Deal:
    """What to write now, in one transaction and in this order.

    Args:
        assignments: new or changed.
        forgotten: replicas that have ended; their record in the compacted topic can go.
    """

    assignments: tuple[Assignment, ...] = ()
    forgotten: tuple[str, ...] = ()


def recovered(term: int, assignments: Iterable[Assignment], partitions: Mapping[str, int]) -> Assigning:
    """Memory of a new term, from the newest assignment of each replica.

    Compaction may have dropped a grant that its replica has not yet released, so a replica may hold
    any partition of its stage until it reports the newest sequence as applied; unless its lease had run out.
    """
    told = {
        a.replica: Told(a, frozenset() if a.lapsed else frozenset(range(partitions.get(a.stage, 0))))
        for a in assignments
    }
    owners: dict[str, dict[int, str]] = {}
    for entry in told.values():
        for partition in entry.assignment.partitions:
            owners.setdefault(entry.assignment.stage, {})[partition] = entry.assignment.replica
    return Assigning(term, max((t.assignment.sequence for t in told.values()), default=0), told, owners)


def step(
    state: Assigning,
    replicas: Mapping[str, SeenReplica],
    wanted: Mapping[str, StageWanted],
    *,
    ended: frozenset[str] = frozenset(),
    silent: frozenset[str] = frozenset(),
    draining: frozenset[str] = frozenset(),
    aside: frozenset[str] = frozenset(),
    patient: bool = False,
) -> tuple[Assigning, Deal]:
    """Deal every stage's partitions to its ready replicas.

    A partition is granted when no other replica may still hold it: the other has reported the assignment
    that took it away as applied and the partition as released, or has ended, or has been silent for longer
    than its lease. Where one other may hold it, and it is known which assignment takes it away, it is granted
    for when that one is committed as followed. A replica whose lease ran out while nobody called it silent
    drops everything; it is told the same once more, under a new number.

    Args:
        state: what was told before.
        replicas: newest report of each replica.
        wanted: by stage.
        ended: replicas whose process is gone.
        silent: replicas whose lease has run out. One that speaks again stays silent to us: it is told to leave.
        draining: replicas that are to release everything and leave.
        aside: replicas that hold nothing while they stand by.
        patient: reports are coming in: a replica that waits for what another has just let go will find that out.
    """
    dealing = _Dealing(state, replicas, _still_held(state.told, replicas, ended, silent))
    # A silent one may only be stopped for a while: when it wakes, it reads this before anything else.
    for replica in sorted(silent - ended):
        if replica in dealing.told or replica in replicas:
            its_stage = replicas[replica].stage if replica in replicas else dealing.told[replica].assignment.stage
            dealing.tell(replica, its_stage, {}, 1, 0.0, leave=True, heirs={}, lapsed=True)

    owners, members = dict(state.owners), dict(state.members)
    present: dict[str, list[SeenReplica]] = {name: [] for name in wanted}
    for seen in replicas.values():
        if seen.stage in present and seen.replica not in ended and seen.replica not in silent:
            present[seen.stage].append(seen)
    patient = patient and not any(state.told[r].may_hold for r in (ended | silent) & state.told.keys())
    holders = _holders(dealing.told)
    for name, stage in wanted.items():
        staying = {
            r.replica: stage.throughputs[r.hardware]
            for r in present[name]
            if r.phase == "ready" and r.replica not in draining and r.replica not in aside
        }
        held_by = {p: holders.get((name, p), frozenset()) for p in range(len(stage.partition_rates))}
        settling = frozenset(
            p for p, owner in owners.get(name, {}).items() if held_by[p] > {owner} and p in _asked(dealing.told, owner)
        )
        owners[name] = _owners(state, name, stage, staying, settling)
        if not settling:  # else there may be more to deal once they have arrived
            members[name] = staying
        addressed = [
            r for r in present[name] if r.phase == "ready" or (r.phase == "starting" and r.replica in draining)
        ]
        # Whoever loses a partition is told so in any case: the next owner waits for that very assignment.
        heirs = {seen.replica: dealing.take(seen.replica, owners[name], held_by) for seen in addressed}
        for seen in addressed:
            own = [p for p in sorted(owners[name]) if owners[name][p] == seen.replica]
            others = {p: held_by[p] - {seen.replica} for p in own}
            share = _share(seen, own, dealing.told, others, patient=patient)
            batch, leave = stage.max_batch_sizes[seen.hardware], seen.replica in draining
            dealing.tell(seen.replica, name, share, batch, stage.max_wait_s, leave=leave, heirs=heirs[seen.replica])
    changed = sorted(dealing.changed, key=lambda assignment: assignment.sequence)
    forgotten = tuple(replica for replica in state.told if replica in ended)
    return Assigning(state.term, dealing.sequence, dealing.told, owners, members), Deal(tuple(changed), forgotten)


class _Dealing:
    """What is told within one step.

    Args:
        state: what was told before.
        replicas: newest report of each replica.
        told: of the former, what still counts; kept up to date here.
    """

    def __init__(self, state: Assigning, replicas: Mapping[str, SeenReplica], told: dict[str, Told]) -> None:
        self.told = told
        self.sequence = state.sequence
        self.changed: list[Assignment] = []
        self._term = state.term
        self._replicas = replicas
        self._reserved: dict[str, int] = {}

    def take(self, replica: str, owners: Mapping[int, str], held_by: Mapping[int, frozenset[str]]) -> dict[int, str]:
        """Take from a replica what is no longer to be its own, by the assignment that it will be told next.

        Returns:
            By partition, the heir of those that nobody else may hold.
        """
        before = self.told.get(replica)
        lost = [p for p in before.assignment.partitions if owners.get(p) != replica] if before else []
        if before is None or not lost:
            return {}
        self.sequence += 1
        self._reserved[replica] = self.sequence
        taken = dict.fromkeys(lost, (self._term, self.sequence))
        self.told[replica] = replace(before, taken={**before.taken, **taken})
        return {p: owners[p] for p in lost if p in owners and held_by[p] == {replica}}

    def tell(
        self,
        replica: str,
        stage: str,
        share: Share,
        batch: int,
        wait_s: float,
        *,
        leave: bool,
        heirs: dict[int, str],
        lapsed: bool = False,
    ) -> None:
        """Write an assignment down, unless the replica has been told the same."""
        before = self.told.get(replica)
        awaits = {partition: taken for partition, taken in share.items() if taken is not None}
        now = Assignment(replica, stage, self._term, 0, tuple(share), batch, wait_s, leave, awaits, heirs, lapsed)
        if before is None and not share and not leave:
            return
        if before is not None and _same(before.assignment, now) and not _dropped(before, self._replicas.get(replica)):
            return
        now = msgspec.structs.replace(now, sequence=self._number(replica))
        self.changed.append(now)
        old = before or Told(now, frozenset())
        self.told[replica] = _told(now, old.may_hold | share.keys(), old.taken)

    def _number(self, replica: str) -> int:
        """Of the replica's next assignment."""
        if replica in self._reserved:
            return self._reserved.pop(replica)
        self.sequence += 1
        return self.sequence


def _share(
    seen: SeenReplica,
    own: Iterable[int],
    told: Mapping[str, Told],
    others: Mapping[int, frozenset[str]],
    *,
    patient: bool,
) -> Share:
    """Of the partitions that are to be a replica's, those that it can be told of now."""
    share: Share = {}
    before = told.get(seen.replica)
    for partition in own:
        if before is not None and partition in before.assignment.partitions:
            awaited = before.assignment.awaits.get(partition)
            share[partition] = awaited if patient or others[partition] or partition in seen.working else None
        elif not others[partition]:
            share[partition] = None
        elif len(others[partition]) == 1:
            (other,) = others[partition]
            if (taken := told[other].taken.get(partition)) is not None:
                share[partition] = taken
    return share


def _asked(told: Mapping[str, Told], replica: str) -> tuple[int, ...]:
    return told[replica].assignment.partitions if replica in told else ()


def _told(assignment: Assignment, may_hold: frozenset[int], taken: Mapping[int, tuple[int, int]]) -> Told:
    left = may_hold.difference(assignment.partitions)
    return Told(assignment, may_hold, {p: by for p, by in taken.items() if p in left})


def _same(before: Assignment, now: Assignment) -> bool:
    """Whether they ask the same of the replica, whatever their term and number."""
    return all(
        getattr(before, name) == getattr(now, name)
        for name in ("partitions", "awaits", "max_batch_size", "max_wait_s", "drain", "lapsed")
    )


def _dropped(told: Told, seen: SeenReplica | None) -> bool:
    """Whether the replica has lost what it was told to hold: what is applied is held, until a lease runs out."""
    return (
        seen is not None
        and seen.applied >= told.assignment.sequence
        and bool(told.assignment.partitions)
        and not seen.held
    )


def _still_held(
    told: Mapping[str, Told], replicas: Mapping[str, SeenReplica], ended: frozenset[str], silent: frozenset[str]
) -> dict[str, Told]:
    """What each replica may still be working on, given its newest report."""
    now: dict[str, Told] = {}
    for replica, entry in told.items():
        if replica in ended:
            continue
        seen = replicas.get(replica)
        if replica in silent:
            now[replica] = Told(entry.assignment, frozenset())
        elif seen is not None and seen.applied >= entry.assignment.sequence:
            now[replica] = _told(entry.assignment, seen.held.union(entry.assignment.partitions), entry.taken)
        elif seen is not None and not seen.held <= entry.may_hold:
            now[replica] = _told(entry.assignment, entry.may_hold | seen.held, entry.taken)
        else:
            now[replica] = entry
    return now


def _holders(told: Mapping[str, Told]) -> dict[tuple[str, int], frozenset[str]]:
    """(stage, partition) → replicas that may be working on it."""
    holders: dict[tuple[str, int], frozenset[str]] = {}
    for replica, entry in told.items():
        for partition in entry.may_hold:
            key = (entry.assignment.stage, partition)
            holders[key] = holders.get(key, frozenset()) | {replica}
    return holders


def _owners(
    state: Assigning, name: str, stage: StageWanted, staying: Mapping[str, float], settling: frozenset[int]
) -> Mapping[int, str]:
    """Dealt anew when a replica came, went or changed its throughput; for load alone only where that pays.

    A partition that is on the move stays with its next owner until it has arrived.
    """
    current = state.owners.get(name, {})
    complete = len(current) == len(stage.partition_rates) and staying.keys() >= set(current.values())
    unchanged = complete and dict(state.members.get(name, staying)) == dict(staying)
    if unchanged and not stage.rebalance:
        return current
    better = assign(stage.partition_rates, staying, current, settling)
    if unchanged and better != current:
        before = _largest_load(current, stage.partition_rates, staying)
        if _largest_load(better, stage.partition_rates, staying) > before * (1 - REBALANCE_GAIN):
            return current
    return better


def _largest_load(owners: Mapping[int, str], rates: Sequence[float], throughputs: Mapping[str, float]) -> float:
    load = dict.fromkeys(throughputs, 0.0)
    for partition, replica in owners.items():
        load[replica] += rates[partition] / throughputs[replica]
    return max(load.values(), default=0.0)
