"""Replicas sealed within a real container, under the engine's default system call profile."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import inferline_stream
from inferline_stream.pipeline.isolation import Isolation
from tests.support.director import Director
from tests.support.sandbox import needs_sandbox

pytestmark = needs_sandbox

TOPOLOGY = """
from inferline_stream import Isolation, Pipeline, Stage, Topic


def double(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


stage = Stage("double", double, hardware=["cpu-1"], isolation=ISOLATION)
pipeline = Pipeline("contained", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
"""
IMAGE = "localhost/inferline-nothing:test"
"""Nothing at all: system, Python and package come from this machine, read-only, as paths that the stage declares."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A container engine that can run something here; empty without one."""
    folder = tmp_path_factory.mktemp("engine")
    with tarfile.open(folder / "nothing.tar", "w"):
        pass
    before = os.environ.get("CONTAINERS_CONF")
    try:
        for engine in filter(shutil.which, ("podman", "docker")):
            with contextlib.suppress(subprocess.SubprocessError):
                subprocess.run([engine, "import", folder / "nothing.tar", IMAGE], check=True, timeout=60)
                for runtime in ("", "runc"):  # crun does not run where control groups are of both versions
                    if runtime:
                        (folder / "containers.conf").write_text(f'[engine]\nruntime = "{runtime}"\n')
                        os.environ["CONTAINERS_CONF"] = str(folder / "containers.conf")
                    if runs(engine):
                        yield engine
                        subprocess.run([engine, "rmi", "--force", IMAGE], check=False, capture_output=True, timeout=60)
                        return
        yield ""
    finally:
        os.environ.pop("CONTAINERS_CONF", None)
        if before is not None:
            os.environ["CONTAINERS_CONF"] = before


def runs(engine: str) -> bool:
    limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
    mounted = [f"--volume={path}:{path}:ro" for path in SYSTEM if Path(path).exists()]
    command = [engine, "run", "--rm", "--network=host", *limits, *mounted, "--entrypoint=/usr/bin/env", IMAGE, "true"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0
    return False


SYSTEM = ("/usr", "/lib", "/lib64", "/bin")


def libraries() -> list[str]:
    """Wherever this Python and its packages lie."""
    code = Path(inferline_stream.__file__).parents[1]
    found = {Path(sys.prefix), Path(sys.base_prefix), code, *map(Path, filter(None, sys.path))}
    return [str(path) for path in found if path.is_dir() and not str(path).startswith(SYSTEM)]


async def test_replicas_sealed_within_a_container_outlive_their_dispatcher(
    embedded_broker, tmp_path, monkeypatch, engine
):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(inferline_stream.__file__).parents[1]))
    isolation = Isolation("container", image=IMAGE, reads=[*SYSTEM, *libraries()], environment=["PATH", "PYTHONPATH"])
    file = tmp_path / "topology.py"
    file.write_text(TOPOLOGY.replace("ISOLATION", repr(isolation)))
    if not engine:
        monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
        async with Director(embedded_broker.bootstrap_servers, file) as director:
            await director.supervisor.scale("double", "cpu-1", 1)
            await director.until(lambda: bool(director.exits), "it cannot be started")
            assert "needs podman or docker" in director.exits[0].reason
        return
    async with Director(embedded_broker.bootstrap_servers, file) as director:
        await director.start("double")
        (replica,) = director.ready("double")
        assert (replica.isolation.level, replica.isolation.sealed, replica.isolation.missing) == ("container", True, ())
        await director.put([b"%d" % number for number in range(20)])
        await director.caught_up()
        await director.kill(director.dispatcher("double"))
        await director.put([b"%d" % number for number in range(20, 40)])
        await director.caught_up()
        assert [each.replica for each in director.ready("double")] == [replica.replica]
        found = {int(record.value) for record in await director.results()}
        assert found == {2 * number for number in range(40)}
        await director.scale("double", 0)
        await director.until(lambda: len(director.exits) == 2, "it has left", 30.0)
        assert (director.exits[1].exit_code, director.exits[1].expected) == (0, True)
