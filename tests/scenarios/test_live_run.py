"""Whole runs on the embedded broker: real replica processes, emulated hardware, a scripted policy."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferline_stream.cli.main import app
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.runs.archive import read_events, read_record
from inferline_stream.runs.lifecycle import run_to_report
from inferline_stream.runs.replay_inputs import inputs_of_run
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.policy import POLICIES


async def test_an_advisory_run_decides_without_acting(swing, embedded_broker: KafkaServer) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(30, 3)], changes=[(0.5, {"parse": 3})], advisory=True)
    async with asyncio.timeout(180):
        report = await run_to_report(run, asyncio.Event())
    assert [(d.applied, d.replicas["parse"]) for d in report.decisions] == [(False, 3)]
    assert report.replicas_most["parse"] == 1
    assert report.lost == 0


async def test_a_record_replays_to_the_decisions_of_its_run(
    swing, embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Run = swing(
        embedded_broker.bootstrap_servers, levels=[(20, 3), (90, 3), (160, 3)], policy=POLICIES["inferline"]
    )
    # An interpreter that starts would take cores from the replicas at work, which no replay knows: they are forked.
    for stage in run.pipeline.stages:
        monkeypatch.setattr(stage, "isolation", Isolation(forked=True))
    run = replace(run, run_folder=tmp_path / "run")
    async with asyncio.timeout(180):
        await run_to_report(run, asyncio.Event())
    record, events = read_record(tmp_path / "run"), read_events(tmp_path / "run")
    assert inputs_of_run(tmp_path / "run").partitions == record.partitions == dict.fromkeys(record.shape.stages, 8)
    live = [(d.time_s - events.began_s, d.replicas) for d in record.decisions if d.action == "scale_up"]
    reported = CliRunner().invoke(app, ["replay", str(tmp_path / "run"), "--policy", "inferline", "--output", "json"])
    assert reported.exit_code == 0, reported.output + repr(reported.exception)
    replayed = [step for step in json.loads(reported.stdout)["steps"] if step["action"] == "scale_up"]
    assert len(live) >= 2
    assert [step["replicas"] for step in replayed] == [replicas for _, replicas in live]
    # On a busy machine a step of 0.1 s comes late, and what it sees is seen by the next.
    assert [step["time_s"] for step in replayed] == pytest.approx([time_s for time_s, _ in live], abs=0.3)
