"""A trace prepared for many simulations: which arrows each event takes, and what every stage is fed with."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator import kernels
from inferline_stream.estimator.feeds import Feed, Way, feeds, ways_of
from inferline_stream.estimator.many_results import ManyResults, numbered
from inferline_stream.estimator.numba_kernels import compiled
from inferline_stream.estimator.quantile import quantile_s
from inferline_stream.estimator.service_table import MIDDLES
from inferline_stream.pipeline.profile import HOP_PROBABILITIES, PipelineProfile
from inferline_stream.pipeline.shape import FanOut, Paths, Scope, Shape, visited
from inferline_stream.pipeline.trace import Trace

NO_KEYS: kernels.Masks = np.empty(0, dtype=np.uint16)
"""Where no two events of one key meet, or their order is not kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """What the events of a trace did, which is drawn otherwise.

    Args:
        paths: int64 (events,) arrows that each took, as in `Paths.masks`.
        results: by stage that gives many, int64 (events,) how many it gave each of those that it may get, in order of
            their numbers; 0 for one that did not visit it. Of a stage without an entry they are drawn.
    """

    paths: kernels.Ints
    results: Mapping[int, kernels.Ints] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Events that enter a pipeline, with everything about them that no plan changes.

    Args:
        shape: the DAG.
        entry_s: float64 (events,) when each entered, or what it is a result of; ascending within a scope.
        masks: uint16 (events,) index into ``ways``.
        ways: distinct sets of arrows taken, by scope; see `feeds.ways_of`.
        feeds: by stage.
        hop_s: time between two stages beyond queueing and service, the least if it differs.
        seed: of every draw.
        keys: uint16 (events,) number of each event's key from 1, 0 for one of no account; empty if all are.
        ordered: stages that keep the order of a key's events.
        hop_extra_s: float64 (LEVELS,) equally probable times of a hop beyond the least; empty if all take the same.
        class_of: uint16 (events,) number of each event's live class; empty if all have the pipeline's SLO.
        longer_s: float64 (events,) how much longer the SLO of its class is than the pipeline's; empty alike.
        shorter_s: of the shortest, at most 0.
        entering: events that enter, the first of all; the others are results of some of them.
        results: by stage that gives an event many.
    """

    shape: Shape
    entry_s: kernels.Floats
    masks: kernels.Masks
    ways: tuple[Way, ...]
    feeds: tuple[Feed, ...]
    hop_s: float
    seed: int
    keys: kernels.Masks = field(default_factory=lambda: NO_KEYS)
    ordered: frozenset[int] = frozenset()
    hop_extra_s: kernels.Floats = field(default_factory=lambda: np.empty(0))
    class_of: kernels.Masks = field(default_factory=lambda: NO_KEYS)
    longer_s: kernels.Floats = field(default_factory=lambda: np.empty(0))
    shorter_s: float = 0.0
    entering: int = -1
    results: Mapping[int, ManyResults] = field(default_factory=dict)
    _due_s: list[kernels.Floats] = field(default_factory=list, repr=False)
    _partitions: dict[tuple[int, int], kernels.Masks] = field(default_factory=dict, repr=False)
    _lots: dict[int, kernels.Masks] = field(default_factory=dict, repr=False)
    _taken: dict[int, NDArray[np.bool_]] = field(default_factory=dict, repr=False)
    _awaited: dict[int, NDArray[np.bool_]] = field(default_factory=dict, repr=False)
    _owners: dict[int, kernels.Events | None] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return int(self.entry_s.size)

    @property
    def due_s(self) -> kernels.Floats:
        """When each event would have entered if its SLO were the pipeline's: queues are in this order."""
        if not self.longer_s.size:
            return self.entry_s
        if not self._due_s:
            due_s: kernels.Floats = self.entry_s + self.longer_s
            due_s.flags.writeable = False  # as a trace is: another type would compile the kernels again
            self._due_s.append(due_s)
        return self._due_s[0]

    def judged_s(self, latency_s: kernels.Floats) -> kernels.Floats:
        """Latencies as the pipeline's SLO judges them: less what the SLO of an event's class is longer.

        Args:
            latency_s: float64, of all events or of the `last` ones.
        """
        return latency_s - self._seen(self.longer_s, latency_s.size) if self.longer_s.size else latency_s

    def by_class(self, events: int) -> Iterator[NDArray[np.bool_]]:
        """Yield which of all events, or of the `last` ones, each live class has; nothing where there is only one."""
        class_of = self._seen(self.class_of, events) if self.class_of.size else self.class_of
        for number in np.unique(class_of):
            yield class_of == number

    def judged_quantile_s(self, latency_s: kernels.Floats, share: float) -> float:
        """The largest quantile of `judged_s` of any class: within the SLO if each keeps its own. NaN without any."""
        judged_s = self.judged_s(latency_s)
        parts = [judged_s[own] for own in self.by_class(judged_s.size)] or [judged_s]
        found_s = [quantile_s(each_s, share) for each_s in parts]
        return max((each for each in found_s if not math.isnan(each)), default=math.nan)

    def _seen(self, values: Any, events: int) -> Any:
        """Return what all events have, or the `last` ones, by how many are asked about."""
        return values if events == len(self) else values[self.last]

    @property
    def entering_s(self) -> kernels.Floats:
        """When events enter, float64 ascending."""
        return self.entry_s[: self.entering]

    @property
    def last(self) -> slice:
        """The events whose latencies count, by their last record in any sink; see `Shape.counted`."""
        return slice(*numbered(self.entering, self.results, self.shape.counted()))

    def reaches_sink(self) -> NDArray[np.bool_]:
        """Of each of the `last` events, whether it or any result of it reaches a sink."""
        found = np.zeros(self.last.stop - self.last.start, dtype=np.bool_)
        for final in self.shape.finals():
            visits = self.feeds[final].visits[self.masks].astype(np.float64)
            found |= self.seen_from_sink(final, visits) > 0
        return found

    def owners(self, stage: int) -> kernels.Events | None:
        """Which of the `last` events each is a result of that a stage may get (`span`); None where it gets those."""
        if stage not in self._owners:
            own, counted = self.shape.scopes()[stage], self.shape.counted()
            found = None
            for many in reversed(own[len(counted) :] if own[: len(counted)] == counted else ()):
                parents = self.results[many].parents()
                found = parents if found is None else parents[found - self.results[many].numbers[0]]
            self._owners[stage] = found
        return self._owners[stage]

    def as_last(self, stage: int, events: kernels.Events) -> kernels.Events:
        """Return which of the `last` events those of a stage are, or are results of."""
        owners = self.owners(stage)
        return events if owners is None else owners[events - self.span(stage)[0]]

    def span(self, stage: int) -> tuple[int, int]:
        """First event, and end, of those that a stage may get."""
        return numbered(self.entering, self.results, self.shape.scopes()[stage])

    def seen_from_sink(self, stage: int, values: kernels.Floats) -> kernels.Floats:
        """Return what each of the `last` events has of a stage: of several results that it is made of the largest.

        Args:
            stage: position in the shape.
            values: float64 by event, NaN where the stage has none.
        """
        own, last = self.shape.scopes()[stage], self.shape.counted()
        common = next((at for at, pair in enumerate(zip(own, last, strict=False)) if pair[0] != pair[1]), None)
        common = min(len(own), len(last)) if common is None else common
        found = values[slice(*self.span(stage))]
        for many in reversed(own[common:]):
            found = self.results[many].largest(found)
        for many in last[common:]:
            found = np.repeat(found, np.diff(self.results[many].begins))
        return found

    def needs(self, stage: int) -> frozenset[int]:
        """Stages whose departures the simulation of this one reads."""
        return frozenset(source for source, _ in self.feeds[stage].sources)

    def takes(self, arrow: int) -> NDArray[np.bool_]:
        """By mask, whether an arrow is taken."""
        if arrow not in self._taken:
            self._taken[arrow] = np.array([mask >> arrow & 1 for _, mask in self.ways], dtype=np.bool_)
        return self._taken[arrow]

    def awaited(self, stage: int) -> NDArray[np.bool_]:
        """By mask, whether an event visits a stage and reaches a sink after it."""
        if stage not in self._awaited:
            after = self.shape.downstream(stage).intersection(self.shape.finals())
            visits = np.array([self.feeds[s].visits for s in (stage, *after)], dtype=np.bool_)
            self._awaited[stage] = visits[0] & visits[1:].any(axis=0)
        return self._awaited[stage]

    def partition_of(self, stage: int, partitions: int, *, code: Any = None) -> kernels.Masks:
        """Partition of every event in a stage's input topic, uint16 (events,), drawn once and kept.

        The draw stands for the hash of a record's key, which results have of their event; at a join that keeps no
        order, of the event's id.

        Args:
            stage: position in the shape.
            partitions: of the topic.
            code: the kernels; the compiled ones by default.
        """
        by_id = stage in self.shape.joins() and stage not in self.ordered
        name = self.key("event id" if by_id else "record key"), partitions
        if name not in self._partitions:
            chosen = self._partitions[name] = np.empty(len(self), dtype=np.uint16)
            (code or compiled()).draw_partitions(*name, NO_KEYS if by_id else self.keys, chosen)
            for results in () if by_id else self.results.values():
                chosen[slice(*results.numbers)] = chosen[results.parents()]
        return self._partitions[name]

    def lanes(self, stage: int) -> kernels.Masks:
        """The keys of events that a stage processes in order, see ``keys``; empty where it keeps none."""
        return self.keys if stage in self.ordered else NO_KEYS

    def lots(self, stage: int, *, code: Any = None) -> kernels.Masks:
        """What every event draws for its service time at a stage, uint16 (events,), drawn once and kept.

        Whatever the plan: plans that are compared meet the same luck.

        Args:
            stage: position in the shape.
            code: the kernels; the compiled ones by default.
        """
        if stage not in self._lots:
            chosen = np.empty(len(self), dtype=np.uint16)
            (code or compiled()).draw_lots(self.key("service", stage), chosen)
            self._lots[stage] = chosen
        return self._lots[stage]

    def key(self, purpose: str, stage: int = 0) -> int:
        """32 bits that make the draws of one purpose independent of all others."""
        words = [self.seed & 0xFFFFFFFF, self.seed >> 32 & 0xFFFFFFFF, zlib.crc32(purpose.encode()), stage]
        return int(np.random.SeedSequence(words).generate_state(1)[0])


