"""Who serves which slot, as one pure step: no partition ever has two dispatchers at a time.

The step compares the slots that each stage should have with the newest grants and returns the grants to write. A slot
that changes hands is granted twice: first with ``begins=False``, which takes it from its last holder, and with
``begins=True`` once nobody else may serve any of its partitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from inferline_stream.dataplane.slot_grants import Grant, StagePlan, grant_key

_ANY = 0
"""Number of slots of a dispatcher about which nothing is known: it may serve every partition of its stage."""


@dataclass(frozen=True, slots=True)
class StageSlots:
    """What a stage's grants should say.

    Args:
        slots: D; 0 to end the stage.
        plan: see `StagePlan`.
        settled: see `Grant`.
        background_waits: see `Grant`.
    """

    slots: int = 1
    plan: StagePlan = field(default_factory=StagePlan)
    settled: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    background_waits: bool = False


@dataclass(frozen=True, slots=True)
class SlotHolder:
    """A dispatcher that may serve.

    Args:
        stage: its stage.
        slot: its slot.
        slots: D at the time of its grant.
        revoked: number of the grant that took the slot from it; 0 while it holds it.
    """

    stage: str
    slot: int
    slots: int
    revoked: int = 0


@dataclass(frozen=True, slots=True)
class SlotTable:
    """Memory of the step.

    Args:
        term: of the controller that writes.
        number: of its newest grant.
        grants: newest grant by stage and slot.
        holders: by name, dispatchers that may serve. They were let begin and are not known to have ended.
        heirs: by stage and slot, dispatchers that start in order to replace an outdated one.
    """

    term: int
    number: int = 0
    grants: Mapping[str, Mapping[int, Grant]] = field(default_factory=dict)
    holders: Mapping[str, SlotHolder] = field(default_factory=dict)
    heirs: Mapping[tuple[str, int], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KnownDispatchers:
    """What is known of dispatchers, by their names.

    Args:
        ours: that the actuator runs.
        ended: whose process is gone for good, or that have reported that they are gone.
        silent: that were silent for longer than their lease.
        standing_by: that are connected and wait for a grant.
        outdated: dispatchers to replace, one at a time.
        idle: of those that do not serve, number of the newest grant of their slot that they have read.
        settled: a grant of up to this number was written so long ago that every report from before it has been read.
    """

    ours: frozenset[str]
    ended: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    standing_by: frozenset[str] = frozenset()
    outdated: frozenset[str] = frozenset()
    idle: Mapping[str, int] = field(default_factory=dict)
    settled: int = 0


@dataclass(frozen=True, slots=True)
class SlotOrders:
    """What to do now.

    Args:
        grants: to write in one transaction, in this order.
        forgotten: keys to delete in the same one.
        dispatchers: name → slot of every dispatcher that the actuator should run, by stage.
    """

    grants: tuple[Grant, ...]
    forgotten: tuple[str, ...]
    dispatchers: Mapping[str, Mapping[str, int]]


def recovered(term: int, grants: Iterable[Grant], before: SlotTable | None = None) -> SlotTable:
    """Return the table of a new term.

    Args:
        term: the new one.
        grants: newest grant of each key in the log.
        before: this controller's table of its last term; it has led ever since. Without one, a slot that was changing
            hands may have had a holder that the log names no more.
    """
    newest: dict[str, dict[int, Grant]] = {}
    holders = {} if before is None else dict(before.holders)
    for grant in grants:
        newest.setdefault(grant.stage, {})[grant.slot] = grant
        if grant.begins and grant.dispatcher:
            holders[grant.dispatcher] = SlotHolder(grant.stage, grant.slot, grant.slots)
        elif before is None:
            holders[f"?{grant_key(grant.stage, grant.slot)}"] = SlotHolder(grant.stage, grant.slot, _ANY, grant.number)
        for name, holder in holders.items():
            if (holder.stage, holder.slot) == (grant.stage, grant.slot) and name != grant.dispatcher:
                holders[name] = replace(holder, revoked=grant.number)
    numbers = [0 if before is None else before.number, *(g.number for own in newest.values() for g in own.values())]
    return SlotTable(term, max(numbers), newest, holders, {} if before is None else before.heirs)


def met(table: SlotTable, dispatcher: str, stage: str, slot: int) -> SlotTable:
    """Return the table with a dispatcher that serves although no grant in the log names it."""
    holder = SlotHolder(stage, slot, _ANY, max(1, table.number))
    return table if dispatcher in table.holders else replace(table, holders={**table.holders, dispatcher: holder})


def step(
    table: SlotTable, wanted: Mapping[str, StageSlots], seen: KnownDispatchers, suffix: str
) -> tuple[SlotTable, SlotOrders]:
    """Decide the grants of every stage's slots.

    A slot whose dispatcher is not, or no longer, ours goes to a new one. It begins once no other dispatcher may serve
    one of its partitions: each has ended, or knows that its slot was taken from it, or is still silent after that. For
    another number of slots, all old slots are taken back first.

    Args:
        table: what was granted before.
        wanted: by stage. Stages that the log still has and this does not are ended.
        seen: what is known of dispatchers.
        suffix: makes the names of new dispatchers unique: ``<stage>-<slot>-<suffix>``.
    """
    now = _Step(table, seen, suffix)
    removed = {stage: StageSlots(slots=0) for stage in table.grants if stage not in wanted}
    for stage, slots in {**wanted, **removed}.items():
        now.stage(stage, slots)
    grants = {stage: held for stage, held in now.grants.items() if held}
    after = SlotTable(table.term, now.number, grants, now.holders, now.heirs)
    dispatchers: dict[str, dict[str, int]] = {stage: {} for stage in wanted}
    for stage, held in grants.items():
        named = {g.dispatcher: slot for slot, g in held.items() if g.dispatcher}
        dispatchers[stage] = named | {d: slot for (of, slot), d in now.heirs.items() if of == stage}
    return after, SlotOrders(tuple(now.written), tuple(now.forgotten), dispatchers)


class _Step:
    """The parts of a table while it changes."""

    def __init__(self, table: SlotTable, seen: KnownDispatchers, suffix: str) -> None:
        self.seen, self.suffix, self.term, self.number = seen, suffix, table.term, table.number
        self.grants = {stage: dict(held) for stage, held in table.grants.items()}
        self.holders = {name: holder for name, holder in table.holders.items() if not self._over(name, holder)}
        self.heirs = {at: heir for at, heir in table.heirs.items() if heir in seen.ours and heir not in seen.ended}
        self.written: list[Grant] = []
        self.forgotten: list[str] = []

    def _over(self, name: str, holder: SlotHolder) -> bool:
        """Whether a dispatcher can serve no more."""
        seen = self.seen
        silent = name in seen.silent and name not in seen.ours and holder.revoked <= seen.settled
        knows = holder.revoked <= seen.idle.get(name, -1)
        return name in seen.ended or (holder.revoked > 0 and (silent or knows))

    def stage(self, stage: str, wanted: StageSlots) -> None:
        """Decide the grants of one stage."""
        held = self.grants.setdefault(stage, {})
        if not self._cleared(stage, held, wanted.slots):
            return
        for slot in range(wanted.slots):
            now, dispatcher = held.get(slot), self._dispatcher(stage, slot, held.get(slot))
            kept = now is not None and now.begins and now.dispatcher == dispatcher
            begins = kept or not any(
                _shares(h, stage, slot, wanted.slots) for d, h in self.holders.items() if d != dispatcher
            )
            grant = Grant(
                stage, slot, wanted.slots, dispatcher, self.term, 0, begins,
                wanted.plan, dict(wanted.settled), wanted.background_waits,
            )  # fmt: skip
            if now is None or grant != msgspec.structs.replace(now, term=self.term, number=0):
                self._write(grant)

    def _cleared(self, stage: str, held: dict[int, Grant], slots: int) -> bool:
        """Take back every grant for another number of slots; return whether nobody may serve by one of them."""
        others = [grant for grant in held.values() if grant.slots != slots]
        for grant in others:
            if grant.dispatcher:
                self._write(msgspec.structs.replace(grant, dispatcher="", begins=False, term=self.term))
        if not others:
            return True
        self.heirs = {at: heir for at, heir in self.heirs.items() if at[0] != stage}
        if any(holder.stage == stage and holder.slots != slots for holder in self.holders.values()):
            return False
        for grant in others:
            del held[grant.slot]
            if grant.slot >= slots:
                self.forgotten.append(grant_key(stage, grant.slot))
        return True

    def _dispatcher(self, stage: str, slot: int, now: Grant | None) -> str:
        """Name of the dispatcher that should have a slot: the one that has it, its heir, or a new one."""
        heir, new = self.heirs.get((stage, slot)), f"{stage}-{slot}-{self.suffix}"
        lost = now is None or now.dispatcher not in self.seen.ours or now.dispatcher in self.seen.ended
        if lost or heir in self.seen.standing_by:
            self.heirs.pop((stage, slot), None)
            return heir or new
        assert now is not None
        if now.dispatcher in self.seen.outdated and not self._moving():
            self.heirs[stage, slot] = new
        return now.dispatcher

    def _moving(self) -> bool:
        """Whether any slot is changing hands."""
        return bool(self.heirs) or any(not g.begins for held in self.grants.values() for g in held.values())

    def _write(self, grant: Grant) -> None:
        self.number += 1
        grant = msgspec.structs.replace(grant, number=self.number)
        self.written.append(grant)
        self.grants[grant.stage][grant.slot] = grant
        for name, holder in self.holders.items():
            if (holder.stage, holder.slot, holder.revoked) == (grant.stage, grant.slot, 0) and name != grant.dispatcher:
                self.holders[name] = replace(holder, revoked=self.number)
        if grant.begins and grant.dispatcher:
            self.holders[grant.dispatcher] = SlotHolder(grant.stage, grant.slot, grant.slots)


def _shares(holder: SlotHolder, stage: str, slot: int, slots: int) -> bool:
    """Whether a dispatcher may serve a partition of a slot."""
    return holder.stage == stage and (holder.slots != slots or holder.slot == slot)
