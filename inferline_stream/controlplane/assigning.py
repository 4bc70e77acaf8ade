"""Who holds which partition, as one pure step: revoke first, grant once nobody else may still hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from inferline_stream.dataplane.protocol import Assignment, ReplicaPhase
from inferline_stream.pipeline.assignment import assign

REBALANCE_GAIN = 0.2
"""A rebalance for load alone must lower the most loaded replica's load by this share: each move costs a stall."""


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
    """The last assignment written for a replica, and every partition that it may still be working on."""

    assignment: Assignment
    may_hold: frozenset[int]


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
    any partition of its stage until it reports the newest sequence as applied.
    """
    told = {a.replica: Told(a, frozenset(range(partitions.get(a.stage, 0)))) for a in assignments}
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
) -> tuple[Assigning, Deal]:
    """Deal every stage's partitions to its ready replicas.

    A partition is granted only when no other replica may still hold it: the other has reported the
    assignment that took it away as applied and the partition as released, or has ended, or has been
    silent for longer than its lease. A replica whose lease ran out while nobody called it silent drops
    everything; it is told the same once more, under a new number.

    Args:
        state: what was told before.
        replicas: newest report of each replica.
        wanted: by stage.
        ended: replicas whose process is gone.
        silent: replicas whose lease has run out. One that speaks again stays silent to us: it is told to leave.
        draining: replicas that are to release everything and leave.
    """
    told = _still_held(state.told, replicas, ended, silent)
    sequence = state.sequence
    changed: list[Assignment] = []

    def tell(replica: str, stage: str, partitions: Iterable[int], batch: int, wait_s: float, *, leave: bool) -> None:
        nonlocal sequence
        before = told.get(replica)
        now = Assignment(replica, stage, state.term, sequence + 1, tuple(partitions), batch, wait_s, drain=leave)
        if before is None and not partitions and not leave:
            return
        if before is not None and _same(before.assignment, now) and not _dropped(before, replicas.get(replica)):
            return
        sequence += 1
        changed.append(now)
        told[replica] = Told(now, (before.may_hold if before else frozenset()) | frozenset(now.partitions))

    # A silent one may only be stopped for a while: when it wakes, it reads this before anything else.
    for replica in sorted(silent - ended):
        if replica in told or replica in replicas:
            its_stage = replicas[replica].stage if replica in replicas else told[replica].assignment.stage
            tell(replica, its_stage, (), 1, 0.0, leave=True)

    owners, members = dict(state.owners), dict(state.members)
    present: dict[str, list[SeenReplica]] = {name: [] for name in wanted}
    for seen in replicas.values():
        if seen.stage in present and seen.replica not in ended and seen.replica not in silent:
            present[seen.stage].append(seen)
    holders = _holders(told)
    for name, stage in wanted.items():
        staying = {
            r.replica: stage.throughputs[r.hardware]
            for r in present[name]
            if r.phase == "ready" and r.replica not in draining
        }
        owners[name] = _owners(state, name, stage, staying)
        members[name] = staying
        shares: dict[str, list[int]] = {replica: [] for replica in staying}
        for partition in sorted(owners[name]):
            owner = owners[name][partition]
            if not holders.get((name, partition), frozenset()) - {owner}:
                shares[owner].append(partition)
        for seen in present[name]:
            leave = seen.replica in draining
            if seen.phase in ("starting", "ready") and (leave or seen.phase == "ready"):
                batch = stage.max_batch_sizes[seen.hardware]
                tell(seen.replica, name, shares.get(seen.replica, ()), batch, stage.max_wait_s, leave=leave)
    forgotten = tuple(replica for replica in state.told if replica in ended)
    return Assigning(state.term, sequence, told, owners, members), Deal(tuple(changed), forgotten)


def _same(before: Assignment, now: Assignment) -> bool:
    """Whether they ask the same of the replica, whatever their term and number."""
    return (before.partitions, before.max_batch_size, before.max_wait_s, before.drain) == (
        now.partitions,
        now.max_batch_size,
        now.max_wait_s,
        now.drain,
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
            now[replica] = Told(entry.assignment, seen.held | frozenset(entry.assignment.partitions))
        elif seen is not None and not seen.held <= entry.may_hold:
            now[replica] = Told(entry.assignment, entry.may_hold | seen.held)
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


def _owners(state: Assigning, name: str, stage: StageWanted, staying: Mapping[str, float]) -> Mapping[int, str]:
    """Dealt anew when a replica came, went or changed its throughput; for load alone only where that pays."""
    current = state.owners.get(name, {})
    complete = len(current) == len(stage.partition_rates) and staying.keys() >= set(current.values())
    unchanged = complete and dict(state.members.get(name, staying)) == dict(staying)
    if unchanged and not stage.rebalance:
        return current
    better = assign(stage.partition_rates, staying, current)
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
