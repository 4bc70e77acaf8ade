"""The replicas of one dispatcher: who gets the next batch, who is late with one, and who stays behind its kind."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterator, Sequence

from inferline_stream.dataplane.dispatcher.hardware_kind import WEIGHT, BatchNeeds, HardwareKind
from inferline_stream.dataplane.dispatcher.pooled_replica import Hand, PooledReplica
from inferline_stream.dataplane.frames import Call
from inferline_stream.dataplane.reports import ReplicaStatus
from inferline_stream.dataplane.slot_grants import HardwarePlan, StagePlan
from inferline_stream.pipeline.fallback import MAIN

MIN_DEADLINE_S = 0.3
"""Shortest deadline of a batch: above the pauses of a busy host."""

DEADLINE_FACTOR = 10.0
"""A batch's deadline over its profiled service time, and the hard deadline over the first one."""

SERVER_DEADLINE_FACTOR = 1.5
"""A batch's least deadline over the time that a replica may take to ask a server for it."""

MIN_HELD_S, MAX_HELD_S = 0.05, 1.0
"""First and longest pause of a replica whose server takes no batch. The longest bounds how soon the stage resumes."""

_WARM_UP_BATCHES = 3
"""A replica's first batches fill caches; they do not count for its speed."""

_RETRY_S = 10.0
"""A replica that had no batch for so long is taken to be as fast as its kind: it may have recovered."""

_ALIKE = 0.3
"""Logarithm of the ratio by which a slowdown must differ from the last one used, so that noise changes no choice."""

_TIE = 1.01
"""Finish times count as equal within this ratio."""

_RECHECK_S = 0.005
"""How often the choice is looked at again while free replicas wait for one that is late."""

SLOW_FACTOR, SLOW_S = 2.0, 5.0
"""How far a straggler is behind the median of its kind, and for how long."""

SLOW_PEERS, SLOW_BATCHES = 3, 20
"""How many replicas of a kind must have run how many batches before one can be a straggler."""


