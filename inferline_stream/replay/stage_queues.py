"""One stage under control: its queues, replicas that come and go, and what can be counted of it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from inferline_stream.estimator.general_pool import GeneralPool, lanes_of
from inferline_stream.estimator.kernels import Flags, Floats, FloatTable, Ints, Tokens
from inferline_stream.estimator.shared_pool import moved
from inferline_stream.estimator.stage_pools import dealt, together
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload

_ROOM = 1 << 16

ALWAYS = np.empty((0, 2))
"""R where it never changes."""


class Horizon(NamedTuple):
    """Up to where the queues of all stages are served at once.

    Args:
        until_s: the end.
        looks_s: instants in between at which `StageQueues.seen` is counted.
        instants_s: these, those at which R changes, and the end, ascending.
        looked: which of them are looks.
    """

    until_s: float
    looks_s: Floats
    instants_s: Floats
    looked: slice | Ints

    @classmethod
    def of(cls, until_s: float, looks_s: Floats) -> Horizon:
        """One in which R does not change."""
        return cls(until_s, looks_s, np.append(looks_s, until_s), slice(looks_s.size))


class StageQueues:
    """The queues of a stage's slots, without any replica at first.

    Args:
        workload: events and their paths.
        stage: position in the shape.
        station: how a replica of each kind serves; of a consumer group with the partitions of its topic.
        slots: of the stage; of a group as many as it has partitions.
        code: the kernels.
        watched: whether anybody looks.
    """

    def __init__(
        self, workload: Workload, stage: int, station: Station, slots: int, code: Any, *, watched: bool = True
    ) -> None:
        events, lanes = len(workload), lanes_of(workload, stage, station)
        self.seen: list[FloatTable] = []
        """By `advance`, and look: records that came, that left, when the oldest there was sent (NaN without one), Σ of
        the service times of the batches begun, the same as the profile has it, hopeless records that wait and are
        no demand, and records that went to the fallback."""
        self._hop_s, self._sent_s = workload.hop_s, lanes.sent_s
        pools = slots + 1 if station.partitions else slots  # the last one holds what nobody owns
        self._pools = [GeneralPool(workload, stage, station, lanes, code, staffed=False) for _ in range(pools)]
        self._partition_of = workload.partition_of(stage, slots, code=code)
        self._owner, self._nobody = np.arange(slots), slots
        # Until when each slot of a group serves; those without a member have nothing to be asked for.
        self._serves_until_s = np.full(pools, -math.inf if station.partitions else math.inf)
        self._staffed = np.zeros(pools, np.int64)
        self._every = list(range(pools))
        self._next_owner, self._moves_s, self._moves = self._owner, np.full(slots, math.inf), False
        self._served_s, self._partitioned = -math.inf, bool(station.partitions)
        self._inside, self._watched = 0, watched
        room = _ROOM if watched else 0
        self._arrived = Tokens(np.empty(room), np.empty(room, np.int32))
        self._left = np.zeros(events if watched else 0, np.uint8)
        self._marks = np.zeros(5, np.int64)
        self._spent = np.zeros(4)
        """At the end of the last call, what `seen` has of it."""
        self._look, self._note_stays = code.look, code.note_stays

    def advance(self, sent: Tokens, horizon: Horizon, rests_s: FloatTable = ALWAYS) -> Tokens:
        """Departures before the horizon.

        Args:
            sent: records sent to the stage before then, and after the last call.
            horizon: not before the last call's.
            rests_s: R and R' - R until each of its instants.
        """
        self._inside += sent.times.size
        if sent.times.size:
            self._receive(sent)
        seen = np.empty((horizon.looks_s.size, 7))
        gone = self._serve(horizon, seen, rests_s)
        self._inside -= gone.times.size
        if self._watched:
            self._note(sent)
            self._look(self._arrived, gone, self._left, self._marks, (horizon.looks_s, seen))
            self.seen.append(seen)
        return gone

    @property
    def holds(self) -> bool:
        """Whether records wait here, or are served."""
        return self._inside > 0

    def rest(self, looks_s: Floats) -> None:
        """Go on to a later instant without records: at these instants in between it is what it was."""
        if not self._watched:
            return
        here = np.array([self._marks[2], self._marks[2], math.nan, *self._spent])
        self.seen.append(np.tile(here, (looks_s.size, 1)))

    def _note(self, sent: Tokens) -> None:
        """Keep what came until it has left."""
        known, first, room = int(self._marks[0]), int(self._marks[3]), self._arrived.times.size
        end = known + sent.times.size
        if end > room:
            room = max(room, 2 * (end - first))
            self._arrived = Tokens(*(moved(array, first, known - first, room) for array in self._arrived))
            self._marks += (-first, -first, 0, -first, first)
            known, end = known - first, end - first
        self._arrived.times[known:end], self._arrived.events[known:end] = sent.times, sent.events
        self._marks[0] = end

    def _serve(self, horizon: Horizon, seen: FloatTable, rests_s: FloatTable) -> Tokens:
        """Departures before the horizon; what was spent is written behind what is seen."""
        until_s, looks_s, instants_s, looked = horizon
        move_s = float(self._moves_s.min()) if self._moves else math.inf
        if move_s < until_s:
            first = int(np.searchsorted(looks_s, move_s, side="right"))
            before = self._serve(Horizon.of(move_s, looks_s[:first]), seen[:first], ALWAYS)
            before = Tokens(before.times.copy(), before.events.copy())
            self._move(move_s)
            after = self._serve(Horizon.of(until_s, looks_s[first:]), seen[first:], ALWAYS)
            return Tokens(np.concatenate([before.times, after.times]), np.concatenate([before.events, after.events]))
        serving = self._every
        if self._partitioned:
            serving = np.flatnonzero(self._serves_until_s >= self._served_s).tolist()
        self._served_s = until_s
        spent_s = np.zeros((len(serving), instants_s.size, 4))
        gone = [
            self._pools[slot].advance_in_turn(instants_s, own, rests_s)
            for slot, own in zip(serving, spent_s, strict=True)
        ]
        if self._watched:
            spent_s = spent_s[0] if len(gone) == 1 else spent_s.sum(axis=0)
            seen[:, 3:], self._spent = spent_s[looked], spent_s[-1]
        return together(gone) if gone else Tokens(np.empty(0), np.empty(0, np.int32))

    def add(self, slot: int, kind: int, now_s: float) -> None:
        """A replica that is ready now."""
        self._pools[slot].add(kind, now_s)
        self._serves_until_s[slot] = math.inf
        self._staffed[slot] += 1

    def leave(self, slot: int, kind: int, now_s: float) -> float:
        """A replica of this kind takes no further batch. Returns when it is done, and gone."""
        done_s = self._pools[slot].leave(kind, now_s)
        self._staffed[slot] -= 1
        if self._partitioned and not self._staffed[slot]:
            self._serves_until_s[slot] = self._pools[slot].ends_s(now_s)
        return done_s

    def note_stays(self, gone: Tokens, stay: Floats, until_s: Floats, found: FloatTable) -> None:
        """Note what hopeful departures took, see `general_queue.note_stays`."""
        events = gone.events
        fates = [pool.fate[events] for pool in self._pools]
        taken = fates[0] if len(fates) == 1 else np.max(fates, axis=0)
        self._note_stays(gone, taken, self._sent_s[events] + self._hop_s, stay, (until_s, found))

    @property
    def made(self) -> Flags:
        """By event, whether the fallback made its result; empty without a fallback."""
        made: Flags = np.max([pool.made for pool in self._pools], axis=0)
        return made

    def slow(self, factor: float) -> None:
        """Batches that begin from now on take so many times what they take as profiled."""
        for pool in self._pools:
            pool.slow(factor)

    def ends_s(self, now_s: float) -> Floats:
        """By slot, when the last batch in hand ends; now where there is none."""
        return np.array([pool.ends_s(now_s) for pool in self._pools[: self._nobody]])

    def deal(self, owner: Ints, from_s: Floats, now_s: float) -> None:
        """Give the partitions of a consumer group to slots, where keys do not count.

        Args:
            owner: by partition, the slot.
            from_s: by partition, from when on the slot serves it, with all that waits in it; until then nobody does.
            now_s: the present.
        """
        waits = from_s > now_s
        here = np.where(waits, self._nobody, owner)
        self._next_owner, self._moves_s = owner, np.where(waits, from_s, math.inf)
        self._moves = bool(waits.any())
        if (here != self._owner).any():
            self._take_over(here, now_s)

    def _move(self, now_s: float) -> None:
        due = self._moves_s <= now_s
        owner = np.where(due, self._next_owner, self._owner)
        self._moves_s[due] = math.inf
        self._moves = bool((self._moves_s < math.inf).any())
        self._take_over(owner, now_s)

    def _take_over(self, owner: Ints, now_s: float) -> None:
        self._owner = owner
        times, events = (np.concatenate(k) for k in zip(*(pool.withdraw(now_s) for pool in self._pools), strict=True))
        order = np.lexsort((events, times))
        self._receive(Tokens(times[order], events[order]))

    def _receive(self, sent: Tokens) -> None:
        if len(self._pools) == 1:
            self._pools[0].receive(sent)
            return
        slot_of = self._owner[self._partition_of[sent.events]]
        for pool, own in zip(self._pools, dealt(sent, slot_of, len(self._pools)), strict=True):
            if own.times.size:
                pool.receive(own)
