"""Replicas and dispatchers that a fork server has forked, which had imported their code."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from tests.support.director import Director
from tests.support.sandbox import needs_sandbox

pytestmark = needs_sandbox

TOPOLOGY = """
from inferline_stream import Isolation, Pipeline, Stage, Topic


class Work:
    def __init__(self) -> None:
        import numpy

        self.draw = numpy.random.random

    def __call__(self, numbers: list[int]) -> list[float]:
        return [self.draw() for number in numbers]


work = Stage("work", Work, hardware=["cpu-1"], isolation=Isolation(forked=True))
pipeline = Pipeline("forked", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[work])
"""

THREADED = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"


async def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0])


@contextlib.asynccontextmanager
async def running(servers: str, folder: Path, topology: str) -> AsyncIterator[Director]:
    """A pipeline of one stage with one replica, whose fork servers are ready or have given up."""
    file = folder / "topology.py"
    file.write_text(topology)
    folder.chmod(0o755)
    async with Director(servers, file, partitions={"work": 2}) as director:
        await director.start("work")
        await director.warm()
        yield director


async def names(director: Director) -> list[str]:
    return [seen.replica for seen in await director.supervisor.observe()]


async def test_later_replicas_are_forked_sealed_and_as_good_as_any(embedded_broker, tmp_path):
    async with running(embedded_broker.bootstrap_servers, tmp_path, TOPOLOGY) as director:
        await director.scale("work", 2)
        seen = await director.supervisor.observe()
        assert [replica.way for replica in seen] == ["alone", "fork"]
        assert await parent_of(seen[0].pid) == os.getpid()
        assert await parent_of(seen[1].pid) not in (os.getpid(), 1)
        ready = {replica.replica: replica for replica in director.ready("work")}
        first, second = (ready[replica.replica] for replica in seen)
        assert replace(second.isolation, system_calls=None) == replace(first.isolation, system_calls=None)
        assert (second.isolation.sealed, second.isolation.missing) == (True, ())
        assert second.start_up_s < first.start_up_s
        await director.put([b"%d" % number for number in range(200)], [b"%d" % number for number in range(200)])
        await director.caught_up()
        results = [record.value for record in await director.results()]
        assert len(set(results)) == len(results) == 200  # every replica draws its own numbers


async def test_a_forked_replica_that_dies_is_started_again(embedded_broker, tmp_path):
    async with running(embedded_broker.bootstrap_servers, tmp_path, TOPOLOGY) as director:
        await director.scale("work", 2)
        first, second = await names(director)
        await director.kill(second)
        await director.until(lambda: bool(director.exits), "its end is known")
        (gone,) = director.exits
        assert (gone.replica, gone.exit_code, gone.reason) == (second, -9, "killed by SIGKILL")
        await director.until(
            lambda: len({r.replica for r in director.ready("work")} - {first, second}) == 1, "one more"
        )
        (third,) = {replica.replica for replica in director.ready("work")} - {first, second}
        assert await parent_of(await director.pid(third)) not in (os.getpid(), 1)
        await director.scale("work", 1)
        await director.until(lambda: len(director.exits) == 2, "it has left")
        assert (director.exits[1].exit_code, director.exits[1].expected) == (0, True)


async def test_a_dispatcher_that_dies_is_forked_again_under_its_seal(embedded_broker, tmp_path):
    async with running(embedded_broker.bootstrap_servers, tmp_path, TOPOLOGY) as director:
        dispatcher = director.dispatcher("work")
        await director.kill(dispatcher)
        report = director.reports
        await director.until(
            lambda: report[dispatcher].incarnation == 2 and len(director.ready("work")) == 1, "it serves again"
        )
        pid = await director.pid(dispatcher)
        assert await parent_of(pid) not in (os.getpid(), 1)
        assert "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()


async def test_where_imports_start_threads_replicas_start_by_themselves(embedded_broker, tmp_path, caplog):
    async with running(embedded_broker.bootstrap_servers, tmp_path, THREADED + TOPOLOGY) as director:
        assert "importing its code started 1 threads" in caplog.text
        await director.scale("work", 2)
        assert [await parent_of(seen.pid) for seen in await director.supervisor.observe()] == [os.getpid()] * 2