def hop_extra_s(measured: PipelineProfile) -> kernels.Floats:
    """Return equally probable times of a hop beyond the least, float64 (LEVELS,) ascending; empty if there is one."""
    if not measured.hop_spread_s:
        return np.empty(0)
    hops_s = np.maximum(0.0, measured.hop_overhead_s + np.array(measured.hop_spread_s))
    extra_s: kernels.Floats = np.interp(MIDDLES, HOP_PROBABILITIES, hops_s) - measured.least_hop_s
    return extra_s


def prepare(
    shape: Shape,
    measured: PipelineProfile,
    trace: Trace,
    *,
    seed: int = 0,
    recorded: Recorded | None = None,
    code: Any = None,
) -> Workload:
    """Draw every event's path, results and key from the distributions measured, or take what was recorded of them.

    Args:
        shape: the DAG.
        measured: its paths and keys and the overhead of a hop.
        trace: when events enter.
        seed: the same seed gives the same draws, whatever the plan.
        recorded: what the events did, in place of paths and results that are drawn.
        code: the kernels; the compiled ones by default.

    Raises:
        ValueError: a path that takes an arrow out of a stage that it does not visit, a recorded path that is not
            among those measured, recorded results of more or fewer events, or too many paths or events.
    """
    paths = measured.paths
    ways = checked_ways(shape, paths)
    if len(trace) > np.iinfo(np.int32).max:
        raise ValueError(f"{len(trace):,} events are more than the {np.iinfo(np.int32).max:,} supported; use a part")
    masks = np.zeros(len(trace), dtype=np.uint16)
    shares = np.array([share for _, share in measured.keys.shares])
    workload = Workload(
        shape,
        trace.arrivals_s,
        masks,
        ways,
        feeds(shape, paths),
        measured.least_hop_s,
        seed,
        np.empty(len(trace) if shares.size else 0, dtype=np.uint16),
        frozenset(s for s, name in enumerate(shape.stages) if name in measured.keys.ordered),
        hop_extra_s(measured),
        np.empty(len(trace) if measured.classes else 0, dtype=np.uint16),
        np.empty(len(trace) if measured.classes else 0),
        min([0.0, *(each.longer_s for each in measured.classes)]),
        len(trace),
    )
    if workload.keys.size:
        _draw_shares(workload, "key", shares, workload.keys, code)
    _draw_paths(workload, paths, trace, recorded, code or compiled())
    if measured.classes:
        if shape.sources:
            workload.class_of[:] = np.array([shape.source_of(mask) for mask in paths.masks], np.uint16)[masks]
        else:
            _draw_shares(workload, "class", [each.share for each in measured.classes], workload.class_of, code)
        workload.longer_s[:] = np.array([0.0, *(each.longer_s for each in measured.classes)])[workload.class_of]
        if workload.keys.size:  # order holds within a class
            np.add(workload.keys, workload.class_of * shares.size, out=workload.keys, where=workload.keys > 0)
    for fan_out in paths.fan_outs:
        given = None if recorded is None else recorded.results.get(fan_out.stage)
        workload = _with_results(workload, fan_out, given, code or compiled())
    return workload