class Pool:
    """The attached replicas. Every time is of one monotonic clock, in seconds.

    Args:
        batch_deadline_s: longest deadline of a batch, and the deadline of one without a profile.
        least_deadline_s: shortest deadline of a batch: longer than `MIN_DEADLINE_S` where replicas ask a server, which
            may be slow through no fault of theirs.
    """

    def __init__(self, batch_deadline_s: float = 60.0, least_deadline_s: float = MIN_DEADLINE_S) -> None:
        self.replicas: dict[str, PooledReplica] = {}
        self.next_deadline_s: float | None = None
        """When to call `overdue`, and then `choose`, at the latest. May be early."""
        self.fresh_after_s = 0.0
        """Until then replicas that have finished no batch get none: `Suspicion.blocked_until_s`."""
        self._batch_deadline_s = max(batch_deadline_s, least_deadline_s)
        self._least_deadline_s = least_deadline_s
        self._kinds: dict[str, HardwareKind] = {}
        self._free: list[tuple[int, str]] = []
        """Number and name of the replicas that are ready, stay and may get another batch; ascending."""
        self._alike = True
        """Whether all replicas that serve are equally fast, as far as is known."""
        self.some_doubted = False
        """Whether any replica gets no events."""
        self._one_each = True
        """Whether no replica may have several batches in hand."""

    def configure(self, plan: StagePlan) -> None:
        """Apply what the plan says of the stage's replicas."""
        for hardware in {*self._kinds, *plan.hardware}:
            self._kinds.setdefault(hardware, HardwareKind()).configure(plan.hardware.get(hardware, HardwarePlan()))
        self._one_each = all(kind.concurrency == 1 for kind in self._kinds.values())
        for replica in self.replicas.values():
            self._place(replica)
        self._compare()

    def limit(self, hardware: str) -> int:
        """Return the largest batch of a hardware kind; 1 where the plan has none."""
        kind = self._kinds.get(hardware)
        return kind.largest if kind is not None else 1

    def batch_needs(self, replica: PooledReplica, rest_s: float, slo_s: float) -> BatchNeeds:
        """Return what the next batch of a replica needs; see `HardwareKind.batch_needs`."""
        return self._kinds[replica.hardware].batch_needs(len(replica.hands) + 1, rest_s, slo_s)

    def too_large(self, hardware: str, batch_size: int, now_s: float) -> None:
        """Note that a replica's device had no memory for a batch: none is so large for a while, on its kind."""
        self._kinds[hardware].too_large(batch_size, now_s)

    def limit_within(self, hardware: str, within_s: float) -> int:
        """Return the largest batch of a hardware kind that takes no longer than that, at least 1."""
        kind = self._kinds.get(hardware)
        sizes = range(1, kind.largest + 1) if kind is not None else range(1)
        return max(1, bisect.bisect_right(sizes, within_s, key=kind.service_s)) if kind is not None else 1

    def served_within(self, within_s: float, batch_s: float) -> int:
        """Return how many events the replicas serve within a time in batches that take so long; two batches at least.

        Where a kind was not profiled, four batches of each of its replicas.
        """
        events = 0
        for replica in self.replicas.values():
            if replica.ready and not replica.leaving:
                kind, batch = self._kinds[replica.hardware], self.limit_within(replica.hardware, batch_s)
                takes_s = kind.service_s(batch, kind.concurrency)
                batches = max(2.0, within_s / takes_s) if takes_s else 4.0
                events += math.ceil(batches * batch * kind.concurrency)
        return events

    @property
    def tight(self) -> str:
        """Which kinds have no memory for the plan's batches, in words; empty if all do."""
        return "; ".join(
            f"the memory of {hardware} has room for batches of {kind.fits}, and the plan has {kind.limit}: profile "
            "again on a device that nobody else uses"
            for hardware, kind in sorted(self._kinds.items())
            if kind.fits < kind.limit
        )

    def concurrency(self, hardware: str) -> int:
        """Return how many batches a replica of a hardware kind has in hand at most; 1 where the plan says nothing."""
        kind = self._kinds.get(hardware)
        return kind.concurrency if kind is not None else 1

    # Quarantine

    @property
    def single(self) -> bool:
        """Whether no more than one replica serves: it runs suspects and everything else by turns."""
        return sum(each.ready and not each.leaving for each in self.replicas.values()) < 2

    def quarantine(self, *, passed_first: bool = False) -> PooledReplica | None:
        """Return the replica to run a suspect on now; None while it is busy or none is free.

        Args:
            passed_first: prefer one that has finished a batch: fresh ones are under suspicion themselves.
        """
        for replica in self.replicas.values():
            if replica.quarantined and not replica.leaving:
                return replica if replica.ready and not replica.hands else None
        free = [self.replicas[name] for _, name in self._free]
        if not free:
            return None
        chosen = max(free, key=lambda each: (not each.hands, passed_first and each.passed, each.number))
        chosen.quarantined = True
        return None if chosen.hands else chosen

    def lift_quarantine(self) -> None:
        """Let every replica serve the queue."""
        for replica in self.replicas.values():
            replica.quarantined = False

    def released_s(self, now_s: float) -> float | None:
        """Return when the first replica is released whose server took no batch; None where none is held."""
        return min((each.held_until_s for each in self.replicas.values() if each.held_until_s > now_s), default=None)

    # Membership

    def attach(self, name: str, hardware: str, number: int, node: str = "") -> PooledReplica:
        """Add a replica that is not ready yet. One of the same name is replaced."""
        self.detach(name)
        self._kinds.setdefault(hardware, HardwareKind())
        status = ReplicaStatus(name, hardware, "starting", node=node)
        replica = self.replicas[name] = PooledReplica(name, hardware, number, status)
        return replica

    def ready(self, name: str, now_s: float) -> None:
        """Note that a replica may get batches."""
        replica = self.replicas.get(name)
        if replica is not None and not replica.ready:
            replica.ready_s = replica.finished_s = now_s
            self._place(replica)
            self._compare()

    def retire(self, name: str) -> None:
        """Give a replica no more batches."""
        replica = self.replicas.get(name)
        if replica is not None and not replica.leaving:
            replica.leaving = True
            self._place(replica)
            self._compare()

    def detach(self, name: str) -> None:
        """Forget a replica that left or died."""
        replica = self.replicas.pop(name, None)
        if replica is not None:
            self._place(replica)
            self._compare()

    def doubt(self, replica: PooledReplica, doubted: bool) -> None:
        """Give a replica no events, or events again."""
        if replica.doubted != doubted:
            replica.doubted = doubted
            self.some_doubted = any(each.doubted for each in self.replicas.values())
            replica.quarantined = replica.quarantined and not doubted
            self._place(replica)

    def doubted(self) -> list[PooledReplica]:
        """Return the replicas that get no events."""
        return [replica for replica in self.replicas.values() if replica.doubted]

    def has_room(self, replica: PooledReplica) -> bool:
        """Return whether a replica may have one more batch in hand."""
        return replica.ready and len(replica.hands) < self._kinds[replica.hardware].concurrency

    def longest_s(self, hardware: str) -> float:
        """Return the longest time until a batch of a hardware kind passes its hard deadline."""
        kind = self._kinds.get(hardware)
        return DEADLINE_FACTOR * self._allowed_s(kind.service_s(kind.largest) if kind is not None else 0.0)

    def _place(self, replica: PooledReplica) -> None:
        """Put a replica among those that may get another batch, or take it out."""
        most = 0 if replica.doubted else 1 if replica.gave_back else self._kinds[replica.hardware].concurrency
        stays = replica.ready and not replica.leaving and self.replicas.get(replica.replica) is replica
        entry = (replica.number, replica.replica)
        at = bisect.bisect_left(self._free, entry)
        there = at < len(self._free) and self._free[at] == entry
        if stays and len(replica.hands) < most:
            if not there:
                self._free.insert(at, entry)
        elif there:
            del self._free[at]

    def _compare(self) -> None:
        serving = [each for each in self.replicas.values() if each.ready and not each.leaving]
        profiled = [each for each in serving if self._kinds[each.hardware].sizes]
        self._alike = len({(each.hardware, each.pace) for each in profiled}) <= 1 and (
            not profiled or len(profiled) == len(serving)
        )

    # Choice

    def choose(self, now_s: float, queued: int) -> PooledReplica | None:
        """Return the free replica that should get a batch now; None where there is none, or a busy one is faster.

        One that is late with a batch gets none while another serves that is not.
        The one that would finish first gets it, the lowest number among equals, so that idle ones stay idle. It gets
        none where busy faster ones, one batch after the other, could finish everything that is queued before it would
        finish its own; `next_deadline_s` then says when to ask again.
        """
        replicas, fresh = self.replicas, now_s >= self.fresh_after_s
        if self._alike and self._one_each:
            for _, name in self._free:
                replica = replicas[name]
                if not replica.quarantined and (fresh or replica.passed) and now_s >= replica.held_until_s:
                    return replica
            return None
        best: PooledReplica | None = None
        best_s = math.inf
        for _, name in self._free:
            replica = replicas[name]
            if replica.quarantined or not (fresh or replica.passed) or now_s < replica.held_until_s:
                continue
            if replica.pace > 1 and now_s - replica.finished_s > _RETRY_S:
                replica.pace = 1.0
                self._compare()
            takes_s = self._takes_s(replica, queued, len(replica.hands) + 1)
            if takes_s * _TIE < best_s and not (replica.late and self._another_is_in_time()):
                best, best_s = replica, takes_s
        if best is None or best_s == 0.0 or self._alike:
            return best
        capacity = 0
        first_due_s = math.inf
        for replica in replicas.values():
            if not replica.hands or replica.leaving or replica.quarantined:
                continue
            # A batch that follows one of these finds the others in hand still.
            takes_s = self._takes_s(replica, queued, len(replica.hands))
            for hand in replica.hands.values():
                # One that is past its time is likely to take as long again as it is late.
                left_s = abs(hand.due_s - now_s)
                if not hand.late and takes_s and (left_s + takes_s) * _TIE < best_s:
                    capacity += int((best_s / _TIE - left_s) / takes_s) * self._kinds[replica.hardware].largest
                    first_due_s = min(first_due_s, hand.due_s)
        if capacity < queued:
            return best
        again_s = max(first_due_s, now_s) + _RECHECK_S
        self.next_deadline_s = min(self.next_deadline_s or math.inf, again_s)
        return None

    def _another_is_in_time(self) -> bool:
        """Whether a replica serves that is late with nothing: what runs again should not meet what it was late with."""
        serving = (r for r in self.replicas.values() if r.ready and not r.leaving and not r.quarantined)
        return any(not replica.late and not replica.gave_back for replica in serving)

    def _takes_s(self, replica: PooledReplica, queued: int, beside: int) -> float:
        kind = self._kinds[replica.hardware]
        return kind.service_s(min(kind.largest, max(1, queued)), beside) * replica.pace

    def begin(self, replica: PooledReplica, batch_size: int, now_s: float, batch: int = 0, version: int = MAIN) -> Hand:
        """Write down that a replica was handed a batch of this number, and return its place in the books."""
        beside, kind = len(replica.hands) + 1, self._kinds[replica.hardware]
        takes = kind.service_s if version == MAIN else kind.fallback_service_s
        expected_s = takes(batch_size, beside)
        allowed_s = self._allowed_s(expected_s)
        due_s, deadline_s = now_s + expected_s * replica.pace, now_s + allowed_s
        hand = replica.hands[batch] = Hand(batch, batch_size, beside, now_s, due_s, allowed_s, deadline_s)
        hand.version = version
        self._place(replica)
        if self.next_deadline_s is None or deadline_s < self.next_deadline_s:
            self.next_deadline_s = deadline_s
        return hand

    def _allowed_s(self, expected_s: float) -> float:
        if not expected_s:
            return self._batch_deadline_s
        return min(self._batch_deadline_s, max(self._least_deadline_s, DEADLINE_FACTOR * expected_s))

    def give_back(self, replica: PooledReplica, batch: int, now_s: float, wait_s: float) -> None:
        """Note that a replica has given a batch back, because the server that it asks takes none.

        Args:
            replica: which one.
            batch: number of the batch.
            now_s: the present.
            wait_s: how long the server says to wait; the pauses grow of themselves up to `MAX_HELD_S`.
        """
        hand = replica.hands.pop(batch, None)
        if hand is None:
            return
        if now_s >= replica.held_until_s:  # of several that come back together the first counts
            own_s = min(MAX_HELD_S, MIN_HELD_S * 2.0 ** min(replica.gave_back, 16))
            replica.held_until_s = now_s + max(own_s, min(wait_s, MAX_HELD_S))
            replica.gave_back += 1
        self._place(replica)

    def finish(
        self, replica: PooledReplica, calls: Sequence[Call], now_s: float, batch: int = 0, *, success: bool = True
    ) -> None:
        """Note that a replica has answered a batch, in time or late.

        Args:
            replica: which one.
            calls: what it took, as `batch_exchange.believed_calls` has it.
            now_s: the present.
            batch: number of the batch.
            success: whether one of its events has a result.
        """
        hand = replica.hands.pop(batch, None)
        if hand is None:
            return
        kind = self._kinds[replica.hardware]
        kind.widen(now_s)
        replica.passed = replica.passed or success
        replica.gave_back, replica.held_until_s = 0, -math.inf
        replica.batches += 1
        self._place(replica)
        known = replica.batches > _WARM_UP_BATCHES
        ratio = kind.ratio(calls, hand.beside) if known and hand.version == MAIN else None
        if ratio is not None:
            weight = 1.0 if now_s - replica.finished_s > _RETRY_S else WEIGHT
            replica.last_ratio = ratio
            replica.slowdown += weight * (ratio - replica.slowdown)
            if abs(math.log(replica.slowdown / replica.pace)) > _ALIKE:
                alike = abs(math.log(replica.slowdown)) < _ALIKE
                replica.pace = 1.0 if alike else replica.slowdown
                self._compare()
        replica.finished_s = now_s

    # Time

    def overdue(self, now_s: float) -> Iterator[tuple[PooledReplica, int, bool]]:
        """Yield replicas with batches that have passed their deadline (False) or their hard one (True), each once.

        At the first deadline the batch should run on another replica, if there is one, and the late result be dropped;
        at the hard one, ten times as late, the replica should be killed. Where this is called much later than
        `next_deadline_s`, the dispatcher was held up itself: results may wait to be read, and everyone gets more time.
        """
        if self.next_deadline_s is None or now_s < self.next_deadline_s:
            return
        busy = [(each, batch, hand) for each in self.replicas.values() for batch, hand in each.hands.items()]
        if now_s > self.next_deadline_s + MIN_DEADLINE_S:
            for _, _, hand in busy:
                hand.deadline_s = max(hand.deadline_s, now_s + MIN_DEADLINE_S)
        found = []
        for replica, batch, hand in busy:
            if hand.deadline_s <= now_s:
                found.append((replica, batch, hand.late))
                again_s = now_s + (DEADLINE_FACTOR - 1) * hand.allowed_s
                hand.deadline_s = math.inf if hand.late else again_s
                hand.late = True
        next_s = min((hand.deadline_s for _, _, hand in busy), default=math.inf)
        self.next_deadline_s = next_s if next_s < math.inf else None
        yield from found

    def stragglers(self, now_s: float) -> list[tuple[str, str]]:
        """Return replicas that stay far behind their kind, with the reason, each of them once. Ask every second."""
        kinds: dict[str, list[PooledReplica]] = {}
        for replica in self.replicas.values():
            if replica.batches >= SLOW_BATCHES and not replica.leaving:
                kinds.setdefault(replica.hardware, []).append(replica)
        found = []
        for hardware, peers in kinds.items():
            if len(peers) < SLOW_PEERS:
                continue
            median = statistics.median(peer.slowdown for peer in peers)
            for peer in peers:
                if min(peer.slowdown, peer.last_ratio) < SLOW_FACTOR * median:
                    peer.slow_since_s = math.inf
                    continue
                peer.slow_since_s = min(peer.slow_since_s, now_s)
                stayed = now_s - peer.slow_since_s >= SLOW_S and peer.finished_s > peer.slow_since_s
                if stayed and not peer.reported:
                    peer.reported = True
                    times = peer.slowdown / median
                    reason = f"it is {times:.1f} times slower than the median of {len(peers)} replicas on {hardware!r}"
                    found.append((peer.replica, reason))
        return found
