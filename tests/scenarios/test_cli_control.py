"""The verbs that people use on a running pipeline, each as a process: scale, resume, deploy, explain."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.kafka.pipeline_topics import create_topics, topics_of
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.observation import Limits
from tests.scenarios.test_cli_documents import assert_documented
from tests.support.forked_command import forked_command


async def verb(run: Run, name: str, *more: str, topology: Path | None = None) -> tuple[int, str]:
    """Exit code and what was said."""
    where = ("--bootstrap-servers", run.bootstrap_servers, "--prefix", run.records.prefix)
    done = await asyncio.to_thread(forked_command, name, str(topology or run.topology), *more, *where)
    return done.returncode, done.stdout + done.stderr


async def test_people_set_limits_take_them_back_deploy_code_and_read_what_was_decided(
    swing, embedded_broker: KafkaServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(20, 3)])
    longer = tmp_path / "topology.py"
    source = run.topology.read_text()
    longer.write_text(
        source.replace("after=[parsing, checking]", "after=[parsing, checking, extra]")
        .replace(
            "deciding = Stage",
            'extra = Stage("extra", parse, hardware=EMULATED, emulated={1: "1ms"})\ndeciding = Stage',
        )
        .replace("stages=[parsing, checking, deciding]", "stages=[parsing, checking, extra, deciding]")
        .replace("check: int | None", "check: int | None\n    extra: int")
    )
    async with asyncio.timeout(180), open_run(run) as under_way:
        await under_way.ready()
        controller = under_way.controller

        async def limited() -> bool:
            return controller.decider.overrides.limits(0.0).get("parse") == Limits(1, 3, awake=True)

        code, _ = await verb(run, "scale", "parse", "--min", "0")
        assert code == 0

        async def warned() -> bool:
            return "stage 'parse' may have no replica" in caplog.text

        assert await until(warned, 60.0)
        code, said = await verb(run, "scale", "parse", "--min", "1", "--max", "3", "--price", "emulated-cpu=0.5")
        assert (code, said.count("set;")) == (0, 2)
        assert await until(limited, 60.0)
        assert controller.view.catalogue["emulated-cpu"].price_per_hour == 0.5

        code, said = await verb(run, "deploy", topology=longer)
        assert code == 2
        assert "stage extra is new" in said
        assert "drains" in said

        before = {r.replica for r in await controller.actuator.observe()}
        code, said = await verb(run, "deploy", "--output", "json")
        assert (code, json.loads(said)["overrides"][0]["key"]) == (0, "code")
        assert_documented("scale, pause, resume, deploy", json.loads(said))

        async def replaced() -> bool:
            return not before & {r.replica for r in await controller.actuator.observe()}

        assert await until(replaced, 60.0)
        code, said = await verb(run, "explain", "--output", "json")
        assert code == 0
        story = json.loads(said)
        assert [plan["reason"] for plan in story["plans"]] == ["initial"]
        assert [(d["action"], d["reason"]) for d in story["decisions"]] == [("replace", "new_code")]
        assert story["overrides"]["limits/parse"]["maximum"] == 3
        code, said = await verb(run, "explain")
        assert "plan 1 (initial)" in said
        assert "newer code of the stages was given" in said

        code, said = await verb(run, "resume", "--all")
        assert (code, "limits/parse is not set; later decisions follow that" in said) == (0, True)

        async def taken_back() -> bool:
            return set(controller.decider.overrides.by_key) == {"code"}

        assert await until(taken_back, 60.0)
        code, said = await verb(run, "scale", "parse", "0", "--for", "1ms")
        assert code == 0
        assert "once that is followed parse has no replica, and its events wait, until `inferline-stream resume" in said

        await under_way.fed(asyncio.Event())
        report = await under_way.report(await under_way.drain())
    assert (report.lost, report.duplicated) == (0, 0)
    code, said = await verb(run, "deploy")
    assert (code, "no controller leads" in said) == (5, True)


async def test_what_cannot_be_set_is_said_with_the_remedy(swing, embedded_broker: KafkaServer) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(20, 1)])
    cases = [
        (("scale",), "nothing to set"),
        (("scale", "pars", "3"), "the pipeline has parse, check, decide"),
        (("scale", "--standby", "1"), "name the stage"),
        (("scale", "parse", "--min", "4", "--max", "2"), "--min 4 is above --max 2"),
        (("scale", "--slo", "fast"), "--slo"),
        (("scale", "--price", "k81=1"), "no hardware kind 'k81'"),
        (("scale", "--stock", "t4=1.5"), "a whole number"),
    ]
    outcomes = await asyncio.gather(*(verb(run, *given) for given, _ in cases))
    for (given, remedy), (code, said) in zip(cases, outcomes, strict=True):
        assert (given, code) == (given, 2)
        assert remedy in said


async def test_what_is_set_in_a_pause_is_said_to_wait_for_resume(swing, embedded_broker: KafkaServer) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(20, 1)])
    wanted = topics_of(run.pipeline, run.records.prefix)
    await create_topics(run.bootstrap_servers, wanted, replication=1)
    waits = "is paused: no decision follows what is set, until `inferline-stream resume`"
    for given, held in (
        (("scale", "parse", "2"), False),
        (("pause", "--for", "1h"), True),
        (("scale", "parse", "0"), True),
        (("resume",), False),
    ):
        code, said = await verb(run, *given)
        assert (given, code, waits in said) == (given, 0, held), said
        assert ("or the pause's time is over" in said) == held, said


AS_SET = "planning for what people have set in place of the topology's: "


@pytest.mark.parametrize(
    ("set_", "slo_s", "noted"),
    [
        ("--slo=2s", 2.0, (AS_SET + "an SLO of 2s;",)),
        ("--slo=1ms", 0.25, ("planning for the topology's SLO of 250ms, until a plan meets what people have set",)),
        ("--price=emulated-cpu=0.5", 0.25, (AS_SET + "$0.5/h for emulated-cpu;", "0.5000")),
        (
            "--stock=emulated-cpu=1",
            0.25,
            (AS_SET + "at most 1 replica on emulated-cpu;", "planning for the topology's stock, until a plan meets"),
        ),
    ],
)
async def test_a_run_plans_for_what_people_have_set_before_it_began_where_that_can_be_met(
    embedded_broker: KafkaServer, tmp_path: Path, set_: str, slo_s: float, noted: tuple[str, ...]
) -> None:
    assert forked_command("init", str(tmp_path)).returncode == 0
    prefix = set_.strip("-").replace("=", ".") + "."
    where = "--bootstrap-servers", embedded_broker.bootstrap_servers, "--prefix", prefix
    await create_topics(embedded_broker.bootstrap_servers, topics_of(load_topology(tmp_path), prefix), replication=1)
    given = await asyncio.to_thread(forked_command, "scale", str(tmp_path), set_, *where)
    assert given.returncode == 0, given.stderr
    options = "--replay", "--duration", "3s", "--no-ui", "--metrics-port", "0", "--output", "json"
    done = await asyncio.to_thread(forked_command, "run", str(tmp_path), *options, *where)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["slo_s"] == slo_s
    for words in noted:
        assert words in done.stderr
