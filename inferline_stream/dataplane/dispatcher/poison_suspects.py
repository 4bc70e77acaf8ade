"""Which event of a lost batch is to blame, found by running the suspects one by one.

A batch is lost when its replica dies, hangs to its hard deadline, breaks the contract, runs out of memory, or fails on
a sample after it has failed on the whole batch. `replica_trust` says which replicas are tested, and holds the back-off.

| what was lost                        | then                                                              |
|--------------------------------------|-------------------------------------------------------------------|
| several events, memory               | they run again as normal batches of half the size                 |
| several events, anything else        | each is a suspect                                                 |
| several batches in hand together     | each event is a suspect, with those of its own batch              |
| one event, its first kill            | it is a suspect and runs again on the next replica                |
| one event, its second kill           | condemned, if the replica had passed something before             |
| one event of a batch with a culprit  | condemned at its first kill, if the replica had passed something  |
| one event, the replica passed nothing, and it was the second kill or no sample is known | back-off             |
| one event, for which the device had no memory | it waits, longer each time, and nothing is held against it       |
| a sample                             | the replica, device or host is the suspect: back-off, kills start again at 0 |

So b events that all kill take b + 2 replicas, and a single culprit takes 3. A replica that has passed nothing since it
was attached runs a sample first where its death would condemn an event. Without a sample no event can be condemned.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.replica_trust import MAX_BACK_OFF_S, MIN_BACK_OFF_S, Suspicion
from inferline_stream.dataplane.frames import StageInput
from inferline_stream.pipeline.event_classes import class_of
from inferline_stream.pipeline.units import count_of

KILLS = 2
"""Replicas that an event must kill alone to be condemned; one where another event of its lost batch was."""

NOT_TAKEN_S = 2.0
"""How long a suspect waits that its server did not take: longer than a replica is held, so the queue has a turn."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A sample event that the stage is known to process; its result is dropped."""

    input: StageInput


@dataclass(frozen=True, slots=True)
class LostBatch:
    """What becomes of a lost batch. Events that it names nowhere are suspects now; their keys stay taken."""

    again: list[list[Event]] = field(default_factory=list)
    """To be put back into the queue, the last one first, and run in normal batches of at most `limit` events."""
    limit: int = 0
    """0 for none."""
    condemned: list[tuple[Event, str]] = field(default_factory=list)
    """To be dead-lettered, with the reason."""


@dataclass(slots=True, eq=False)
class _Case:
    """A lost batch."""

    convicted: bool = False
    """Whether one of its events was condemned."""


@dataclass(slots=True, eq=False)
class _Suspect:
    event: Event
    case: _Case
    dropped: bool = False
    denied: int = 0
    """How often no device had memory for it."""
    until_s: float = 0.0
    """When it is tried again after that."""