def _draw_paths(workload: Workload, paths: Paths, trace: Trace, recorded: Recorded | None, code: Any) -> None:
    """Draw every event's path, or take those that were recorded. Where its source is known it is one from there."""
    masks, shape = workload.masks, workload.shape
    if recorded is not None:
        known = np.array(paths.masks, dtype=np.int64)
        found = recorded.paths[:, None] == known
        if found.shape[0] != masks.size or not found.any(axis=1).all():
            raise ValueError(f"recorded paths must be one of {paths.masks} for each of the {masks.size} events")
        masks[:] = found.argmax(axis=1)
    elif trace.source_of.size:
        drawn = np.zeros_like(masks)
        for source in np.unique(trace.source_of):
            weights = [w * (shape.source_of(m) == source) for m, w in zip(paths.masks, paths.weights, strict=True)]
            if not sum(weights):
                raise ValueError(f"no path is known of events of source {source}")
            code.draw_masks(0, workload.key("path"), _thresholds(weights), drawn)
            np.copyto(masks, drawn, where=trace.source_of == source)
    elif len(paths.masks) > 1 and masks.size:
        code.draw_masks(0, workload.key("path"), _thresholds(paths.weights), masks)


def _draw_shares(
    workload: Workload, purpose: str, shares: Sequence[float] | kernels.Floats, chosen: kernels.Masks, code: Any
) -> None:
    """Draw of every event which of the shares it belongs to, from 1; 0 for the rest."""
    until = np.round(np.minimum(np.cumsum(shares), 1.0) * 2.0**32).astype(np.int64)
    (code or compiled()).draw_keys(workload.key(purpose), until, chosen)


