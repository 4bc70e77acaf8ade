"""What a finished run leaves behind: its report, plans and decisions, and when each event came and was done.

A folder: ``run.json`` for people and programs, ``events.npz`` for the arrays; `observation_log` adds
``observations.npz``.
"""

from __future__ import annotations

import datetime
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from inferline_stream.controlplane.decide.decider import Decider
from inferline_stream.controlplane.observe.event_ledger import EventLedger
from inferline_stream.controlplane.observe.observation_log import write_observations
from inferline_stream.controlplane.records.array_file import FLOAT, FLOATS, INTS, read_arrays
from inferline_stream.controlplane.records.control_records import CalendarRecord, SloRecord, check_time
from inferline_stream.errors import UNREADABLE, InvalidFile, UsageError
from inferline_stream.estimator.workload import checked_ways
from inferline_stream.observability.pipeline_state import DecisionRecord, StoredPlan
from inferline_stream.pipeline.group_model import GroupModel
from inferline_stream.pipeline.group_profile import Sharing
from inferline_stream.pipeline.hardware import Catalogue, Hardware
from inferline_stream.pipeline.keys import Keys
from inferline_stream.pipeline.live_classes import LiveClass
from inferline_stream.pipeline.profile import PipelineProfile, Profile
from inferline_stream.pipeline.schedule import Every, On, TrafficSchedule
from inferline_stream.pipeline.shape import Paths, Shape
from inferline_stream.pipeline.trace import Trace, merged
from inferline_stream.planner.plan_document import check_plan, misfit
from inferline_stream.replay.live_observations import LiveObservations
from inferline_stream.runs.report import RunReport
from inferline_stream.tuner.calendar import Calendar, PastWeeks
from inferline_stream.tuner.error_budget import DAY_S

RECORD_VERSION = 1
DOCUMENT, ARRAYS = "run.json", "events.npz"

_LIKE = {
    **dict.fromkeys(("arrivals_s", "entries_s", "latency_s", "sample_s"), FLOATS),
    **{"began_s": FLOAT, "source_of": INTS, "sample_source_of": INTS},
}


class GroupsRecord(msgspec.Struct, frozen=True):
    """What a run on consumer groups that run already has beside the rest. Its latencies are estimated.

    Arrivals are those since its first plan, or of the last half hour; the sample is what came before them.
    """

    sharing: dict[str, Sharing]
    """By group, as it was learned in the end."""
    members: dict[str, dict[str, int]]
    """Of each group, by the hardware that they run on, when the arrivals begin."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run. Times are seconds since the epoch unless they say otherwise."""

    report: RunReport
    started_s: float
    objective: float
    slo: SloRecord | None = None
    """How the SLO's window stood at the end."""
    shape: Shape
    hardware: list[Hardware]
    """Kinds that the pipeline could use, with their prices."""
    profiles: list[Profile]
    paths: Paths
    hop_overhead_s: float
    hop_spread_s: tuple[float, ...] = ()
    keys: Keys = Keys()
    classes: tuple[LiveClass, ...] = ()
    plans: list[StoredPlan]
    """That came into force: the first at the start, and the newest."""
    decisions: list[DecisionRecord]
    """The newest few thousand."""
    every: list[Every] = []
    on: list[On] = []
    """What people had said of traffic to come when the run began, by the clock of its zone."""
    zone: str = "UTC"
    calendar: CalendarRecord | None = None
    """The weeks that were known when the run began, and the hours ahead of its end."""
    start_up_s: dict[str, dict[str, float]] = {}
    """Stage → hardware kind → what replicas recently took to start; kinds that none was started of are missing."""
    partitions: dict[str, int] = {}
    """Stage → partitions of its input topic, at the end."""
    groups: GroupsRecord | None = None
    version: int = RECORD_VERSION

    @property
    def slo_window_s(self) -> float:
        """For which the objective held; a day where the run ended before its window was looked at."""
        return DAY_S if self.slo is None else self.slo.budget.window_s

    @property
    def measured(self) -> PipelineProfile:
        """The profiles as planning takes them."""
        profiles = {(profile.stage, profile.hardware): profile for profile in self.profiles}
        return PipelineProfile(
            profiles,
            self.paths,
            self.hop_overhead_s,
            keys=self.keys,
            hop_spread_s=self.hop_spread_s,
            classes=self.classes,
        )

    @property
    def as_it_ran(self) -> PipelineProfile:
        """The profiles with the start-up times that the run's own replicas had: what a replay of it takes."""
        profiles = {
            (stage, hardware): replace(
                profile, start_up_s=self.start_up_s.get(stage, {}).get(hardware, profile.start_up_s)
            )
            for (stage, hardware), profile in self.measured.profiles.items()
        }
        return replace(self.measured, profiles=profiles)

    @property
    def group_model(self) -> GroupModel | None:
        """What plans of its consumer groups are made of; None of a run on stages."""
        if self.groups is None:
            return None
        of, sharing = self.report, self.groups.sharing
        return GroupModel(of.pipeline, of.slo_s, self.objective, self.shape, self.as_it_ran, sharing, self.kinds)

    def calendar_at(self, time_s: float) -> Calendar:
        """What was known of the time ahead when the run began, at a time in seconds since the epoch."""
        weeks = None if self.calendar is None else self.calendar.weeks
        return Calendar(time_s, TrafficSchedule((*self.every, *self.on), self.zone), weeks or PastWeeks())

    @property
    def kinds(self) -> Catalogue:
        """Hardware by name."""
        return {kind.name: kind for kind in self.hardware}


