from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import pytest

from inferline_stream.controlplane.observe.event_ledger import EventLedger
from inferline_stream.controlplane.observe.observation_log import read_observations
from inferline_stream.errors import InvalidFile, UsageError
from inferline_stream.kafka.records import Record
from inferline_stream.observability.pipeline_state import DecisionRecord, StoredPlan
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.names import ENTRY_TIME, EVENT_ID
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Paths, Shape
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.plan_document import PlanDocument
from inferline_stream.runs.archive import (
    EventTimes,
    GroupsRecord,
    RunRecord,
    finished_runs,
    new_run,
    read_events,
    read_record,
    write_record,
    written_down,
)
from inferline_stream.runs.report import RunReport

PLAN = Plan(
    pipeline="posts",
    slo_s=0.25,
    allocations={"read": (Allocation("cpu", 4, 1),), "judge": (Allocation("cpu", 1, 2),)},
    cost_per_hour=0.3,
    predicted_p99_s=0.2,
    arrival_rate=10.0,
    envelope=((0.5, 9), (5.0, 60)),
    visit_ratios={"read": 1.0, "judge": 0.5},
    utilization={"read": 0.5, "judge": 0.4},
)
REPORT = RunReport(
    pipeline="posts", lost=0, duplicated=0, events_in=3, events_out=2, slo_miss_rate=0.5, cost=0.01, decisions=[],
    slo_s=0.25, p50_s=0.1, p95_s=0.3, p99_s=0.3, completed={"skipped": 1}, duration_s=30.0, predicted_p99_s=0.2,
    replicas_most={"read": 1}, lag={}, exits=[], lost_ids=[], emulated=True, advisory=False,
)  # fmt: skip
RECORD = RunRecord(
    report=REPORT,
    started_s=1_700_000_000.0,
    objective=0.99,
    shape=Shape(("read", "judge"), (Arrow(0, 1, conditional=True),)),
    hardware=[Hardware("cpu", 0.1)],
    profiles=[
        Profile("read", "cpu", (ServiceTime(1, 0.02), ServiceTime(4, 0.05)), 1.0),
        Profile("judge", "cpu", (ServiceTime(1, 0.03),), 1.0),
    ],
    paths=Paths((1, 0), (0.5, 0.5)),
    hop_overhead_s=0.002,
    plans=[StoredPlan("c", 1, 1_700_000_000.0, "start", "", PlanDocument(plan=PLAN), 1)],
    decisions=[
        DecisionRecord(
            1, "c", 1, 1_700_000_010.0, "scale_up", "envelope_exceeded", "a burst", {"read": {"cpu": 2}}, True
        )
    ],
)


def ledger_of_two() -> EventLedger:
    ledger = EventLedger("posts", (0,), (3,))
    for offset, at_ms in enumerate((5_000, 4_000, 6_000)):
        ledger.entered(Record(None, b"{}", [], at_ms, offset=offset))
    for offset, entry_ms, out_ms in ((0, 5_000, 5_300), (1, 4_000, 4_100)):
        headers = [(EVENT_ID, b"posts/0/%d" % offset), (ENTRY_TIME, b"%d" % (entry_ms * 1000))]
        ledger.out(Record(None, b"{}", headers, out_ms, offset=offset))
    return ledger


def test_what_is_written_down_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    events = EventTimes.of(ledger_of_two(), Trace(np.array([0.0, 0.5])))
    write_record(folder, RECORD, events)
    written, read = (msgspec.json.decode(msgspec.json.encode(record)) for record in (RECORD, read_record(folder)))
    assert read == written
    for name in EventTimes.__slots__:
        np.testing.assert_array_equal(getattr(read_events(folder), name), getattr(events, name))


def test_a_run_that_finds_the_disk_full_says_so_and_leaves_no_half_of_a_record(tmp_path: Path, monkeypatch) -> None:
    def full(file: IO[bytes], **arrays: object) -> None:
        file.write(b"PK")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder, events = tmp_path / "runs" / "one", EventTimes.of(ledger_of_two(), None)
    monkeypatch.setattr(np, "savez_compressed", full)
    assert "not written down" in (said := written_down(folder, RECORD, events, None))
    assert "No space left on device" in said
    assert not folder.exists()


def test_a_replay_of_a_run_takes_the_start_up_times_that_its_replicas_had() -> None:
    ran = msgspec.structs.replace(RECORD, start_up_s={"read": {"cpu": 0.3}}).as_it_ran
    assert ran.profiles["read", "cpu"].start_up_s == 0.3
    assert ran.profiles["judge", "cpu"].start_up_s == 1.0
    assert RECORD.measured.profiles["read", "cpu"].start_up_s == 1.0


def test_a_record_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    write_record(tmp_path / "run", RECORD, EventTimes.of(ledger_of_two(), None))
    document = msgspec.json.decode((tmp_path / "run" / "run.json").read_bytes())
    del document["start_up_s"]
    (tmp_path / "run" / "run.json").write_bytes(msgspec.json.encode(document))
    assert read_record(tmp_path / "run").as_it_ran == RECORD.measured
    assert read_observations(tmp_path / "run") is None


def test_events_are_in_order_of_entry_and_count_from_the_first_arrival() -> None:
    events = EventTimes.of(ledger_of_two(), None)
    assert events.arrivals_s.tolist() == [0.0, 1.0, 2.0]
    assert events.entries_s.tolist() == [0.0, 1.0]
    assert events.latency_s.tolist() == pytest.approx([0.1, 0.3], abs=1e-6)
    assert events.sample_s.size == 0


