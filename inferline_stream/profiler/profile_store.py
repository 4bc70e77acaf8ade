"""Profiles as files beside the topology: readable JSON, each with what it was measured on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from inferline_stream.actuators.mps import shared_by
from inferline_stream.dataplane.frames import StageInput
from inferline_stream.errors import UNREADABLE, InvalidFile
from inferline_stream.estimator.workload import checked_ways
from inferline_stream.pipeline.emulation import Emulated, emulated_s, fallback_s
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.isolation import isolation_of
from inferline_stream.pipeline.model_server import ModelServer
from inferline_stream.pipeline.profile import Profile, check_hop
from inferline_stream.pipeline.shape import Paths, shape_of
from inferline_stream.pipeline.topology import Pipeline, Stage
from inferline_stream.profiler.code_version import code_digest
from inferline_stream.profiler.machine import Machine, why_not_here

VERSION = 9


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
        fallback_s: likewise of the stage's fallback.
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
    fallback_s: dict[int, float] = {}
    note: str = ""
    measured_at: str = ""
    version: int = VERSION

    def of(self, stage: Stage) -> Profile:
        """Return what planning needs of it, as far as the stage goes now."""
        times = tuple(entry for entry in self.profile.service_times if entry.batch_size <= stage.max_batch_size)
        at_once = (entry for entry in self.profile.contention if entry.concurrency <= stage.most_at_once)
        contention = tuple(replace(entry, factors=entry.factors[: len(times)]) for entry in at_once)
        return replace(
            self.profile,
            service_times=times,
            contention=contention,
            most_replicas=stage.most_replicas,
            fallback=self.profile.fallback[: len(times)],
            fallback_share=stage.degraded_share,
        )


class StoredPaths(msgspec.Struct, frozen=True):
    """Which arrows the sample's events took, and the time between stages.

    Args:
        code: digest over every stage's code, the conditions and the shape.
        events: digest of the sample's events.
        paths: arrows taken, as bits in the shape's order, and the share of events that took them.
        failed: by stage, sample events that it raised on.
        hop_overhead_s: by broker.
        hop_spread_s: by broker, see `PipelineProfile`.
        network_s: by platform, what its network adds to a batch.
        samples: by stage, an input that it has processed.
    """

    code: str
    events: str
    paths: Paths
    failed: dict[str, int] = {}
    hop_overhead_s: dict[str, float] = {}
    hop_spread_s: dict[str, tuple[float, ...]] = {}
    network_s: dict[str, float] = {}
    samples: dict[str, StageInput] = {}
    version: int = VERSION

    def __post_init__(self) -> None:
        for broker, spread_s in self.hop_spread_s.items():
            check_hop(self.hop_overhead_s.get(broker, 0.0), spread_s)


_TIMES = ("hop_overhead_s", "hop_spread_s", "network_s")
"""Of `StoredPaths`; they hold whatever the code is like."""

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
    except (*UNREADABLE, OSError) as error:
        raise InvalidFile(f"{file}: cannot be read as a profile ({error}); delete it and profile again") from None


def write_file(file: Path, stored: StoredProfile | StoredPaths) -> None:
    """Write a file whole or not at all: a run that is ended meanwhile leaves the old one.

    Raises:
        InvalidFile: it cannot be written.
    """
    new, document = file.with_suffix(".new"), msgspec.to_builtins(stored, str_keys=True)
    if isinstance(stored, StoredProfile):
        exact = {"variation": document["profile"]["variation"]}  # whose units must differ
        document["profile"] = _rounded(document["profile"]) | exact
    else:
        document |= {name: _rounded(document[name]) for name in _TIMES}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        os.replace(new, file)
    except OSError as error:
        remedy = "copy the topology into a folder that can be written"
        raise InvalidFile(f"{file}: cannot be written ({error.strerror}); {remedy}") from None


def _rounded(document: Any) -> Any:
    """Return times with five digits, for readers; no measurement is more exact."""
    if isinstance(document, dict):
        return {name: _rounded(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_rounded(value) for value in document]
    return float(f"{document:.5g}") if isinstance(document, float) else document


class _ProfileVersion(msgspec.Struct):
    version: int


LOCAL = "local"
"""The platform that is this machine."""

FOLDER = Path(".inferline", "profiles")
"""Beside the topology."""


@dataclass(slots=True)
class Known:
    """What the store knows of a pipeline as it is now.

    Args:
        profiles: those that still hold.
        paths: if they still hold.
        failed: by stage, sample events that it raised on.
        hop_overhead_s: by broker.
        hop_spread_s: by broker.
        network_s: by platform.
        samples: see `PipelineProfile`.
        stale: for the others why not, by stage and hardware.
        rehearsed: of those that hold, the ones that a rehearsal has confirmed.
        there: of those that hold, the ones that were measured on the platform.
    """

    profiles: dict[tuple[str, str], Profile] = field(default_factory=dict)
    paths: Paths | None = None
    failed: dict[str, int] = field(default_factory=dict)
    hop_overhead_s: dict[str, float] = field(default_factory=dict)
    hop_spread_s: dict[str, tuple[float, ...]] = field(default_factory=dict)
    network_s: dict[str, float] = field(default_factory=dict)
    samples: dict[str, StageInput] = field(default_factory=dict)
    stale: dict[tuple[str, str], str] = field(default_factory=dict)
    rehearsed: set[tuple[str, str]] = field(default_factory=set)
    there: set[tuple[str, str]] = field(default_factory=set)


def _without_stock(kind: Hardware) -> Hardware:
    """A kind as far as it matters to a profile: not how many there are, nor whether some are lent."""
    return replace(kind, stock=None, gpu_stock=None, spot=None)


class ProfileStore:
    """Profiles of one pipeline on one machine, or on a cluster.

    Args:
        pipeline: a valid pipeline.
        folder: the topology's folder.
        events: the sample's events.
        machine: the machine that is profiled on.
        root: where the files go; beside the topology by default.
        platform: that replicas will run on. What was measured there comes before what was measured on this machine.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        folder: Path,
        events: list[bytes],
        machine: Machine,
        root: Path | None = None,
        *,
        platform: str = LOCAL,
    ) -> None:
        self._pipeline = pipeline
        self._platform = platform
        self._root = (root or folder / FOLDER) / pipeline.name
        self._machine = machine
        self._kinds = catalogue(pipeline.hardware)
        self._shape = shape_of(pipeline)
        # Events of a topic's last hour are others at every look, and profiles hold all the same.
        declared = b"\n".join(events) if any(pipeline.samples.values()) else b"recent"
        self._events = hashlib.sha256(declared).hexdigest()
        self._code = {stage.name: stage_digest(stage, folder) for stage in pipeline.stages}
        conditions = [
            code_digest(edge.condition, folder)
            for stage in pipeline.stages
            for edge in stage.after
            if edge.condition is not None
        ]
        shape = repr(self._shape)
        every = "\n".join([shape, *(self._code[name] for name in self._shape.stages), *conditions])
        self._paths_code = hashlib.sha256(every.encode()).hexdigest()

    def load(self) -> Known:
        """Profiles that still hold for the pipeline as it is, and why others do not.

        A kind that this machine cannot stand for is taken from any machine that could.

        Raises:
            InvalidFile: a file that cannot be read.
        """
        known = Known()
        for stage in self._pipeline.stages:
            for kind in stage.hardware:
                self._look_up(known, stage.name, kind)
        paths = read_file(self._paths_file, StoredPaths)
        if paths is not None:
            holds = (paths.code, paths.events) == (self._paths_code, self._events)
            if holds:
                self._check_paths(paths.paths)
            for name in (*_TIMES, *(("paths", "failed", "samples") if holds else ())):
                setattr(known, name, getattr(paths, name))
        return known

    def _check_paths(self, paths: Paths) -> None:
        try:
            checked_ways(self._shape, paths)
        except ValueError as error:
            raise InvalidFile(f"{self._paths_file}: {error}; delete it and profile again") from None

    def save(self, profile: Profile, *, note: str = "", there: Machine | None = None) -> Path:
        """Write a profile measured now; replaces the one before. Returns its file.

        Args:
            profile: the profile.
            note: why there are no larger batches, if so.
            there: the machine of the platform that it was measured on; this one by default.
        """
        stage = self._pipeline.stage(profile.stage)
        kind = self._kinds[profile.hardware]
        stored = StoredProfile(
            profile=profile,
            hardware=kind,
            code=self._code[profile.stage],
            events=self._events,
            machine=there or self._machine,
            max_batch_size=stage.max_batch_size,
            isolation=_isolation(stage),
            emulated_s=emulated_s(stage.emulated, profile.hardware) if kind.emulated else {},
            fallback_s=_fallback_s(stage, kind),
            note=note,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            concurrency=stage.most_at_once,
        )
        folder = self._machine.folder if there is None else self._platform
        file = self._file(folder, profile.stage, profile.hardware)
        write_file(file, stored)
        return file

    def correct(self, profile: Profile, *, rehearsed: bool = False) -> None:
        """Put other service times in the place of those measured on this machine, and say what a rehearsal came to."""
        file = self._file(self._machine.folder, profile.stage, profile.hardware)
        stored = read_file(file, StoredProfile)
        if stored is not None:
            sizes = len(profile.service_times)
            contention = tuple(replace(each, factors=each.factors[:sizes]) for each in stored.profile.contention)
            corrected = replace(
                stored.profile,
                service_times=profile.service_times,
                contention=contention,
                fallback=stored.profile.fallback[:sizes],
            )
            write_file(file, msgspec.structs.replace(stored, profile=corrected, rehearsed=rehearsed))

    def save_paths(self, known: Known) -> Path:
        """Write which arrows the sample took, and the time between stages by broker. Returns the file."""
        assert known.paths is not None
        stored = StoredPaths(
            self._paths_code,
            self._events,
            known.paths,
            known.failed,
            known.hop_overhead_s,
            known.hop_spread_s,
            known.network_s,
            known.samples,
        )
        write_file(self._paths_file, stored)
        return self._paths_file

    def files(self) -> dict[str, str]:
        """Return every file of profiles that hold here, as JSON by path within the pipeline's folder; see `take`."""
        found = {self._paths_file} if self._paths_file.exists() else set()
        for stage in self._pipeline.stages:
            for kind in stage.hardware:
                file = self._look_up(Known(), stage.name, kind)
                found |= {file} if file is not None else set()
        return {str(file.relative_to(self._root)): file.read_text("utf-8") for file in sorted(found)}

    def take(self, files: Mapping[str, str]) -> None:
        """Keep what was measured elsewhere.

        Args:
            files: JSON by path within the pipeline's folder there; the folder's name becomes the platform's, or this
                machine's.

        Raises:
            InvalidFile: a file that is no profile, or is one of another pipeline's stage or hardware kind.
        """
        try:
            for path, text in files.items():
                if Path(path) != Path(self._paths_file.name):
                    stored = msgspec.json.decode(text, type=StoredProfile)
                    self._check_known(stored)  # its names become part of a path
                    stage, kind = stored.profile.stage, stored.hardware.name
                    folder = self._platform if self._of_platform(kind) else self._machine.folder
                    write_file(self._file(folder, stage, kind), stored)
                    continue
                paths, own = msgspec.json.decode(text, type=StoredPaths), read_file(self._paths_file, StoredPaths)
                times = {name: getattr(own, name, {}) | getattr(paths, name) for name in _TIMES}
                write_file(self._paths_file, msgspec.structs.replace(paths, **times))
        except UNREADABLE as error:
            raise InvalidFile(f"{path}: cannot be read as a profile ({error}); profile again") from None

    def _check_known(self, stored: StoredProfile) -> None:
        stages = [stage.name for stage in self._pipeline.stages]
        if stored.profile.stage not in stages:
            raise ValueError(f"it is of stage {stored.profile.stage!r}, and the pipeline has {', '.join(stages)}")
        if stored.hardware.name not in self._kinds:
            raise ValueError(f"it is of hardware {stored.hardware.name!r}, which the pipeline does not know")

    @property
    def _paths_file(self) -> Path:
        return self._root / "paths.json"

    def _file(self, machine: str, stage: str, kind: str) -> Path:
        return self._root / machine / f"{stage}.{kind}.json"

    def _of_platform(self, kind: str) -> bool:
        """Whether service times on a kind may be others on the platform: emulated ones are alike everywhere."""
        return self._platform != LOCAL and not self._kinds[kind].emulated

    def _files(self, stage: str, kind: str) -> list[Path]:
        """Return where a profile may be, the best one first."""
        files = [self._file(self._platform, stage, kind)] if self._of_platform(kind) else []
        files.append(self._file(self._machine.folder, stage, kind))
        if why_not_here(self._kinds[kind], self._machine) is not None:
            files += sorted(self._root.glob(f"*/{stage}.{kind}.json"))
        return files

    def _look_up(self, known: Known, stage: str, kind: str) -> Path | None:
        """Note the best profile that holds, or why none does; return its file."""
        files = self._files(stage, kind)
        for file in files:
            stored = read_file(file, StoredProfile)
            if stored is None:
                known.stale.setdefault((stage, kind), "not profiled yet")
                continue
            same = (stored.profile.stage, stored.profile.hardware, stored.hardware.name) == (stage, kind, kind)
            why = self._outdated(stored) if same else "its file holds another profile"
            if why is None:
                known.profiles[stage, kind] = stored.of(self._pipeline.stage(stage))
                known.stale.pop((stage, kind), None)
                if stored.rehearsed:
                    known.rehearsed.add((stage, kind))
                if self._of_platform(kind) and file == files[0]:
                    known.there.add((stage, kind))
                return file
            known.stale[stage, kind] = why
        return None

    def _outdated(self, stored: StoredProfile) -> str | None:
        stage = self._pipeline.stage(stored.profile.stage)
        if stored.code != self._code[stage.name]:
            return "its code has changed"
        if stored.isolation != _isolation(stage):
            return f"its isolation has changed from {stored.isolation} to {_isolation(stage)}"
        if _without_stock(stored.hardware) != _without_stock(self._kinds[stored.hardware.name]):
            return f"hardware {stored.hardware.name!r} has changed"
        by, here = stored.profile.shared_by, shared_by(self._kinds[stored.hardware.name], stage.confined)
        if by != here and why_not_here(stored.hardware, self._machine) is None:
            return f"it was measured where replicas shared a GPU by {by}, and here they share it by {here}"
        if stored.hardware.emulated:
            declared = emulated_s(stage.emulated, stored.hardware.name)
            if (stored.emulated_s, stored.fallback_s) != (declared, _fallback_s(stage, stored.hardware)):
                return "its emulated service times have changed"
        by_event = stage.cost is not None or _weighs(stage)
        if stored.events != self._events and (by_event or not stored.hardware.emulated):
            return "the sample's events have changed"
        if stored.max_batch_size < stage.max_batch_size and not stored.note:
            return f"max_batch_size has grown from {stored.max_batch_size} to {stage.max_batch_size}"
        if stored.concurrency < stage.most_at_once:
            return f"concurrency has grown from {stored.concurrency} to {stage.most_at_once}"
        return None


