"""A stage's allocation made ready for simulation: service times by batch size, queue, owner of each partition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.assignment import assign
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
        max_wait_s: longest wait for a full batch; 0 never waits.
        by_entry: the shared queue is in order of entry into the pipeline, not of arrival at the stage.
        owners: int64 (partitions,) replica of each partition; None for a shared queue.
        shares: float64 (partitions,) share of the records in each partition; None for equal ones.
        keyed: records have keys; without them inner stages get the less lagged of two partitions.

    Raises:
        ValueError: no replica, a service time that is not finite and above 0, or a negative wait.
    """

    limits: NDArray[np.int64]
    table: NDArray[np.float64]
    levels: NDArray[np.float64]
    kinds: NDArray[np.int64]
    max_wait_s: float = 0.0
    by_entry: bool = False
    owners: NDArray[np.int64] | None = None
    shares: NDArray[np.float64] | None = None
    keyed: bool = True

    def __post_init__(self) -> None:
        if not self.kinds.size:
            raise ValueError("a station needs a replica")
        if not (math.isfinite(self.max_wait_s) and self.max_wait_s >= 0):
            raise ValueError(f"longest wait {self.max_wait_s} s must be 0 or more")
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
    max_wait_s: float = 0.0,
    service: str = "mean",
    order: str = "arrival",
    partitions: int | None = None,
    partition_shares: Sequence[float] | None = None,
    keyed: bool = True,
) -> Station:
    """Resolve a stage's allocations.

    Args:
        measured: profiles of every stage.
        stage: the stage's name.
        allocations: several for mixed hardware. In a shared queue the next batch goes to the replica that has been
            free longest; replicas never used come first, in the order of the allocations.
        max_wait_s: longest wait for a full batch; 0 never waits.
        service: ``"mean"``, the paper's deterministic S(b), or ``"quantiles"``, drawn from the measured distribution.
        order: of a shared queue, ``"arrival"`` at the stage or ``"entry"`` into the pipeline.
        partitions: partitions of the stage's input topic; None for one shared queue.
        partition_shares: measured share of each partition's records; None for equal ones.
        keyed: records have keys.

    Raises:
        InvalidTopology: no replicas, an unknown profile or batch size, partitions or shares that cannot be.
        ValueError: an unknown word for ``service`` or ``order``.
    """
    if service not in ("mean", "quantiles"):
        raise ValueError(f'service {service!r} must be "mean" or "quantiles"')
    if order not in ("arrival", "entry"):
        raise ValueError(f'order {order!r} must be "arrival" or "entry"')
    held = [a for a in allocations if a.replicas > 0]
    if not held:
        raise InvalidTopology(f"stage {stage!r}: no replicas, its events would wait for ever; allocate at least 1")
    tables = [_table(_profile(measured, stage, a.hardware), a.max_batch_size, service) for a in held]
    levels = np.array(PROBABILITIES if service == "quantiles" else (0.5,))
    width = max(a.max_batch_size for a in held) + 1
    table = np.full((len(held) * width, levels.size), math.nan)
    for kind, rows in enumerate(tables):
        table[kind * width : kind * width + rows.shape[0]] = rows
    owners, shares = None, None
    if partitions is not None:
        shares = _shares(stage, partitions, partition_shares)
        owners = _owners(held, tables, np.full(partitions, 1 / partitions) if shares is None else shares)
    return Station(
        limits=np.array([a.max_batch_size for a in held], dtype=np.int64),
        table=table,
        levels=levels,
        kinds=np.repeat(np.arange(len(held), dtype=np.int64), [a.replicas for a in held]),
        max_wait_s=float(max_wait_s),
        by_entry=order == "entry",
        owners=owners,
        shares=shares,
        keyed=keyed,
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


def _shares(stage: str, partitions: int, given: Sequence[float] | None) -> NDArray[np.float64] | None:
    if not 1 <= partitions <= MOST_PARTITIONS:
        raise InvalidTopology(f"stage {stage!r}: {partitions} partitions, its topic needs 1 to {MOST_PARTITIONS}")
    if given is None:
        return None
    shares = np.asarray(given, dtype=np.float64)
    if shares.shape != (partitions,) or not np.isfinite(shares).all() or shares.min() < 0 or shares.sum() <= 0:
        raise InvalidTopology(
            f"stage {stage!r}: partition shares must be {partitions} numbers of 0 or more, not all 0; measured {given}"
        )
    total: NDArray[np.float64] = shares / shares.sum()
    return total


def _owners(
    held: Sequence[Allocation], tables: Sequence[NDArray[np.float64]], shares: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Replica of each partition, as the data plane's controller assigns them."""
    throughputs = {}
    for kind, allocation in enumerate(held):
        throughput = allocation.max_batch_size / float(tables[kind][-1].mean())
        throughputs.update({f"{kind}-{r}": throughput for r in range(allocation.replicas)})
    position = {replica: i for i, replica in enumerate(throughputs)}
    owner = assign(shares.tolist(), throughputs)
    return np.array([position[owner[p]] for p in range(shares.size)], dtype=np.int64)
