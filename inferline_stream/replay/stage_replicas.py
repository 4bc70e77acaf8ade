"""The replicas of one stage: asked for, ready, leaving, gone."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from inferline_stream.pipeline.replica_slots import ReplicaSlots, leaving_order
from inferline_stream.replay.plant import Plant

Counted = tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]
"""Ready and pending replicas by kind, most batches that the ready ones have in hand, those with a notice by kind."""


@dataclass(slots=True)
class Replica:
    """One replica. Times are None until they are known.

    Args:
        name: unique in the stage; order of names is order of preference.
        slot: that it is dealt to.
        kind: position among the stage's kinds.
        asked_s: when it was asked for: it costs from then on.
        ready_s: when it is ready.
        working: whether it is in the plant.
        left_s: when its last batch ends and it is gone.
    """

    name: str
    slot: int
    kind: int
    asked_s: float
    ready_s: float
    working: bool = False
    left_s: float | None = None


@dataclass(slots=True)
class StageReplicas:
    """One stage's replicas, dealt to slots as in a run: none is left empty while another one has two.

    Args:
        plant: where they work.
        stage: position of the stage.
        slots: of the stage.
        start_up_s: by kind.
        at_once: by kind, most batches that a replica has in hand.
        standby: kind and number of those that stay while none is wanted, and how long they take to work then.
    """

    plant: Plant
    stage: int
    slots: int
    start_up_s: tuple[float, ...]
    at_once: tuple[int, ...]
    standby: tuple[int, int, float] | None = None
    present: dict[str, Replica] = field(default_factory=dict)
    """Pending and ready ones, in order of their names."""
    gone: list[Replica] = field(default_factory=list)
    """Those that left or are leaving."""
    noticed: set[int] = field(default_factory=set)
    """Kinds whose replicas have got a notice: they work on until they are taken, whatever is wanted."""
    away_until_s: dict[int, float] = field(default_factory=dict)
    """Of kinds that were taken, when one that is asked for can start."""
    stood_by: list[tuple[float, float]] = field(default_factory=list)
    """From when until when each slept."""
    changes: int = 0
    """How often the number of replicas wanted was changed."""
    _coming: list[tuple[float, int, str]] = field(default_factory=list)
    """Heap of replicas that are starting: (when they are ready, order, name)."""
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _dealt: ReplicaSlots = field(default_factory=ReplicaSlots)
    """Those present."""
    _spared: dict[str, str] = field(default_factory=dict)
    """Replicas that leave a fuller slot once their successors, by which they stand here, are ready in an empty one."""
    _wanted: dict[int, int] = field(default_factory=dict)
    """By kind, as asked last."""
    _lost: dict[int, int] = field(default_factory=dict)
    """By kind that was taken, replicas that were still wanted then: until something else is."""
    _counted: Counted | None = None
    _stands_by_since_s: float | None = None

    def __post_init__(self) -> None:
        self._dealt.deal(range(self.slots))

    @property
    def next_s(self) -> float:
        """When a replica is ready next."""
        return self._coming[0][0] if self._coming else math.inf

    def counted(self) -> Counted:
        """What there is at present."""
        if self._counted is None:
            ready, pending = [0] * len(self.start_up_s), [0] * len(self.start_up_s)
            for replica in self.present.values():
                (ready if replica.working else pending)[replica.kind] += 1
            places = sum(count * at_once for count, at_once in zip(ready, self.at_once, strict=True))
            leaving = [n if kind in self.noticed else self._lost.get(kind, 0) for kind, n in enumerate(ready)]
            self._counted = tuple(ready), tuple(pending), places, tuple(leaving)
        return self._counted

    @property
    def held(self) -> int:
        """Pending and ready replicas of all kinds."""
        return len(self.present)

    def begin(self, wanted: Mapping[int, int]) -> None:
        """The replicas of the plan, ready before the first event."""
        self._wanted |= wanted
        for kind, count in wanted.items():
            for i in range(count):
                replica = self._new(f"{kind}-{i}", kind, 0.0, 0.0)
                replica.working = True
                self.plant.add(self.stage, replica.slot, kind)

    def want(self, wanted: Mapping[int, int]) -> None:
        """Ask for exactly this many replicas of each kind, from now on."""
        self._wanted |= wanted
        self._lost.clear()
        if self.standby is not None and not self.standby[2] and not any(self._wanted.values()):
            wanted = {**wanted, self.standby[0]: self.standby[1]}  # they work on
        self._stand_by()
        for kind, count in wanted.items():
            staying = [replica for replica in self.present.values() if replica.name not in self._spared.values()]
            held = [replica for replica in staying if replica.kind == kind]
            if kind in self.noticed:
                continue
            self.changes += count != len(held)
            for _ in range(count - len(held)):
                self._ask(kind)
            # Those not ready yet go first, then those that came last.
            last_first = sorted(held, key=lambda r: (not r.working, r.ready_s))[::-1]
            for replica in leaving_order(last_first, lambda r: r.slot, staying)[: max(0, len(held) - count)]:
                self._retire(replica)
        while (name := self._dealt.to_spare(self._spared.values())) is not None:
            self._spared[self._ask(self.present[name].kind)] = name
        self._counted = None

    def _stand_by(self) -> None:
        """Have the servers of those that stay sleep while none is wanted; they are the first to work again."""
        if self.standby is None or not self.standby[2]:
            return
        now_s, any_wanted = self.plant.now_s, any(self._wanted.values())
        if not any_wanted and self._stands_by_since_s is None:
            self._stands_by_since_s = now_s
        elif any_wanted and self._stands_by_since_s is not None:
            kind, count, ready_s = self.standby
            self.end_standby(now_s)
            for _ in range(min(count, self._wanted.get(kind, 0))):
                self._ask(kind, ready_s)

    def end_standby(self, now_s: float) -> None:
        """Nobody sleeps any more."""
        if self.standby is not None and self._stands_by_since_s is not None:
            self.stood_by += [(self._stands_by_since_s, now_s)] * self.standby[1]
            self._stands_by_since_s = None

    def notice(self, kind: int) -> None:
        """Every replica of a kind gets a notice; those that are not ready go at once."""
        self.noticed.add(kind)
        for replica in [r for r in self.present.values() if r.kind == kind and not r.working]:
            self._retire(replica)
        self._counted = None

    def take(self, kind: int, away_s: float) -> None:
        """Every replica of a kind is taken, and none can start for a while."""
        self.noticed.discard(kind)
        self._lost[kind] = self._wanted.get(kind, 0)
        self.away_until_s[kind] = self.plant.now_s + away_s
        for replica in [r for r in self.present.values() if r.kind == kind]:
            self._retire(replica)
        self._counted = None

    def happen(self) -> None:
        """Replicas that are ready now begin to work."""
        now_s = self.plant.now_s
        self._counted = None
        while self._coming and self._coming[0][0] <= now_s:
            _, _, name = heapq.heappop(self._coming)
            if name in self.present:
                self.present[name].working = True
                self.plant.add(self.stage, self.present[name].slot, self.present[name].kind)
                self._retire_spared(name)

    def _new(self, name: str, kind: int, asked_s: float, ready_s: float) -> Replica:
        slot = self._dealt.add(name, self._spared.values()).slot
        assert slot is not None
        self.present[name] = replica = Replica(name, slot, kind, asked_s, ready_s)
        return replica

    def _ask(self, kind: int, start_up_s: float | None = None) -> str:
        now_s = max(self.plant.now_s, self.away_until_s.get(kind, -math.inf))
        ready_s = now_s + (self.start_up_s[kind] if start_up_s is None else start_up_s)
        replica = self._new(f"{kind}-{next(self._order)}+", kind, now_s, ready_s)
        heapq.heappush(self._coming, (replica.ready_s, next(self._order), replica.name))
        return replica.name

    def _retire(self, replica: Replica) -> None:
        del self.present[replica.name]
        self._dealt.remove(replica.name)
        self.gone.append(replica)
        # A start that was begun is paid for.
        leaves = replica.working
        replica.left_s = self.plant.leave(self.stage, replica.slot, replica.kind) if leaves else replica.ready_s
        self._retire_spared(replica.name)

    def _retire_spared(self, successor: str) -> None:
        if (name := self._spared.pop(successor, None)) is not None:
            self._retire(self.present[name])
