"""A stage's allocation made ready for simulation: service times by batch size, queue, slots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from inferline_stream.errors import InvalidInput
from inferline_stream.estimator.kernels import Floats, Varying
from inferline_stream.estimator.service_table import ServiceTable, service_table
from inferline_stream.pipeline import deadline_order
from inferline_stream.pipeline.fallback import planned_counts
from inferline_stream.pipeline.plan import Allocation, Allocations
from inferline_stream.pipeline.profile import LEVELS, PipelineProfile, Profile
from inferline_stream.pipeline.shape import Shape

STEADY = Varying(np.empty(0), np.empty(0), np.empty((0, LEVELS)), np.empty((0, LEVELS)), np.empty(0, dtype=np.uint8))
"""Every batch takes S(b)."""

_NONE = np.empty(0)

MOST_PARTITIONS = 65_535
"""Partitions of one topic; beyond what a Kafka broker takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Station:
    """What serves a stage's queue.

    Args:
        limits: int64 (kinds,) batch limit of each kind of replica.
        table: float64 (kinds · levels · width,) service time in seconds; ``(kind · levels + n - 1) · width + b`` is
            S(b) of a batch with which its replica has n in hand.
        kinds: int64 (replicas,) kind of each replica, in order of the allocations.
        hold_s: how long after the oldest record was sent a free replica waits for a fuller batch; 0 never waits.
        order_slo_s: SLO of the order of the queue, max(entry time, arrival − SLO); 0 is the order of arrival.
        varying: how service times differ from S(b).
        slots: dispatchers, each with a pool and a queue of its own: partitions and replicas are dealt to them in turn.
        rest_s: R of `pipeline.deadline_order`, until another one is given; −∞ in order of entry.
        span: arrivals of a slot that may lie behind its first hopeless one; without end by default.
        room: events that may wait in a slot before hopeless ones go first; without end by default.
        partitions: of an ordinary consumer group, in which each slot is a member; 0 for dispatchers, with one each.
        concurrency: int64 (kinds,) most batches that a replica of each kind has in hand; None for one each.
        fallback: as `table`, the time that the stage's other version takes (`pipeline.fallback`), in order of the
            deadline; empty without one.
        fallback_share: of a slot's events that it may make.
        served_before: events of a slot that count as served before the beginning.

    Raises:
        ValueError: no replica, a slot without one, a service time that is not finite and above 0, or a negative hold or
            SLO.
    """

    limits: NDArray[np.int64]
    table: NDArray[np.float64]
    kinds: NDArray[np.int64]
    hold_s: float = 0.0
    order_slo_s: float = 0.0
    varying: Varying = STEADY
    slots: int = 1
    concurrency: NDArray[np.int64] | None = None
    rest_s: float = -math.inf
    span: int = 1 << 62
    room: int = 1 << 62
    partitions: int = 0
    fallback: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    fallback_share: float = 0.0
    served_before: int = 0

    def __post_init__(self) -> None:
        if not self.kinds.size:
            raise ValueError("a station needs a replica")
        if self.concurrency is not None and (self.concurrency.size != self.limits.size or self.concurrency.min() < 1):
            raise ValueError(f"concurrency {self.concurrency} must be 1 or more for each of {self.limits.size} kinds")
        if not 1 <= self.slots <= self.kinds.size:
            raise ValueError(f"{self.slots} slots need as many replicas, {self.kinds.size} are given")
        if not (math.isfinite(self.hold_s) and self.hold_s >= 0):
            raise ValueError(f"hold {self.hold_s} s must be 0 or more")
        if not self.order_slo_s >= 0:
            raise ValueError(f"SLO {self.order_slo_s} s of the queue's order must be 0 or more")
        for kind, limit in enumerate(self.limits):
            for rows in self._levels_of(kind, int(limit)):
                times = np.concatenate([self.table[rows], self._least(kind, rows)])
                if self.table[rows].size != limit or not np.isfinite(times).all() or times.min(initial=math.inf) <= 0:
                    raise ValueError(
                        f"service times of kind {kind} up to batch size {limit} must be finite and above 0"
                    )

    @property
    def varies(self) -> bool:
        """Whether a batch may take anything but S(b)."""
        return self.varying.units.size > 0

    @property
    def width(self) -> int:
        """Rows of one kind and level in the table: the largest batch limit and 1."""
        return int(self.table.shape[0]) // (int(self.limits.size) * self.levels)

    @property
    def levels(self) -> int:
        """The largest concurrency of any kind."""
        return 1 if self.concurrency is None else int(self.concurrency.max())

    @property
    def at_once(self) -> NDArray[np.int64]:
        """Most batches that each replica has in hand, int64 (replicas,)."""
        return np.ones_like(self.kinds) if self.concurrency is None else self.concurrency[self.kinds]

    @property
    def replicas(self) -> int:
        """Over all kinds."""
        return int(self.kinds.size)

    @property
    def triages(self) -> bool:
        """Whether hopeless events go last."""
        return self.rest_s > -math.inf

    def of_slot(self, slot: int) -> Station:
        """Return the pool of one slot."""
        kinds = np.ascontiguousarray(self.kinds[slot :: self.slots])  # another layout would compile the kernels again
        return replace(self, kinds=kinds, slots=1)

    @property
    def fastest_s(self) -> float:
        """The shortest time that any batch can take."""
        return min(
            float(self._least(kind, rows).min())
            for kind, limit in enumerate(self.limits)
            for rows in self._levels_of(kind, int(limit))
        )

    def _levels_of(self, kind: int, limit: int) -> list[slice]:
        """Rows of a kind's batches, by how many are in hand."""
        levels = 1 if self.concurrency is None else int(self.concurrency[kind])
        firsts = [(kind * self.levels + level) * self.width + 1 for level in range(levels)]
        return [slice(first, first + limit) for first in firsts]

    def _least(self, kind: int, rows: slice) -> Floats:
        """The shortest time of each batch size, by either version."""
        least_s: Floats = self.table[rows]
        if self.varies:
            fixed_s, per_unit_s, factors, units, _ = self.varying
            least_s = (fixed_s[rows] + per_unit_s[rows] * units[kind, 0]) * factors[rows, 0]
        if self.fallback.size:
            least_s = least_s * np.minimum(1.0, self.fallback[rows] / self.table[rows])
        return least_s


