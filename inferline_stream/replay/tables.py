"""The state of a pipeline under control: one table per quantity, one row per stage.

Rows of common tables, rather than arrays per stage, let one compiled call advance the whole pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from inferline_stream.estimator import partitioned_queue
from inferline_stream.estimator.kernels import Events, Flags, FlagTable, Floats, Ints, Masks, Members, Table
from inferline_stream.estimator.station import service_table_s
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.profile import PipelineProfile


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of replica: hardware and batch limit."""

    hardware: str
    max_batch_size: int


@dataclass(frozen=True, slots=True)
class StageSetup:
    """What of a stage does not change during a replay.

    Args:
        name: the stage.
        kinds: kinds of replicas it may have.
        partitions: partitions of its input topic; None for the paper's shared queue.
        producers: replicas that write to the topic; matters to records without a key only.
    """

    name: str
    kinds: tuple[Kind, ...]
    partitions: int | None = None
    producers: int = 1


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
        following: (stages, events).
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
        partitions: (stages,) 0 for a shared queue.
        kinds: (stages,).
        width: (stages,).
        scalars: (stages, 4) keys of the draws of service time and route, routing, producers.
        ring_note: ring_start of a shared queue, ring_replica of a partitioned one.
    """

    entry_s: Floats
    masks: Masks
    latency_s: Floats
    ended: Ints
    arrived: Floats
    arrived_event: Events
    arrived_count: Ints
    following: Ints
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
    partitions: Ints
    kinds: Ints
    width: Ints
    scalars: Ints
    limits: Ints
    table: Floats
    levels: Floats
    marks: Ints
    clock: Floats
    batches: Ints
    totals: Floats
    ring_time: Floats
    ring_note: Ints
    ring_size: Ints
    ring_kind: Ints
    kind_of: Ints
    state: Ints
    queued: Ints
    started: Floats
    size_of: Ints
    members: Members
    from_partition: Table
    touched: Ints
    is_touched: Ints
    owner: Ints
    head_of: Ints
    tail_of: Ints
    region: Ints
    active: Ints
    active_event: Events
    active_count: Ints
    outstanding: Ints
    lag: Ints
    sent_to: Table
    thresholds: Ints


def empty_tables(
    workload: Workload,
    measured: PipelineProfile,
    stages: Sequence[StageSetup],
    *,
    most_replicas: int,
    keyed: bool = True,
) -> Tables:
    """The state before the first event: no replicas, no owners.

    Args:
        workload: events and their paths.
        measured: service times of every kind.
        stages: in the shape's order.
        most_replicas: of one stage at once, those that still finish a batch included.
        keyed: see `estimator.station`.
    """
    count, events = len(stages), len(workload)
    most_partitions = max((s.partitions or 1 for s in stages), default=1)
    most_kinds = max(len(s.kinds) for s in stages)
    widths = [1 + max(k.max_batch_size for k in s.kinds) for s in stages]
    most_sources = max([1, *(len(feed.sources) for feed in workload.feeds)])
    paths = len(workload.path_masks)
    slots = most_replicas + 1  # the last one stands for nobody
    ring = 1 << slots.bit_length()
    most_producers = max(s.producers for s in stages)

    def ints(*shape: int, value: int = 0) -> Ints:
        return np.full((count, *shape), value, dtype=np.int64)

    tables = Tables(
        entry_s=workload.entry_s,
        masks=workload.masks,
        latency_s=np.full(events, math.nan),
        ended=np.zeros(2, np.int64),
        arrived=np.empty((count, events)),
        arrived_event=np.empty((count, events), np.int32),
        arrived_count=ints(),
        following=np.empty((count, events), np.int64),
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
        partitions=np.array([s.partitions or 0 for s in stages], np.int64),
        kinds=np.array([len(s.kinds) for s in stages], np.int64),
        width=np.array(widths, np.int64),
        scalars=ints(4),
        limits=ints(most_kinds),
        table=np.full((count, most_kinds * max(widths), 1), math.nan),
        levels=np.array([0.5]),
        marks=ints(6),
        clock=np.tile(np.array([-math.inf, math.nan]), (count, 1)),
        batches=ints(most_kinds * max(widths)),
        totals=np.zeros((count, 2)),
        ring_time=np.zeros((count, ring)),
        ring_note=ints(ring),
        ring_size=ints(ring),
        ring_kind=ints(ring),
        kind_of=ints(slots),
        state=ints(slots),
        queued=ints(slots),
        started=np.zeros((count, slots)),
        size_of=ints(slots),
        members=np.zeros((count, slots, max(widths)), np.int32),
        from_partition=ints(slots, max(widths)),
        touched=ints(slots),
        is_touched=ints(slots),
        owner=ints(most_partitions, value=slots - 1),
        head_of=ints(most_partitions, value=-1),
        tail_of=ints(most_partitions, value=-1),
        region=ints(slots),
        active=ints(most_partitions),
        active_event=np.zeros((count, most_partitions), np.int32),
        active_count=ints(slots),
        outstanding=ints(most_partitions),
        lag=ints(most_partitions),
        sent_to=ints(most_producers, most_partitions),
        thresholds=ints(most_partitions),
    )
    tables.state[:, -1] = partitioned_queue.BUSY
    for s, stage in enumerate(stages):
        _fill_stage(tables, workload, measured, s, stage, keyed=keyed)
    return tables


def _fill_stage(
    tables: Tables, workload: Workload, measured: PipelineProfile, s: int, stage: StageSetup, *, keyed: bool
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
        tables.table[s, k * width : k * width + kind.max_batch_size + 1, 0] = service_table_s(
            measured.profiles[stage.name, kind.hardware], kind.max_batch_size
        )
    lagged = not keyed and len(workload.shape.parents(s)) == 1
    tables.scalars[s] = (
        workload.key("service", s),
        workload.key("route", s) if lagged else workload.partition_key(s),
        partitioned_queue.LESS_LAGGED if lagged else partitioned_queue.UNIFORM,
        stage.producers if lagged else 1,
    )
