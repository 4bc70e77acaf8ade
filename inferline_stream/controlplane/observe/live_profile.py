"""Profiles and visit ratios as the running replicas show them: what the Planner believes instead of the sample."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import NormalDist

from inferline_stream.observability.stage_counts import Batches, StageCounts
from inferline_stream.pipeline.profile import (
    NOISE_PROBABILITIES,
    STEADY,
    PipelineProfile,
    Profile,
    Variation,
)
from inferline_stream.pipeline.shape import Paths, Shape, independent_paths, visited

FEWEST_BATCHES = 50
"""A service time from fewer batches would be noise."""

FEWEST_RESULTS = 300
"""A share of results from fewer would be noise."""

NOISE = 0.1
"""Relative difference from the profile that is taken for noise: one measurement of it is no better than the other."""

_NORMAL = tuple(NormalDist().inv_cdf(min(max(p, 1e-3), 1 - 1e-3)) for p in NOISE_PROBABILITIES)
"""Noise of times of which only the spread is known: lognormal, cut off at one in a thousand."""

_SWEEPS = 50


def corrected(profile: PipelineProfile, shape: Shape, seen: Mapping[str, StageCounts]) -> PipelineProfile:
    """The profile with service times scaled to what replicas measured, paths to the branches taken, and the network.

    Of a stage on one kind of hardware all batch sizes are scaled alike, since those that ran show the others. Of those
    that ran often, mean and spread are what was measured. Kinds that did not run keep their profile.

    Args:
        profile: of the pipeline.
        shape: its DAG.
        seen: what was counted of its stages.
    """
    profiles, nothing = {}, StageCounts()
    for (stage, kind), own in profile.profiles.items():
        batches = seen.get(stage, nothing).batch_stats.get(kind, {})
        factor = slowdown(own, batches, FEWEST_BATCHES)
        now = own if factor is None or abs(factor - 1) <= NOISE else own.scaled(factor)
        profiles[stage, kind] = _spread_as_seen(_sizes_as_seen(now, batches), batches)
    shares = {}
    for arrow in shape.arrows:
        parent, child = shape.stages[arrow.parent], shape.stages[arrow.child]
        counts = seen.get(parent, nothing)
        if arrow.conditional and counts.served >= FEWEST_RESULTS:
            shares[parent, child] = min(1.0, counts.edges_taken.get(child, 0) / counts.served)
    remote = sum(counts.remote_batches for counts in seen.values())
    carrying_s = sum(counts.network_s for counts in seen.values())
    network_s = carrying_s / remote if remote >= FEWEST_BATCHES else profile.network_s
    return replace(
        profile,
        profiles=profiles,
        paths=_follow(shape, profile.paths, shares),
        hop_overhead_s=profile.hop_overhead_s - profile.network_s + network_s,
        network_s=network_s,
    )


def expected_service_s(profile: Profile, batches: Batches) -> float:
    """Return the time that batches would have taken as profiled, all together."""
    largest, most = profile.batch_sizes[-1], profile.concurrencies[-1]
    return sum(
        stats.batches * profile.service_time_s(min(size, largest), min(max(1.0, stats.in_hand / stats.batches), most))
        for size, stats in batches.items()
        if stats.batches
    )


def slowdown(profile: Profile, batches: Batches, fewest: int, waited_s: float = 0.0) -> float | None:
    """Measured service time over the profile's, at the batch sizes that ran; None from too few batches.

    Time without a core counts as far as the profile has it, too: beyond that the machine is full, not the model slower.

    Args:
        profile: of the stage on the kind.
        batches: that ran.
        fewest: batches that are enough to judge by.
        waited_s: time that their replicas could have run meanwhile and had no core.
    """
    count = sum(stats.batches for stats in batches.values())
    if not count or count < fewest:
        return None
    expected_s = expected_service_s(profile, batches)
    service_s = sum(stats.service_s for stats in batches.values())
    beyond_s = max(0.0, waited_s - profile.waited_share * expected_s)
    return max(service_s - beyond_s, min(service_s, expected_s)) / expected_s


def slowdowns(
    profile: PipelineProfile,
    seen: Mapping[str, StageCounts],
    fewest: int,
    waited_s: Callable[[str, str], float] = lambda *_: 0.0,
) -> dict[tuple[str, str], float]:
    """The slowdown of each (stage, hardware kind) of which enough batches ran; see `slowdown`."""
    found = {}
    for stage, counts in seen.items():
        for kind, batches in counts.batch_stats.items():
            own = profile.profiles.get((stage, kind))
            factor = None if own is None else slowdown(own, batches, fewest, waited_s(stage, kind))
            if factor is not None:
                found[stage, kind] = factor
    return found


def _sizes_as_seen(profile: Profile, batches: Batches) -> Profile:
    """A profile with the means of those batch sizes that ran often and differ from it."""
    times = []
    for entry in profile.service_times:
        stats = batches.get(entry.batch_size)
        factor = 1.0
        if stats and stats.batches >= FEWEST_BATCHES:
            in_hand = min(max(1.0, stats.in_hand / stats.batches), profile.concurrencies[-1])
            factor = stats.service_s / stats.batches / (entry.mean_s * profile.slowed(entry.batch_size, in_hand))
        times.append(entry.longer(factor) if abs(factor - 1) > NOISE else entry)
    return replace(profile, service_times=tuple(times))


def _spread_as_seen(profile: Profile, batches: Batches) -> Profile:
    """A profile whose batches vary as those that ran, if what events ask for does not say how they vary.

    Batch sizes that ran too little have the mean of what the others show.
    """
    often = {size: stats for size, stats in batches.items() if stats.batches >= FEWEST_BATCHES and stats.squares > 0}
    if not often or (profile.variation is not None and profile.variation.units):
        return profile
    spreads = {
        size: math.sqrt(math.log(max(1.0, stats.squares * stats.batches / stats.service_s**2)))
        for size, stats in often.items()
    }
    usual = statistics.fmean(spreads.values())
    wanted = [spreads.get(entry.batch_size, usual) for entry in profile.service_times]
    apart = [abs(entry.spread - spread) for entry, spread in zip(profile.service_times, wanted, strict=True)]
    if usual < STEADY or max(apart) <= NOISE * usual:
        return profile
    noise = profile.variation.noise if profile.variation is not None and profile.variation.noise else _NORMAL
    times = tuple(replace(e, spread=spread) for e, spread in zip(profile.service_times, wanted, strict=True))
    return replace(profile, service_times=times, variation=Variation(noise=noise))


def _follow(shape: Shape, paths: Paths, shares: Mapping[tuple[str, str], float]) -> Paths:
    """Paths whose conditional arrows are taken as often as seen, otherwise as they were together in the sample.

    Iterative proportional fitting: weights of paths with and without an arrow are scaled to its share, arrow after
    arrow, until all hold. Where the sample has no path to scale, arrows count as independent of each other.
    """
    known = _shares(shape, paths)
    moved = {edge: share for edge, share in shares.items() if abs(share - known[edge]) > NOISE * max(known[edge], 0.01)}
    if not moved:
        return paths
    weights = dict(zip(paths.masks, paths.weights, strict=True))
    bits = {
        (shape.stages[a.parent], shape.stages[a.child]): (bit, a.parent)
        for bit, a in enumerate(shape.arrows)
        if a.conditional
    }
    for _ in range(_SWEEPS):
        for edge, share in shares.items():
            bit, parent = bits[edge]
            there = [m for m in weights if visited(shape, m)[parent]]
            took = sum(weights[m] for m in there if m >> bit & 1)
            left = sum(weights[m] for m in there) - took
            if (share > 0 and took <= 0) or (share < 1 and left <= 0):
                return independent_paths(shape, {**known, **shares})
            for m in there:
                goal, now = (share, took) if m >> bit & 1 else (1 - share, left)
                weights[m] *= goal * (took + left) / now if now > 0 else 0.0
    total = sum(weights.values())
    kept = {m: w / total for m, w in weights.items() if w > 0}
    return Paths(tuple(kept), tuple(kept.values()))


def _shares(shape: Shape, paths: Paths) -> dict[tuple[str, str], float]:
    """Share of a parent's results that take each conditional arrow."""
    found = {}
    for bit, arrow in enumerate(shape.arrows):
        if arrow.conditional:
            pairs = [(m, w) for m, w in zip(paths.masks, paths.weights, strict=True) if visited(shape, m)[arrow.parent]]
            there = sum(w for _, w in pairs)
            took = sum(w for m, w in pairs if m >> bit & 1)
            found[shape.stages[arrow.parent], shape.stages[arrow.child]] = took / there if there else 0.0
    return found
