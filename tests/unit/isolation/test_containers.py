"""The command lines of containers: what holds around the seal, and what they must not show."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from inferline_stream.errors import InvalidInput
from inferline_stream.isolation import containers
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.containers import Container
from inferline_stream.isolation.enforced import look, under
from inferline_stream.isolation.launch import Launch
from inferline_stream.pipeline.isolation import Isolation


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A podman that notes its arguments."""
    program = tmp_path / "podman"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return program


def container(tmp_path: Path, level: str = "container", **fields) -> Container:
    isolation = Isolation(level, **fields)
    confinement = Confinement(isolation, str(tmp_path / "topology.py"), (9092,))
    secret = {"INFERLINE_KAFKA_SASL_PASSWORD": "s3cret", "PATH": "/host/bin", "LANG": "C"}
    return Container("some.module", confinement, cores=1, pinned=(), environment=secret)


def test_a_container_has_no_capability_no_new_privilege_and_nothing_to_write_to(engine, tmp_path):
    command = container(tmp_path, memory_mb=512).command
    assert command[0] == str(engine)
    for wanted in ("--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--memory=512m", "--cpus=1"):
        assert wanted in command
    assert f"--volume={tmp_path}:{tmp_path}:ro" in command
    assert not any(part.startswith("--privileged") for part in command)


def test_the_seal_holds_within_and_the_module_runs_under_it(engine, tmp_path):
    command = container(tmp_path).command
    image, *inner = command[command.index("inferline-stream") :]
    assert image == "inferline-stream"
    assert inner[:4] == ["-P", "-m", "inferline_stream.isolation.bootstrap", "--confinement"]
    assert json.loads(inner[4])["isolation"]["level"] == "container"
    assert inner[5:] == ["some.module"]


def test_secrets_reach_the_container_by_name_and_never_its_command_line(engine, tmp_path):
    made = container(tmp_path)
    assert "--env=INFERLINE_KAFKA_SASL_PASSWORD" in made.command
    assert "--env=PATH" not in made.command, "the image has its own"
    assert "s3cret" not in " ".join(made.command)
    assert made.environment["INFERLINE_KAFKA_SASL_PASSWORD"] == "s3cret"


@pytest.mark.parametrize(("level", "runtime"), [("gvisor", "--runtime=runsc"), ("kata", "--runtime=kata")])
def test_each_level_has_its_runtime(engine, tmp_path, level, runtime):
    assert runtime in container(tmp_path, level).command


def test_declared_paths_are_mounted_as_declared_and_missing_ones_are_not(engine, tmp_path):
    (tmp_path / "model").touch()
    (tmp_path / "out").mkdir()
    reads, writes = [str(tmp_path / "model"), "/no/such/file"], [str(tmp_path / "out")]
    command = container(tmp_path, reads=reads, writes=writes).command
    assert f"--volume={reads[0]}:{reads[0]}:ro" in command
    assert f"--volume={writes[0]}:{writes[0]}" in command
    assert not any("/no/such/file" in part for part in command if part.startswith("--volume"))


def test_without_an_engine_the_level_is_refused_rather_than_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(containers.shutil, "which", lambda name: None)
    with pytest.raises(InvalidInput, match="needs podman or docker"):
        container(tmp_path)


async def test_what_is_left_of_a_container_is_removed_when_its_process_has_ended(engine, tmp_path):
    confinement = Confinement(Isolation("container"), str(tmp_path / "topology.py"))
    launch = Launch("some.module", confinement, cores=1)
    assert launch.files == (), "no descriptor reaches a container"
    name = next(part for part in launch.command if part.startswith("--name=")).removeprefix("--name=")
    launch.close()
    reported = tmp_path / "arguments"
    async with asyncio.timeout(10):
        while not reported.exists() or not reported.read_text().endswith("\n"):
            await asyncio.sleep(0.01)
    assert reported.read_text() == f"rm --force {name}\n"


@pytest.mark.parametrize(("ports", "network"), [((), "none"), ((5432,), "host")])
def test_a_container_has_a_network_only_for_declared_ports(tmp_path, monkeypatch, ports, network):
    monkeypatch.setattr("inferline_stream.isolation.containers.engine", lambda level: "podman")
    confinement = Confinement(Isolation("container", ports=ports), str(tmp_path / "topology.py"))
    container = Container("some.module", confinement, cores=1, pinned=(), environment={})
    assert f"--network={network}" in container.command


HOST = "#139-Ubuntu SMP PREEMPT_DYNAMIC Sat Aug  1 03:52:05 UTC 2026"
ROOT = "29 1 0:26 / / rw,relatime - overlay overlay rw,lowerdir=/l"
SHARED = "35 29 0:31 /c/resolv.conf /etc/resolv.conf rw,relatime - virtiofs kataShared rw"


def test_gvisor_is_known_by_its_kernels_name_and_kata_by_where_its_files_come_from() -> None:
    assert under("gvisor", "#1 SMP Sun Jan 10 15:06:54 PST 2016", ROOT)
    assert not under("gvisor", HOST, ROOT)
    assert under("kata", HOST, f"{ROOT}\n{SHARED}\n")
    assert not under("kata", HOST, ROOT)


@pytest.mark.parametrize("level", ["gvisor", "kata"])
def test_a_runtime_that_nothing_shows_is_reported_as_missing(level: str, tmp_path: Path) -> None:
    missing = look(Confinement(Isolation(level), str(tmp_path / "topology.py"))).missing
    assert f"{level}: nothing shows it, so the kernel may be the host's own" in missing