def stage_digest(stage: Stage, folder: Path) -> str:
    """Of everything that service times follow from: the code, what an event costs, how emulated times vary."""
    varies = stage.emulated if isinstance(stage.emulated, Emulated) else Emulated({})
    versions = [stage.server if stage.run is None else stage.run, stage.fallback]
    functions: list[Any] = [stage.cost, varies.weight]
    for code in versions:
        functions += [code.request, code.response] if isinstance(code, ModelServer) else [code]
    parts = [code_digest(function, folder) for function in functions if function is not None]
    for server in (code for code in versions if isinstance(code, ModelServer)):
        parts += [server.protocol, server.url, server.path, server.model, server.version]
        parts += [server.sleep, server.wake] if server.sleep else []
    return hashlib.sha256(repr([*parts, varies.cv]).encode()).hexdigest()


def _fallback_s(stage: Stage, kind: Hardware) -> dict[int, float]:
    return fallback_s(stage.emulated, kind.name) if kind.emulated and stage.fallback is not None else {}


def _weighs(stage: Stage) -> bool:
    """Whether emulated service times depend on the events."""
    return isinstance(stage.emulated, Emulated) and stage.emulated.weight is not None


def _isolation(stage: Stage) -> str:
    """As far as it bears on times: what may be read and reached does not."""
    isolation = isolation_of(stage.isolation)
    if not isolation.sandboxed:
        return "none"
    return f"{isolation.level}, seal {isolation.seal}{', forked' if isolation.forked else ''}"
