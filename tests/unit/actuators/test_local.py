"""Local processes: how they are started, what they are told, and that none is left behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inferline_stream.actuators.local import LocalActuator
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.isolation import bootstrap
from inferline_stream.pipeline.hardware import Hardware

DOUBLES = Path(__file__).parents[2] / "contracts"
DEADLINE_S = 10.0


def actuator(folder: Path, cores: float = 1.0, **arguments: float) -> LocalActuator:
    def template(stage: str, hardware: str) -> ReplicaSpec:
        kind = Hardware(hardware, 0.1, cores=cores)
        return ReplicaSpec("", stage, "/nowhere/topology.py", "", "127.0.0.1:1", kind, 4)

    return LocalActuator(template, folder, kill_after_s=0.3, module="replica_double", **arguments)


@pytest.fixture(autouse=True)
def doubles_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(DOUBLES))


async def told(folder: Path, replica: str) -> dict[str, object]:
    async with asyncio.timeout(DEADLINE_S):
        while not (log := folder / f"{replica}.log").exists() or not log.read_text().endswith("\n"):
            await asyncio.sleep(0.01)
    result: dict[str, object] = json.loads(log.read_text())
    return result


@pytest.mark.parametrize(("cores", "threads"), [(0.25, "1"), (1.0, "1"), (2.0, "2")])
async def test_a_replica_is_told_its_name_and_kept_to_its_threads(tmp_path: Path, cores: float, threads: str) -> None:
    async with actuator(tmp_path, cores) as local:
        await local.scale("telling", "kind", 1)
        (seen,) = await local.observe()
        answer = await told(tmp_path, seen.replica)
    assert answer["replica"] == seen.replica
    assert answer["threads"] == threads
    assert answer["parent"] == os.getpid()


async def test_ctrl_c_in_the_terminal_does_not_reach_replicas(tmp_path: Path) -> None:
    async with actuator(tmp_path) as local:
        await local.scale("telling", "kind", 1)
        (seen,) = await local.observe()
        assert (await told(tmp_path, seen.replica))["session"] is True


async def test_replicas_of_one_core_get_different_cores_while_there_are_enough(tmp_path: Path) -> None:
    machine = os.sched_getaffinity(0)
    async with actuator(tmp_path) as local:
        await local.scale("telling", "kind", len(machine))
        answers = [await told(tmp_path, seen.replica) for seen in await local.observe()]
        assert sorted(core for answer in answers for core in answer["cores"]) == sorted(machine)
        await local.scale("telling", "kind", len(machine) + 1)
        oversubscribed = await told(tmp_path, (await local.observe())[-1].replica)
        assert oversubscribed["cores"] == sorted(machine)


async def test_a_failing_replica_is_explained_by_its_last_words(tmp_path: Path) -> None:
    async with actuator(tmp_path) as local:
        await local.scale("broken", "kind", 1)
        async with asyncio.timeout(DEADLINE_S):
            gone = await local.next_exit()
        assert gone.exit_code == 1
        assert gone.reason == (
            f"exit code 1: RuntimeError: the model file is missing (log: {tmp_path / gone.replica}.log)"
        )
        assert gone.tail.startswith("Traceback (most recent call last):")


async def test_what_a_dying_replica_prints_without_end_fills_neither_a_message_nor_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferline_stream.actuators.local._DEAD_LOGS", 2)
    monkeypatch.setattr("inferline_stream.actuators.places.restart_in_s", lambda failures: 0.01)
    async with actuator(tmp_path) as local:
        await local.scale("loud", "kind", 1)
        async with asyncio.timeout(DEADLINE_S):
            gone = [await local.next_exit() for _ in range(4)]
        assert all(len(one.reason) < 500 and len(one.tail) < 5000 for one in gone)
        logs = {path.stem for path in tmp_path.glob("loud-*.log")}
        assert {one.replica for one in gone[-2:]} <= logs
        assert not {one.replica for one in gone[:2]} & logs


async def test_a_replica_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async with actuator(tmp_path, drain_timeout_s=0.0) as local:
        await local.scale("stubborn", "kind", 1)
        (seen,) = await local.observe()
        async with asyncio.timeout(DEADLINE_S):
            while not (tmp_path / f"{seen.replica}.log").read_text():
                await asyncio.sleep(0.01)
            await local.scale("stubborn", "kind", 0)
            assert (await local.next_exit()).exit_code == -signal.SIGKILL


async def test_a_module_that_is_missing_is_told_and_tried_again(tmp_path: Path) -> None:
    local = actuator(tmp_path)
    local._module = "no_such_module"
    async with local, asyncio.timeout(DEADLINE_S):
        await local.scale("a", "kind", 1)
        gone = await local.next_exit()
    assert "No module named no_such_module" in gone.reason
    assert gone.restart_in_s == pytest.approx(0.1)


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from inferline_stream.actuators.local import LocalActuator
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.pipeline.hardware import Hardware

def template(stage, hardware):
    return ReplicaSpec("", stage, "/nowhere/topology.py", "", "127.0.0.1:1", Hardware(hardware, 0.1), 4)

async def main():
    local = LocalActuator(template, Path(sys.argv[1]), module="replica_double")
    await local.scale("patient", "kind", 2)
    print(*[seen.pid for seen in await local.observe()], flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_no_replica_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(pid) for pid in supervisor.stdout.readline().split()]
        assert len(pids) == 2
        deadline_s = time.monotonic() + DEADLINE_S
        while sum(log.read_text() == "up\n" for log in tmp_path.glob("*.log")) < 2:
            assert time.monotonic() < deadline_s, "the replicas did not come up"
            time.sleep(0.02)
        assert all(alive(pid) for pid in pids)
        supervisor.kill()
    deadline_s = time.monotonic() + DEADLINE_S
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline_s, f"one of {pids} outlived its supervisor"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs; one that is only waiting to be reaped by init does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-m", bootstrap.__name__, "--parent", "1,9", "this"], check=False)
    assert done.returncode == 1
