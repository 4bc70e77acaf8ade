"""The local actuator's supervisor: it outlives its controller, and nothing outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inferline_stream.actuators import local as local_actuator
from inferline_stream.actuators.actuator import DispatcherExit, ProcessTerms, ReplicaExit
from inferline_stream.actuators.local import LocalActuator
from inferline_stream.actuators.supervisor_calls import Reply, Request, decode_from_controller, encode_line
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import InvalidFile
from inferline_stream.isolation import bootstrap, limits
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from tests.support.deadlines import alive, next_exit, until

DEADLINE_S = 20.0
TOPOLOGY = """
from inferline_stream import Pipeline, Stage, Topic

def work(numbers: list[int]) -> list[int]:
    return numbers

stage = Stage("work", work, hardware=["kind"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
"""


def spec(topology: str = "/nowhere/topology.py", stage: str = "patient", cores: float = 1.0) -> ReplicaSpec:
    return ReplicaSpec("", stage, topology, Hardware("kind", 0.1, cores=cores))


@asynccontextmanager
async def doubles(folder: Path, *stages: str, cores: float = 1.0, **arguments: Any) -> AsyncIterator[LocalActuator]:
    """An actuator whose replicas are doubles that behave as their stage's name says."""
    actuator = LocalActuator(ProcessTerms(str(folder), kill_after_s=0.3, replica_module="replica_double", **arguments))
    async with actuator:
        await actuator.know({(stage, "kind"): spec(stage=stage, cores=cores) for stage in stages})
        yield actuator


async def written(folder: Path, replica: str) -> dict[str, Any]:
    log = folder / f"{replica}.log"
    await until(lambda: log.exists() and log.read_text().endswith("\n"), f"{replica} has said something")
    answer: dict[str, Any] = eval(log.read_text(), {"true": True, "false": False})
    return answer


@pytest.mark.parametrize(("cores", "threads"), [(0.25, "1"), (1.0, "1"), (2.0, "2")])
async def test_a_replica_is_given_its_name_and_kept_to_its_threads(tmp_path: Path, cores: float, threads: str) -> None:
    async with doubles(tmp_path, "telling", cores=cores) as local:
        await local.scale("telling", "kind", 1)
        (seen,) = await local.observe()
        answer = await written(tmp_path, seen.replica)
        assert answer["parent"] == local.supervisor_pid
    assert (answer["replica"], answer["threads"], answer["session"]) == (seen.replica, threads, True)


async def test_a_built_replica_has_its_share_of_a_core_with_all_its_threads(tmp_path: Path) -> None:
    async with doubles(tmp_path, "busy", cores=0.25) as local:
        await local.scale("busy", "kind", 1)
        (seen,) = await local.observe()
        assert (await written(tmp_path, seen.replica))["cores"] < 0.4
        (group,) = Path("/sys/fs/cgroup").rglob(f"inferline-{seen.pid}")
        (used,) = await local.observe()
        assert used.ran_s > 0.05  # in a second and more at a quarter of a core
    assert not group.exists()


async def test_replicas_of_one_core_get_different_cores_while_there_are_enough(tmp_path: Path) -> None:
    machine = os.sched_getaffinity(0)
    async with doubles(tmp_path, "telling") as local:
        await local.scale("telling", "kind", len(machine))
        answers = [await written(tmp_path, seen.replica) for seen in await local.observe()]
        assert sorted(core for answer in answers for core in answer["cores"]) == sorted(machine)
        await local.scale("telling", "kind", len(machine) + 1)
        oversubscribed = await written(tmp_path, (await local.observe())[-1].replica)
        assert oversubscribed["cores"] == sorted(machine)


async def test_a_supervisor_that_does_not_answer_is_reported_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with doubles(tmp_path, "patient") as local:
        await local.scale("patient", "kind", 1)
        (replica,) = await local.observe()
        with monkeypatch.context() as impatient:
            impatient.setattr(local_actuator, "_ANSWER_S", 0.1)
            os.kill(local.supervisor_pid, signal.SIGSTOP)
            try:
                with pytest.raises(RuntimeError, match=r"has not answered observe for .*supervisor\.log"):
                    await local.observe()
            finally:
                os.kill(local.supervisor_pid, signal.SIGCONT)
        assert [seen.replica for seen in await local.observe()] == [replica.replica]


async def test_a_supervisor_that_does_not_answer_is_killed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with doubles(tmp_path, "patient") as local:
        await local.scale("patient", "kind", 1)
        (replica,) = await local.observe()
        supervisor = local.supervisor_pid
        monkeypatch.setattr(local_actuator, "_ANSWER_S", 0.1)
        os.kill(supervisor, signal.SIGSTOP)
    await until(lambda: not any(map(alive, (supervisor, replica.pid))), "neither lives")


async def test_logs_that_cannot_be_written_are_refused_with_their_file_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder belongs")
    with pytest.raises(
        InvalidFile, match=r"supervisor\.log: cannot be written \(.+\); copy the topology into a folder"
    ):
        await LocalActuator(ProcessTerms(str(tmp_path / "logs"))).observe()


async def test_a_socket_that_cannot_be_written_is_refused_with_its_file_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "sockets").write_text("a file where the folder belongs")
    with pytest.raises(InvalidFile, match=r"supervisor\.sock: cannot be written \(File exists\); set XDG_RUNTIME_DIR"):
        await LocalActuator(ProcessTerms(str(tmp_path / "logs")), tmp_path / "sockets").observe()


async def test_a_failing_replica_is_explained_by_its_last_words(tmp_path: Path) -> None:
    async with doubles(tmp_path, "broken") as local:
        await local.scale("broken", "kind", 1)
        gone = await next_exit(local)
    assert isinstance(gone, ReplicaExit)
    assert gone.exit_code == 1
    assert gone.reason == f"exit code 1: RuntimeError: the model file is missing (log: {tmp_path / gone.replica}.log)"
    assert gone.tail.startswith("Traceback (most recent call last):")


async def test_what_a_dying_replica_prints_without_end_does_not_fill_a_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with doubles(tmp_path, "loud") as local:
        await local.scale("loud", "kind", 1)
        gone = await next_exit(local)
    assert len(gone.reason) < 800
    assert len(gone.tail) < 8000
    assert caplog.messages == [], "who takes the exit reports it"


async def test_a_run_begins_with_a_warning_where_a_declared_limit_of_memory_does_not_hold_for_shared_mappings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "own_group", lambda controller: (None, False))
    async with LocalActuator(ProcessTerms(str(tmp_path))) as local:
        stage = msgspec.structs.replace(spec(stage="a"), isolation=Isolation(memory_mb=200))
        await local.know({("a", "kind"): stage, ("b", "kind"): spec(stage="b")})
    assert caplog.messages == [
        "stage 'a': memory: shared mappings escape memory_mb=200, since no control group limits the process"
    ]


