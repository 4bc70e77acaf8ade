"""A profile's file: readable JSON with what it was measured on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.errors import InvalidFile
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import PROBABILITIES, Contention, Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths
from inferline_stream.pipeline.topology import Stage
from inferline_stream.pipeline.variation import Variation
from inferline_stream.profiler.machine import Machine

VERSION = 5


class StoredServiceTime(msgspec.Struct, frozen=True, omit_defaults=True):
    """One batch size in a file; ``quantiles_s`` by probability, ``throughput`` for the reader alone."""

    batch_size: int
    mean_s: float
    throughput: float
    quantiles_s: dict[str, float]
    fixed_s: float = 0.0
    spread: float = 0.0
    device_bytes: int = 0


class StoredVariation(msgspec.Struct, frozen=True, omit_defaults=True):
    """A `Variation` in a file."""

    units: list[tuple[float, int]] = []
    largest: bool = False
    noise: list[float] = []


class StoredProfile(msgspec.Struct, frozen=True):
    """A profile's file.

    Args:
        stage: the stage's name.
        hardware: the kind, as it was in the catalogue.
        code: digest of the stage's code, see `code_digest`.
        events: digest of the sample's events.
        machine: where it was measured.
        max_batch_size: the stage's limit at that time.
        isolation: level and kind of seal that it was measured under.
        emulated_s: declared service times, of emulated kinds.
        start_up_s: from asking for a replica to its READY.
        service_times: by ascending batch size.
        variation: how batches of one size differ, if they do.
        waited_share: of the service time, without a core.
        rehearsed: whether batches took no longer in a rehearsal of a plan.
        note: why there are no larger batches, if so.
        measured_at: when.
        concurrency: batches that the stage might run at once at that time.
        contention: by batches at once and batch size, how many times as long as alone a batch took.
    """

    stage: str
    hardware: Hardware
    code: str
    events: str
    machine: Machine
    max_batch_size: int
    start_up_s: float
    service_times: list[StoredServiceTime]
    variation: StoredVariation | None = None
    waited_share: float = 0.0
    rehearsed: bool = False
    isolation: str = "none"
    emulated_s: dict[int, float] = {}
    note: str = ""
    measured_at: str = ""
    concurrency: int = 1
    contention: dict[int, dict[int, float]] = {}
    version: int = VERSION


class StoredPaths(msgspec.Struct, frozen=True):
    """Which arrows the sample's events took, and the time between stages.

    Args:
        code: digest over every stage's code, the conditions and the shape.
        events: digest of the sample's events.
        arrows: parent and child of each arrow, in the order of the paths' bits.
        paths: arrows taken (positions in ``arrows``) and the share of events that took them.
        failed: by stage, sample events that it raised on.
        hop_overhead_s: by broker.
        hop_spread_s: by broker, see `PipelineProfile`.
        network_s: by platform, what its network adds to a batch.
        samples: by stage, an input that it has processed.
    """

    code: str
    events: str
    arrows: list[tuple[str, str]]
    paths: list[tuple[list[int], float]]
    failed: dict[str, int] = {}
    hop_overhead_s: dict[str, float] = {}
    hop_spread_s: dict[str, tuple[float, ...]] = {}
    network_s: dict[str, float] = {}
    samples: dict[str, StageInput] = {}
    version: int = VERSION


_S = TypeVar("_S", StoredProfile, StoredPaths)


def read_file(file: Path, kind: type[_S]) -> _S | None:
    """Return a file's contents; None where there is none, or one of another version.

    Raises:
        InvalidFile: it cannot be read.
    """
    try:
        data = file.read_bytes()
        if msgspec.json.decode(data, type=_ProfileVersion).version != VERSION:
            return None
        return msgspec.json.decode(data, type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, ValueError, OSError) as error:
        raise InvalidFile(f"{file}: cannot be read as a profile ({error}); delete it and profile again") from None


def write_file(file: Path, stored: StoredProfile | StoredPaths) -> None:
    """Write a file whole or not at all: a run that is ended meanwhile leaves the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(stored), indent=2) + b"\n")
    os.replace(new, file)


def profile_of(stored: StoredProfile, stage: Stage, file: Path) -> Profile:
    """Return what planning needs of a file, as far as the stage goes now.

    Raises:
        InvalidFile: its numbers are none of a profile.
    """
    limit = stage.max_batch_size
    try:
        times = tuple(
            ServiceTime(
                entry.batch_size,
                entry.mean_s,
                tuple(entry.quantiles_s[str(p)] for p in PROBABILITIES),
                entry.fixed_s,
                entry.spread,
                entry.device_bytes,
            )
            for entry in stored.service_times
            if entry.batch_size <= limit
        )
        variation = stored.variation
        varies = (
            None if variation is None else Variation(tuple(variation.units), variation.largest, tuple(variation.noise))
        )
        contention = tuple(
            Contention(at_once, tuple(factors[entry.batch_size] for entry in times))
            for at_once, factors in sorted(stored.contention.items())
            if at_once <= stage.most_at_once
        )
        return Profile(
            stored.stage,
            stored.hardware.name,
            times,
            stored.start_up_s,
            varies,
            stored.waited_share,
            contention,
            stage.most_replicas,
        )
    except (ValueError, KeyError) as error:
        raise InvalidFile(f"{file}: is no profile ({error}); delete it and profile again") from None


class _ProfileVersion(msgspec.Struct):
    version: int


def stored_time(entry: ServiceTime) -> StoredServiceTime:
    """Return a service time as it stands in a file."""
    quantiles = dict(zip(map(str, PROBABILITIES), map(rounded, entry.quantiles_s), strict=False))
    throughput = round(entry.throughput, 2)
    mean_s = rounded(entry.mean_s)
    return StoredServiceTime(
        entry.batch_size,
        mean_s,
        throughput,
        quantiles,
        fixed_s=min(mean_s, rounded(entry.fixed_s)),
        spread=rounded(entry.spread),
        device_bytes=entry.device_bytes,
    )


def stored_variation(variation: Variation | None) -> StoredVariation | None:
    """Return a variation as it stands in a file."""
    if variation is None:
        return None
    units: dict[float, int] = {}
    for unit, count in variation.units:
        units[rounded(unit)] = units.get(rounded(unit), 0) + count
    return StoredVariation(list(units.items()), variation.largest, list(map(rounded, variation.noise)))


def paths_of(stored: StoredPaths) -> Paths:
    """Return the paths that a file holds."""
    masks = tuple(sum(1 << bit for bit in bits) for bits, _ in stored.paths)
    return Paths(masks, tuple(weight for _, weight in stored.paths))


def rounded(seconds: float) -> float:
    """Return a time with five digits, for readers; no measurement is more exact."""
    return float(f"{seconds:.5g}")
