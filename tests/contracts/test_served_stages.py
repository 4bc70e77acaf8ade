"""Stages that wait for others: asynchronous ones, and those whose model is behind a server that fails in every way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from tests.contracts.pooled import in_order_of_keys
from tests.support.director import Director, event_id
from tests.support.model_server import ModelServerDouble, model_server

ASYNCHRONOUS = """
import asyncio
from inferline_stream import Pipeline, Stage, Topic

async def wait(numbers: list[int]) -> list[int]:
    await asyncio.sleep(0.2)
    return [2 * number for number in numbers]

work = Stage("work", wait, hardware=["cpu-1"], max_batch_size=1, concurrency=8)
pipeline = Pipeline("p", slo="2s", source=Topic("in"), sink=Topic("out"), stages=[work])
"""

SERVED = """
from inferline_stream import OpenInference, Pipeline, Stage, Topic

def ask(number: int) -> dict[str, int]:
    return {{"number": number}}

def answer(outputs: dict) -> int:
    return int(outputs["doubled"])

work = Stage(
    "work",
    server=OpenInference("{url}", model="double", request=ask, response=answer, timeout="300ms", retries=1),
    hardware=["cpu-1"], max_batch_size=4, concurrency=4{isolation},
)
pipeline = Pipeline("p", slo="2s", source=Topic("in"), sink=Topic("out"), stages=[work])
"""


def served(folder: Path, server: ModelServerDouble, isolation: str = "") -> Path:
    folder.chmod(0o755)
    file = folder / "topology.py"
    file.write_text(SERVED.format(url=server.url, isolation=isolation))
    return file


async def test_batches_of_an_asynchronous_stage_wait_together_and_those_of_a_key_in_order(kafka, tmp_path: Path):
    (tmp_path / "topology.py").write_text(ASYNCHRONOUS)
    async with Director(kafka.bootstrap_servers, tmp_path / "topology.py", max_batch_size=1) as director:
        await director.start()
        keys = [b"a", b"b", *[b"k%d" % number for number in range(22)]]
        ids = await director.put([b"%d" % number for number in range(48)], keys * 2)
        await director.caught_up()
        await director.until(lambda: director.total("work", "events") == 48, "all are reported")
        sink = await director.results()
        report = director.report("work")
    assert Counter(map(event_id, sink)) == Counter(ids)
    assert sorted(msgspec.json.decode(record.value) for record in sink) == [2 * number for number in range(48)]
    assert in_order_of_keys(sink)
    (stats,) = report.counts.batch_stats["cpu-1"].values()
    assert stats.batches == 48
    assert stats.in_hand > 3 * 48, "replicas had several batches in hand"


FAILURES = ("500", "503", "429", "404", "garbage", "half", "closes", "slow", "killed")


@pytest.mark.parametrize(("delivery", "failures"), [("at_least_once", ("half", "killed")), ("exactly_once", FAILURES)])
async def test_a_server_that_fails_in_every_way_costs_no_event_and_the_stage_resumes_by_itself(
    embedded_broker, tmp_path: Path, delivery, failures
):
    async with model_server() as server:
        topology = served(tmp_path, server)
        async with Director(
            embedded_broker.bootstrap_servers, topology, max_batch_size=4, delivery=delivery, partitions={"work": 2}
        ) as director:
            await director.start()
            ids = await director.put([b"%d" % number for number in range(8)])
            await director.caught_up()
            for failure in failures:
                if failure == "killed":
                    await server.stop()
                else:
                    server.behaves = failure
                ids += await director.put([b"%d" % number for number in range(8)])
                await director.until(
                    lambda: "its events wait" in director.report("work").reason, f"the reason is reported: {failure}"
                )
                assert f"server {server.url}" in director.report("work").reason
                server.behaves = "well"
                if failure == "killed":
                    await server.start()
                async with asyncio.timeout(5.0):
                    await director.caught_up()
                await director.until(lambda: not director.report("work").reason, "the reason is gone")
            sink, letters = await director.results(), await director.letters("work")
            report, exits = director.report("work"), list(director.exits)
    assert Counter(map(event_id, sink)) == Counter(ids)
    assert (letters, report.suspects, exits) == ([], 0, []), "neither events nor replicas are blamed"


async def test_only_an_event_that_a_server_refuses_becomes_a_dead_letter(embedded_broker, tmp_path: Path):
    async with model_server() as server:
        topology = served(tmp_path, server)
        async with Director(embedded_broker.bootstrap_servers, topology, max_batch_size=4) as director:
            await director.start()
            ids = await director.put([b"%d" % number for number in (1, 2, -3, 4, 5, 6, 7)])
            await director.caught_up()
            sink, letters = await director.results(), await director.letters("work")
    assert Counter(map(event_id, sink)) == Counter(ids[:2] + ids[3:])
    (letter,) = letters
    assert dict(letter.headers)["__inferline.errors.type"] == b"EventRefused"
    assert b"422" in dict(letter.headers)["__inferline.errors.message"]


async def test_a_sealed_replica_reaches_its_server_and_reaches_it_again_after_a_restart(
    embedded_broker, tmp_path: Path
):
    async with model_server() as server:
        topology = served(tmp_path, server, ', isolation="sandbox"')
        async with Director(embedded_broker.bootstrap_servers, topology, max_batch_size=4) as director:
            await director.start()
            ids = await director.put([b"%d" % number for number in range(8)])
            await director.caught_up()
            await server.stop()
            ids += await director.put([b"%d" % number for number in range(8)])
            await director.until(lambda: bool(director.report("work").reason), "the reason is reported")
            await server.start()
            await director.caught_up()
            sink = await director.results()
            (status,) = director.report("work").replicas
    assert Counter(map(event_id, sink)) == Counter(ids)
    assert status.isolation is not None
    assert status.isolation.sealed


async def test_a_server_that_replicas_start_is_scaled_with_them_and_started_again_where_it_dies(
    embedded_broker, tmp_path: Path
):
    program = Path(__file__).parents[1] / "support" / "model_server.py"
    topology = tmp_path / "topology.py"
    command = f"{sys.executable} {program} 0.05 0 {{port}}"
    topology.write_text(
        SERVED.format(url="http://127.0.0.1:{port}", isolation="").replace(
            'timeout="300ms"', f'timeout="5s", command="{command}"'
        )
    )
    async with Director(embedded_broker.bootstrap_servers, topology, max_batch_size=4) as director:
        await director.start(replicas=2)
        servers = servers_of(tmp_path)
        assert len(servers) == 2
        ids = await director.put([b"%d" % number for number in range(40)])
        os.kill(next(iter(servers)), signal.SIGKILL)
        async with asyncio.timeout(60.0):
            while len(servers_of(tmp_path) - servers) != 1:  # its replica notices once it asks it
                ids += await director.put([b"%d" % number for number in range(40)])
                await director.caught_up(60.0)
        await director.scale("work", 1)
        await director.until(lambda: len(servers_of(tmp_path)) == 1, "its server has ended with the replica")
        sink, letters = await director.results(), await director.letters("work")
    assert Counter(map(event_id, sink)) == Counter(ids)
    assert letters == []


def servers_of(folder: Path) -> set[int]:
    """Processes of model servers that replicas of a topology in this folder have started."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "cwd") == str(folder) and b"model_server.py" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
    return found
