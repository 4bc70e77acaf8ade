"""Whole runs on the embedded broker: real replica processes, emulated hardware, a scripted policy."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferline_stream.cli.main import app
from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.records.control_records import Override, encode
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.runs.archive import read_events, read_record
from inferline_stream.runs.lifecycle import open_run, run_to_report
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.observation import Limits, Observation
from inferline_stream.tuner.policy import POLICIES, TunerState


async def test_a_stopped_run_drains_what_has_arrived(swing, embedded_broker: KafkaServer) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(60, 60)])
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(5.0, stop.set)
    async with asyncio.timeout(60):
        report = await run_to_report(run, stop)
    assert 0 < report.events_in < 600
    assert report.events_in == report.events_out
    assert (report.lost, report.duplicated) == (0, 0)


async def test_an_advisory_run_decides_without_acting(swing, embedded_broker: KafkaServer) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(30, 3)], changes=[(0.5, {"parse": 3})], advisory=True)
    async with asyncio.timeout(60):
        report = await run_to_report(run, asyncio.Event())
    assert [(d.applied, d.replicas["parse"]) for d in report.decisions] == [(False, 3)]
    assert report.replicas_most["parse"] == 1
    assert report.lost == 0


@pytest.mark.parametrize("policy", ["default", "inferline"])
async def test_a_record_replays_to_the_decisions_of_its_run(
    policy: str, swing, embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(20, 3), (90, 3), (160, 3)], policy=POLICIES[policy])
    # An interpreter that starts would take cores from the replicas at work, which no replay knows: they are forked.
    for stage in run.pipeline.stages:
        monkeypatch.setattr(stage, "isolation", Isolation(forked=True))
    run = replace(run, run_folder=tmp_path / "run")
    async with asyncio.timeout(60):
        await run_to_report(run, asyncio.Event())
    record, events = read_record(tmp_path / "run"), read_events(tmp_path / "run")
    live = [(d.time_s - events.began_s, d.replicas) for d in record.decisions if d.action == "scale_up"]
    reported = CliRunner().invoke(app, ["replay", str(tmp_path / "run"), "--policy", policy, "--output", "json"])
    assert reported.exit_code == 0, reported.output + repr(reported.exception)
    replayed = [step for step in json.loads(reported.stdout)["steps"] if step["action"] == "scale_up"]
    assert len(live) >= 2
    if policy == "default":  # also looks at what has queued up, which on a busy machine is more than in a replay
        assert abs(len(replayed) - len(live)) <= 1
        live, replayed = live[:2], replayed[:2]
    assert [step["replicas"] for step in replayed] == [replicas for _, replicas in live]
    assert [step["time_s"] for step in replayed] == pytest.approx([time_s for time_s, _ in live], abs=0.1)


async def test_a_person_holds_a_stage_at_a_number_and_pauses_decisions(swing, embedded_broker: KafkaServer) -> None:
    def obey(state: TunerState, seen: Observation) -> tuple[TunerState, Decision | None]:
        least = seen.limits.get("check", Limits()).minimum
        if state.wanted["check"]["emulated-cpu"] == least:
            return state, None
        wanted = {**state.wanted, "check": {"emulated-cpu": least}}
        return replace(state, wanted=wanted), Decision(
            wanted, Action.SCALE_UP, Reason.LIMIT_CHANGED, "a person said so"
        )

    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(20, 6)], policy=obey)
    async with asyncio.timeout(60), open_run(run) as under_way:
        await under_way.ready()
        control = under_way.context.names.control
        two, pause = Override("scale", "check", 2), Override("pause")

        async def two_checks() -> bool:
            return under_way.controller.wanted["check"]["emulated-cpu"] == 2

        async def paused() -> bool:
            return under_way.controller.state.paused

        await write_once(run.bootstrap_servers, Record.keyed(control, two.key, encode(two)))
        assert await until(two_checks, 10.0)
        await write_once(run.bootstrap_servers, Record.keyed(control, pause.key, encode(pause)))
        assert await until(paused, 5.0)
        await write_once(run.bootstrap_servers, Record.keyed(control, two.key, None))
        decisions = len(under_way.controller.view.decisions)
        await under_way.fed(asyncio.Event())
        assert len(under_way.controller.view.decisions) == decisions
        report = await under_way.report(await under_way.drain())
    assert report.lost == 0
    assert [(d.reason, d.replicas["check"]) for d in report.decisions] == [("limit_changed", 2)]