def test_arrivals_of_several_sources_say_where_they_came() -> None:
    ledger, other = ledger_of_two(), EventLedger("returns", (0,), (2,))
    for offset, at_ms in enumerate((4_500, 9_000)):
        other.entered(Record(None, b"{}", [], at_ms, offset=offset))
    ledger.others = {"returns": other}
    sample = Trace(np.array([0.0, 0.5]), np.array([1, 0], np.uint8))
    events = EventTimes.of(ledger, sample, until_s=8.0)
    shape = Shape(("read", "other", "judge"), (Arrow(0, 2), Arrow(1, 2)), sources=((0,), (1,)))
    planned, came = events.traces(shape)
    assert came.arrivals_s.tolist() == [0.0, 0.5, 1.0, 2.0]
    assert came.source_of.tolist() == [0, 1, 0, 0]
    assert planned.source_of.tolist() == [1, 0]
    assert not events.traces(replace(shape, sources=()))[1].source_of.size  # classes of one source enter alike


def test_a_run_without_events_is_written_down_too(tmp_path: Path) -> None:
    write_record(tmp_path / "run", RECORD, EventTimes.of(EventLedger("posts", (0,), (0,)), None))
    assert read_events(tmp_path / "run").latency_s.size == 0


def test_the_newest_finished_run_is_found_by_its_time(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no finished run"):
        finished_runs(tmp_path, "posts")
    events = EventTimes.of(ledger_of_two(), None)
    for now_s in (1_700_000_000.0, 1_800_000_000.5):
        write_record(new_run(tmp_path, "posts", now_s), RECORD, events)
    new_run(tmp_path, "posts", 1_900_000_000.0).mkdir()  # one that was cut off
    assert finished_runs(tmp_path, "posts")[0].name == "20270115T080000.500Z"


@pytest.mark.parametrize("document", ["", "{", '{"version": 7}', '{"version": 1}', '{"more": ' + "[" * 100_000])
def test_a_document_that_is_none_is_named(tmp_path: Path, document: str) -> None:
    (tmp_path / "run.json").write_text(document)
    with pytest.raises(InvalidFile, match=r"run\.json: (is no record of a run|version 7)"):
        read_record(tmp_path)


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    (tmp_path / "events.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InvalidFile, match=r"events\.npz: holds no events of a run"):
        read_events(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"plans": []}, "it has 0 plans"),
        ({"started_s": -1.0}, "-1 is no time"),
        ({"objective": 2.0}, "an objective of 2.0"),
        ({"paths": {"masks": [8], "weights": [1.0]}}, "path 1000 takes an arrow out of a stage"),
        ({"profiles": []}, "of stage 'read' was not profiled"),
        ({"hardware": []}, "hardware 'cpu' of stage 'read' has no price"),
    ],
)
def test_a_record_whose_parts_do_not_fit_together_is_named(tmp_path: Path, change: dict[str, object], why: str) -> None:
    write_record(tmp_path / "run", RECORD, EventTimes.of(ledger_of_two(), None))
    (tmp_path / "run" / "run.json").write_bytes(msgspec.json.encode(msgspec.to_builtins(RECORD) | change))
    with pytest.raises(InvalidFile, match=rf"run\.json: is no record of a run \(.*{why}"):
        read_record(tmp_path / "run")


def test_a_record_of_groups_that_took_fewer_records_at_once_later_is_read(tmp_path: Path) -> None:
    groups = GroupsRecord({}, {"read": {"cpu": 1}, "judge": {"cpu": 1}})
    learned = [Profile(stage, "cpu", (ServiceTime(1, 0.02),), 1.0) for stage in ("read", "judge")]
    record = msgspec.structs.replace(RECORD, groups=groups, profiles=learned)
    write_record(tmp_path / "run", record, EventTimes.of(ledger_of_two(), None))
    assert read_record(tmp_path / "run").groups == groups


@pytest.mark.parametrize(
    "wrong",
    [
        {"arrivals_s": np.array([2.0, 1.0])},
        {"arrivals_s": np.array([np.nan])},
        {"arrivals_s": np.array([[1.0]])},
        {"arrivals_s": np.array(["a"])},
        {"latency_s": np.array([1.0])},
        {"source_of": np.array([0, 1], np.uint8)},
        {"began_s": np.array([])},
        {"began_s": np.array(1e300)},
        {"entries_s": np.array([None], object)},
    ],
)
def test_arrays_that_are_no_events_of_a_run_are_named(tmp_path: Path, wrong: dict[str, np.ndarray]) -> None:
    whole = EventTimes(*(np.array([0.0, 1.0, 2.0]) for _ in range(3)), np.empty(0), 5.0)
    with (tmp_path / "events.npz").open("wb") as file:
        np.savez(file, **{name: getattr(whole, name) for name in EventTimes.__slots__} | wrong)
    with pytest.raises(InvalidFile, match=r"events\.npz: holds no events of a run"):
        read_events(tmp_path)


def test_an_archive_with_flipped_bytes_is_named(tmp_path: Path) -> None:
    write_record(tmp_path / "run", RECORD, EventTimes.of(ledger_of_two(), None))
    file = tmp_path / "run" / "events.npz"
    data = file.read_bytes()
    for at in range(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        with contextlib.suppress(InvalidFile):
            read_events(tmp_path / "run")


def test_one_wrong_time_does_not_make_the_run_a_moment_at_the_end_of_decades() -> None:
    ledger = ledger_of_two()
    ledger.arrivals_s.extend([0.0, 4e9])
    ledger.entries_s.extend([0.0, 4e9])
    ledger.latencies_s.extend([9.0, 9.0])
    events = EventTimes.of(ledger, None, 1.0, 100.0)
    assert events.began_s == 4.0
    assert events.arrivals_s.tolist() == [0.0, 1.0, 2.0]
    assert events.latency_s.tolist() == pytest.approx([0.1, 0.3])
