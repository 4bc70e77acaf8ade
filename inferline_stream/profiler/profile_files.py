"""A profile's file: readable JSON with what it was measured on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.errors import InvalidFile
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import Profile
from inferline_stream.pipeline.shape import Paths
from inferline_stream.pipeline.topology import Stage
from inferline_stream.profiler.machine import Machine

VERSION = 6


class StoredProfile(msgspec.Struct, frozen=True):
    """A profile's file.

    Args:
        profile: what was measured.
        hardware: the kind, as it was in the catalogue.
        code: digest of the stage's code, see `code_digest`.
        events: digest of the sample's events.
        machine: where it was measured.
        max_batch_size: the stage's limit at that time.
        concurrency: batches that the stage might run at once at that time.
        rehearsed: whether batches took no longer in a rehearsal of a plan.
        isolation: level and kind of seal that it was measured under.
        emulated_s: declared service times, of emulated kinds.
        note: why there are no larger batches, if so.
        measured_at: when.
    """

    profile: Profile
    hardware: Hardware
    code: str
    events: str
    machine: Machine
    max_batch_size: int
    concurrency: int = 1
    rehearsed: bool = False
    isolation: str = "none"
    emulated_s: dict[int, float] = {}
    note: str = ""
    measured_at: str = ""
    version: int = VERSION

    def of(self, stage: Stage) -> Profile:
        """Return what planning needs of it, as far as the stage goes now."""
        times = tuple(entry for entry in self.profile.service_times if entry.batch_size <= stage.max_batch_size)
        at_once = (entry for entry in self.profile.contention if entry.concurrency <= stage.most_at_once)
        contention = tuple(replace(entry, factors=entry.factors[: len(times)]) for entry in at_once)
        return replace(self.profile, service_times=times, contention=contention, most_replicas=stage.most_replicas)


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
    new, document = file.with_suffix(".new"), msgspec.to_builtins(stored, str_keys=True)
    if isinstance(stored, StoredProfile):
        exact = {"variation": document["profile"]["variation"]}  # whose units must differ
        document["profile"] = _rounded(document["profile"]) | exact
    new.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    os.replace(new, file)


def paths_of(stored: StoredPaths) -> Paths:
    """Return the paths that a file holds."""
    masks = tuple(sum(1 << bit for bit in bits) for bits, _ in stored.paths)
    return Paths(masks, tuple(weight for _, weight in stored.paths))


def rounded(seconds: float) -> float:
    """Return a time with five digits, for readers; no measurement is more exact."""
    return float(f"{seconds:.5g}")


def _rounded(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _rounded(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_rounded(value) for value in document]
    return rounded(document) if isinstance(document, float) else document


class _ProfileVersion(msgspec.Struct):
    version: int