@dataclass(frozen=True, slots=True, eq=False)
class EventTimes:
    """When events came and what became of them, in seconds from the first arrival.

    Args:
        arrivals_s: float64, ascending: every record of the live source topics.
        entries_s: float64, ascending: of events that reached each sink they were to reach, when they entered.
        latency_s: float64: of the same events, less what the SLO of an event's class is longer.
        sample_s: float64, ascending: the arrivals that the first plan was made for; empty if not known.
        began_s: the first arrival, in seconds since the epoch.
        source_of: uint8, of each arrival the number of its live source topic.
        sample_source_of: the same of ``sample_s``; empty where there is one.

    Raises:
        ValueError: times that are no traces, latencies of other events, or a beginning that no calendar has.
    """

    arrivals_s: NDArray[np.float64]
    entries_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    sample_s: NDArray[np.float64]
    began_s: float
    source_of: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    sample_source_of: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    def __post_init__(self) -> None:
        Trace(self.arrivals_s, self.source_of)
        Trace(self.sample_s, self.sample_source_of)
        if Trace(self.entries_s).arrivals_s.size != self.latency_s.size or not np.isfinite(self.latency_s).all():
            raise ValueError(f"{self.entries_s.size} events, {self.latency_s.size} latencies")
        check_time(self.began_s)

    def traces(self, shape: Shape) -> tuple[Trace, Trace]:
        """Return what the first plan was made for, or the arrivals where that is not known, and the arrivals."""
        arrivals = Trace(self.arrivals_s, self.source_of if shape.sources else self.source_of[:0])
        return Trace(self.sample_s, self.sample_source_of) if self.sample_s.size else arrivals, arrivals

    @classmethod
    def of(cls, ledger: EventLedger, sample: Trace | None, since_s: float = 0.0, until_s: float = np.inf) -> Self:
        """From a run's ledger.

        Args:
            ledger: of the run.
            sample: that the first plan was made for, if any.
            since_s: times before are not believed, seconds since the epoch. Producers set them, and one wrong time
                would make all else a moment at the end of decades.
            until_s: nor are times after it.
        """
        arrived = merged([Trace(np.sort(np.frombuffer(each.arrivals_s, np.float64))) for each in ledger.of_live])
        arrivals_s = arrived.arrivals_s
        between = (arrivals_s >= since_s) & (arrivals_s <= until_s)
        arrivals_s, source_of = arrivals_s[between], arrived.source_of[between[: arrived.source_of.size]]
        entries_s = np.concatenate([np.frombuffer(each.entries_s, np.float64) for each in ledger.of_live])
        latency_s = ledger.judged_s().astype(np.float64)
        believed = (entries_s >= since_s) & (entries_s <= until_s) & np.isfinite(latency_s)
        entries_s, latency_s = entries_s[believed], latency_s[believed]
        order = np.argsort(entries_s, kind="stable")
        first_s = float(min([*arrivals_s[:1], *entries_s[order[:1]]], default=0.0))
        given = Trace(np.empty(0)) if sample is None else sample
        entered_s, latency_s = entries_s[order] - first_s, latency_s[order]
        return cls(arrivals_s - first_s, entered_s, latency_s, given.arrivals_s, first_s, source_of, given.source_of)


