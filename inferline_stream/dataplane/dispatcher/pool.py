"""The replicas of one dispatcher: who gets the next batch, who is late with one, and who stays behind its kind."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from inferline_stream.dataplane.frames import Call

MIN_DEADLINE_S = 0.3
"""Shortest deadline of a batch: above the pauses of a busy host."""

DEADLINE_FACTOR = 10.0
"""A batch's deadline over its profiled service time, and the hard deadline over the first one."""

SLOW_FACTOR, SLOW_S = 2.0, 5.0
"""How far a straggler is behind the median of its kind, and for how long."""

SLOW_PEERS, SLOW_BATCHES = 3, 20
"""How many replicas of a kind must have run how many batches before one can be a straggler."""

_WARM_UP_BATCHES = 3
"""A replica's first batches fill caches; they do not count for its speed."""

_WEIGHT = 0.2
"""Of the last batch in the moving average of the slowdown."""

_RETRY_S = 10.0
"""A replica that had no batch for so long is taken to be as fast as its kind: it may have recovered."""

_ALIKE = 0.3
"""Logarithm of the ratio by which a slowdown must differ from the last one used, so that noise changes no choice."""

_TIE = 1.01
"""Finish times count as equal within this ratio."""

_LARGEST_BATCH = 1 << 16
"""Calls that claim to be larger are not believed."""

_RECHECK_S = 0.005
"""How often the choice is looked at again while free replicas wait for one that is late."""


@dataclass(slots=True, eq=False)
class PooledReplica:
    """One attached replica."""

    replica: str
    hardware: str
    number: int
    ready_s: float = math.inf
    """When it said that it is ready."""
    in_hand: int = 0
    """Events of the batch that it has."""
    began_s: float = 0.0
    due_s: float = 0.0
    """When the batch should be finished."""
    allowed_s: float = 0.0
    """From handing over its batch to the first deadline."""
    deadline_s: float = math.inf
    """When `Pool.overdue` names it next."""
    late: bool = False
    """Whether its batch has passed the first deadline."""
    passed: bool = False
    """Whether it has finished a batch since it was attached."""
    quarantined: bool = False
    """Whether it runs suspects only. May be set from outside."""
    leaving: bool = False
    slowdown: float = 1.0
    """Moving average of measured over expected service time."""
    pace: float = 1.0
    """The slowdown that choices use: it changes only by steps."""
    last_ratio: float = 1.0
    """Measured over expected service time of the last batch."""
    finished_s: float = 0.0
    batches: int = 0
    busy_s: float = 0.0
    slow_since_s: float = math.inf
    reported: bool = False

    @property
    def ready(self) -> bool:
        """Whether it has said that it is ready."""
        return self.ready_s < math.inf


@dataclass(slots=True)
class _Kind:
    """What is known of one kind of hardware."""

    limit: int = 1
    """The plan's."""
    fits: int = _LARGEST_BATCH
    """Largest batch that devices of the kind have memory for, as far as replicas have found out."""
    sizes: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    interpolated: dict[int, float] = field(default_factory=dict)
    measured: dict[int, float] = field(default_factory=dict)
    """Where there is no profile: moving average of the service time by batch size, to compare replicas by."""

    @property
    def largest(self) -> int:
        """Largest batch to hand out."""
        return min(self.limit, self.fits)

    def service_s(self, batch_size: int) -> float:
        """Return the profile's S(b), linear between the profiled sizes and beyond them; 0.0 without a profile."""
        found = self.interpolated.get(batch_size)
        if found is None:
            found = self.interpolated[batch_size] = self._interpolate(batch_size)
        return found

    def _interpolate(self, batch_size: int) -> float:
        sizes, times_s = self.sizes, self.times_s
        if not sizes:
            return 0.0
        if len(sizes) == 1:
            return times_s[0] * max(1.0, batch_size / sizes[0])
        right = min(max(bisect.bisect_left(sizes, batch_size), 1), len(sizes) - 1)
        slope = (times_s[right] - times_s[right - 1]) / (sizes[right] - sizes[right - 1])
        if batch_size > sizes[-1]:
            return times_s[-1] + max(0.0, slope) * (batch_size - sizes[-1])
        if batch_size < sizes[0]:
            return times_s[0]
        return times_s[right - 1] + slope * (batch_size - sizes[right - 1])

    def ratio(self, calls: Sequence[Call]) -> float | None:
        """Return measured over expected time of a batch's calls; None where nothing can be said."""
        took_s = expected_s = 0.0
        for call in calls:
            size, service_s = call.batch_size, call.service_s
            if not (0 < size <= _LARGEST_BATCH and 0 < service_s < math.inf):
                return None
            known_s = self.service_s(size)
            if not known_s:
                known_s = self.measured.setdefault(size, service_s)
                self.measured[size] = known_s + _WEIGHT * (service_s - known_s)
            took_s += service_s
            expected_s += known_s
        return took_s / expected_s if expected_s else None