async def test_a_stage_that_nobody_has_described_is_refused(tmp_path: Path) -> None:
    async with LocalActuator(ProcessTerms(str(tmp_path))) as local:
        with pytest.raises(ValueError, match="call know"):
            await local.scale("a", "kind", 1)


async def pool(root: Path, folder: Path | None = None, term: int = 0, **arguments: Any) -> tuple[LocalActuator, str]:
    """An actuator with a stand-in for a dispatcher and a real replica that has answered it."""
    topology = root / "topology.py"
    topology.write_text(TOPOLOGY)
    terms = ProcessTerms(str(root / "logs"), drain_timeout_s=5.0, dispatcher_module="stand_in_dispatcher", **arguments)
    local = LocalActuator(terms, folder, term)
    routes = routes_of(load_topology(topology), "work")
    await local.know({("work", "kind"): spec(str(topology), "work", cores=0)})
    await local.dispatch("work", [DispatcherSpec("work-0-a", 0, routes, "127.0.0.1:9")])
    await local.scale("work", "kind", 1)
    await answered(root, 1)
    (seen,) = await local.observe()
    return local, seen.replica


async def answered(folder: Path, times: int) -> None:
    log = folder / "logs" / "work-0-a.log"
    await until(lambda: log.exists() and log.read_text().count("results") >= times, f"{times} batches were run")


async def pids_of(local: LocalActuator) -> list[int]:
    seen = [*(await local.observe()), *(await local.dispatchers())]
    return [each.pid for each in seen if each.pid is not None]


async def test_nothing_outlives_a_killed_supervisor_and_all_is_started_again(tmp_path: Path) -> None:
    local, replica = await pool(tmp_path)
    async with local:
        pids = await pids_of(local)
        assert local.supervisor_pid is not None
        os.kill(local.supervisor_pid, signal.SIGKILL)
        first, second = await next_exit(local), await next_exit(local)
        assert isinstance(first, ReplicaExit)
        assert isinstance(second, DispatcherExit)
        assert (first.replica, second.dispatcher, second.incarnation) == (replica, "work-0-a", 1)
        await until(lambda: not any(map(alive, pids)), f"none of {pids} lives")
        await answered(tmp_path, 2)
        (dispatcher,) = await local.dispatchers()
        assert dispatcher.incarnation == 2


async def test_a_supervisor_that_is_killed_as_it_answers_gets_a_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_actuator, "_ANSWER_S", DEADLINE_S / 2)

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(encode_line(Reply(0, 2**22)))
        await reader.readline()
        server.close()
        writer.write(encode_line(Reply(1, [["an answer that it", "did not get to send"]]))[:20])
        writer.close()

    server = await asyncio.start_unix_server(dies, tmp_path / "supervisor.sock")
    async with LocalActuator(ProcessTerms(str(tmp_path / "logs")), folder=tmp_path) as local:
        assert await local.observe() == ()
        assert local.supervisor_pid != 2**22


