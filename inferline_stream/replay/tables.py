"""The state of a pipeline under control: one table per quantity, one row per stage.

Rows of common tables, rather than arrays per stage, let one compiled call advance the whole pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import Events, Flags, FlagTable, Floats, Ints, Masks
from inferline_stream.estimator.server import power_of_two
from inferline_stream.estimator.service_table import ServiceTable, service_table
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.variation import LEVELS


@dataclass(frozen=True, slots=True)
class ReplicaKind:
    """A kind of replica: hardware and batch limit."""

    hardware: str
    max_batch_size: int


@dataclass(frozen=True, slots=True)
class StageSetup:
    """What of a stage does not change during a replay.

    Args:
        name: the stage.
        kinds: kinds of replicas it may have.
        hold_s: see `estimator.station.Station`.
    """

    name: str
    kinds: tuple[ReplicaKind, ...]
    hold_s: float = 0.0


class Tables(NamedTuple):
    """Everything the compiled step reads and writes. Without a word here, see `estimator.kernels`.

    Args:
        entry_s: (events,) when each event enters.
        masks: (events,) its path.
        latency_s: (events,) of those that have reached the sink.
        ended: (2,) events that have reached the sink, and those of them later than the SLO.
        arrived: (stages, events) when the records of a stage's queue were sent.
        arrived_event: whose they are.
        arrived_count: (stages,).
        sent: (2 · stages, events) departures; below them the moments at which a join knew that it is skipped.
        sent_event: whose they are.
        sent_count: (2 · stages,).
        seen: (stages, events).
        source_rows: (stages, sources) rows of `sent` that feed the stage.
        source_count: (stages,) 0 for an entry stage.
        taken: (stages, sources) how far the stage has read each of them.
        admits: (stages, sources, masks).
        needed: (stages, masks).
        visits: (stages, masks).
        whole: (stages,) see `routes.Feed`.
        skips: (stages,) see `routes.Feed`.
        final: (stages,) sends to the sink.
        kinds: (stages,).
        width: (stages,).
        hold_s: (stages,) see `StageSetup`.
        table: (stages, rows) S(b), see `station.Station`.
        varies: (stages,) whether service times differ from S(b).
        fixed_s: (stages, rows) see `kernels.Varying`, as are those up to ``largest``; no rows if no stage varies.
        lots: (stages, events) see `kernels.Service`.
        marks: see `shared_queue.SharedState`, as are clock and rings.
    """

    entry_s: Floats
    masks: Masks
    latency_s: Floats
    ended: Ints
    arrived: Floats
    arrived_event: Events
    arrived_count: Ints
    sent: Floats
    sent_event: Events
    sent_count: Ints
    seen: Flags
    source_rows: Ints
    source_count: Ints
    taken: Ints
    admits: FlagTable
    needed: Flags
    visits: Flags
    whole: Flags
    skips: Flags
    final: Flags
    kinds: Ints
    width: Ints
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
    workload: Workload,
    measured: PipelineProfile,
    stages: Sequence[StageSetup],
    *,
    most_replicas: int,
) -> Tables:
    """The state before the first event: no replicas.

    Args:
        workload: events and their paths.
        measured: service times of every kind.
        stages: in the shape's order.
        most_replicas: of one stage at once, those that still finish a batch included.
    """
    count, events = len(stages), len(workload)
    most_kinds = max(len(s.kinds) for s in stages)
    widths = [1 + max(k.max_batch_size for k in s.kinds) for s in stages]
    most_sources = max([1, *(len(feed.sources) for feed in workload.feeds)])
    paths = len(workload.path_masks)
    ring = power_of_two(most_replicas + 1)
    services = [
        [service_table(measured.profiles[s.name, k.hardware], k.max_batch_size) for k in s.kinds] for s in stages
    ]
    varies = any(x.varies for kinds in services for x in kinds)
    rows = most_kinds * max(widths)
    drawn_rows, drawn_kinds, drawn_events = (rows, most_kinds, events) if varies else (0, 0, 0)

    def ints(*shape: int) -> Ints:
        return np.zeros((count, *shape), dtype=np.int64)

    tables = Tables(
        entry_s=workload.entry_s,
        masks=workload.masks,
        latency_s=np.full(events, math.nan),
        ended=np.zeros(2, np.int64),
        arrived=np.empty((count, events)),
        arrived_event=np.empty((count, events), np.int32),
        arrived_count=ints(),
        sent=np.empty((2 * count, events)),
        sent_event=np.empty((2 * count, events), np.int32),
        sent_count=np.zeros(2 * count, np.int64),
        seen=np.zeros((count, events), np.uint8),
        source_rows=ints(most_sources),
        source_count=ints(),
        taken=ints(most_sources),
        admits=np.zeros((count, most_sources, paths), np.uint8),
        needed=np.zeros((count, paths), np.uint8),
        visits=np.zeros((count, paths), np.uint8),
        whole=np.zeros(count, np.uint8),
        skips=np.zeros(count, np.uint8),
        final=np.zeros(count, np.uint8),
        kinds=np.array([len(s.kinds) for s in stages], np.int64),
        width=np.array(widths, np.int64),
        hold_s=np.array([s.hold_s for s in stages]),
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
        marks=ints(6),
        clock=np.full((count, 1), -math.inf),
        ring_time=np.zeros((count, ring)),
        ring_start=ints(ring),
        ring_size=ints(ring),
        ring_kind=ints(ring),
    )
    for s, stage in enumerate(stages):
        _fill_stage(tables, workload, s, stage, services[s])
    return tables


def _fill_stage(
    tables: Tables, workload: Workload, s: int, stage: StageSetup, services: Sequence[ServiceTable]
) -> None:
    feed = workload.feeds[s]
    count = len(workload.feeds)
    for k, (source, skipped) in enumerate(feed.sources):
        tables.source_rows[s, k] = source + count * skipped
    tables.source_count[s] = len(feed.sources)
    tables.admits[s, : len(feed.sources)] = feed.admits
    tables.needed[s], tables.visits[s] = feed.needed, feed.visits
    tables.whole[s], tables.skips[s], tables.final[s] = feed.whole, feed.skips, s in workload.shape.finals()
    width = int(tables.width[s])
    for k, kind in enumerate(stage.kinds):
        tables.limits[s, k] = kind.max_batch_size
        rows = slice(k * width, k * width + kind.max_batch_size + 1)
        tables.table[s, rows] = services[k].mean_s
        if tables.lots.size:
            tables.fixed_s[s, rows], tables.per_unit_s[s, rows] = services[k].fixed_s, services[k].per_unit_s
            tables.factors[s, rows], tables.units[s, k] = services[k].factors, services[k].units
            tables.largest[s, k] = services[k].largest
    if any(x.varies for x in services):
        tables.varies[s] = 1
        tables.lots[s] = workload.lots(s)
