"""The supervisor with real replicas and a stand-in for the dispatcher."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inferline_stream.actuators import wanted_processes
from inferline_stream.actuators.actuator import DispatcherExit, ObservedDispatcher, ReplicaExit
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.supervisor import Attachable, Supervisor
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation

DEADLINE_S = 30.0
TOPOLOGY = """
import ctypes, os, time
from inferline_stream import Pipeline, Stage, Topic

class Work:
    def __init__(self) -> None:
        if os.path.exists(os.path.join(os.path.dirname(__file__), "slow.py")):
            ctypes.PyDLL(None).sleep(5)  # holds the interpreter's lock

    def __call__(self, numbers: list[int]) -> list[int]:
        while os.path.exists(os.path.join(os.path.dirname(__file__), "wait.py")):
            time.sleep(0.01)
        return numbers

work = Stage("work", Work, hardware=["cpu-1"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[work])
"""


class Host:
    """A supervisor, and what its children have printed."""

    def __init__(self, folder: Path, isolation: Isolation) -> None:
        folder.chmod(0o755)
        self.logs = folder / "logs"
        self.topology = folder / "topology.py"
        self.topology.write_text(TOPOLOGY)
        self.isolation = isolation
        self.supervisor = Supervisor(
            partial(Children, self.logs, dispatcher_module="stand_in_dispatcher"),
            drain_timeout_s=10.0,
            kill_after_s=0.5,
        )

    async def scale(self, replicas: int) -> None:
        kind = Hardware("cpu-1", 0.1, cores=0)
        spec = ReplicaSpec("", "work", str(self.topology), kind, isolation=self.isolation)
        await self.supervisor.know({("work", "cpu-1"): spec})
        await self.supervisor.scale("work", "cpu-1", replicas)

    async def dispatch(self, *slots: int, generation: str = "a") -> None:
        routes = routes_of(load_topology(self.topology), "work")
        await self.supervisor.dispatch(
            "work", [DispatcherSpec(f"work-{slot}-{generation}", slot, routes, "127.0.0.1:9") for slot in slots]
        )

    def said(self, dispatcher: str) -> list[str]:
        log = self.logs / f"{dispatcher}.log"
        return log.read_text().splitlines() if log.exists() else []

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not holds():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            logs = {log.name: log.read_text() for log in self.logs.iterdir()}
            raise AssertionError(f"not in {DEADLINE_S} s: {what}; {logs}") from None

    async def served(self, replicas: int, said: str = "results") -> None:
        """Start a dispatcher and so many replicas, and wait until it has said this of each."""
        await self.dispatch(0)
        await self.scale(replicas)
        await self.until(lambda: count(self.said("work-0-a"), said) == replicas, f"{said} of {replicas} replicas")

    async def names(self) -> dict[str, int | None]:
        return {seen.replica: seen.pid for seen in await self.supervisor.observe() if seen.state == "running"}

    async def the_dispatcher(self) -> ObservedDispatcher:
        (only,) = await self.supervisor.dispatchers()
        return only

    async def next_exit(self) -> ReplicaExit | DispatcherExit:
        async with asyncio.timeout(DEADLINE_S):
            return await self.supervisor.next_exit()


PLAIN, FORKED = Isolation("none"), Isolation(forked=True, seal="imports")
started_either_way = pytest.mark.parametrize("host", [PLAIN, FORKED], ids=["plain", "forked"], indirect=True)
"""For tests of how processes start and end. Slots, numbers and dispatchers are the same however replicas start."""


@pytest.fixture
async def host(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    made = Host(tmp_path, getattr(request, "param", PLAIN))
    async with made.supervisor:
        yield made


def count(said: list[str], what: str) -> int:
    return sum(line.startswith(what) for line in said)


@started_either_way
async def test_a_replica_that_no_descriptor_is_left_for_is_started_again_and_attached(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, failed = socket.socketpair, list[OSError]()

    def at_its_limit(*of: Any) -> tuple[socket.socket, socket.socket]:
        if not of and not failed:  # a channel has a type
            failed.append(OSError(errno.EMFILE, "Too many open files"))
            raise failed[0]
        return pair(*of)

    monkeypatch.setattr(socket, "socketpair", at_its_limit)
    await host.served(1)
    gone = await host.next_exit()
    assert isinstance(gone, ReplicaExit)
    assert (gone.exit_code, gone.replica in await host.names()) == (-signal.SIGKILL, False)


async def test_replicas_are_attached_by_number_as_they_start(host: Host) -> None:
    await host.served(2)
    attached = [line.split()[1:] for line in host.said("work-0-a") if line.startswith("attached")]
    assert attached == [[name, str(number)] for number, name in enumerate(await host.names())]


@started_either_way
async def test_a_killed_replica_is_started_again_and_takes_its_number(host: Host) -> None:
    await host.served(2)
    first, second = await host.names()
    os.kill((await host.names())[first], signal.SIGKILL)
    gone = await host.next_exit()
    assert isinstance(gone, ReplicaExit)
    assert (gone.replica, gone.exit_code, gone.expected) == (first, -signal.SIGKILL, False)
    await host.until(lambda: count(host.said("work-0-a"), "results") == 3, "the new replica has answered")
    (new,) = set(await host.names()) - {first, second}
    assert f"attached {new} 0" in host.said("work-0-a")


@started_either_way
async def test_a_dispatchers_death_leaves_the_models_loaded(host: Host) -> None:
    await host.served(2)
    before, dispatcher = await host.names(), await host.the_dispatcher()
    assert dispatcher.pid is not None
    os.kill(dispatcher.pid, signal.SIGKILL)
    gone = await host.next_exit()
    assert isinstance(gone, DispatcherExit)
    assert (gone.dispatcher, gone.slot, gone.incarnation, gone.expected, gone.restarted) == (
        "work-0-a",
        0,
        1,
        False,
        True,
    )
    await host.until(
        lambda: sum(line.startswith("results") and line.endswith(" 2") for line in host.said("work-0-a")) == 2,
        "both replicas have answered the next incarnation",
    )
    assert await host.names() == before


async def test_a_silent_dispatcher_is_replaced(host: Host) -> None:
    await host.dispatch(0)
    await host.until(lambda: bool(host.said("work-0-a")), "the dispatcher has started")
    pid = (await host.the_dispatcher()).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await host.supervisor.replace_dispatcher("work-0-a")
    gone = await host.next_exit()
    assert isinstance(gone, DispatcherExit)
    assert (gone.restarted, "silent" in gone.reason) == (True, True)
    await host.until(lambda: "started work-0-a 2" in host.said("work-0-a"), "it is started again")


async def test_a_fenced_dispatcher_is_not_started_again(host: Host) -> None:
    await host.dispatch(0)
    await host.until(lambda: bool(host.said("work-0-a")), "the dispatcher has started")
    pid = (await host.the_dispatcher()).pid
    assert pid is not None
    os.kill(pid, signal.SIGUSR2)
    gone = await host.next_exit()
    assert isinstance(gone, DispatcherExit)
    assert (gone.exit_code, gone.expected, gone.restarted) == (75, False, False)
    await host.dispatch(0)
    assert await host.supervisor.dispatchers() == ()


@started_either_way
async def test_a_retired_replica_finishes_its_batch(host: Host) -> None:
    wait = host.topology.parent / "wait.py"
    wait.touch()
    await host.served(1, "ready")
    await host.scale(0)
    assert count(host.said("work-0-a"), "results") == 0
    wait.unlink()
    gone = await host.next_exit()
    assert (gone.exit_code, gone.expected) == (0, True)
    assert count(host.said("work-0-a"), "results") == 1


async def test_a_replica_without_a_dispatcher_retires_by_itself(host: Host) -> None:
    await host.scale(1)
    await host.scale(0)
    gone = await host.next_exit()
    assert (gone.exit_code, gone.expected) == (0, True)


@started_either_way
async def test_a_replica_that_its_dispatcher_gives_up_is_replaced_at_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferline_stream.actuators.actuator.SETTLED_S", 0.0)
    await host.served(1)
    pid = (await host.the_dispatcher()).pid
    assert pid is not None
    os.kill(pid, signal.SIGUSR1)
    gone = await host.next_exit()
    assert isinstance(gone, ReplicaExit)
    assert (gone.reason, gone.restart_in_s) == ("it is far behind the others", 0.0)
    await host.until(lambda: count(host.said("work-0-a"), "results") == 2, "the next one has answered")


async def test_a_successor_takes_over_the_living_replicas(host: Host) -> None:
    await host.served(2)
    before = await host.names()
    await host.dispatch(0, generation="b")
    await host.until(lambda: count(host.said("work-0-b"), "results") == 2, "the successor has both")
    assert await host.names() == before
    gone = await host.next_exit()
    assert isinstance(gone, DispatcherExit)
    assert (gone.dispatcher, gone.exit_code, gone.expected, gone.restarted) == ("work-0-a", 0, True, False)


async def test_replicas_are_dealt_evenly_to_the_slots(host: Host) -> None:
    await host.scale(4)
    await host.dispatch(0, 1)
    for dispatcher in ("work-0-a", "work-1-a"):
        await host.until(lambda name=dispatcher: count(host.said(name), "results") == 2, f"{dispatcher} has two")
    before = await host.names()
    await host.dispatch(0)
    await host.until(lambda: count(host.said("work-0-a"), "results") == 4, "the slot that is left has all four")
    assert await host.names() == before


async def test_slots_are_dealt_replicas_that_stay_whatever_leaves_meanwhile(host: Host) -> None:
    (busy := host.topology.with_name("wait.py")).touch()
    await host.served(4, "ready")
    attached = [line.split()[1] for line in host.said("work-0-a") if line.startswith("attached")]
    await host.supervisor.scale("work", "cpu-1", 2, attached[2:])
    await host.dispatch(0, 1)
    await host.until(lambda: count(host.said("work-1-a"), "attached") > 0, "the second slot has one")
    assert [line.split()[1] for line in host.said("work-1-a") if line.startswith("attached")] == [attached[1]]
    busy.unlink()


@started_either_way
async def test_a_constructor_that_holds_the_interpreter_is_only_late(host: Host) -> None:
    (host.topology.parent / "slow.py").touch()
    await host.served(1)
    assert [seen.restarts for seen in await host.supervisor.observe()] == [0]


@started_either_way
async def test_closing_leaves_no_process(host: Host) -> None:
    await host.served(2)
    pids = [*(await host.names()).values(), (await host.the_dispatcher()).pid]
    await host.supervisor.aclose()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def test_a_dead_replica_that_nothing_says_any_more_how_to_start_is_gone_once_none_is_asked_for(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wanted_processes, "restart_in_s", lambda failures: 0.05)
    await host.scale(1)
    await host.supervisor.know({})
    (pid,) = (await host.names()).values()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await host.next_exit()
    again = await host.next_exit()
    assert isinstance(again, ReplicaExit)
    assert "nothing says any more what stage 'work' runs" in again.reason
    await host.supervisor.scale("work", "cpu-1", 0)
    assert await host.supervisor.observe() == ()


async def test_as_many_replicas_move_to_another_dispatcher_as_it_lacks_however_many_see_it_at_once(host: Host) -> None:
    ends: list[socket.socket] = []

    def remote(name: str) -> Attachable:
        return Attachable(name, "cpu-1", "node", False, False, ends.append, lambda why: None)

    await host.dispatch(0)
    remotes = [remote(f"r-{n}") for n in range(7)]
    await host.until(lambda: host.supervisor.admit("work", remotes[0]), "the dispatcher serves")
    assert all(host.supervisor.admit("work", each) for each in remotes[1:])
    host.supervisor.retire_remote(remotes[0])
    for each in [*remotes, *remotes]:  # each looks twice before its batch is finished
        host.supervisor.move_remote(each, 0)
    await host.until(lambda: count(host.said("work-0-a"), "retires") >= 4, "some retire")
    assert host.supervisor.serving("work") == ("work-0-a", 3), "six stay without this, three go"

    host.supervisor.retire_remote(remotes[1])  # on its way
    await host.until(lambda: "retires r-1 for good" in host.said("work-0-a"), "it leaves instead")
    moved = ["retires r-0 for good", *(f"retires r-{n} to move" for n in (1, 2, 3)), "retires r-1 for good"]
    assert [line for line in host.said("work-0-a") if line.startswith("retires")] == moved
    for end in ends:
        end.close()
