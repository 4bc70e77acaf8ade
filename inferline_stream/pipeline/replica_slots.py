"""Which slot and number each replica of a stage has. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

_R = TypeVar("_R")


def leaving_order(candidates: Sequence[_R], slot_of: Callable[[_R], int | None], there: Iterable[_R]) -> list[_R]:
    """Return who leaves first, and so on: in the order given, but no slot's last one while another slot has two.

    Args:
        candidates: replicas of a stage, in the order that is best otherwise.
        slot_of: the slot of one; None while that is not known.
        there: all replicas of the stage that stay without this, the candidates included.
    """
    left, ordered, held = list(candidates), [], Counter(map(slot_of, there))
    del held[None]
    while left:
        spares = max(held.values(), default=0) > 1
        first = next((each for each in left if not spares or held[slot_of(each)] != 1), left[0])
        left.remove(first)
        ordered.append(first)
        held[slot_of(first)] -= 1
    return ordered


@dataclass(slots=True)
class SlottedReplica:
    """One replica of a stage.

    Args:
        replica: its name.
        number: its position in the pool, the smallest free one when it started.
        slot: that it is dealt to; None while the stage has no dispatcher.
    """

    replica: str
    number: int
    slot: int | None = None


class ReplicaSlots:
    """Deals a stage's replicas evenly to its slots, and moves as few as that takes."""

    def __init__(self) -> None:
        self.members: dict[str, SlottedReplica] = {}
        self._slots: tuple[int, ...] = ()

    @property
    def slots(self) -> tuple[int, ...]:
        """That replicas are dealt to, ascending."""
        return self._slots

    @classmethod
    def of_dealt(cls, slots: Iterable[int], replicas: Mapping[str, int]) -> ReplicaSlots:
        """Return replicas that are dealt to these slots already, in the order of their numbers.

        Args:
            slots: of the stage.
            replicas: name → slot.
        """
        found = cls()
        found._slots = tuple(slots)
        found.members = {name: SlottedReplica(name, at, slot) for at, (name, slot) in enumerate(replicas.items())}
        return found

    def add(self, replica: str, leaving: Container[str] = ()) -> SlottedReplica:
        """Give a new replica the smallest free number, and the slot that has the fewest besides those that leave."""
        taken, staying = {member.number for member in self.members.values()}, self._staying(leaving)
        member = SlottedReplica(replica, next(number for number in itertools.count() if number not in taken))
        member.slot = min(self._slots, key=lambda slot: (staying[slot], slot), default=None)
        self.members[replica] = member
        return member

    def to_spare(self, leaving: Container[str]) -> str | None:
        """Return a replica that the fullest slot can spare for one that will have none; None where no slot needs it."""
        staying = self._staying(leaving)
        if all(staying[slot] for slot in self._slots) or max(staying[slot] for slot in self._slots) < 2:
            return None
        fullest = max(self._slots, key=staying.__getitem__)
        return [member.replica for member in self.of(fullest) if member.replica not in leaving][-1]

    def _staying(self, leaving: Container[str]) -> Counter[int | None]:
        """Return how many members of each slot do not leave."""
        return Counter(member.slot for member in self.members.values() if member.replica not in leaving)

    def remove(self, replica: str) -> None:
        """Forget a replica that has ended."""
        self.members.pop(replica, None)

    def of(self, slot: int) -> list[SlottedReplica]:
        """Return the members of a slot, lowest numbers first."""
        return sorted((m for m in self.members.values() if m.slot == slot), key=lambda m: m.number)

    def deal(self, slots: Iterable[int], leaving: Container[str] = ()) -> list[SlottedReplica]:
        """Deal the replicas to these slots, those that stay evenly; return those whose slot has changed.

        One that leaves keeps its slot while there is such a one.
        """
        self._slots = tuple(sorted(set(slots)))
        if not self._slots:
            return []
        by_number = sorted(self.members.values(), key=lambda m: m.number)
        staying = [member for member in by_number if member.replica not in leaving]
        size, larger = divmod(len(staying), len(self._slots))
        room = dict.fromkeys(self._slots, size)
        moved = []
        for member in staying:
            if member.slot in room and (room[member.slot] > 0 or (room[member.slot] == 0 and larger > 0)):
                larger -= room[member.slot] == 0
                room[member.slot] -= 1
            else:
                moved.append(member)
        moved += [member for member in by_number if member.replica in leaving and member.slot not in room]
        for member in moved:
            member.slot = max(self._slots, key=lambda slot: (room[slot], -slot))
            room[member.slot] -= 1
        return moved