class Pool:
    """The attached replicas. Every time is of one monotonic clock, in seconds.

    Args:
        batch_deadline_s: longest deadline of a batch, and the deadline of one without a profile.
    """

    def __init__(self, batch_deadline_s: float = 60.0) -> None:
        self.replicas: dict[str, PooledReplica] = {}
        self.next_deadline_s: float | None = None
        """When to call `overdue`, and then `choose`, at the latest. May be early."""
        self.fresh_after_s = 0.0
        """Until then replicas that have finished no batch get none: `Suspects.blocked_until_s`."""
        self._batch_deadline_s = batch_deadline_s
        self._kinds: dict[str, _Kind] = {}
        self._free: list[tuple[int, str]] = []
        """Number and name of the replicas that are ready, stay and have nothing in hand; ascending."""
        self._alike = True
        """Whether all replicas that serve are equally fast, as far as is known."""

    def configure(self, max_batch_sizes: Mapping[str, int], service_s: Mapping[str, Mapping[int, float]]) -> None:
        """Apply batch limits and profiled service times by hardware kind, as a grant has them."""
        for hardware in {*self._kinds, *max_batch_sizes, *service_s}:
            kind = self._kinds.setdefault(hardware, _Kind())
            profile = {size: time_s for size, time_s in service_s.get(hardware, {}).items() if size > 0 and time_s > 0}
            kind.limit = max(1, max_batch_sizes.get(hardware, 1))
            kind.sizes = sorted(profile)
            kind.times_s = [profile[size] for size in kind.sizes]
            kind.interpolated = {}
        self._compare()

    def limit(self, hardware: str) -> int:
        """Return the largest batch of a hardware kind; 1 where the plan has none."""
        kind = self._kinds.get(hardware)
        return kind.largest if kind is not None else 1

    def too_large(self, hardware: str, batch_size: int) -> None:
        """Note that a replica's device had no memory for a batch: none is so large any more, on its kind."""
        kind = self._kinds[hardware]
        kind.fits = min(kind.fits, max(1, batch_size // 2))

    @property
    def tight(self) -> str:
        """Which kinds have no memory for the plan's batches, in words; empty if all do."""
        return "; ".join(
            f"the memory of {hardware} has room for batches of {kind.fits}, and the plan has {kind.limit}: profile "
            "again on a device that nobody else uses"
            for hardware, kind in sorted(self._kinds.items())
            if kind.fits < kind.limit
        )

    def expected_s(self, replica: PooledReplica, batch_size: int) -> float:
        """Return how long a replica is likely to take for a batch; 0.0 where its kind has no profile."""
        return self._kinds[replica.hardware].service_s(batch_size) * replica.pace

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
                return replica if replica.ready and not replica.in_hand else None
        free = [self.replicas[name] for _, name in self._free]
        if not free:
            return None
        chosen = max(free, key=lambda each: (passed_first and each.passed, each.number))
        chosen.quarantined = True
        return chosen

    def lift_quarantine(self) -> None:
        """Let every replica serve the queue."""
        for replica in self.replicas.values():
            replica.quarantined = False

    # Membership

    def attach(self, name: str, hardware: str, number: int) -> PooledReplica:
        """Add a replica that is not ready yet. One of the same name is replaced."""
        self.detach(name)
        self._kinds.setdefault(hardware, _Kind())
        replica = self.replicas[name] = PooledReplica(name, hardware, number)
        return replica

    def ready(self, name: str, now_s: float) -> None:
        """Note that a replica may get batches."""
        replica = self.replicas.get(name)
        if replica is not None and not replica.ready:
            replica.ready_s = replica.finished_s = now_s
            self._freed(replica)
            self._compare()

    def retire(self, name: str) -> None:
        """Give a replica no more batches."""
        replica = self.replicas.get(name)
        if replica is not None and not replica.leaving:
            replica.leaving = True
            self._taken(replica)
            self._compare()

    def detach(self, name: str) -> None:
        """Forget a replica that left or died."""
        replica = self.replicas.pop(name, None)
        if replica is not None:
            self._taken(replica)
            self._compare()

    def _freed(self, replica: PooledReplica) -> None:
        if not replica.leaving and self.replicas.get(replica.replica) is replica:
            bisect.insort(self._free, (replica.number, replica.replica))

    def _taken(self, replica: PooledReplica) -> None:
        entry = (replica.number, replica.replica)
        at = bisect.bisect_left(self._free, entry)
        if at < len(self._free) and self._free[at] == entry:
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

        The one that would finish first gets it, the lowest number among equals, so that idle ones stay idle. It gets
        none where busy faster ones, one batch after the other, could finish everything that is queued before it would
        finish its own; `next_deadline_s` then says when to ask again.
        """
        replicas, fresh = self.replicas, now_s >= self.fresh_after_s
        if self._alike:
            for _, name in self._free:
                replica = replicas[name]
                if not replica.quarantined and (fresh or replica.passed):
                    return replica
            return None
        best: PooledReplica | None = None
        best_s = math.inf
        for _, name in self._free:
            replica = replicas[name]
            if not replica.quarantined and (fresh or replica.passed):
                if replica.pace > 1 and now_s - replica.finished_s > _RETRY_S:
                    replica.pace = 1.0
                    self._compare()
                takes_s = self._takes_s(replica, queued)
                if takes_s * _TIE < best_s:
                    best, best_s = replica, takes_s
        if best is None or best_s == 0.0:
            return best
        capacity = 0
        first_due_s = math.inf
        for replica in replicas.values():
            if not replica.in_hand or replica.late or replica.leaving or replica.quarantined:
                continue
            takes_s = self._takes_s(replica, queued)
            # One that is past its time is likely to take as long again as it is late.
            left_s = abs(replica.due_s - now_s)
            if takes_s and (left_s + takes_s) * _TIE < best_s:
                capacity += int((best_s / _TIE - left_s) / takes_s) * self._kinds[replica.hardware].largest
                first_due_s = min(first_due_s, replica.due_s)
        if capacity < queued:
            return best
        again_s = max(first_due_s, now_s) + _RECHECK_S
        self.next_deadline_s = min(self.next_deadline_s or math.inf, again_s)
        return None

    def _takes_s(self, replica: PooledReplica, queued: int) -> float:
        kind = self._kinds[replica.hardware]
        return kind.service_s(min(kind.largest, max(1, queued))) * replica.pace

    def begin(self, replica: PooledReplica, batch_size: int, now_s: float) -> None:
        """Note that a free replica was handed a batch."""
        self._taken(replica)
        expected_s = self._kinds[replica.hardware].service_s(batch_size)
        replica.in_hand = batch_size
        replica.began_s = now_s
        replica.due_s = now_s + expected_s * replica.pace
        replica.late = False
        replica.allowed_s = self._allowed_s(expected_s)
        replica.deadline_s = now_s + replica.allowed_s
        if self.next_deadline_s is None or replica.deadline_s < self.next_deadline_s:
            self.next_deadline_s = replica.deadline_s

    def _allowed_s(self, expected_s: float) -> float:
        if not expected_s:
            return self._batch_deadline_s
        return min(self._batch_deadline_s, max(MIN_DEADLINE_S, DEADLINE_FACTOR * expected_s))

    def finish(self, replica: PooledReplica, calls: Sequence[Call], now_s: float) -> None:
        """Note that a replica has answered a batch, in time or late."""
        if not replica.in_hand:
            return
        replica.in_hand, replica.late, replica.passed = 0, False, True
        replica.deadline_s = math.inf
        replica.busy_s += max(0.0, now_s - replica.began_s)
        replica.batches += 1
        self._freed(replica)
        ratio = self._kinds[replica.hardware].ratio(calls) if replica.batches > _WARM_UP_BATCHES else None
        if ratio is not None:
            weight = 1.0 if now_s - replica.finished_s > _RETRY_S else _WEIGHT
            replica.last_ratio = ratio
            replica.slowdown += weight * (ratio - replica.slowdown)
            if abs(math.log(replica.slowdown / replica.pace)) > _ALIKE:
                alike = abs(math.log(replica.slowdown)) < _ALIKE
                replica.pace = 1.0 if alike else replica.slowdown
                self._compare()
        replica.finished_s = now_s

    # Time

    def overdue(self, now_s: float) -> Iterator[tuple[PooledReplica, bool]]:
        """Yield replicas whose batch has passed its deadline (False) or its hard one (True), each of them once.

        At the first deadline the batch should run on another replica, if there is one, and the late result be dropped;
        at the hard one, ten times as late, the replica should be killed. Where this is called much later than
        `next_deadline_s`, the dispatcher was held up itself: results may wait to be read, and everyone gets more time.
        """
        if self.next_deadline_s is None or now_s < self.next_deadline_s:
            return
        busy = [each for each in self.replicas.values() if each.in_hand]
        if now_s > self.next_deadline_s + MIN_DEADLINE_S:
            for replica in busy:
                replica.deadline_s = max(replica.deadline_s, now_s + MIN_DEADLINE_S)
        found = []
        for replica in busy:
            if replica.deadline_s <= now_s:
                found.append((replica, replica.late))
                again_s = now_s + (DEADLINE_FACTOR - 1) * replica.allowed_s
                replica.deadline_s = math.inf if replica.late else again_s
                replica.late = True
        next_s = min((each.deadline_s for each in busy), default=math.inf)
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