async def test_a_supervisor_may_drain_for_as_long_as_it_may_take_before_its_successor_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_actuator, "_ANSWER_S", 0.3)
    scaled: list[int] = []

    async def supervise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(encode_line(Reply(0, 2**22)))
        while line := await reader.readline():
            asked = decode_from_controller(line)
            assert isinstance(asked, Request)
            if asked.method == "scale":
                scaled.append(asked.number)
                if len(scaled) == 1:
                    await asyncio.sleep(1.0)
                    break
            writer.write(encode_line(Reply(asked.number)))
            if asked.method == "aclose":
                break
        writer.close()

    terms = ProcessTerms(str(tmp_path / "logs"), drain_timeout_s=DEADLINE_S, kill_after_s=0.0)
    async with (
        await asyncio.start_unix_server(supervise, tmp_path / "supervisor.sock"),
        LocalActuator(terms, folder=tmp_path) as local,
    ):
        await local.scale("work", "kind", 1)
    assert len(scaled) == 2


CONTROLLER = """
import asyncio, sys
from pathlib import Path
from tests.unit.actuators.test_local import pids_of, pool

async def main():
    folder = Path(sys.argv[1])
    local, _ = await pool(folder, folder=folder / "run", identity="one", orphan_s=float(sys.argv[2]))
    print(local.supervisor_pid, *await pids_of(local), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def killed_controller(folder: Path, orphan_s: float) -> list[int]:
    """Processes that a controller has left that was killed: the supervisor's, then its children's."""
    command = [sys.executable, "-c", CONTROLLER, str(folder), str(orphan_s)]
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as controller:
        assert controller.stdout is not None
        pids = [int(pid) for pid in controller.stdout.readline().split()]
        controller.kill()
    return pids


async def test_a_supervisor_without_a_controller_drains_and_ends(tmp_path: Path) -> None:
    pids = await asyncio.to_thread(killed_controller, tmp_path, 0.1)
    assert len(pids) == 3
    await until(lambda: not any(map(alive, pids)), f"none of {pids} lives")
    assert "stopped" in (tmp_path / "logs" / "work-0-a.log").read_text()


async def test_the_next_controller_adopts_what_the_last_one_has_left(tmp_path: Path) -> None:
    supervisor, *pids = await asyncio.to_thread(killed_controller, tmp_path, 60.0)
    async with LocalActuator(ProcessTerms(str(tmp_path / "logs"), identity="one"), folder=tmp_path / "run") as local:
        assert sorted(await pids_of(local)) == sorted(pids)
        assert local.supervisor_pid == supervisor
    await until(lambda: not any(map(alive, [supervisor, *pids])), "closing ends what was adopted")


async def test_an_adopted_supervisor_that_does_not_answer_is_killed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, *pids = await asyncio.to_thread(killed_controller, tmp_path, 60.0)
    local = LocalActuator(
        ProcessTerms(str(tmp_path / "logs"), kill_after_s=0.3, identity="one"), folder=tmp_path / "run"
    )
    assert sorted(await pids_of(local)) == sorted(pids)
    monkeypatch.setattr(local_actuator, "_ANSWER_S", 0.1)
    os.kill(supervisor, signal.SIGSTOP)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await local.aclose()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGCONT)
    await until(lambda: not any(map(alive, [supervisor, *pids])), "none lives")


async def test_a_controller_whose_supervisor_another_one_has_taken_over_leaves_it_alone(tmp_path: Path) -> None:
    first, _ = await pool(tmp_path, folder=tmp_path / "run", identity="one")
    pids = sorted(await pids_of(first))
    async with LocalActuator(ProcessTerms(str(tmp_path / "logs"), identity="one"), folder=tmp_path / "run") as second:
        assert sorted(await pids_of(second)) == pids
        assert await first.observe() == ()
        await first.aclose()
        again = LocalActuator(ProcessTerms(str(tmp_path / "logs"), identity="one"), folder=tmp_path / "run")
        again._hello = first._hello  # as one that woke too late to read why its connection has ended
        assert await again.observe() == ()
        assert sorted(await pids_of(second)) == pids
    assert first._process is not None
    await asyncio.to_thread(first._process.wait)  # it is this process's child


@pytest.mark.parametrize("identity", ["one", "two"])
async def test_a_controller_that_was_deposed_before_it_came_takes_nothing_from_its_successor(
    tmp_path: Path, identity: str
) -> None:
    leads, _ = await pool(tmp_path, folder=tmp_path / "run", identity="one", term=2)
    async with leads:
        pids = sorted(await pids_of(leads))
        deposed = LocalActuator(ProcessTerms(str(tmp_path / "logs"), identity=identity), tmp_path / "run", term=1)
        assert await deposed.observe() == ()
        assert sorted(await pids_of(leads)) == pids


async def test_a_controller_of_another_kind_gets_a_supervisor_of_its_own(tmp_path: Path) -> None:
    supervisor, *pids = await asyncio.to_thread(killed_controller, tmp_path, 60.0)
    async with LocalActuator(ProcessTerms(str(tmp_path / "logs"), identity="two"), folder=tmp_path / "run") as local:
        assert await pids_of(local) == []
        assert local.supervisor_pid != supervisor
        await until(lambda: not any(map(alive, [supervisor, *pids])), "the old one has drained")
        assert (tmp_path / "run" / "supervisor.sock").exists()


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-m", bootstrap.__name__, "--parent", "1,9", "this"], check=False)
    assert done.returncode == 1