def station(
    measured: PipelineProfile,
    stage: str,
    allocations: Sequence[Allocation],
    *,
    order_slo_s: float = 0.0,
    rest_s: float = -math.inf,
    partitions: int | None = None,
    slots: int = 1,
    span: int = 1 << 62,
    room: int = 1 << 62,
    planned_rate: float = 0.0,
) -> Station:
    """Resolve a stage's allocations.

    Args:
        measured: profiles of every stage.
        stage: the stage's name.
        allocations: several for mixed hardware.
        order_slo_s: see `Station`.
        rest_s: see `Station`; members of a consumer group take what comes in its order.
        partitions: of the stage's input topic, where replicas are the members of a consumer group and take records as
            they arrive; None for dispatchers. Members beyond them have nothing to do, and are left out.
        slots: see `Station`; of a group there is one for each member.
        span: see `Station`.
        room: see `Station`.
        planned_rate: events per second of the stage that count as served before the beginning, for its fallback.

    Raises:
        InvalidInput: no replicas, an unknown profile or batch size, holds that differ, or partitions that cannot be.
        ValueError: members that hold batches or run several at once, and what `Station` refuses.
    """
    held = [a for a in allocations if a.replicas > 0]
    if not held:
        raise InvalidInput(f"stage {stage!r}: no replicas, its events would wait for ever; allocate at least 1")
    if len({a.hold_s for a in held}) > 1:
        raise InvalidInput(f"stage {stage!r}: its hardware kinds have different holds; a stage has one hold_s")
    levels = max(a.concurrency for a in held)
    tables = [service_table(_profile(measured, stage, a.hardware), a.max_batch_size) for a in held]
    by_level = tables if levels == 1 else [table for a in held for table in _by_level(measured, stage, a, levels)]
    width = max(a.max_batch_size for a in held) + 1
    fallback = _fallback_rows(measured, stage, held, levels) if rest_s > -math.inf and partitions is None else []
    kinds = np.repeat(np.arange(len(held), dtype=np.int64), [a.replicas for a in held])
    if partitions is not None:
        if not 1 <= partitions <= MOST_PARTITIONS:
            raise InvalidInput(f"stage {stage!r}: {partitions} partitions, its topic needs 1 to {MOST_PARTITIONS}")
        if levels > 1 or held[0].hold_s > 0:
            raise ValueError(f"stage {stage!r}: members of a consumer group neither run several batches nor hold one")
        kinds, order_slo_s, rest_s = kinds[:partitions], 0.0, -math.inf
        slots = kinds.size
    return Station(
        limits=np.array([a.max_batch_size for a in held], dtype=np.int64),
        table=_padded([x.mean_s for x in by_level], width),
        kinds=kinds,
        hold_s=held[0].hold_s,
        order_slo_s=float(order_slo_s),
        varying=varying(tables, width, by_level) if any(x.varies for x in tables) else STEADY,
        slots=slots,
        concurrency=np.array([a.concurrency for a in held], dtype=np.int64) if levels > 1 else None,
        rest_s=rest_s,
        span=span,
        room=room,
        partitions=partitions or 0,
        fallback=_padded(fallback, width) if fallback else _NONE,
        fallback_share=min((_profile(measured, stage, a.hardware).fallback_share for a in held), default=0.0),
        served_before=sum(events for events, _ in planned_counts(planned_rate / max(slots, 1))),
    )


