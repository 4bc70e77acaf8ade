"""Fork servers have run their stage's code: what that makes them say harms nobody, and holds nothing up."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from inferline_stream.actuators.actuator import ObservedReplica, ReplicaExit
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.supervisor import Supervisor
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from tests.support.deadlines import next_exit, until
from tests.support.sandbox import needs_sandbox

pytestmark = needs_sandbox

DEADLINE_S = 30.0
TOPOLOGY = """
import json, os, socket, sys, time
from inferline_stream import Pipeline, Stage, Topic

def work(numbers: list[int]) -> list[int]:
    return numbers

stage = Stage("work", work, hardware=["cpu-1"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
server = sys.modules["__main__"]

def serve(channel, live):
    while socket.recv_fds(channel, 65536, 3)[0]:
        answer(channel)
    return 0

if server.__spec__.name == "inferline_stream.dataplane.fork_server":
"""
ANOTHERS = """
    answer = lambda channel: channel.send(json.dumps({{"pid": {victim}}}).encode())
    server._serve = serve
"""
NOTES = """
    def answer(channel):
        while True:
            channel.send(b"{{}}")
            time.sleep(0.05)
    server._serve = serve
"""
NOTHING = """
    answer = lambda channel: None
    server._serve = serve
"""
NONSENSE = """
    answer = lambda channel: channel.send(b'{{"pid": "me"}}')
    server._serve = serve
"""
NO_ENDS = """
    server._report_end = lambda channel, process: None
"""
IMPOSSIBLE_CODES = """
    server.os.waitstatus_to_exitcode = lambda status: -4711
"""
SHORT_LIVES = """
    fork = os.fork

    def fork_to_its_end():
        child = fork()
        if child:
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        return child

    os.fork = fork_to_its_end
    server._become = lambda request, files, live: os._exit(7)
"""
NO_SECOND_FORK = """
    fork, asked = os.fork, []

    def refused_once():
        asked.append(True)
        if len(asked) == 3:  # the first was to learn what the stage imports
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    os.fork = refused_once
"""
LATE_ONCE = """
    class Late:
        passed_s = iter([float("inf")])
        monotonic = staticmethod(lambda: next(Late.passed_s, 0.0))

    server.time = Late
"""


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    tmp_path.chmod(0o755)
    async with Supervisor(partial(Children, tmp_path / "logs"), drain_timeout_s=5.0, kill_after_s=0.5) as made:
        yield made


async def started(supervisor: Supervisor, folder: Path, hostile: str) -> None:
    """Start one replica, and wait for the fork server that its stage's code has taken over."""
    (folder / "topology.py").write_text(TOPOLOGY + hostile)
    kind = Hardware("cpu-1", 0.1, cores=0)
    isolation = Isolation(forked=True, seal="imports")
    await supervisor.know(
        {("work", "cpu-1"): ReplicaSpec("", "work", str(folder / "topology.py"), kind, isolation=isolation)}
    )
    await supervisor.scale("work", "cpu-1", 1)
    servers = supervisor._children._fork_servers
    await until(lambda: servers.ready("work", "cpu-1"), "the fork server is ready")


async def second(supervisor: Supervisor, at: int = 1) -> ObservedReplica:
    """The second replica, or another one, once it has a process."""
    async with asyncio.timeout(DEADLINE_S):
        while (found := (await supervisor.observe())[at]).pid is None:
            await asyncio.sleep(0.02)
    return found


async def test_a_fork_server_that_names_another_process_can_have_nobody_signalled(
    supervisor: Supervisor, tmp_path: Path, victim: subprocess.Popen[bytes]
) -> None:
    await started(supervisor, tmp_path, ANOTHERS.format(victim=victim.pid))
    await supervisor.scale("work", "cpu-1", 2)
    replica = await second(supervisor)
    assert replica.pid != victim.pid
    assert replica.way == "alone"
    await supervisor.aclose()
    assert victim.poll() is None


@pytest.mark.parametrize("hostile", [NOTHING, NOTES, NONSENSE], ids=["nothing", "notes", "nonsense"])
async def test_nobody_waits_for_a_fork_server_that_does_not_answer(
    supervisor: Supervisor, tmp_path: Path, hostile: str
) -> None:
    await started(supervisor, tmp_path, hostile.format())
    await supervisor.scale("work", "cpu-1", 2)
    assert (await supervisor.observe())[1].pid is None, "the supervisor goes on before the answer"
    assert (await second(supervisor)).way == "alone"


@pytest.mark.parametrize(
    ("hostile", "code"), [(NO_ENDS, -signal.SIGKILL), (IMPOSSIBLE_CODES, -4711)], ids=["kept", "lied"]
)
async def test_the_end_of_a_forked_replica_is_known_whatever_its_fork_server_says_of_it(
    supervisor: Supervisor, tmp_path: Path, hostile: str, code: int
) -> None:
    await started(supervisor, tmp_path, hostile)
    await supervisor.scale("work", "cpu-1", 2)
    replica = await second(supervisor)
    assert replica.way == "fork"
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    gone = await next_exit(supervisor)
    assert isinstance(gone, ReplicaExit)
    assert (gone.replica, gone.exit_code) == (replica.replica, code)


async def test_a_replica_that_leaves_before_it_is_forked_leaves(supervisor: Supervisor, tmp_path: Path) -> None:
    await started(supervisor, tmp_path, "    pass\n")
    await supervisor.scale("work", "cpu-1", 2)
    await supervisor.scale("work", "cpu-1", 1)
    gone = await next_exit(supervisor)
    assert isinstance(gone, ReplicaExit)
    assert (gone.exit_code, gone.expected) == (0, True)


async def test_a_fork_server_is_believed_of_a_process_that_ended_before_anybody_looked(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    await started(supervisor, tmp_path, SHORT_LIVES)
    await supervisor.scale("work", "cpu-1", 2)
    gone = await next_exit(supervisor)
    assert isinstance(gone, ReplicaExit)
    assert gone.exit_code == 7
    assert supervisor._children._fork_servers.ready("work", "cpu-1")


async def test_a_fork_that_the_kernel_refuses_ends_no_replica_that_was_forked_before(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    await started(supervisor, tmp_path, NO_SECOND_FORK)
    await supervisor.scale("work", "cpu-1", 2)
    forked = await second(supervisor)
    await supervisor.scale("work", "cpu-1", 3)
    assert (await second(supervisor, 2)).way == "alone"
    await supervisor.scale("work", "cpu-1", 4)
    assert (await second(supervisor, 3)).way == "fork"
    assert (await second(supervisor)).pid == forked.pid


async def test_a_replica_is_not_given_the_process_that_was_forked_for_the_next_one(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    await started(supervisor, tmp_path, LATE_ONCE)
    await supervisor.scale("work", "cpu-1", 3)
    assert [(await second(supervisor, at)).way for at in (1, 2)] == ["alone", "fork"]