def checked_ways(shape: Shape, paths: Paths) -> tuple[Way, ...]:
    """Return `ways_of` paths that events of a shape can take.

    Raises:
        ValueError: a path that takes an arrow out of a stage that it does not visit, or too many paths.
    """
    if any(not 0 <= of.stage < len(shape.stages) for of in paths.fan_outs):
        raise ValueError(f"results of a stage that is none of {len(shape.stages)}")
    ways = ways_of(shape, paths)
    for scope, mask in ways:
        if mask < 0 or shape.source_of(mask) >= max(1, len(shape.sources)) or not _is_way(shape, scope, mask):
            raise ValueError(f"path {mask:b} takes an arrow out of a stage that it does not visit")
    if len(ways) > np.iinfo(np.uint16).max:
        raise ValueError(f"{len(ways)} different paths are more than the {np.iinfo(np.uint16).max} supported")
    return ways


def _is_way(shape: Shape, scope: Scope, mask: int) -> bool:
    seen = visited(shape, mask, scope)
    return all(
        shape.scope_after(arrow.parent) == scope and (seen[arrow.parent] or arrow.parent in scope[-1:])
        for a, arrow in enumerate(shape.arrows)
        if mask >> a & 1
    )


def _thresholds(weights: Sequence[float]) -> kernels.Ints:
    until: kernels.Ints = np.round(np.cumsum(weights) / sum(weights) * 2.0**32).astype(np.int64)
    until[-1] = 2**32
    return until


def _with_results(workload: Workload, fan_out: FanOut, given: kernels.Ints | None, code: Any) -> Workload:
    """Take, or draw, how many results a stage gives each of its events, and draw which arrows each of them takes."""
    shape, stage = workload.shape, fan_out.stage
    first, end = of = numbered(workload.entering, workload.results, shape.scopes()[stage])
    if given is None:
        chosen = np.zeros(end - first, dtype=np.uint16)
        code.draw_masks(first, workload.key("results", stage), _thresholds(fan_out.shares), chosen)
        given = np.array(fan_out.counts, dtype=np.int64)[chosen]
    elif given.size != end - first:
        raise ValueError(f"results recorded of {given.size} events, stage {shape.stages[stage]!r} has {end - first}")
    visits = workload.feeds[stage].visits[workload.masks[first:end]] > 0
    counts = np.where(visits, given, 0)
    before = len(workload)
    total = before + int(counts.sum())
    if total > np.iinfo(np.int32).max:
        raise ValueError(f"{total:,} events and results are more than the {np.iinfo(np.int32).max:,} supported")
    results = ManyResults(of, before + np.concatenate([[0], np.cumsum(counts)]))
    parents = results.parents()
    taken = np.zeros(parents.size, dtype=np.uint16)
    if len(fan_out.masks) > 1 and taken.size:
        code.draw_masks(before, workload.key("path", stage), _thresholds(fan_out.weights), taken)
    way = workload.ways.index((shape.scope_after(stage), fan_out.masks[0]))

    def with_parents(values: Any) -> Any:
        return np.concatenate([values, values[parents]]) if values.size else values

    entry_s = with_parents(workload.entry_s)
    entry_s.flags.writeable = False  # as in `due_s`
    return replace(
        workload,
        entry_s=entry_s,
        masks=np.concatenate([workload.masks, taken + np.uint16(way)]),
        keys=with_parents(workload.keys),
        class_of=with_parents(workload.class_of),
        longer_s=with_parents(workload.longer_s),
        results={**workload.results, stage: results},
    )
