"""What a dispatcher knows of one kind of hardware: how long batches take on it, and how large they may be."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from inferline_stream.dataplane.frames import Call
from inferline_stream.dataplane.slot_grants import HardwarePlan
from inferline_stream.pipeline.deadline_order import batch_cap

MIN_WIDER_S, MAX_WIDER_S = 30.0, 3600.0
"""First and longest time until larger batches are tried again than a device had memory for: others may have used it."""

WEIGHT = 0.2
"""Of the last batch in the moving average of the slowdown."""

LARGEST_BATCH = 1 << 16
"""No plan has larger ones."""


class BatchNeeds(NamedTuple):
    """What a batch needs on one kind of hardware until its events are in the sink; see `pipeline.deadline_order`."""

    limit: int
    """Most events of a batch."""
    cap: int
    """Most hopeful ones."""
    times_us: Sequence[float]
    """By batch size from 0 up to the limit, S(b) + R."""
    fallback_us: Sequence[float] = ()
    """The same of the stage's fallback; empty without one."""
    fallback_cap: int = 0
    """Most hopeful ones of a batch of its."""


@dataclass(slots=True)
class HardwareKind:
    """What is known of one kind of hardware."""

    limit: int = 1
    """The plan's."""
    fits: int = LARGEST_BATCH
    """Largest batch that devices of the kind have memory for, as far as replicas have found out."""
    wider_s: float = MIN_WIDER_S
    """After how long `fits` is doubled."""
    wider_at_s: float = 0.0
    """When that is next."""
    widened_s: float | None = None
    """When it was; None if not since a device last had no memory."""
    concurrency: int = 1
    sizes: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    fallback_s: list[float] = field(default_factory=list)
    """Of the stage's fallback; empty without one."""
    contention: list[tuple[int, list[float]]] = field(default_factory=list)
    """By ascending batches in hand, how many times as long each of the sizes takes."""
    interpolated: dict[tuple[int, int], float] = field(default_factory=dict)
    needs: dict[int, BatchNeeds] = field(default_factory=dict)
    """By batches in hand, as `needs_by` has it."""
    needs_by: tuple[int, float] = (0, 0.0)
    """Batch limit and R."""
    measured: dict[int, float] = field(default_factory=dict)
    """Where there is no profile: moving average of the service time by batch size, to compare replicas by."""

    def configure(self, plan: HardwarePlan) -> None:
        """Apply what the plan says of the kind."""
        profile = {size: time_s for size, time_s in plan.service_s.items() if size > 0 and time_s > 0}
        self.limit, self.concurrency = plan.max_batch_size, plan.concurrency
        self.sizes = sorted(profile)
        self.times_s = [profile[size] for size in self.sizes]
        self.fallback_s = [plan.fallback_s[size] for size in self.sizes if plan.fallback_s.get(size, 0) > 0]
        if len(self.fallback_s) < len(self.sizes):
            self.fallback_s = []
        self.contention = [
            (beside, [factors[size] for size in self.sizes])
            for beside, factors in sorted(plan.contention.items())
            if beside > 1 and factors.keys() >= profile.keys() and profile
        ]
        self.interpolated, self.needs = {}, {}

    @property
    def largest(self) -> int:
        """Largest batch to hand out."""
        return min(self.limit, self.fits)

    def service_s(self, batch_size: int, beside: int = 1) -> float:
        """Return the profile's S(b), linear between the profiled sizes and beyond them; 0.0 without a profile.

        Args:
            batch_size: b.
            beside: batches in hand, itself included.
        """
        found = self.interpolated.get((batch_size, beside))
        if found is None:
            found = self._interpolate(batch_size, self.times_s) if self.sizes else 0.0
            if found and beside > 1:
                found *= self._slowed(batch_size, beside)
            self.interpolated[batch_size, beside] = found
        return found

    def fallback_service_s(self, batch_size: int, beside: int = 1) -> float:
        """Return F(b) of the fallback, as `service_s`; beside others its batches slow down as the stage's do."""
        alone_s = self._interpolate(batch_size, self.fallback_s)
        return alone_s if beside == 1 else alone_s * self._slowed(batch_size, beside)

    def batch_needs(self, beside: int, rest_s: float, slo_s: float) -> BatchNeeds:
        """Return what a batch needs.

        Args:
            beside: batches in hand, itself included.
            rest_s: R.
            slo_s: the shortest SLO of any live class, always the same.
        """
        limit = self.limit if self.limit < self.fits else self.fits
        if (limit, rest_s) != self.needs_by:
            self.needs, self.needs_by = {}, (limit, rest_s)
        found = self.needs.get(beside)
        if found is None:
            times_s = [self.service_s(size, beside) for size in range(1, limit + 1)]
            cap, times_us = batch_cap(times_s, rest_s, slo_s), [(s + rest_s) * 1e6 for s in (0.0, *times_s)]
            fallback_us: Sequence[float] = ()
            fallback_cap = 0
            if self.fallback_s:
                others_s = [self.fallback_service_s(size, beside) for size in range(1, limit + 1)]
                fallback_us = [(s + rest_s) * 1e6 for s in (0.0, *others_s)]
                fallback_cap = batch_cap(others_s, rest_s, slo_s)
            found = self.needs[beside] = BatchNeeds(limit, cap, times_us, fallback_us, fallback_cap)
        return found

    def _slowed(self, batch_size: int, beside: int) -> float:
        """Return how many times as long a batch takes beside others: linear between those profiled."""
        before, slowed = 1, 1.0
        size = min(batch_size, self.sizes[-1])
        for concurrency, factors in self.contention:
            longer = self._interpolate(size, factors) if len(factors) > 1 else factors[0]
            if beside <= concurrency:
                return slowed + (longer - slowed) * (beside - before) / (concurrency - before)
            before, slowed = concurrency, longer
        return slowed

    def _interpolate(self, batch_size: int, times_s: Sequence[float]) -> float:
        sizes = self.sizes
        if len(sizes) == 1:
            return times_s[0] * max(1.0, batch_size / sizes[0])
        right = min(max(bisect.bisect_left(sizes, batch_size), 1), len(sizes) - 1)
        slope = (times_s[right] - times_s[right - 1]) / (sizes[right] - sizes[right - 1])
        if batch_size > sizes[-1]:
            return times_s[-1] + max(0.0, slope) * (batch_size - sizes[-1])
        if batch_size < sizes[0]:
            return times_s[0]
        return times_s[right - 1] + slope * (batch_size - sizes[right - 1])

    def ratio(self, calls: Sequence[Call], beside: int) -> float | None:
        """Return measured over expected time of a batch's calls; None where nothing can be said."""
        took_s = expected_s = 0.0
        for call in calls:
            size, service_s = call.batch_size, call.service_s
            known_s = self.service_s(size, beside)
            if not known_s:
                known_s = self.measured.setdefault(size, service_s)
                self.measured[size] = known_s + WEIGHT * (service_s - known_s)
            took_s += service_s
            expected_s += known_s
        return took_s / expected_s if expected_s else None

    def too_large(self, batch_size: int, now_s: float) -> None:
        """Note that a device had no memory for a batch: none is so large for a while."""
        self.fits = min(self.fits, max(1, batch_size // 2))
        if self.widened_s is not None:
            held = now_s - self.widened_s > self.wider_s
            self.wider_s = MIN_WIDER_S if held else min(2 * self.wider_s, MAX_WIDER_S)
            self.widened_s = None
        self.wider_at_s = now_s + self.wider_s

    def widen(self, now_s: float) -> None:
        """Let batches be larger again once it is time to try."""
        if self.fits < self.limit and now_s >= self.wider_at_s:
            self.fits, self.widened_s, self.wider_at_s = 2 * self.fits, now_s, now_s + self.wider_s
