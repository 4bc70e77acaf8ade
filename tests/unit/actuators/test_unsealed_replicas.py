"""Stages whose code leaves out the seal: the supervisor looks for itself before it lets them have a connection."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from inferline_stream.actuators.actuator import ReplicaExit
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.supervisor import Supervisor
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.isolation.seal import unsupported
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation

pytestmark = pytest.mark.skipif(
    bool(unsupported(Isolation())), reason=f"no sandbox on {platform.system()} {platform.release()}"
)

DEADLINE_S = 30.0
TOPOLOGY = """
import ctypes, threading, time
from inferline_stream import Pipeline, Stage, Topic
from inferline_stream.dataplane.replica import replica
from inferline_stream.isolation import bpf, kernel_calls, syscall_rules
from inferline_stream.isolation.enforced import Enforced

class Work:
    def __call__(self, numbers: list[int]) -> list[int]:
        open("/etc/passwd").close()
        return numbers

work = Stage("work", Work, hardware=["cpu-1"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[work])
"""

CLAIM = """
def left_out(confinement, **given):
    hostile(confinement)
    return Enforced("sandbox", system_calls=60, sealed=True)

replica.seal = left_out
"""

NOTHING = """
def hostile(confinement):
    pass
"""
MAIN_THREAD_ALONE = """
def hostile(confinement):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    kernel_calls._TSYNC = kernel_calls._TSYNC_ESRCH = 0
    program = syscall_rules.program(syscall_rules.sealed(0, imports=True), syscall_rules.machine())
    kernel_calls.install_filter(program)
"""


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    tmp_path.chmod(0o755)
    children = partial(Children, tmp_path / "logs", dispatcher_module="inferline_stream.testing.stand_in_dispatcher")
    async with Supervisor(children, drain_timeout_s=10.0, kill_after_s=0.5) as made:
        yield made


async def run(supervisor: Supervisor, folder: Path, hostile: str, isolation: Isolation) -> ReplicaExit:
    """Serve a stage by a stand-in for its dispatcher, until a replica ends."""
    file = folder / "topology.py"
    file.write_text(TOPOLOGY)
    routes = routes_of(load_topology(file), "work")
    file.write_text(TOPOLOGY + hostile + CLAIM)
    await supervisor.dispatch("work", [DispatcherSpec("work-0-a", 0, routes, "127.0.0.1:9")])
    spec = ReplicaSpec("", "work", str(file), Hardware("cpu-1", 0.1, cores=0), isolation=isolation)
    await supervisor.know({("work", "cpu-1"): spec})
    await supervisor.scale("work", "cpu-1", 1)
    async with asyncio.timeout(DEADLINE_S):
        gone = await supervisor.next_exit()
    assert isinstance(gone, ReplicaExit)
    return gone


@pytest.mark.parametrize("hostile", [NOTHING, MAIN_THREAD_ALONE], ids=["left out", "one thread alone"])
async def test_a_replica_whose_code_leaves_out_its_seal_gets_no_event_and_is_ended(
    supervisor: Supervisor, tmp_path: Path, hostile: str
) -> None:
    gone = await run(supervisor, tmp_path, hostile, Isolation(memory_mb=2000))
    assert "did not seal it, although it says so: it has" in gone.reason
    said = (tmp_path / "logs" / "work-0-a.log").read_text()
    assert "attached" in said
    assert "ready" not in said
