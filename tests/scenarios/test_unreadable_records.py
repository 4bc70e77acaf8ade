"""Records of any kind in the topics that a pipeline keeps of itself stop neither a run nor a command."""

from __future__ import annotations

import asyncio

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.records.control_records import Override, encode
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.kafka.pipeline_topics import create_topics, topics_of
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.names import Names
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.observation import Limits
from tests.scenarios.test_cli_status import SWING, call

HOSTILE = [
    b"\xff\x00",
    b"[1]",
    b'{"kind":"freeze","subject":"parse","version":2}',
    b'{"type":"grant","more":' + b"[" * 100_000,
]
KEYS = [
    ("control", "scale/parse"),
    ("assignments", "leader"),
    ("assignments", "parse/0"),  # which its dispatcher follows
    ("decisions", "plan"),
    ("stage_stats", "x"),
    ("arrivals", "y"),
]


async def poison(run: Run, names: Names) -> None:
    for topic, key in KEYS:
        for value in HOSTILE:
            await write_once(run.bootstrap_servers, Record.keyed(getattr(names, topic), key, value))


async def test_a_run_and_every_command_pass_over_records_that_cannot_be_read(swing, apache_kafka: KafkaServer) -> None:
    run: Run = swing(apache_kafka.bootstrap_servers, levels=[(20, 3)])
    names = Names("swing", run.records.prefix)
    await create_topics(
        run.bootstrap_servers, topics_of(load_topology(run.topology), run.records.prefix), replication=1
    )
    await poison(run, names)
    limits = Override("limits", "check", maximum=4)
    await write_once(run.bootstrap_servers, Record.keyed(names.control, limits.key, encode(limits)))
    where = ["--bootstrap-servers", run.bootstrap_servers, "--prefix", run.records.prefix]
    async with asyncio.timeout(120), open_run(run) as under_way:
        await under_way.ready()
        controller = under_way.controller
        assert controller.decider.overrides.limits(0.0)["check"] == Limits(1, 4)
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        await poison(run, names)  # while it runs: followers meet these live
        verbs = [
            ("scale", str(SWING), "decide", "--max", "2"),
            ("deploy", str(SWING)),
            ("status", str(SWING)),
            ("top", str(SWING), "--every", "200ms", "--updates", "2", "--output", "json"),
            ("explain", str(SWING)),
            ("dlq", "ls", str(SWING)),
        ]
        for verb in verbs:
            code, _, err = await call(*verb, *where)
            assert (verb, code) == (verb, 0), err
            assert "Traceback" not in err

        async def obeyed() -> bool:
            return "decide" in controller.decider.overrides.limits(0.0)

        assert await until(obeyed, 60.0)
        await feeding
        report = await under_way.report(await under_way.drain())
    assert (report.lost, report.duplicated, controller.loop.failures) == (0, 0, 0)
    counts = controller.view.context.decoder.counts
    assert counts[names.control] == 2 * len(HOSTILE)
    assert counts[names.stage_stats] >= len(HOSTILE)
    assert counts[names.decisions] == len(HOSTILE)  # a leader reads them only as it begins
    assert controller.state is not None
    assert controller.state.unreadable[names.control] == 2 * len(HOSTILE)
