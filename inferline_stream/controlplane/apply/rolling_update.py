"""From the replicas that a stage has to those that it should have: added, taken away, replaced one after another. Pure.

A replica is replaced because its hardware kind is no longer wanted or because it runs older code. The new one is READY
before the old one is asked to leave, so that supply never falls below what is wanted by replacing; only where there is
no place for both does the old one stop first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from inferline_stream.pipeline.replica_slots import leaving_order

_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class StageReplica:
    """One replica of a stage that has not been asked to leave.

    Args:
        replica: its name.
        hardware: the kind that it runs on.
        started_s: when it was started.
        ready: whether it works, or could.
        fresh: whether it may stay: it runs the newest code, and its successor is wanted in no empty slot.
        waiting: whether it has died and waits for its restart.
        slot: whose dispatcher it serves; None while that is not known.
    """

    replica: str
    hardware: str
    started_s: float
    ready: bool = True
    fresh: bool = True
    waiting: bool = False
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What to ask of the actuator now.

    Args:
        leaving: replicas that leave.
        counts: replicas, those that stay, by hardware kind.
    """

    leaving: tuple[str, ...]
    counts: Mapping[str, int]


def next_change(
    wanted: Mapping[str, int],
    members: Sequence[StageReplica],
    throughputs: Mapping[str, float],
    *,
    room: Mapping[str, int] | None = None,
    rivals: Mapping[str, Collection[str]] | None = None,
    freeing: Collection[str] = (),
) -> Change:
    """The next step towards the replicas wanted.

    Where nothing has to be replaced, all that is missing is added at once, and what is too much leaves at once. Else
    there is one replica more than wanted: one of the surplus leaves as soon as the replicas that are READY without
    it give what all those wanted would. Where the stock of a kind has no room for one more, an old one leaves first;
    the stage's last one only if no other stage is about to leave such a place.

    Args:
        wanted: replicas by hardware kind, standbys included; kinds left out are not wanted.
        members: that have not been asked to leave.
        throughputs: µ of one replica by hardware kind, of every kind wanted or held.
        room: replicas that the stock of a kind has room for beyond all that exist; a kind left out has any.
        rivals: kinds that take the same places as a kind, itself included; by default no other.
        freeing: kinds of which a replica is leaving, of any stage.
    """
    fresh = {m.replica: m for m in members if m.fresh and wanted.get(m.hardware, 0) > 0}
    surplus = {m.replica: m for m in members if m.replica not in fresh}
    for kind, count in wanted.items():
        own = [m for m in fresh.values() if m.hardware == kind]
        if len(own) > count:
            there = [m for m in members if m.replica not in surplus]
            surplus |= {m.replica: m for m in _order(own, there)[: len(own) - count]}
    staying = [m for m in fresh.values() if m.replica not in surplus]
    missing = {kind: count - sum(m.hardware == kind for m in staying) for kind, count in wanted.items()}
    at_once = sum(missing.values())
    if surplus:
        at_once = max(sum(wanted.values()) + 1 - len(members), 0 if any(not m.ready for m in staying) else 1)
    started: dict[str, int] = {}
    leaving: list[str] = []
    for kind in sorted(missing, key=lambda k: -throughputs[k]):
        start = min(missing[kind], at_once)
        free = start if room is None else min(start, max(0, room.get(kind, start)))
        started[kind] = free
        at_once -= free
        if start > free == 0:
            leaving += _make_room((rivals or {}).get(kind, (kind,)), surplus.values(), members, freeing)
    needed = sum(count * throughputs[kind] for kind, count in wanted.items())
    there = [m for m in members if m.replica not in leaving]
    left = _order([m for m in there if m.replica in surplus], there)
    leaving += _made_up_for(left, staying, needed, throughputs)
    kinds, gone = dict.fromkeys([*wanted, *(m.hardware for m in members)]), set(leaving)
    held = Counter(m.hardware for m in members if m.replica not in gone)
    return Change(tuple(leaving), {kind: held[kind] + started.get(kind, 0) for kind in kinds})


def _order(members: Sequence[StageReplica], there: Sequence[StageReplica]) -> list[StageReplica]:
    """Who leaves first: places without a process, then the youngest, which get the least work.

    A slot's last one stays while another slot has two.
    """
    by_age = sorted(members, key=lambda m: (not m.waiting, -m.started_s))
    return leaving_order(by_age, lambda m: m.slot, there)


def _made_up_for(
    surplus: Sequence[StageReplica], staying: Sequence[StageReplica], needed: float, throughputs: Mapping[str, float]
) -> list[str]:
    """Those of the surplus that give nothing, and those without whom the READY ones give what is needed."""
    supply = sum(throughputs[m.hardware] for m in (*surplus, *staying) if m.ready)
    gone: list[str] = []
    for m in sorted(surplus, key=lambda m: m.ready):  # otherwise in the order given
        if not m.ready and (staying or not needed or len(surplus) > len(gone) + 1):
            gone.append(m.replica)
        elif m.ready and supply - throughputs[m.hardware] >= needed * (1 - _EPSILON):
            gone.append(m.replica)
            supply -= throughputs[m.hardware]
    return gone


def _make_room(
    kinds: Collection[str], surplus: Iterable[StageReplica], members: Sequence[StageReplica], freeing: Collection[str]
) -> list[str]:
    """An old replica in whose place a new one can go; the last one that works only if nobody else makes room."""
    own = [m for m in surplus if m.hardware in kinds]
    if not own or (sum(m.ready for m in members) < 2 and any(kind in freeing for kind in kinds)):
        return []
    return [min(own, key=lambda m: (m.ready, m.started_s)).replica]
