"""The replicas of one stage: asked for, ready, leaving, gone; and which of them holds which partition."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from inferline_stream.pipeline.assignment import assign
from inferline_stream.replay.conditions import Conditions
from inferline_stream.replay.plant import Plant


@dataclass(slots=True)
class Replica:
    """One replica. Times are None until they are known.

    Args:
        name: unique in the stage; order of names is order of preference.
        kind: position among the stage's kinds.
        asked_s: when it was asked for: it costs from then on.
        ready_s: when it is ready.
        slot: in the plant.
        left_s: when its last batch ends and it is gone.
    """

    name: str
    kind: int
    asked_s: float
    ready_s: float
    slot: int | None = None
    left_s: float | None = None


@dataclass(slots=True)
class Crew:
    """One stage's replicas.

    Args:
        plant: where they work.
        stage: position of the stage.
        throughputs: µ of one replica by kind.
        start_up_s: by kind.
        conditions: delays.
    """

    plant: Plant
    stage: int
    throughputs: tuple[float, ...]
    start_up_s: tuple[float, ...]
    conditions: Conditions
    present: dict[str, Replica] = field(default_factory=dict)
    """Pending and ready ones, in order of their names."""
    gone: list[Replica] = field(default_factory=list)
    """Those that left or are leaving."""
    owners: dict[int, str] = field(default_factory=dict)
    """Partition → replica that holds it or is about to."""
    changes: int = 0
    """How often the number of replicas wanted was changed."""
    _coming: list[tuple[float, int, str, str]] = field(default_factory=list)
    """Heap of (time, order, what, replica or partition)."""
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _granted_s: dict[int, float] = field(default_factory=dict)
    """Partitions that nobody holds now: when they will be granted."""
    _leaving: dict[int, int] = field(default_factory=dict)
    """Shared queue: replicas by kind that leave once free."""
    _counted: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def next_s(self) -> float:
        """When something happens next."""
        return self._coming[0][0] if self._coming else math.inf

    def counted(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ready and pending replicas by kind."""
        if self._counted is None:
            ready, pending = [0] * len(self.throughputs), [0] * len(self.throughputs)
            for replica in self.present.values():
                (pending if replica.slot is None else ready)[replica.kind] += 1
            self._counted = tuple(ready), tuple(pending)
        return self._counted

    @property
    def held(self) -> int:
        """Pending and ready replicas of all kinds."""
        return len(self.present)

    def begin(self, wanted: Mapping[int, int]) -> None:
        """The replicas of the plan, ready and holding their partitions before the first event."""
        for kind, count in wanted.items():
            for i in range(count):
                replica = Replica(f"{kind}-{i}", kind, 0.0, 0.0, self.plant.add(self.stage, kind))
                self.present[replica.name] = replica
        if self._partitions is not None:
            self.owners = self._dealt()
            slots = {p: self.present[name].slot for p, name in self.owners.items()}
            self.plant.own(self.stage, slots)

    def want(self, wanted: Mapping[int, int]) -> None:
        """Ask for exactly this many replicas of each kind, from now on."""
        now_s = self.plant.now_s
        changed = left = False
        for kind, count in wanted.items():
            held = [replica for replica in self.present.values() if replica.kind == kind]
            for _ in range(count - len(held)):
                start_up_s = self.start_up_s[kind]
                replica = Replica(f"{kind}-{next(self._order)}+", kind, now_s, now_s + start_up_s)
                self.present[replica.name] = replica
                self._push(replica.ready_s, "ready", replica.name)
                changed = True
            # Those not ready yet go first, then those that came last.
            for replica in sorted(held, key=lambda r: (r.slot is None, r.ready_s))[count:]:
                del self.present[replica.name]
                self.gone.append(replica)
                changed = True
                if replica.slot is None:
                    replica.left_s = now_s
                else:
                    left = True
                    self._leave(replica)
        self.changes += changed
        self._counted = None
        if left:
            self._deal()

    def happen(self) -> None:
        """Everything that is due now."""
        now_s = self.plant.now_s
        dealt = False
        self._counted = None
        while self._coming and self._coming[0][0] <= now_s:
            _, _, what, name = heapq.heappop(self._coming)
            if what == "ready" and name in self.present:
                replica = self.present[name]
                replica.slot = self.plant.add(self.stage, replica.kind)
                dealt = True
            elif what == "left":
                self._left(name)
            elif what == "grant":
                self._grant()
        if dealt:
            self._deal()

    @property
    def _partitions(self) -> int | None:
        return self.plant.stages[self.stage].partitions

    def _push(self, time_s: float, what: str, name: str) -> None:
        heapq.heappush(self._coming, (time_s, next(self._order), what, name))

    def _leave(self, replica: Replica) -> None:
        """It takes no further batch and is gone once the one in flight has ended."""
        assert replica.slot is not None
        if self._partitions is None:
            replica.left_s = self.plant.first_free_s(self.stage, replica.kind, self._leaving.get(replica.kind, 0))
            self._leaving[replica.kind] = self._leaving.get(replica.kind, 0) + 1
            self._push(replica.left_s, "left", str(replica.kind))
        else:
            replica.left_s = self.plant.busy_until_s(self.stage, replica.slot)
            self._push(replica.left_s, "left", str(replica.slot))

    def _left(self, name: str) -> None:
        if self._partitions is None:
            self._leaving[int(name)] -= 1
            self.plant.remove_first(self.stage, int(name))
        else:
            self.plant.forget(self.stage, int(name))

    def _dealt(self) -> dict[int, str]:
        """Owners by the function that the control plane deals by."""
        assert self._partitions is not None
        ready = {r.name: self.throughputs[r.kind] for r in self.present.values() if r.slot is not None}
        return assign([1 / self._partitions] * self._partitions, ready, self.owners)

    def _deal(self) -> None:
        """Move partitions so that the replicas that are there share them."""
        if self._partitions is None:
            return
        before, self.owners = self.owners, self._dealt()
        now_s = self.plant.now_s
        stall_s = self.conditions.stop_the_world_s
        moved = [p for p in range(self._partitions) if stall_s > 0 or before.get(p) != self.owners.get(p)]
        for partition in moved:
            slot = self.plant.owner(self.stage, partition)
            free_s = now_s if slot is None else self.plant.busy_until_s(self.stage, slot)
            due_s = max(free_s + self.conditions.handover_s, now_s + stall_s)
            if partition in self._granted_s:  # already on its way: only its destination is another
                due_s = max(self._granted_s[partition], now_s + stall_s)
            self._granted_s[partition] = due_s
            self._push(due_s, "grant", "")
        if moved:
            self.plant.own(self.stage, dict.fromkeys(moved))

    def _grant(self) -> None:
        """Partitions whose release is done, to whom they belong by now."""
        due = [p for p, due_s in self._granted_s.items() if due_s <= self.plant.now_s]
        for partition in due:
            del self._granted_s[partition]
        owned = {p: self.present[self.owners[p]].slot for p in due if p in self.owners}
        if owned:
            self.plant.own(self.stage, owned)
