"""Profiles and visit ratios as the running replicas show them: what the Planner believes instead of the sample."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
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
from inferline_stream.pipeline.shape import Paths, Scope, Shape, independent_paths, rates, visited, with_rates

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
        results = counts.results if arrow.parent in shape.many else counts.served
        if arrow.conditional and results >= FEWEST_RESULTS:
            shares[parent, child] = min(1.0, counts.edges_taken.get(child, 0) / results)
    remote = sum(counts.remote_batches for counts in seen.values())
    carrying_s = sum(counts.network_s for counts in seen.values())
    network_s = carrying_s / remote if remote >= FEWEST_BATCHES else profile.network_s
    return replace(
        profile,
        profiles=profiles,
        paths=_with_rates(shape, profile.paths, _with_counts(shape, _follow(shape, profile.paths, shares), seen), seen),
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
    arrow, until all hold. Where the sample has no path to scale, arrows count as independent of each other; beside
    stages that give many results, as they were.
    """
    try:
        own = _fitted(shape, (), (paths.masks, paths.weights), shares)
        each = tuple(
            replace(fan_out, masks=masks, weights=weights)
            for fan_out in paths.fan_outs
            for masks, weights in [
                _fitted(shape, shape.scope_after(fan_out.stage), (fan_out.masks, fan_out.weights), shares)
            ]
        )
    except _NoPath:
        if paths.fan_outs:
            return paths
        known, _ = _shares(shape, (), (paths.masks, paths.weights))
        return independent_paths(shape, {**known, **shares})
    return Paths(*own, each)


class _NoPath(Exception):
    """The sample has no path that takes an arrow, or none that does not."""


_Ways = tuple[tuple[int, ...], tuple[float, ...]]
"""Sets of arrows, and the weight of each."""

_Bits = Mapping[tuple[str, str], tuple[int, Sequence[bool]]]
"""By parent and child, a conditional arrow's bit, and of each set of arrows whether it meets the parent."""


def _fitted(shape: Shape, scope: Scope, ways: _Ways, shares: Mapping[tuple[str, str], float]) -> _Ways:
    """Fit the ways of one scope.

    Raises:
        _NoPath: there is none to scale.
    """
    known, bits = _shares(shape, scope, ways)
    wanted = {edge: share for edge, share in shares.items() if edge in bits}
    if all(abs(share - known[edge]) <= NOISE * max(known[edge], 0.01) for edge, share in wanted.items()):
        return ways
    masks, weights = ways[0], list(ways[1])
    for _ in range(_SWEEPS):
        for edge, share in wanted.items():
            bit, meets = bits[edge]
            there = [at for at, met in enumerate(meets) if met]
            took = sum(weights[at] for at in there if masks[at] >> bit & 1)
            left = sum(weights[at] for at in there) - took
            if (share > 0 and took <= 0) or (share < 1 and left <= 0):
                raise _NoPath
            for at in there:
                goal, now = (share, took) if masks[at] >> bit & 1 else (1 - share, left)
                weights[at] *= goal * (took + left) / now if now > 0 else 0.0
    kept = [(mask, weight) for mask, weight in zip(masks, weights, strict=True) if weight > 0]
    total = sum(weights)
    return tuple(mask for mask, _ in kept), tuple(weight / total for _, weight in kept)


def _shares(shape: Shape, scope: Scope, ways: _Ways) -> tuple[dict[tuple[str, str], float], _Bits]:
    """Return the share of a parent's results that take each conditional arrow of a scope, and where the arrows are."""
    masks, weights = ways
    shares, bits = {}, {}
    for bit, arrow in enumerate(shape.arrows):
        if not arrow.conditional or shape.scope_after(arrow.parent) != scope:
            continue
        edge = shape.stages[arrow.parent], shape.stages[arrow.child]
        meets = [visited(shape, mask, scope)[arrow.parent] or arrow.parent in scope[-1:] for mask in masks]
        there = sum(weight for weight, met in zip(weights, meets, strict=True) if met)
        took = sum(w for mask, w, met in zip(masks, weights, meets, strict=True) if met and mask >> bit & 1)
        shares[edge], bits[edge] = took / there if there else 0.0, (bit, meets)
    return shares, bits


def _with_rates(shape: Shape, sample: Paths, paths: Paths, seen: Mapping[str, StageCounts]) -> Paths:
    """Paths with as large a share of events from each source as have entered; where few have, as in the sample."""
    if not shape.sources:
        return paths
    entered = [seen[name].events if (name := shape.stages[entries[0]]) in seen else 0 for entries in shape.sources]
    if sum(entered) < FEWEST_RESULTS:
        return with_rates(shape, paths, rates(shape, sample))
    return with_rates(shape, paths, [count / sum(entered) for count in entered])


def _with_counts(shape: Shape, paths: Paths, seen: Mapping[str, StageCounts]) -> Paths:
    """Paths on which stages give as many results as was seen, spread as in the sample."""
    found = []
    for fan_out in paths.fan_outs:
        counts = seen.get(shape.stages[fan_out.stage])
        if counts is None or counts.served < FEWEST_RESULTS or not fan_out.mean:
            found.append(fan_out)
            continue
        factor = counts.results / counts.served / fan_out.mean
        if abs(factor - 1) <= NOISE:
            found.append(fan_out)
            continue
        scaled: dict[int, float] = {}
        for count, share in zip(fan_out.counts, fan_out.shares, strict=True):
            whole, part = divmod(count * factor, 1.0)  # between two numbers of results: some events have the larger
            for at, weight in ((int(whole), 1 - part), (int(whole) + 1, part)):
                if weight > 0:
                    scaled[at] = scaled.get(at, 0.0) + share * weight
        ascending = sorted(scaled.items())
        found.append(replace(fan_out, counts=tuple(n for n, _ in ascending), shares=tuple(s for _, s in ascending)))
    return replace(paths, fan_outs=tuple(found)) if found else paths
