"""MPS: found by its daemon, for replicas that share a GPU and may connect to it, and part of what a profile is of."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from inferline_stream.actuators.children import Children
from inferline_stream.actuators.devices import Device
from inferline_stream.actuators.mps import shared_by
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.pipeline.profile import Profile, ServiceTime
from inferline_stream.pipeline.topology import Pipeline, Sample, Stage, Topic
from inferline_stream.profiler.machine import Machine
from inferline_stream.profiler.profile_store import ProfileStore

T4 = Hardware("t4", 0.5, gpus=1, gpu_model="Tesla T4")
HALF, FREE = T4.shared(2), Isolation("none")


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the name of MPS's daemon, which has written its number down as that does."""
    program = tmp_path / "nvidia-cuda-mps-control"
    shutil.copy(shutil.which("sleep") or "", program)
    folder = tmp_path / "pipes"
    folder.mkdir()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(folder))
    with subprocess.Popen([program, "60"]) as running:
        named, until_s = Path(f"/proc/{running.pid}/comm"), time.monotonic() + 10
        while named.read_text() != "nvidia-cuda-mps\n":  # the kernel names it a little after it has begun
            assert time.monotonic() < until_s, "the process has not begun"
        (folder / "nvidia-cuda-mps-control.pid").write_text(f"{running.pid}\n")
        yield running
        running.kill()


def test_only_what_shares_a_gpu_and_may_connect_shares_it_by_mps_while_its_daemon_runs(
    daemon: subprocess.Popen[bytes],
) -> None:
    assert [shared_by(kind, FREE) for kind in (T4, HALF, catalogue()["cpu-1"])] == ["", "MPS", ""]
    assert shared_by(HALF, Isolation("sandbox")) == "time slices", "a sealed replica connects to nothing"
    daemon.kill()
    daemon.wait()
    assert shared_by(HALF, FREE) == "time slices", "the file of one that has ended says nothing"


async def test_a_replica_on_a_half_is_given_half_of_the_threads_and_of_the_memory(
    daemon: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    device = Device("GPU-a", "Tesla T4", 16 << 30)
    children = Children(tmp_path, lambda *_: None, devices=(device, replace(device, uuid="GPU-b")))

    def variables_on(kind: Hardware) -> dict[str, str]:
        spec = ReplicaSpec(kind.name, "a", "/nowhere/topology.py", kind, isolation=FREE)
        environment = children.start_replica(spec).launch.environment
        return {name[9:]: value for name, value in environment.items() if name.startswith("CUDA_MPS_")}

    try:
        folder = {"PIPE_DIRECTORY": str(tmp_path / "pipes")}
        half = {"ACTIVE_THREAD_PERCENTAGE": "50", "PINNED_DEVICE_MEM_LIMIT": "0=8192M"}
        assert variables_on(HALF) == folder | half
        assert variables_on(T4) == folder, "a whole device has no limit"
    finally:
        children.close()


def test_a_profile_of_a_share_holds_only_where_devices_are_shared_as_when_it_was_measured(
    daemon: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    stage = Stage("embed", list, hardware=["t4", "t4-1of2"], isolation="none")
    sample = Sample("a", "e")
    pipeline = Pipeline(
        "p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage], hardware=[T4], sample=sample
    )
    store = ProfileStore(pipeline, tmp_path, [b"1"], Machine("Test CPU", 4, ("Tesla T4",)))
    for kind, by in ((T4, ""), (HALF, "MPS")):
        store.save(Profile("embed", kind.name, (ServiceTime(1, 0.01),), shared_by=by))
    assert not store.load().stale
    daemon.kill()
    daemon.wait()
    why = "it was measured where replicas shared a GPU by MPS, and here they share it by time slices"
    assert store.load().stale == {("embed", "t4-1of2"): why}
