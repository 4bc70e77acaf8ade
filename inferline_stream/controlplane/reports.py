"""What replicas told, summed: totals since the start, and how each stage did over the last seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from inferline_stream.actuators.actuator import Way
from inferline_stream.dataplane.protocol import BatchStats, ReplicaReport
from inferline_stream.observability.state import IsolationState
from inferline_stream.pipeline.profile import PipelineProfile, Profile
from inferline_stream.pipeline.shape import Shape

RECENT_S = 10.0
"""What counts as of late."""

_FEWEST_EVENTS = 100
"""A visit ratio from fewer events would be noise."""

_FEWEST_BATCHES = 10
"""A service time from fewer batches would be noise."""

_START_UPS = 8


@dataclass(slots=True)
class Told:
    """One replica's reports."""

    newest: ReplicaReport
    heard_s: float
    """When the newest was read, on the controller's clock."""
    recent: deque[tuple[float, ReplicaReport]] = field(default_factory=deque)
    ended: bool = False

    def before_s(self, time_s: float) -> ReplicaReport | None:
        """The oldest report kept that is not older than ``time_s``; None if the replica is younger."""
        return next((report for at, report in self.recent if at >= time_s), None)


@dataclass(frozen=True, slots=True)
class StageFigures:
    """One stage over the last seconds; None where too little was seen."""

    events: int
    """Events that left the stage, since the start of the run."""
    dead_lettered: int
    expired: int
    duplicates: int
    backlog: int
    handovers: int
    handover_stall_s: float
    batches: int
    """Since the start of the run, as the two below."""
    busy_total_s: float
    wait_total_s: float
    wait_s: float | None
    service_time_s: float | None
    mean_batch_size: float | None
    utilization: float | None
    join_events: int
    """That wait for parts now."""
    join_bytes: int
    newest_s: float | None
    """When the newest report of any of its replicas was read."""
    slowdown: Mapping[str, float]
    """By hardware kind: measured service time over the profile's, at the batch sizes that ran."""


