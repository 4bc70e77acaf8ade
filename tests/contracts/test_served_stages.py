"""Stages whose model is behind a server that fails in every way; replicas of a server of others are sealed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.director import Director, event_id
from tests.support.model_server import model_server

ROOT = Path(__file__).parents[2]
SERVED = """
from inferline_stream import OpenInference, Pipeline, Stage, Topic

def ask(number: int) -> dict[str, int]:
    return {{"number": number}}

def answer(outputs: dict) -> int:
    return int(outputs["doubled"])

work = Stage(
    "work",
    server=OpenInference("{url}", model="double", request=ask, response=answer, timeout="300ms", retries=1),
    hardware=["cpu-1"], max_batch_size=4, concurrency=4, isolation="{isolation}",
)
pipeline = Pipeline("p", slo="2s", source=Topic("in"), sink=Topic("out"), stages=[work])
"""


def served(folder: Path, url: str) -> Path:
    folder.chmod(0o755)
    file = folder / "topology.py"
    file.write_text(SERVED.format(url=url, isolation="sandbox"))
    return file


FAILURES = ("500", "503", "429", "404", "garbage", "half", "closes", "slow", "killed")


@pytest.mark.parametrize(
    ("delivery", "scheme", "failures"),
    [("at_least_once", "grpc", ("500", "slow", "killed")), ("exactly_once", "http", FAILURES)],
)
async def test_a_server_that_fails_in_every_way_costs_no_event_and_the_stage_resumes_by_itself(
    embedded_broker, tmp_path: Path, delivery, scheme, failures
):
    async with model_server() as server:
        url = server.grpc_url if scheme == "grpc" else server.url
        topology = served(tmp_path, url)
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
                assert f"server {url}" in director.report("work").reason
                server.behaves = "well"
                if failure == "killed":
                    await server.start()
                await director.caught_up()
                await director.until(lambda: not director.report("work").reason, "the reason is gone")
            sink, letters = await director.results(), await director.letters("work")
            report, exits = director.report("work"), list(director.exits)
    assert Counter(map(event_id, sink)) == Counter(ids)
    assert (letters, report.suspects, exits) == ([], 0, []), "neither events nor replicas are blamed"


async def test_a_server_that_replicas_start_is_scaled_with_them_and_started_again_where_it_dies(
    embedded_broker, tmp_path: Path
):
    topology = tmp_path / "topology.py"
    command = f"env PYTHONPATH={ROOT} {sys.executable} -m tests.support.model_server 0.05 0 0 {{port}}"
    declared = SERVED.format(url="grpc://127.0.0.1:{port}", isolation="none")
    topology.write_text(declared.replace('timeout="300ms"', f'timeout="5s", command="{command}"'))
    async with Director(embedded_broker.bootstrap_servers, topology, max_batch_size=4) as director:
        await director.start(replicas=2)
        servers = servers_of(tmp_path)
        assert len(servers) == 2
        ids = await director.put([b"%d" % number for number in range(40)])
        os.kill(next(iter(servers)), signal.SIGKILL)
        async with asyncio.timeout(180):
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
            if (
                os.readlink(process / "cwd") == str(folder)
                and b"tests.support.model_server" in (process / "cmdline").read_bytes()
            ):
                found.add(int(process.name))
    return found
