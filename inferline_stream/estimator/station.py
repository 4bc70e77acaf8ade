"""A stage's allocation made ready for simulation: service times by batch size, queue, owner of each partition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PROBABILITIES, PipelineProfile, Profile

MOST_PARTITIONS = 65_535
"""Partitions of one topic; beyond what a Kafka broker takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Station:
    """What serves a stage's queue.

    Args:
        limits: int64 (kinds,) batch limit of each kind of replica.
        table: float64 (kinds · width, levels) service time in seconds; row ``kind · width + b`` is S(b).
        levels: float64 (levels,) ascending probabilities of the columns, from 0 to 1; one level means the mean.
        kinds: int64 (replicas,) kind of each replica, in order of the allocations.
        hold_s: how long after the oldest record was sent a free replica waits for a fuller batch; 0 never waits.
        order_slo_s: SLO of the order of the queue, max(entry time, arrival − SLO); 0 is the order of arrival.
        owners: int64 (partitions,) replica of each partition; None for one queue.

    Raises:
        ValueError: no replica, a service time that is not finite and above 0, a negative hold or SLO, or a hold of
            replicas that own partitions.
    """

    limits: NDArray[np.int64]
    table: NDArray[np.float64]
    levels: NDArray[np.float64]
    kinds: NDArray[np.int64]
    hold_s: float = 0.0
    order_slo_s: float = 0.0
    owners: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not self.kinds.size:
            raise ValueError("a station needs a replica")
        if not (math.isfinite(self.hold_s) and self.hold_s >= 0):
            raise ValueError(f"hold {self.hold_s} s must be 0 or more")
        if not self.order_slo_s >= 0:
            raise ValueError(f"SLO {self.order_slo_s} s of the queue's order must be 0 or more")
        if self.owners is not None and self.hold_s > 0:
            raise ValueError("replicas that own partitions take what waits: a hold is simulated on one queue only")
        for kind, limit in enumerate(self.limits):
            times = self.table[kind * self.width + 1 : kind * self.width + 1 + limit]
            if times.shape[0] != limit or not np.isfinite(times).all() or times.min(initial=math.inf) <= 0:
                raise ValueError(f"service times of kind {kind} up to batch size {limit} must be finite and above 0")

    @property
    def width(self) -> int:
        """Rows of one kind in the table: the largest batch limit and 1."""
        return int(self.table.shape[0]) // int(self.limits.size)

    @property
    def replicas(self) -> int:
        """Over all kinds."""
        return int(self.kinds.size)

    @property
    def fastest_s(self) -> float:
        """The shortest time that any batch can take."""
        return min(
            float(self.table[kind * self.width + 1 : kind * self.width + 1 + limit].min())
            for kind, limit in enumerate(self.limits)
        )


def service_table_s(profile: Profile, max_batch_size: int) -> NDArray[np.float64]:
    """Mean S(b) at index b for every b up to the limit; index 0 is NaN.

    Raises:
        InvalidTopology: a batch size that was never profiled.
    """
    return _table(profile, max_batch_size, "mean")[:, 0]


def station(
    measured: PipelineProfile,
    stage: str,
    allocations: Sequence[Allocation],
    *,
    service: str = "mean",
    order_slo_s: float = 0.0,
    partitions: int | None = None,
) -> Station:
    """Resolve a stage's allocations.

    Args:
        measured: profiles of every stage.
        stage: the stage's name.
        allocations: several for mixed hardware.
        service: ``"mean"``, the paper's deterministic S(b), or ``"quantiles"``, drawn from the measured distribution.
        order_slo_s: see `Station`.
        partitions: of the stage's input topic, bound to replicas as in a consumer group; None for one queue.

    Raises:
        InvalidTopology: no replicas, an unknown profile or batch size, holds that differ, or partitions that cannot be.
        ValueError: an unknown word for ``service``, or what `Station` refuses.
    """
    if service not in ("mean", "quantiles"):
        raise ValueError(f'service {service!r} must be "mean" or "quantiles"')
    held = [a for a in allocations if a.replicas > 0]
    if not held:
        raise InvalidTopology(f"stage {stage!r}: no replicas, its events would wait for ever; allocate at least 1")
    if len({a.hold_s for a in held}) > 1:
        raise InvalidTopology(f"stage {stage!r}: its hardware kinds have different holds; a stage has one hold_s")
    tables = [_table(_profile(measured, stage, a.hardware), a.max_batch_size, service) for a in held]
    levels = np.array(PROBABILITIES if service == "quantiles" else (0.5,))
    width = max(a.max_batch_size for a in held) + 1
    table = np.full((len(held) * width, levels.size), math.nan)
    for kind, rows in enumerate(tables):
        table[kind * width : kind * width + rows.shape[0]] = rows
    owners = None
    if partitions is not None:
        if not 1 <= partitions <= MOST_PARTITIONS:
            raise InvalidTopology(f"stage {stage!r}: {partitions} partitions, its topic needs 1 to {MOST_PARTITIONS}")
        owners = _owners(held, tables, partitions)
    return Station(
        limits=np.array([a.max_batch_size for a in held], dtype=np.int64),
        table=table,
        levels=levels,
        kinds=np.repeat(np.arange(len(held), dtype=np.int64), [a.replicas for a in held]),
        hold_s=held[0].hold_s,
        order_slo_s=float(order_slo_s),
        owners=owners,
    )


def _profile(measured: PipelineProfile, stage: str, hardware: str) -> Profile:
    try:
        return measured.profiles[stage, hardware]
    except KeyError:
        known = ", ".join(measured.hardware_of(stage)) or "none"
        raise InvalidTopology(
            f"stage {stage!r} was never profiled on {hardware!r} (profiled: {known}); run `inferline-stream profile`"
        ) from None


def _table(profile: Profile, max_batch_size: int, service: str) -> NDArray[np.float64]:
    """Service times by batch size (rows) and level (columns)."""
    sizes = range(1, max_batch_size + 1)
    try:
        profile.service_time_s(max_batch_size)  # the limit asked for is what the message should name
        if service == "quantiles":
            rows = [profile.quantiles_s(b) for b in sizes]
        else:
            rows = [(profile.service_time_s(b),) for b in sizes]
    except ValueError as error:
        raise InvalidTopology(str(error)) from None
    return np.array([(math.nan,) * len(rows[0]), *rows])


def _owners(held: Sequence[Allocation], tables: Sequence[NDArray[np.float64]], partitions: int) -> NDArray[np.int64]:
    """Replica of each partition: each goes to the replica that is least busy with it, of equal ones to the first."""
    throughputs = np.concatenate(
        [np.full(a.replicas, a.max_batch_size / float(table[-1].mean())) for a, table in zip(held, tables, strict=True)]
    )
    owned = np.zeros(throughputs.size)
    owners = np.empty(partitions, dtype=np.int64)
    for partition in range(partitions):
        owners[partition] = np.argmin((owned + 1) / throughputs)
        owned[owners[partition]] += 1
    return owners
