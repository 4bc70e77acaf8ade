"""The state of a pipeline under control: one table per quantity, one row per stage or queue.

Rows of common tables, rather than arrays per stage, let one compiled call advance the whole pipeline. The queue of
stage s is row s. Where a stage has several slots, its arrivals are dealt from there to a row of each slot, and what
leaves these is put in order there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import Events, Flags, FlagTable, Floats, Ints, Masks
from inferline_stream.estimator.server import power_of_two
from inferline_stream.estimator.station import Station, station
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.variation import LEVELS


@dataclass(frozen=True, slots=True)
class ReplicaKind:
    """A kind of replica: hardware, batch limit, and most batches in hand."""

    hardware: str
    max_batch_size: int
    concurrency: int = 1


@dataclass(frozen=True, slots=True)
class StageSetup:
    """What of a stage does not change during a replay.

    Args:
        name: the stage.
        kinds: kinds of replicas it may have.
        hold_s: see `estimator.station.Station`, as are slots.
    """

    name: str
    kinds: tuple[ReplicaKind, ...]
    hold_s: float = 0.0
    slots: int = 1

    def station(self, measured: PipelineProfile, slo_s: float) -> Station:
        """Return how the replicas of each slot serve, with one of each kind."""
        one_each = [Allocation(k.hardware, k.max_batch_size, 1, self.hold_s, k.concurrency) for k in self.kinds]
        return station(measured, self.name, one_each, order_slo_s=slo_s)


class Seen(NamedTuple):
    """What can be counted of a stage. Totals are from the start.

    Args:
        arrived: records sent to it.
        completed: records that have left it.
        oldest_s: when the oldest record that has not left was sent; None if all have.
        busy_s: Σ of service times begun.
        nominal_s: Σ of S(b) over the batches begun, as the profile has it.
    """

    arrived: int
    completed: int
    oldest_s: float | None
    busy_s: float
    nominal_s: float


class Tables(NamedTuple):
    """Everything the compiled step reads and writes. Without a word here, see `estimator.kernels`.

    Args:
        entry_s: (events,) when each event enters.
        masks: (events,) its path.
        latency_s: (events,) of those that have reached the sink.
        arrived: (queues, events) when the records of a queue were sent.
        arrived_event: whose they are.
        arrived_count: (queues,).
        sent: (queues + stages, events) departures; below them the moments at which a join knew that it is skipped.
            Below those, where hops differ, the departures at the times at which they count as sent, one row per stage.
        sent_event: whose they are.
        sent_count: by row of `sent`.
        entered: (stages,) where hops differ, events that have entered there. Those on their way stand in `arrived`
            behind those counted, and so do departures in the last rows of `sent`.
        passed_on: (queues,) departures passed on: of a slot's queue to its stage's row, of a stage to where it sends.
        queues: (stages, 2) first of the queues that replicas serve, and end: its own row, or those of its slots.
        slot_of: (stages, events) see `workload.Workload.partition_of`; no columns if no stage has several slots.
        hop_keys: (2, stages) of the draws of either hop.
        extra_s: see `workload.Workload`.
        seen: (stages, events).
        source_rows: (stages, sources) rows of `sent` that feed the stage.
        source_count: (stages,) 0 for an entry stage, and for one that no event visits.
        entering: (stages,) events that enter the pipeline there.
        taken: (stages, sources) how far the stage has read each of them.
        admits: (stages, sources, masks).
        needed: (stages, masks).
        visits: (stages, masks).
        whole: (stages,) see `routes.Feed`.
        skips: (stages,) see `routes.Feed`.
        final: (stages,) sends to the sink.
        kinds: (stages,).
        rows: (stages,) of `table`, as many as the stage uses.
        hold_s: (stages,) see `StageSetup`.
        table: (stages, rows) S(b), see `station.Station`.
        varies: (stages,) whether service times differ from S(b).
        fixed_s: (stages, rows) see `kernels.Varying`, as are those up to ``largest``; no rows if no stage varies.
        lots: (stages, events) see `kernels.Service`.
        marks: by queue, see `shared_queue.SharedState`, as are clock and rings.
    """

    entry_s: Floats
    masks: Masks
    latency_s: Floats
    arrived: Floats
    arrived_event: Events
    arrived_count: Ints
    sent: Floats
    sent_event: Events
    sent_count: Ints
    entered: Ints
    passed_on: Ints
    queues: Ints
    slot_of: Masks
    hop_keys: Ints
    extra_s: Floats
    seen: Flags
    source_rows: Ints
    source_count: Ints
    entering: Ints
    taken: Ints
    admits: FlagTable
    needed: Flags
    visits: Flags
    whole: Flags
    skips: Flags
    final: Flags
    kinds: Ints
    rows: Ints
    hold_s: Floats
    limits: Ints
    table: Floats
    varies: Flags
    fixed_s: Floats
    per_unit_s: Floats
    factors: Floats
    units: Floats
    largest: FlagTable
    lots: Masks
    batches: Ints
    totals: Floats
    marks: Ints
    clock: Floats
    ring_time: Floats
    ring_start: Ints
    ring_size: Ints
    ring_kind: Ints


def empty_tables(
    workload: Workload, stations: Sequence[Station], slots: Sequence[int], *, most_replicas: int
) -> Tables:
    """The state before the first event: no replicas.

    Args:
        workload: events and their paths.
        stations: how each stage's replicas serve.
        slots: of each stage.
        most_replicas: of one queue at once, those that still finish a batch included.
    """
    count, events = len(stations), len(workload)
    own = np.array([n if n > 1 else 0 for n in slots], np.int64)  # queues of slots
    ends = count + own.cumsum()
    queues = count + int(own.sum())
    sent_rows = queues + (2 if workload.hop_extra_s.size else 1) * count
    most_kinds = max(x.limits.size for x in stations)
    most_sources = max([1, *(len(feed.sources) for feed in workload.feeds)])
    paths = len(workload.path_masks)
    ring = power_of_two(most_replicas + 1)
    rows = max(x.table.size for x in stations)
    varies = any(x.varies for x in stations)
    drawn_rows, drawn_kinds, drawn_events = (rows, most_kinds, events) if varies else (0, 0, 0)

    def ints(*shape: int, of: int = count) -> Ints:
        return np.zeros((of, *shape), dtype=np.int64)

    tables = Tables(
        entry_s=workload.entry_s,
        masks=workload.masks,
        latency_s=np.full(events, math.nan),
        arrived=np.empty((queues, events)),
        arrived_event=np.empty((queues, events), np.int32),
        arrived_count=ints(of=queues),
        sent=np.empty((sent_rows, events)),
        sent_event=np.empty((sent_rows, events), np.int32),
        sent_count=np.zeros(sent_rows, np.int64),
        entered=ints(),
        passed_on=np.zeros(queues, np.int64),
        queues=np.stack([np.where(own, ends - own, np.arange(count)), np.where(own, ends, np.arange(count) + 1)], 1),
        slot_of=np.zeros((count, events if own.any() else 0), np.uint16),
        hop_keys=np.array([[workload.key(hop, s) for s in range(count)] for hop in ("hop in", "hop")], np.int64),
        extra_s=workload.hop_extra_s,
        seen=np.zeros((count, events), np.uint8),
        source_rows=ints(most_sources),
        source_count=ints(),
        entering=ints(),
        taken=ints(most_sources),
        admits=np.zeros((count, most_sources, paths), np.uint8),
        needed=np.zeros((count, paths), np.uint8),
        visits=np.zeros((count, paths), np.uint8),
        whole=np.zeros(count, np.uint8),
        skips=np.zeros(count, np.uint8),
        final=np.zeros(count, np.uint8),
        kinds=np.array([x.limits.size for x in stations], np.int64),
        rows=np.array([x.table.size for x in stations], np.int64),
        hold_s=np.array([x.hold_s for x in stations]),
        limits=ints(most_kinds),
        table=np.full((count, rows), math.nan),
        varies=np.zeros(count, np.uint8),
        fixed_s=np.zeros((count, drawn_rows)),
        per_unit_s=np.zeros((count, drawn_rows)),
        factors=np.ones((count, drawn_rows, LEVELS)),
        units=np.ones((count, drawn_kinds, LEVELS)),
        largest=np.zeros((count, drawn_kinds), np.uint8),
        lots=np.zeros((count, drawn_events), np.uint16),
        batches=ints(rows),
        totals=np.zeros((count, 2)),
        marks=ints(6, of=queues),
        clock=np.full((queues, 1), -math.inf),
        ring_time=np.zeros((queues, ring)),
        ring_start=ints(ring, of=queues),
        ring_size=ints(ring, of=queues),
        ring_kind=ints(ring, of=queues),
    )
    for s, serving in enumerate(stations):
        _fill_stage(tables, workload, s, serving)
        if own[s]:
            tables.slot_of[s] = workload.partition_of(s, int(own[s]))
    return tables


def _fill_stage(tables: Tables, workload: Workload, s: int, serving: Station) -> None:
    feed = workload.feeds[s]
    count = len(workload.feeds)
    below = tables.marks.shape[0]  # the queues
    as_sent = below + count if workload.hop_extra_s.size else 0
    for k, (source, skipped) in enumerate(feed.sources):
        tables.source_rows[s, k] = source + (below if skipped else as_sent)
    tables.source_count[s] = len(feed.sources)
    tables.entering[s] = 0 if workload.shape.parents(s) else len(workload)
    tables.admits[s, : len(feed.sources)] = feed.admits
    tables.needed[s], tables.visits[s] = feed.needed, feed.visits
    tables.whole[s], tables.skips[s], tables.final[s] = feed.whole, feed.skips, s in workload.shape.finals()
    kinds, rows = serving.limits.size, serving.table.size
    tables.limits[s, :kinds], tables.table[s, :rows] = serving.limits, serving.table
    if serving.varies:
        tables.varies[s] = 1
        tables.fixed_s[s, :rows], tables.per_unit_s[s, :rows] = serving.varying.fixed_s, serving.varying.per_unit_s
        tables.factors[s, :rows], tables.units[s, :kinds] = serving.varying.factors, serving.varying.units
        tables.largest[s, :kinds] = serving.varying.largest
        tables.lots[s] = workload.lots(s)
