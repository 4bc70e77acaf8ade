"""A whole run one branch of whose join is away for longer than `join_age_s`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import KafkaServer
from tests.support.emulated_runs import emulated_run

TOPOLOGY = """
from pathlib import Path
from msgspec import Struct
from inferline_stream import Pipeline, Sample, ServerUnavailable, Stage, Topic

AWAY = Path(__file__).with_name("away")


class Both(Struct):
    read: int
    asked: int


def read(numbers: list[int]) -> list[int]:
    return numbers


def asked(numbers: list[int]) -> list[int]:
    if AWAY.exists():
        raise ServerUnavailable("away")
    return [-number for number in numbers]


def both(parts: list[Both]) -> list[int]:
    return [part.read for part in parts if part.asked == -part.read]


TAKES = {"hardware": ["emulated-cpu"], "emulated": {1: "1ms", 16: "4ms"}, "max_batch_size": 16}
first = Stage("read", read, **TAKES)
other = Stage("asked", asked, after=[first], **TAKES)
final = Stage("both", both, after=[first, other], **TAKES)
sample = Sample(arrivals="arrivals.csv", events="numbers.jsonl")
ends = {"source": Topic("numbers", partitions=2), "sink": Topic("out", partitions=2)}
pipeline = Pipeline("away", slo="9s", stages=[first, other, final], sample=sample, **ends)
"""


async def test_events_wait_for_a_branch_that_is_away_and_none_of_them_is_lost_or_dies(
    embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    away, topology = tmp_path / "away", tmp_path / "topology.py"
    topology.write_text(TOPOLOGY)
    (tmp_path / "numbers.jsonl").write_text("\n".join(map(str, range(200))))
    (tmp_path / "arrivals.csv").write_text("arrival_s\n0\n1\n")
    away.touch()
    run = emulated_run(
        topology,
        embedded_broker.bootstrap_servers,
        tmp_path,
        levels=[(200, 1)],
        settings=Settings(join_age_s=0.5, join_bytes=100_000.0),
    )
    async with asyncio.timeout(90), open_run(run) as under_way:
        await under_way.ready()
        reports = under_way.controller.view.reports
        await under_way.fed(asyncio.Event())
        fed = under_way.controller.view.growth.total

        async def all_wait() -> bool:
            return reports.join_overdue("both") and reports.stage("both", 0.0).join_events == fed

        assert await until(all_wait, 15.0), "every event waits for its other part, for longer than join_age_s"
        await asyncio.sleep(1.0)  # no round of the controller ends meanwhile
        assert under_way.controller.view.settling["both"].settled.get(0, (0, 0))[0] == 0
        away.unlink()
        report = await under_way.report(await under_way.drain())
    assert fed > 100
    assert (report.events_in, report.events_out, report.lost, report.duplicated) == (fed, fed, 0, 0)
