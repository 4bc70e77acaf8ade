"""Nodes and caches of NVIDIA's driver: a stand-in for its files, since no device is needed to hand them out."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from inferline_stream.isolation import launch, paths
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.launch import Launch, UvmNode
from inferline_stream.pipeline.isolation import Isolation
from tests.support.confined_code import CORE, GPU

DEADLINE_S = 20.0


def test_a_replica_is_granted_the_node_of_the_gpu_that_it_was_given_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = Launch(
        "some.module", confined(Isolation(), "/app/topology.py", GPU), cores=1, devices=["GPU-a"], nodes=("nvidia3",)
    )
    try:
        listed = os.listdir
        nodes = ["nvidia0", "nvidia3", "nvidiactl"]
        monkeypatch.setattr(paths.os, "listdir", lambda path=".": nodes if path == "/dev" else listed(path))
        granted = {grant.path for grant in paths.grants(launch.confinement) if grant.device}
        assert granted == {"/dev/nvidia3", "/dev/nvidiactl"}
    finally:
        launch.close()


def test_a_replica_begins_with_what_the_profile_has_compiled_and_with_nothing_that_this_leads_to(
    tmp_path: Path,
) -> None:
    (tmp_path / "topology.py").touch()
    (tmp_path / "secret").write_text("not its own")
    code = "import os, time; folder = os.environ['TRITON_CACHE_DIR']; there = os.path.isdir(folder); "
    code += "os.makedirs(folder, exist_ok=True); files = sorted(os.listdir(folder)); "
    code += "open(f'{folder}/%s' % len(files), 'w').write('kernel'); "
    code += f"there or os.symlink({str(tmp_path / 'secret')!r}, folder + '/link'); print(files)"
    (tmp_path / "replica.py").write_text(code)

    def run(*, profiled: bool) -> str:
        of = confined(Isolation(on_unsupported="degrade"), tmp_path / "topology.py", GPU)
        kernels = str(tmp_path / ".inferline" / "kernels" / "rank.t4")
        launch = Launch(
            "replica", of, cores=1, devices=["GPU-a"], nodes=("nvidia0",), kernels=kernels, profiled=profiled
        )
        environment = {**launch.environment, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(launch.command, env=environment, capture_output=True, text=True, check=False)
        launch.close()
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run(profiled=True) == "[]"
    assert run(profiled=False) == "['0', 'link']"
    assert run(profiled=False) == "['0', 'link']", "what a run compiles is not kept"
    kept = tmp_path / ".inferline" / "kernels" / "rank.t4" / "triton"
    assert (kept / "0").read_text() == "kernel"
    assert (kept / "link").is_symlink(), "the file it leads to was not read"


def test_what_a_replica_on_a_gpu_compiles_goes_to_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = ("CUDA_CACHE_PATH", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    for name in caches:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/srv/triton")
    launch = Launch("some.module", confined(Isolation(), "/app/topology.py", GPU), cores=1, devices=[])
    try:
        found = {name: launch.environment[name] for name in caches}
        assert found.pop("TRITON_CACHE_DIR") == "/srv/triton", "what was chosen stays"
        (scratch,) = {os.path.dirname(path) for path in found.values()}
        assert len(set(found.values())) == 2
        assert os.path.isdir(scratch)
        assert {grant.path: grant.write for grant in paths.grants(launch.confinement)}[scratch]
    finally:
        launch.close()
    assert not os.path.exists(scratch)
    launch = Launch("some.module", confined(Isolation(), "/app/topology.py", CORE), cores=1, devices=[])
    assert "CUDA_CACHE_PATH" not in launch.environment
    launch.close()


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is searched for programs."""
    monkeypatch.setattr(launch, "_UVM", tmp_path / "nvidia-uvm")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin/nvidia-modprobe"


def write(maker: Path, script: str) -> None:
    maker.write_text(f"#!/bin/sh\n{script}\n")
    maker.chmod(0o755)


def waited(node: UvmNode) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while node.lack():
        assert time.monotonic() < until_s, f"still {node.lack()}"
        time.sleep(0.01)


def test_the_supervisor_has_the_node_of_unified_memory_made_once_and_waits_for_it(maker: Path, tmp_path: Path) -> None:
    write(maker, f'echo "$@" >> {tmp_path}/calls; while [ ! -e {tmp_path}/go ]; do :; done; : > {tmp_path}/nvidia-uvm')
    node = UvmNode()
    assert node.lack() == node.lack() == f"waits for nvidia-modprobe to make {tmp_path}/nvidia-uvm"
    (tmp_path / "go").touch()
    waited(node)
    assert (tmp_path / "calls").read_text() == "-u -c=0\n"
    assert UvmNode().lack() == ""


@pytest.mark.parametrize("script", [None, "exit 1"], ids=["missing", "failing"])
def test_where_the_node_cannot_be_made_the_log_names_the_command_and_replicas_start(
    script: str | None, maker: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if script is not None:
        write(maker, script)
    node = UvmNode()
    waited(node)
    assert caplog.text.count("run `nvidia-modprobe -u -c=0` as root") == 1
    assert node.lack() == ""
    assert caplog.text.count("run `nvidia-modprobe") == 1
