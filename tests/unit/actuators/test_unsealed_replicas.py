"""Stages whose code leaves out the seal: the supervisor looks for itself before it lets them have a connection."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from inferline_stream.actuators.actuator import ReplicaExit
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.devices import Device
from inferline_stream.actuators.supervisor import Supervisor
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.enforced import unsealed
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from tests.support.deadlines import next_exit
from tests.support.sandbox import needs_sandbox

pytestmark = needs_sandbox

DEADLINE_S = 30.0
TOPOLOGY = """
import contextlib, ctypes, threading, time
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
ANOTHER_FILTER = """
def hostile(confinement):
    everything = (bpf.Instruction(6, 0, 0, bpf.ALLOW),)
    with contextlib.suppress(OSError):
        kernel_calls.install_filter(everything)
    code = ctypes.create_string_buffer(bpf.encoded(everything))
    with contextlib.suppress(OSError):
        kernel_calls.prctl(22, 2, ctypes.addressof(ctypes.create_string_buffer(
            kernel_calls._described(1, ctypes.addressof(code)))))
    at, size = ctypes.c_void_p(syscall_rules.FIXED_FILTER_AT), ctypes.c_size_t(4096)
    ctypes.CDLL(None).munmap(at, size)
    if not ctypes.CDLL(None).mprotect(at, size, 3):
        ctypes.memmove(syscall_rules.FIXED_FILTER_AT, bytes(4096), 4096)
"""


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    tmp_path.chmod(0o755)
    children = partial(Children, tmp_path / "logs", dispatcher_module="stand_in_dispatcher")
    async with Supervisor(children, drain_timeout_s=10.0, kill_after_s=0.5) as made:
        yield made


def can_fix_filters() -> bool:
    """Whether this kernel is Linux 6.10 or later."""
    return tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 10)


async def start(supervisor: Supervisor, folder: Path, hostile: str, hardware: Hardware) -> None:
    """Serve a stage by a stand-in for its dispatcher."""
    file = folder / "topology.py"
    file.write_text(TOPOLOGY)
    routes = routes_of(load_topology(file), "work")
    file.write_text(TOPOLOGY + hostile)
    await supervisor.dispatch("work", [DispatcherSpec("work-0-a", 0, routes, "127.0.0.1:9")])
    spec = ReplicaSpec("", "work", str(file), hardware, isolation=Isolation(memory_mb=2000))
    await supervisor.know({("work", hardware.name): spec})
    await supervisor.scale("work", hardware.name, 1)


async def said(folder: Path, what: str) -> str:
    """What the stand-in for a dispatcher has printed, once this is part of it."""
    log = folder / "logs" / "work-0-a.log"
    async with asyncio.timeout(DEADLINE_S):
        while not log.exists() or what not in log.read_text():
            await asyncio.sleep(0.02)
    return log.read_text()


async def run(supervisor: Supervisor, folder: Path, hostile: str) -> ReplicaExit:
    """Serve a hostile stage until a replica ends."""
    await start(supervisor, folder, hostile + CLAIM, Hardware("cpu-1", 0.1, cores=0))
    gone = await next_exit(supervisor)
    assert isinstance(gone, ReplicaExit)
    return gone


@pytest.mark.parametrize(
    "hostile",
    [pytest.param(NOTHING, id="left out")]
    + [pytest.param(ANOTHER_FILTER, id="another filter")] * can_fix_filters(),  # the kernel's part in it
)
async def test_a_replica_whose_code_leaves_out_its_seal_gets_no_event_and_is_ended(
    supervisor: Supervisor, tmp_path: Path, hostile: str
) -> None:
    gone = await run(supervisor, tmp_path, hostile)
    assert "did not seal it, although it says so: it has" in gone.reason
    assert "ready" not in await said(tmp_path, "attached")


async def test_a_replica_that_is_confined_for_a_gpu_shows_its_seal_and_gets_events(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """On a stand-in for a device: the stage uses none."""
    supervisor._children._given = (Device("GPU-1", "Tesla T4"),)
    await start(supervisor, tmp_path, "", Hardware("t4", 0.5, cores=0, gpus=1, gpu_model="Tesla T4"))
    await said(tmp_path, "results")


def test_a_process_of_which_one_thread_alone_is_sealed_is_not_sealed() -> None:
    """As on a kernel that lets a process choose its filter: it gives its main thread two."""
    code = """if True:
        import sys, threading
        from inferline_stream.isolation import bpf, kernel_calls
        def add():
            kernel_calls._install(described, 0)
            kernel_calls._install(described, 0)
        everything = (bpf.Instruction(6, 0, 0, bpf.ALLOW),)
        code = kernel_calls.ctypes.create_string_buffer(bpf.encoded(everything))
        kept = kernel_calls.ctypes.create_string_buffer(kernel_calls._described(1, kernel_calls.ctypes.addressof(code)))
        described = kernel_calls.ctypes.addressof(kept)
        kernel_calls.prctl(kernel_calls.SET_NO_NEW_PRIVS, 1)
        other = threading.Thread(target=lambda: [sys.stdin.readline(), add(), print(flush=True), sys.stdin.readline()])
        other.start()
        add()
        print(flush=True)
        other.join()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert unsealed(process.pid, Confinement(Isolation(), "")) == "it has 0 of 2 filters of system calls"
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        assert unsealed(process.pid, Confinement(Isolation(), "")) == ""
        process.stdin.write("\n")
        process.stdin.flush()