def record_of(
    report: RunReport, decider: Decider, started_s: float, measured: PipelineProfile, groups: GroupsRecord | None = None
) -> RunRecord:
    """Return what is written down of a run.

    Args:
        report: of the run.
        decider: that led it.
        started_s: seconds since the epoch.
        measured: profiles that it began with, or that were learned.
        groups: of a run on consumer groups that run already.
    """
    began_with, plans = decider.began_with, list(decider.plans)
    if decider.first_plan is not None and plans[:1] != [decider.first_plan]:
        plans.insert(0, decider.first_plan)
    return RunRecord(
        report=report,
        started_s=started_s,
        objective=decider.run.pipeline.objective,
        slo=decider.slo.record,
        every=[entry for entry in began_with.schedule.entries if isinstance(entry, Every)],
        on=[entry for entry in began_with.schedule.entries if isinstance(entry, On)],
        zone=began_with.schedule.zone,
        calendar=decider.ahead.record(began_with.weeks, time.time()),
        shape=decider.view.shape,
        hardware=list(decider.run.kinds.values()),
        profiles=list(measured.profiles.values()),
        paths=measured.paths,
        hop_overhead_s=measured.hop_overhead_s,
        hop_spread_s=measured.hop_spread_s,
        keys=measured.keys,
        classes=measured.classes,
        plans=plans,
        decisions=list(decider.decisions),
        start_up_s=decider.view.start_ups.by_stage(),
        partitions=dict(decider.view.partitions),
        groups=groups,
    )


def write_record(folder: Path, record: RunRecord, events: EventTimes) -> None:
    """Write a run down; its folder is made, and must be new.

    Raises:
        FileExistsError: the folder is there already.
    """
    folder.mkdir(parents=True)
    arrays = {name: getattr(events, name) for name in EventTimes.__slots__}
    with (folder / ARRAYS).open("wb") as file:
        np.savez_compressed(file, **arrays)
    (folder / DOCUMENT).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def written_down(folder: Path, record: RunRecord, events: EventTimes, observations: LiveObservations | None) -> str:
    """Write down a run and, if it has them, its observations; return what became of that, in words."""
    try:
        write_record(folder, record, events)
        if observations is not None:
            write_observations(folder, observations)
    except FileExistsError:
        raise
    except OSError as error:  # the run went well, and its report is still to come
        shutil.rmtree(folder, ignore_errors=True)  # half of it would be taken for the newest run
        return f"not written down in {folder} ({error.strerror}); `report` and `replay` have nothing of this run"
    return f"written down in {folder}; `inferline-stream report` shows it"


def read_record(folder: Path) -> RunRecord:
    """The document of a run.

    Raises:
        InvalidFile: there is none, or it is of another version.
    """
    file = folder / DOCUMENT
    try:
        data = file.read_bytes()
        version = msgspec.json.decode(data, type=_RecordVersion).version
        if version == RECORD_VERSION:
            record = msgspec.json.decode(data, type=RunRecord)
            _check(record)
            return record
    except (*UNREADABLE, OSError, InvalidFile) as error:
        raise InvalidFile(f"{file}: is no record of a run ({error}); `run` leaves one") from None
    raise InvalidFile(f"{file}: version {version}, this program reads version {RECORD_VERSION}; run again")


def _check(record: RunRecord) -> None:
    """Refuse a record whose parts do not fit together.

    Raises:
        ValueError: for such a record.
        InvalidFile: a plan is none.
    """
    if not record.plans or not 0 < record.objective < 1:
        raise ValueError(f"it has {len(record.plans)} plans, and an objective of {record.objective}")
    for time_s in (record.started_s, *(decision.time_s for decision in record.decisions)):
        check_time(time_s)
    checked_ways(record.shape, record.paths)
    for stored in record.plans:
        check_plan(stored.plan, "the run's plan")
    if record.groups is not None:
        return  # what their workers take at once is learned again as they run, and no plan says
    if why := misfit(record.plans[0].plan, record.shape.stages, record.measured, record.kinds):
        raise ValueError(f"the plan that it began with {why}")


def read_events(folder: Path) -> EventTimes:
    """The arrays of a run.

    Raises:
        InvalidFile: they are missing or damaged.
    """
    file = folder / ARRAYS
    try:
        found: dict[str, Any] = read_arrays(file, _LIKE)
        return EventTimes(**found | {"began_s": float(found["began_s"])})
    except (OSError, ValueError) as error:
        raise InvalidFile(f"{file}: holds no events of a run ({error}); `run` leaves them") from None


def runs_folder(topology_folder: Path, pipeline: str) -> Path:
    """Where the runs of a pipeline are kept, beside its topology."""
    return topology_folder / ".inferline" / "runs" / pipeline


def new_run(topology_folder: Path, pipeline: str, now_s: float) -> Path:
    """A folder for a run that starts now; later ones sort after earlier ones."""
    moment = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    return runs_folder(topology_folder, pipeline) / f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"


def finished_runs(topology_folder: Path, pipeline: str) -> list[Path]:
    """The finished runs of a pipeline, newest first.

    Raises:
        UsageError: there is none.
    """
    folder = runs_folder(topology_folder, pipeline)
    finished = sorted((file.parent for file in folder.glob(f"*/{DOCUMENT}")), reverse=True)
    if not finished:
        raise UsageError(f"pipeline {pipeline!r} has no finished run under {folder}; `run` leaves one")
    return finished


class _RecordVersion(msgspec.Struct, frozen=True):
    version: int = 0