def rests_s(
    shape: Shape, measured: PipelineProfile, order: str, slo_s: float, held: Allocations | None = None
) -> dict[str, float]:
    """R of every stage while it has no news of the others; −∞ in order of entry, and where the order has no SLO.

    Args:
        shape: the DAG.
        measured: profiles, paths and the time of a hop.
        order: as in `Pipeline`.
        slo_s: the SLO by which queues are ordered.
        held: what the stages run on; without it, the fastest that they were profiled on.
    """
    if order == "entry" or not 0 < slo_s < math.inf:
        return dict.fromkeys(shape.stages, -math.inf)
    kinds = {
        name: [a.hardware for a in held[name]] if held is not None else measured.hardware_of(name)
        for name in shape.stages
    }
    alone_s = {
        name: min([_profile(measured, name, kind).service_time_s(1) for kind in kinds[name]], default=0.0)
        for name in shape.stages
    }
    return deadline_order.rest_s(shape, measured.paths, {}, alone_s, hop_s=measured.hop_overhead_s, slo_s=slo_s)


def _fallback_rows(measured: PipelineProfile, stage: str, held: Sequence[Allocation], levels: int) -> list[Floats]:
    """Service times of the fallback, as the rows of the stage itself; none unless every kind has them."""
    fallbacks = [(a, _profile(measured, stage, a.hardware).of_fallback()) for a in held]
    if any(profile is None for _, profile in fallbacks):
        return []
    return [
        service_table(profile.beside(min(level, a.concurrency)), a.max_batch_size).mean_s
        for a, profile in fallbacks
        if profile is not None
        for level in range(1, levels + 1)
    ]


def _by_level(measured: PipelineProfile, stage: str, held: Allocation, levels: int) -> list[ServiceTable]:
    """An allocation's service times by batches in hand; levels that it never reaches have those of its last."""
    profile = _profile(measured, stage, held.hardware)
    try:
        own = [profile.beside(min(level, held.concurrency)) for level in range(1, levels + 1)]
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    return [service_table(each, held.max_batch_size) for each in own]


def varying(tables: Sequence[ServiceTable], width: int, by_level: Sequence[ServiceTable] = ()) -> Varying:
    """Tables of several kinds, each filled up to ``width`` rows; those of all levels, where replicas run several."""
    rows = by_level or tables
    return Varying(
        fixed_s=_padded([x.fixed_s for x in rows], width),
        per_unit_s=_padded([x.per_unit_s for x in rows], width),
        factors=_padded([x.factors for x in rows], width),
        units=np.stack([x.units for x in tables]),
        largest=np.array([x.largest for x in tables], dtype=np.uint8),
    )


def _padded(rows: Sequence[Floats], width: int) -> Floats:
    """One kind's rows after another's, each filled up with NaN; those of one kind as they are, which stations share."""
    if len(rows) == 1:
        return rows[0]
    padded = np.full((len(rows), width, *rows[0].shape[1:]), math.nan)
    for kind, own in enumerate(rows):
        padded[kind, : own.shape[0]] = own
    return padded.reshape(-1, *rows[0].shape[1:])


def _profile(measured: PipelineProfile, stage: str, hardware: str) -> Profile:
    try:
        return measured.profiles[stage, hardware]
    except KeyError:
        known = ", ".join(measured.hardware_of(stage)) or "none"
        raise InvalidInput(
            f"stage {stage!r} was never profiled on {hardware!r} (profiled: {known}); run `inferline-stream profile`"
        ) from None
