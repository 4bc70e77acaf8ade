"""Network calculus: arrival curves, service curves, and the bounds on delay and backlog that follow from them.

Le Boudec and Thiran, "Network Calculus" (2001), ch. 1, for events instead of fluid and for replicas that serve batches.

**One stage.** Replicas serve one queue and never idle while something waits; each takes up to b events at once and
needs at most S for them. Look at an event that waits, and at τ, the last instant before its batch starts at which
nothing waited. From then on every batch that starts leaves something waiting, so it is full. A replica ends what it
has in flight within S and starts another full batch every S: within y of τ at least β(y) = Σ b·⌊y/S⌋ events have
started. Of the events that came after τ this one is the n-th, and n events take at least d(n) to come. It starts no
later than β⁻¹(n) − d(n) after it came, and ends within another S. Without batches, and with replicas all alike,
that last S is in β already: counted from the arrival that found them all busy, the bound is the largest ⌈n/k⌉·S −
d(n). It is attained: Lindley's recursion, taken for every k-th event, says the same.

**Behind other stages.** Events come after delays that differ by at most J, so that n of them take at least d(n) −
J. That holds for joins and skipped branches too, and in order of entry as in order of arrival: an event that overtakes
entered within the same window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inferline_stream.pipeline.plan import Allocation, Allocations, hold_of
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape

_ROUNDING = 1e-9

_GRID = 600
"""Most steps of a curve that an envelope gives."""


@dataclass(frozen=True, slots=True)
class ArrivalCurve:
    """α: how fast events can come.

    Args:
        steps: (n, d_s), n ascending: n events, and any number between the step before and this one, never come within
            less than d_s from the first of them to the last.
        events: most events in any window of ``window_s``, however late it begins.
        window_s: infinite where no more than that many events come at all.

    Raises:
        ValueError: no steps, numbers that do not ascend, or times that fall.
    """

    steps: tuple[tuple[int, float], ...]
    events: int
    window_s: float = math.inf

    def __post_init__(self) -> None:
        pairs = list(zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or any(not (n < m and d <= later) for (n, d), (m, later) in pairs) or self.steps[0][1] < 0:
            raise ValueError(f"steps {self.steps}: at least one, numbers ascending, times from 0 and never falling")

    def thinned(self, share: float, at_once: int = 1) -> ArrivalCurve:
        """The curve to expect of a stage that this share of the events visits: no bound, they might come in a row.

        Args:
            share: visits per event.
            at_once: visits that one event may cause at the same moment, where it is one of several.
        """
        more = at_once - share if at_once > 1 else 0.0
        steps: dict[int, float] = {}
        for n, d in self.steps:
            steps.setdefault(math.ceil(n * share + more - _ROUNDING) or 1, d)
        return ArrivalCurve(tuple(steps.items()), math.ceil(self.events * share + more - _ROUNDING), self.window_s)


def curve_of_envelope(envelope: Sequence[tuple[float, int]]) -> ArrivalCurve:
    """The curve that a traffic envelope shows, on a grid of its shortest window.

    Between the windows it follows from α being sub-additive: a window holds no more than its parts.

    Args:
        envelope: (window_s, most arrivals in any such window), ascending, as `Plan.envelope`.
    """
    longest_s, events = envelope[-1]
    grid_s = max(envelope[0][0], longest_s / _GRID)
    most = [0]  # in windows of as many grid steps
    while (length_s := len(most) * grid_s) < longest_s:
        within = min(count for window_s, count in envelope if window_s >= length_s)
        parts = ((count, math.ceil((length_s - w) / grid_s - _ROUNDING)) for w, count in envelope if w < length_s)
        most.append(min((count + most[rest] for count, rest in parts if rest < len(most)), default=within))
        most[-1] = min(most[-1], within)
    steps: dict[int, float] = {}
    for k, count in enumerate([*most[1:], events]):
        steps.setdefault(max(count, 1, *steps), k * grid_s)
    return ArrivalCurve(tuple(steps.items()), events, longest_s)


@dataclass(frozen=True, slots=True)
class ServiceCurve:
    """β: how many events replicas have surely started within a time during which something always waits.

    Args:
        replicas: (batch limit, longest service time of a batch in seconds, how many such replicas).
        hold_s: how long a free replica waits for a fuller batch. What waits meanwhile has arrived within that time, and
            nothing is held for longer: the curve counts from the end of the last hold.

    Raises:
        ValueError: no replicas, or a number or time not above 0.
    """

    replicas: tuple[tuple[int, float, int], ...]
    hold_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.replicas or any(b < 1 or not s > 0 or k < 1 for b, s, k in self.replicas):
            raise ValueError(f"replicas {self.replicas}: at least one, with batch limits and service times above 0")

    @property
    def rate(self) -> float:
        """Σ k·b/S, events per second in the long run."""
        return sum(k * b / s for b, s, k in self.replicas)

    @property
    def in_service(self) -> int:
        """Most events being served at once."""
        return sum(k * b for b, _, k in self.replicas)

    @property
    def last_s(self) -> float:
        """What is still to come once an event has started, where `time_s` does not hold it already."""
        alone = len(self.replicas) == 1 and self.replicas[0][0] == 1
        return 0.0 if alone else max(s for _, s, _ in self.replicas)

    def started(self, time_s: float) -> int:
        """β(t): events started within this time."""
        return sum(k * b * math.floor(time_s / s + _ROUNDING) for b, s, k in self.replicas)

    def time_s(self, events: int) -> float:
        """A time within which so many have surely started: β⁻¹(n), or a little more where replicas differ."""
        if len(self.replicas) > 1:
            return (events - 1 + self.in_service) / self.rate
        b, s, k = self.replicas[0]
        return math.ceil(events / (b * k)) * s


def service_curve(measured: PipelineProfile, stage: str, allocations: Sequence[Allocation]) -> ServiceCurve:
    """The curve of a stage's replicas, from the mean service times of their profiles."""
    return ServiceCurve(
        tuple(
            (a.max_batch_size, max(times_s(measured, stage, a, a.concurrency)), a.replicas * a.concurrency)
            for a in allocations
            if a.replicas
        ),
        hold_of(tuple(allocations)),
    )