class Reports:
    """Reports of every replica of a pipeline.

    Counters in a report grow from its replica's start, so a lost or repeated report does no harm; an
    older one that comes late is recognised by its number.
    """

    def __init__(self, shape: Shape, measured: PipelineProfile) -> None:
        self._shape = shape
        self.measured = measured
        """Profiles that measured times are compared with."""
        self.replicas: dict[str, Told] = {}
        self._start_up_s: dict[tuple[str, str], dict[Way, deque[float]]] = {}

    def add(self, report: ReplicaReport, heard_s: float) -> bool:
        """Take one report in; whether phase, partitions or applied assignment have changed."""
        told = self.replicas.get(report.replica)
        if told is None:
            self.replicas[report.replica] = told = Told(report, heard_s)
            changed = True
        elif report.report <= told.newest.report:
            return False
        else:
            before = told.newest
            changed = (before.phase, before.sequence, before.held.keys()) != (
                report.phase,
                report.sequence,
                report.held.keys(),
            )
            told.newest, told.heard_s = report, heard_s
        told.recent.append((heard_s, report))
        while told.recent and told.recent[0][0] < heard_s - RECENT_S:
            told.recent.popleft()
        told.ended = told.ended or report.phase in ("gone", "failed")
        return changed

    def end(self, replica: str) -> None:
        """Its process is gone: its totals stay, its recent figures go."""
        if (told := self.replicas.get(replica)) is not None:
            told.ended = True
            told.recent.clear()

    def started(self, stage: str, hardware: str, start_up_s: float, way: Way = "") -> None:
        """A replica became ready so long after it was asked for, by that way."""
        ways = self._start_up_s.setdefault((stage, hardware), {})
        times = ways.pop(way, None) or deque(maxlen=_START_UPS)
        times.append(start_up_s)
        ways[way] = times  # the newest way comes last

    def start_ups_s(self, stage: str, hardware: str) -> dict[Way, float]:
        """Mean start-up time of late, by way; that of the newest start comes last."""
        return {way: sum(t) / len(t) for way, t in self._start_up_s.get((stage, hardware), {}).items()}

    def start_up_s(self, stage: str, hardware: str) -> float | None:
        """What the next replica is likely to take, None before the first: those of late that came as the newest did.

        A mean over all ways would fit none: where a node had to be made, the next one is likely to need one, too.
        """
        ways = self.start_ups_s(stage, hardware)
        if ways.keys() == {"alone"}:
            return None  # it has brought the parent that forks those to come, as they were profiled
        return next(reversed(ways.values()), None)

    def every_start_up_s(self) -> dict[str, dict[str, float]]:
        """The same by stage and hardware kind, where there is any."""
        found: dict[str, dict[str, float]] = {}
        for stage, hardware in self._start_up_s:
            if (start_up_s := self.start_up_s(stage, hardware)) is not None:
                found.setdefault(stage, {})[hardware] = start_up_s
        return found

    def is_ready(self, replica: str) -> bool:
        """Whether it works, or could at once."""
        told = self.replicas.get(replica)
        return told is not None and not told.ended and told.newest.phase == "ready"

    def ready(self, stage: str, hardware: str) -> int:
        """Replicas of it that are ready."""
        return len(self.ready_names(stage, hardware))

    def ready_names(self, stage: str, hardware: str) -> frozenset[str]:
        """Their names."""
        return frozenset(
            name
            for name, told in self.replicas.items()
            if (told.newest.stage, told.newest.hardware) == (stage, hardware) and self.is_ready(name)
        )

    def isolation(self, stage: str) -> IsolationState | None:
        """What keeps the replicas of a stage in that work now; None if none does."""
        names = [told.newest.replica for told in self._of(stage) if self.is_ready(told.newest.replica)]
        held = [own for name in names if (own := self.replicas[name].newest.isolation) is not None]
        if not held:
            return None
        ports = [own.ports for own in held if own.ports is not None]
        calls = [own.system_calls for own in held if own.system_calls is not None]
        return IsolationState(
            level=held[0].level,
            replicas=len(held),
            sealed=sum(own.sealed for own in held),
            landlock=min(own.landlock for own in held),
            ports=tuple(sorted({port for each in ports for port in each})) if len(ports) == len(held) else None,
            system_calls=max(calls) if len(calls) == len(held) else None,
            limits={
                name: max(own.limits[name] for own in held)
                for name in held[0].limits
                if all(name in own.limits for own in held)
            },
            missing=tuple(sorted({lack for own in held for lack in own.missing})),
        )

    def _of(self, stage: str) -> list[Told]:
        return [told for told in self.replicas.values() if told.newest.stage == stage]

    def latency_counts(self, stage: str, buckets: int) -> tuple[tuple[int, ...], float]:
        """Events per latency bucket since the start, and the sum of latencies, as the final stage's replicas told."""
        counts, total_s = [0] * buckets, 0.0
        for told in self._of(stage):
            for i, count in enumerate(told.newest.latency_buckets[:buckets]):
                counts[i] += count
            total_s += told.newest.latency_sum_s
        return tuple(counts), total_s

    def stage(self, name: str, now_s: float) -> StageFigures:
        """One stage now."""
        told = self._of(name)
        newest = [t.newest for t in told]
        since_s = now_s - RECENT_S
        pairs = [(first, t.newest) for t in told if not t.ended and (first := t.before_s(since_s)) is not None]
        events = sum(last.events - first.events for first, last in pairs)
        busy_s = sum(last.busy_s - first.busy_s for first, last in pairs)
        wait_s = sum(last.wait_s - first.wait_s for first, last in pairs)
        watched_s = sum(t.recent[-1][0] - t.recent[0][0] for t in told if not t.ended and t.recent)
        batches = batches_between(pairs)
        count = sum(b.batches for b in batches.values())
        batched = sum(size * b.batches for size, b in batches.items())
        return StageFigures(
            events=sum(r.events for r in newest),
            dead_lettered=sum(r.dead_lettered for r in newest),
            expired=sum(r.expired for r in newest),
            duplicates=sum(r.duplicates for r in newest),
            backlog=sum(r.backlog for r in newest),
            handovers=sum(r.handovers for r in newest),
            handover_stall_s=sum(r.handover_stall_s for r in newest),
            batches=sum(b.batches for r in newest for b in r.batch_stats.values()),
            busy_total_s=sum(r.busy_s for r in newest),
            wait_total_s=sum(r.wait_s for r in newest),
            wait_s=wait_s / events if events else None,
            service_time_s=sum(b.service_s for b in batches.values()) / count if count else None,
            mean_batch_size=batched / count if count else None,
            utilization=busy_s / watched_s if watched_s > 0 else None,
            join_events=sum(t.newest.join_events for t in told if not t.ended),
            join_bytes=sum(t.newest.join_bytes for t in told if not t.ended),
            newest_s=max((t.heard_s for t in told), default=None),
            slowdown=self._slowdown(name, pairs),
        )

    def _slowdown(self, stage: str, pairs: Iterable[tuple[ReplicaReport, ReplicaReport]]) -> dict[str, float]:
        by_hardware: dict[str, list[tuple[ReplicaReport, ReplicaReport]]] = {}
        for first, last in pairs:
            by_hardware.setdefault(last.hardware, []).append((first, last))
        found = {}
        for hardware, own in by_hardware.items():
            profile = self.measured.profiles.get((stage, hardware))
            batches = batches_between(own)
            factor = None if profile is None else slowdown(profile, batches, _FEWEST_BATCHES)
            if factor is not None:
                found[hardware] = factor
        return found

    def visit_ratios(self, now_s: float) -> dict[str, float | None]:
        """Visits per event to each stage of late, along the branches taken; None where too few events were seen.

        A join hears of every event that reaches any of its parents or is skipped on the way, so its own
        share of served events tells its ratio; any other stage is visited by the share of its parent's
        results that took the arrow.
        """
        since_s = now_s - RECENT_S
        pairs: dict[str, list[tuple[ReplicaReport, ReplicaReport]]] = {name: [] for name in self._shape.stages}
        for told in self.replicas.values():
            if not told.ended and told.newest.stage in pairs and (first := told.before_s(since_s)) is not None:
                pairs[told.newest.stage].append((first, told.newest))
        ratios: dict[str, float | None] = {}
        for position, name in enumerate(self._shape.stages):
            arrows = self._shape.parents(position)
            if not arrows:
                ratios[name] = 1.0
            elif len(arrows) > 1:
                left = sum(last.events - first.events for first, last in pairs[name])
                served = sum(size * b.batches for size, b in batches_between(pairs[name]).items())
                ratios[name] = min(1.0, served / left) if left >= _FEWEST_EVENTS else None
            else:
                parent = self._shape.stages[self._shape.arrows[arrows[0]].parent]
                left = sum(size * b.batches for size, b in batches_between(pairs[parent]).items())
                took = sum(
                    last.arrows_taken.get(name, 0) - first.arrows_taken.get(name, 0) for first, last in pairs[parent]
                )
                above = ratios[parent]
                ratios[name] = above * took / left if above is not None and left >= _FEWEST_EVENTS else None
        return ratios


def slowdown(profile: Profile, batches: Mapping[int, BatchStats], fewest: int) -> float | None:
    """Measured service time over the profile's, at the batch sizes that ran; None from too few batches."""
    if sum(stats.batches for stats in batches.values()) < fewest:
        return None
    largest = profile.batch_sizes[-1]
    expected_s = sum(stats.batches * profile.service_time_s(min(size, largest)) for size, stats in batches.items())
    return sum(stats.service_s for stats in batches.values()) / expected_s


def batches_between(pairs: Iterable[tuple[ReplicaReport, ReplicaReport]]) -> dict[int, BatchStats]:
    """Batches between two reports of each replica, by batch size."""
    total: dict[int, BatchStats] = {}
    for first, last in pairs:
        for size, stats in last.batch_stats.items():
            before = first.batch_stats.get(size, BatchStats())
            if stats.batches > before.batches:
                sums = total.setdefault(size, BatchStats())
                sums.batches += stats.batches - before.batches
                sums.service_s += stats.service_s - before.service_s
    return total
