"""`status` and `top` against a run under way: what they read from Kafka is what the controller itself knows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import KafkaServer
from tests.scenarios.test_cli_documents import assert_documented, on_a_terminal, plain
from tests.support.deadlines import until
from tests.support.forked_command import forked_command

SWING = Path(__file__).parent / "swing"
ORDERS = [
    ("scale", str(SWING), "check", "--max", "4"),
    ("pause", str(SWING), "--for", "1s"),
    ("resume", str(SWING), "decide"),
]


async def call(*arguments: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(forked_command, *arguments, timeout_s=30)
    return done.returncode, done.stdout, done.stderr


async def test_what_is_read_from_kafka_is_what_the_controller_knows(swing, embedded_broker: KafkaServer) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(40, 180)], changes=[(2.0, {"parse": 2})])
    where = ["--bootstrap-servers", run.bootstrap_servers, "--prefix", run.records.prefix]
    stop = asyncio.Event()
    async with asyncio.timeout(180), open_run(run) as under_way:
        await under_way.ready()
        feeding = asyncio.create_task(under_way.fed(stop))
        await until(lambda: under_way.controller.state.recent_p99_s is not None, "results are counted")
        await asyncio.sleep(10.0)  # what recent rates and percentiles are taken over
        code, out, err = await call("status", str(SWING), *where, "--output", "json")
        reported, known = json.loads(out), under_way.controller.state
        shown, watched, on_screen = await asyncio.gather(
            call("status", str(SWING), *where),
            call("top", str(SWING), *where, "--every", "200ms", "--updates", "3", "--output", "json"),
            asyncio.to_thread(
                on_a_terminal, SWING, "stdout", "top", str(SWING), *where, "--every", "200ms", "--updates", "2"
            ),
        )
        ordered = await asyncio.gather(*(call(*order, *where, "--output", "json") for order in ORDERS))
        letters, story = await asyncio.gather(
            *(call(*verb, str(SWING), *where, "--output", "json") for verb in (("dlq", "ls"), ("explain",)))
        )
        stop.set()
        await feeding
        report = await under_way.report(await under_way.drain())
    assert (code, err) == (0, "")
    assert_documented("status", reported)
    stages = {stage["name"]: stage for stage in reported["stages"]}
    for stage in known.stages:
        assert stages[stage.name]["replicas"][0][2:4] == [stage.replicas[0].wanted, stage.replicas[0].ready]
        assert 0.5 < stages[stage.name]["service_time_s"] / stage.service_time_s < 2.0
    assert 0.7 < reported["arrival_rate"] / known.arrival_rate < 1.4
    assert reported["envelope"][-1][1] > 0.7 * known.envelope[-1].live
    assert 0.3 < reported["recent_p99_s"] / known.recent_p99_s < 3.0
    assert [d["replicas"]["parse"] for d in reported["decisions"]] == [2]
    assert reported["input_age_s"]["controller"] < 3.0
    assert shown[0] == 0
    for text in ("controller in term 1", "parse", "of the plan's traffic", "scripted for 2 s"):
        assert text in shown[1], shown
    assert [json.loads(line)["pipeline"] for line in watched[1].splitlines()] == ["swing"] * 3
    assert on_screen[:2] == (0, "")
    for text in ("controller in term 1", "parse", "of the plan's traffic"):
        assert plain(on_screen[2]).count(text) >= 2, "shown again at each update"
    for (verb, *_), (code, out, err) in zip(ORDERS, ordered, strict=True):
        assert (verb, code, err) == (verb, 0, "")
        assert_documented("scale, pause, resume, deploy", json.loads(out))
    assert [json.loads(out)["overrides"][0]["key"] for _, out, _ in ordered] == [
        "limits/check", "pause", "scale/decide",
    ]  # fmt: skip
    assert_documented("dlq ls", json.loads(letters[1]))
    assert_documented("explain", json.loads(story[1]))
    assert report.lost == 0
    code, out, err = await call("status", str(SWING), *where)
    assert (code, err) == (0, "")
    assert "no controller" in out or "silent for" in out


@pytest.mark.parametrize("verb", ["status", "explain", "deploy", "resume --all"])
async def test_a_pipeline_that_has_never_run_there_is_named(embedded_broker: KafkaServer, verb: str) -> None:
    where = ["--bootstrap-servers", embedded_broker.bootstrap_servers, "--prefix", "never."]
    code, out, err = await call(*verb.split(), str(SWING), *where)
    assert (code, out) == (5, "")
    assert "no pipeline 'swing' has run on Kafka" in err
    assert "'never.'" in err