def times_s(measured: PipelineProfile, stage: str, allocation: Allocation, concurrency: int = 1) -> list[float]:
    """Mean service time of every batch that an allocation may take, from one event up, with so many in hand."""
    profile = measured.profiles[stage, allocation.hardware]
    return [profile.service_time_s(b, concurrency) for b in range(1, allocation.max_batch_size + 1)]


def delay_bound_s(arrivals: ArrivalCurve, service: ServiceCurve, jitter_s: float = 0.0) -> float:
    """The longest that any event is in a stage, from its arrival to the end of its batch; ∞ if there is no bound.

    Args:
        arrivals: α of the pipeline.
        service: β of the stage.
        jitter_s: by how much the delays of events before this stage may differ.
    """
    # What the longest window brings must be done within it: windows that follow one another then add nothing.
    if service.time_s(arrivals.events) + jitter_s + service.hold_s > arrivals.window_s:
        return math.inf
    return (
        service.last_s + service.hold_s + max(service.time_s(n) - max(d_s - jitter_s, 0.0) for n, d_s in arrivals.steps)
    )


def backlog_bound(arrivals: ArrivalCurve, service: ServiceCurve, jitter_s: float = 0.0) -> float:
    """Most events in a stage at any time, those in service included; ∞ if there is no bound. See `delay_bound_s`."""
    late_s = jitter_s + service.hold_s
    if service.time_s(arrivals.events) + late_s > arrivals.window_s:
        return math.inf
    waiting = max(n - service.started(max(d_s - late_s, 0.0)) for n, d_s in arrivals.steps)
    return max(waiting, 0) + service.in_service


@dataclass(frozen=True, slots=True)
class StageBound:
    """One stage: the longest that an event is in it, and the most events that ever are."""

    delay_s: float
    backlog: float


def bounds(
    shape: Shape, allocations: Allocations, measured: PipelineProfile, arrivals: ArrivalCurve
) -> tuple[float, dict[str, StageBound]]:
    """What no event's latency passes under a plan with shared queues, and the bounds of each stage.

    Service times are the profiles' means. Every event is taken to visit every stage.

    Args:
        shape: the DAG.
        allocations: by stage.
        measured: profiles and the overhead of a hop.
        arrivals: α of the pipeline.

    Returns:
        The latency's bound in seconds, and by stage its bounds; infinite where arrivals may outrun a stage.
    """
    hop_s = measured.hop_overhead_s
    earliest_s, latest_s = [0.0] * len(shape.stages), [0.0] * len(shape.stages)
    found: dict[str, StageBound] = {}
    for s, name in enumerate(shape.stages):
        parents = [shape.arrows[a].parent for a in shape.parents(s)]
        comes_s = hop_s + min((earliest_s[p] for p in parents), default=0.0)
        comes_by_s = hop_s + max((latest_s[p] for p in parents), default=0.0)
        held = [a for a in allocations[name] if a.replicas]
        service, jitter_s = service_curve(measured, name, held), comes_by_s - comes_s
        found[name] = (
            StageBound(delay_bound_s(arrivals, service, jitter_s), backlog_bound(arrivals, service, jitter_s))
            if math.isfinite(jitter_s)
            else StageBound(math.inf, math.inf)
        )
        earliest_s[s] = comes_s + min(min(times_s(measured, name, a)) for a in held)
        latest_s[s] = comes_by_s + found[name].delay_s
    return hop_s + max(latest_s[s] for s in shape.finals()), found