class Suspects:
    """Suspects in the order in which they run, on one replica at a time, while other replicas serve the queue.

    Ask `next` what the quarantined replica runs, then report `passed` or `lost`, `probe_passed` or `probe_killed`.

    Args:
        backgrounds: classes of background events.
    """

    def __init__(self, backgrounds: Container[int] = ()) -> None:
        self.suspicion = Suspicion()
        self._backgrounds = backgrounds
        self.sample: StageInput | None = None
        """An event that the stage is known to process, if there is one."""
        self._suspects: list[_Suspect] = []
        self._running: _Suspect | None = None
        self._probing = False
        self._fresh = False
        """Whether what runs now is the first thing that its replica runs."""
        self._yielded = True

    def __len__(self) -> int:
        return len(self._suspects)

    def learn(self, sample: StageInput | None) -> None:
        """Take an event of a profile as the sample, until a replica has processed another one here."""
        if self.sample is None:
            self.sample = sample

    def processed(self, sample: StageInput) -> None:
        """Take an event on which a replica has just succeeded as the sample."""
        self.sample = sample

    def lost(
        self, events: Sequence[Event], *, alone: bool, memory: bool, passed: bool, now_s: float, cause: str = ""
    ) -> LostBatch:
        """Return what becomes of a batch whose replica is gone.

        Args:
            events: of the batch, in its order.
            alone: whether `next` gave it.
            memory: whether memory ran out.
            passed: whether the replica had finished a batch or a probe since it was attached.
            now_s: by the clock of `next`.
            cause: how the replica ended, for the reason of a verdict.
        """
        if memory and len(events) > 1:
            limit = (len(events) + 1) // 2
            return LostBatch([list(events[:limit]), list(events[limit:])], limit)
        suspect = self._running if alone else None
        if suspect is not None:
            self._running = None
            if suspect.dropped:
                return LostBatch()
        elif len(events) == 1:
            (suspect,) = self._add_case(events)
        else:
            self.suspect([events], passed=passed, now_s=now_s)
            return LostBatch()
        event, case = suspect.event, suspect.case
        event.kills += 1
        if passed and (event.kills >= KILLS or case.convicted):
            self._suspects.remove(suspect)
            case.convicted = True
            return LostBatch(condemned=[(event, _verdict(event.kills, cause))])
        if not passed and (event.kills >= KILLS or self.sample is None or self.suspicion.holds(now_s)):
            unknown = "" if self.sample is not None else ", and no event is known that the stage processes"
            self._back_off(now_s, f"replicas end before they finish anything{unknown}")
        return LostBatch()

    def suspect(self, batches: Sequence[Sequence[Event]], *, passed: bool, now_s: float) -> None:
        """Suspect the events of batches that a replica had in hand together; none has killed anything yet.

        Args:
            batches: the events of each. A culprit in one says nothing of the events of another.
            passed: whether the replica had finished a batch or a probe since it was attached.
            now_s: by the clock of `next`.
        """
        for events in batches:
            self._add_case(events)
        if self.suspicion.holds(now_s) and not passed:
            self._back_off(now_s, "replicas end before they finish anything")

    def no_memory(self, event: Event, *, alone: bool, now_s: float) -> None:
        """Note that a replica's device had no memory for an event: whatever else has the memory may give it back.

        Args:
            event: the one that it had in hand.
            alone: whether `next` gave it.
            now_s: by the clock of `next`.
        """
        suspect = self._running if alone else None
        if suspect is None:
            (suspect,) = self._add_case([event])
        self._running = None if alone else self._running
        suspect.denied += 1
        suspect.until_s = now_s + min(MAX_BACK_OFF_S, MIN_BACK_OFF_S * 2.0 ** min(suspect.denied, 16))

    def not_taken(self, now_s: float) -> None:
        """Note that a server did not take what `next` gave: the queue has its turn before it is tried again."""
        suspect, self._running = self._running, None
        if suspect is not None and not suspect.dropped:
            suspect.until_s = now_s + NOT_TAKEN_S

    def again_s(self, replica_passed: bool, now_s: float) -> float:
        """Return when to ask `next` again that gives nothing now; not after the present where no time decides.

        Args:
            replica_passed: whether it has finished a batch or a probe since it was attached.
            now_s: by the clock of `next`.
        """
        waits = (suspect.until_s for suspect in self._suspects if suspect.until_s > now_s)
        due_s = 0.0 if self._due(now_s) else min(waits, default=0.0)
        return due_s if replica_passed else max(due_s, self.suspicion.blocked_until_s)

    @property
    def trouble(self) -> str:
        """What is wrong, in words; empty if nothing is."""
        denied = sum(suspect.denied > 0 for suspect in self._suspects)
        if not denied or self.suspicion.reason:
            return self.suspicion.reason
        return f"no device has memory for {denied} of its events, even one by one: they are tried again and again"

    def late(self, events: Sequence[Event]) -> LostBatch:
        """Return what becomes of a batch that passed its first deadline while other replicas serve.

        It runs again elsewhere. If it holds an event that was late before, its events are suspects instead, so that an
        event that hangs takes two replicas out of service at most.
        """
        if any(event.late for event in events):
            self._add_case(events)
            return LostBatch()
        for event in events:
            event.late = True
        return LostBatch([list(events)])

    def next(self, replica_passed: bool, now_s: float, *, yields: bool = False) -> Event | Probe | None:
        """Return what the quarantined replica runs now; None while it runs something, or should serve the queue.

        Args:
            replica_passed: whether it has finished a batch or a probe since it was attached.
            now_s: by a monotonic clock.
            yields: whether it is the only replica and the queue holds live events: they get every second turn while
                replicas are under suspicion, since no sample can be trusted for ever, and go before background ones.
        """
        due = self._due(now_s)
        if not due or self._running is not None or self._probing:
            return None
        if not replica_passed:
            if now_s < self.suspicion.blocked_until_s:
                return None
            if yields and not self._yielded:
                self._yielded = True
                return None
        first = due[0]
        if yields and class_of(first.event.partition) in self._backgrounds:
            return None
        self._fresh = not replica_passed
        if self._fresh and self.sample is not None:
            if self.suspicion.level or first.event.kills or first.case.convicted:
                self._probing = True
                return Probe(self.sample)
        elif self._fresh:
            first = self._least_suspected(due)
        self._running = first
        return first.event

    def passed(self, event: Event, *, success: bool = True) -> bool:
        """Note that what `next` gave has its outcome; return whether the event was a suspect, so that it counts.

        Args:
            event: what it gave.
            success: whether the event is one that the stage can process, too.
        """
        suspect, self._running = self._running, None
        if suspect is None or suspect.event is not event or suspect.dropped:
            return False
        self._suspects.remove(suspect)
        if success:
            self.sample = event.payload
        if self._fresh:
            self._trust()
        return True

    def probe_passed(self) -> None:
        """Note that a replica has processed the sample: it has passed."""
        self._probing = False
        self._trust()

    def probe_failed(self, now_s: float, how: str = "ended") -> str:
        """Note how a replica failed on the sample; return the reason for report and alert."""
        self._probing = False
        for suspect in self._suspects:
            suspect.event.kills = 0
            suspect.case.convicted = False
        self._back_off(now_s, f"a replica {how} on an event that the stage is known to process")
        return self.suspicion.reason

    def interrupted(self) -> None:
        """Note that what `next` gave came to no end, for no reason of its own: it runs again."""
        self._running, self._probing = None, False

    def drop(self, partition: int | None = None) -> list[Event]:
        """Remove and return the suspects of a partition, or all; what is running counts no more."""
        dropped = [each for each in self._suspects if partition is None or each.event.partition == partition]
        self._suspects = [each for each in self._suspects if each not in dropped]
        for each in dropped:
            each.dropped = True
        return [each.event for each in dropped]

    def _add_case(self, events: Sequence[Event]) -> list[_Suspect]:
        """Suspect the events of one lost batch, behind all others."""
        case = _Case()
        added = [_Suspect(event, case) for event in events]
        self._suspects += added
        return added

    def _due(self, now_s: float) -> list[_Suspect]:
        """Return suspects that may run now, live ones first; those behind a key's one that waits for memory may not."""
        waiting = {_lane(s.event) for s in self._suspects if s.until_s > now_s and s.event.key is not None}
        due = [s for s in self._suspects if s.until_s <= now_s and _lane(s.event) not in waiting]
        return sorted(due, key=lambda suspect: class_of(suspect.event.partition) in self._backgrounds)

    def _least_suspected(self, due: Sequence[_Suspect]) -> _Suspect:
        """Without a sample another suspect has to show what the stage processes, each key's events in their order."""
        firsts: dict[tuple[int, bytes | None], _Suspect] = {}
        free = [s for s in due if s.event.key is None or firsts.setdefault(_lane(s.event), s) is s]
        return min(free, key=lambda suspect: suspect.event.kills)

    def _trust(self) -> None:
        self.suspicion.lift()
        self._yielded = True

    def _back_off(self, now_s: float, why: str) -> None:
        self.suspicion.back_off(now_s, why)
        self._yielded = False


def _lane(event: Event) -> tuple[int, bytes | None]:
    """Within what an event has its order: the key of a class."""
    return class_of(event.partition), event.key


def _verdict(kills: int, cause: str) -> str:
    return f"{count_of(kills, 'replica')} ended while running this event alone" + (f": {cause}" if cause else "")
