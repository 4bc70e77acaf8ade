"""What every actuator promises, of local processes, on Ray, on Kubernetes, and of the fake alike."""

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from inferline_stream.actuators.actuator import Actuator, DispatcherExit, ObservedReplica, ProcessTerms, ReplicaExit
from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
from inferline_stream.actuators.kubernetes.manifests import Cluster
from inferline_stream.actuators.local import LocalActuator
from inferline_stream.actuators.ray import RayActuator
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import Routes
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.testing.kafka import KafkaServer
from tests.kube.api import KubeApi, client_of
from tests.support.deadlines import next_exit
from tests.support.fake_actuator import FakeActuator

DEADLINE_S = 30.0
MODULES = {"replica_module": "replica_double", "dispatcher_module": "stand_in_dispatcher"}
KINDS = catalogue()


SPECS = {
    (stage, hardware): ReplicaSpec("", stage, "/nowhere/topology.py", KINDS[hardware])
    for stage in ("a", "b", "stubborn")
    for hardware in ("cpu-1", "emulated-cpu")
}


def dispatcher(name: str, slot: int = 0) -> DispatcherSpec:
    stage = name.split("-", maxsplit=1)[0]
    routes = Routes("p", "", stage, "in", "out", (stage,), (), (), True, 1.0, "process", b"1")
    return DispatcherSpec(name, slot, routes, "127.0.0.1:1")


class Subject(Protocol):
    """An actuator, and a hand on its replicas."""

    actuator: Actuator

    async def crash(self, replica: ObservedReplica) -> None: ...
    async def began(self, replica: ObservedReplica) -> None: ...
    async def finish(self, replica: ObservedReplica) -> None: ...


class Local:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.actuator: Actuator = LocalActuator(
            ProcessTerms(str(folder), drain_timeout_s=1.0, kill_after_s=0.3, **MODULES)
        )

    async def crash(self, replica: ObservedReplica) -> None:
        os.kill(replica.pid, signal.SIGKILL)

    async def began(self, replica: ObservedReplica) -> None:
        log = self.folder / f"{replica.replica}.log"
        async with asyncio.timeout(DEADLINE_S):
            while not (log.exists() and log.read_text().endswith("up\n")):
                await asyncio.sleep(0.01)

    async def finish(self, replica: ObservedReplica) -> None:
        await self.began(replica)
        os.kill(replica.pid, signal.SIGUSR1)


class OnRay(Local):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.actuator = RayActuator(
            folder.name, ProcessTerms(str(folder), drain_timeout_s=1.0, kill_after_s=0.3, **MODULES)
        )


class OnKubernetes:
    """Its containers do nothing until a test ends them."""

    def __init__(self, api: KubeApi, actuator: KubernetesActuator) -> None:
        self.api, self.actuator = api, actuator

    async def began(self, replica: ObservedReplica) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while replica.replica not in self.api.containers:
                await asyncio.sleep(0.01)

    async def crash(self, replica: ObservedReplica, code: int = 137) -> None:
        await self.began(replica)
        self.api.containers[replica.replica].end.set_result(code)

    async def finish(self, replica: ObservedReplica) -> None:
        await self.crash(replica, 0)


@contextlib.asynccontextmanager
async def on_kubernetes(kafka: KafkaServer) -> AsyncIterator[OnKubernetes]:
    names, servers = Names("p", uuid.uuid4().hex), kafka.bootstrap_servers
    await create_topics(servers, [WantedTopic(names.assignments, 1, "postings")], replication=1)
    async with KubeApi() as api, client_of(api) as client:
        where = Cluster(api.namespace, "image")
        async with KubernetesActuator(names, servers, where, client, drain_timeout_s=1.0) as actuator:
            yield OnKubernetes(api, actuator)


class Fake:
    def __init__(self) -> None:
        self.actuator = FakeActuator(drain_timeout_s=1.0)

    async def crash(self, replica: ObservedReplica) -> None:
        self.actuator.crash(replica.replica)

    async def began(self, replica: ObservedReplica) -> None:
        """At once."""

    async def finish(self, replica: ObservedReplica) -> None:
        self.actuator.finish(replica.replica)


@pytest.fixture(params=["local", "ray", "kubernetes", "fake"])
async def subject(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Subject]:
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "ray":
            request.getfixturevalue("ray_cluster")
            made: Subject = OnRay(tmp_path)
        elif request.param == "kubernetes":
            monkeypatch.setattr("inferline_stream.actuators.kubernetes.manifests._STOP_S", 0.0)
            made = await stack.enter_async_context(on_kubernetes(request.getfixturevalue("embedded_broker")))
        else:
            made = Local(tmp_path) if request.param == "local" else Fake()
        await made.actuator.know(SPECS)
        yield made
        async with asyncio.timeout(DEADLINE_S):
            await made.actuator.aclose()


async def seen(subject: Subject, state: str = "running") -> list[ObservedReplica]:
    async with asyncio.timeout(DEADLINE_S):
        while any(replica.pending for replica in await subject.actuator.observe()):  # actors find their places later
            await asyncio.sleep(0.02)
    return [replica for replica in await subject.actuator.observe() if replica.state == state]


async def replica_exit(subject: Subject) -> ReplicaExit:
    gone = await next_exit(subject.actuator)
    assert isinstance(gone, ReplicaExit)
    return gone


async def next_dispatcher_exit(subject: Subject) -> DispatcherExit:
    gone = await next_exit(subject.actuator)
    assert isinstance(gone, DispatcherExit)
    return gone


async def test_scale_starts_exactly_the_replicas_asked_for(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 2)
    await subject.actuator.scale("a", "emulated-cpu", 1)
    assert [(r.stage, r.hardware) for r in await seen(subject)] == [("a", "cpu-1")] * 2 + [("a", "emulated-cpu")]


async def test_asking_twice_changes_nothing(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 2)
    before = await seen(subject)
    await subject.actuator.scale("a", "cpu-1", 2)
    assert list(await subject.actuator.observe()) == before


async def test_names_are_never_used_twice(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 2)
    first = await seen(subject)
    await subject.crash(first[0])
    await replica_exit(subject)
    async with asyncio.timeout(DEADLINE_S):
        while len(await seen(subject)) < 2:
            await asyncio.sleep(0.02)
    names = {r.replica for r in first} | {r.replica for r in await seen(subject)}
    assert len(names) == 3


async def test_those_named_retire_first(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 3)
    oldest, *others = await seen(subject)
    await subject.actuator.scale("a", "cpu-1", 2, retiring=[oldest.replica, "never-heard-of"])
    assert await seen(subject) == others
    assert [r.replica for r in await seen(subject, "retiring")] == [oldest.replica]


async def test_the_youngest_retires_where_none_is_named(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 3)
    *others, youngest = await seen(subject)
    await subject.actuator.scale("a", "cpu-1", 2)
    assert await seen(subject) == others
    assert [r.replica for r in await seen(subject, "retiring")] == [youngest.replica]


async def test_a_name_retires_nobody_while_none_is_too_many(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 2)
    before = await seen(subject)
    await subject.actuator.scale("a", "cpu-1", 2, retiring=[before[0].replica])
    assert await seen(subject) == before


async def test_a_retired_replica_ends_as_expected_and_stays_away(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 1)
    (replica,) = await seen(subject)
    await subject.began(replica)
    await subject.actuator.scale("a", "cpu-1", 0)
    await subject.finish(replica)
    gone = await replica_exit(subject)
    assert (gone.replica, gone.stage, gone.hardware) == (replica.replica, "a", "cpu-1")
    assert gone.expected
    assert gone.exit_code == 0
    assert gone.restart_in_s is None
    assert await subject.actuator.observe() == ()


async def test_scaling_up_again_starts_another_one_beside_the_retiring(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 1)
    (replica,) = await seen(subject)
    await subject.actuator.scale("a", "cpu-1", 0)
    await subject.actuator.scale("a", "cpu-1", 1)
    retiring, other = await subject.actuator.observe()
    assert (retiring.replica, retiring.state) == (replica.replica, "retiring")
    assert (other.replica != replica.replica, other.state) == (True, "running")


async def test_a_retiring_replica_that_stays_is_made_to_end_after_the_deadline(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 1)
    await seen(subject)
    start_s = asyncio.get_running_loop().time()
    await subject.actuator.scale("a", "cpu-1", 0)
    gone = await replica_exit(subject)
    assert gone.expected
    assert gone.exit_code in (-signal.SIGTERM, -signal.SIGKILL)
    assert asyncio.get_running_loop().time() - start_s >= 0.95


async def test_a_dead_replica_is_reported_and_restarted(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 1)
    (replica,) = await seen(subject)
    await subject.crash(replica)
    gone = await replica_exit(subject)
    assert not gone.expected
    assert gone.exit_code == -signal.SIGKILL
    assert "SIGKILL" in gone.reason
    assert gone.restart_in_s is not None
    async with asyncio.timeout(gone.restart_in_s + DEADLINE_S):
        while not await seen(subject):
            await asyncio.sleep(0.02)
    (again,) = await seen(subject)
    assert again.replica != replica.replica
    assert again.restarts == 1


async def test_the_wait_doubles_from_death_to_death(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferline_stream.actuators.actuator.SETTLED_S", DEADLINE_S)
    await subject.actuator.scale("a", "cpu-1", 1)
    waits_s = []
    for _ in range(3):
        async with asyncio.timeout(DEADLINE_S):
            while not (running := await seen(subject)):
                await asyncio.sleep(0.01)
        await subject.crash(running[0])
        waits_s.append((await replica_exit(subject)).restart_in_s)
    assert waits_s == pytest.approx([0.1, 0.2, 0.4])


async def test_one_that_waits_for_its_restart_retires_before_those_that_run(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 2)
    oldest, youngest = await seen(subject)
    await subject.crash(oldest)
    await replica_exit(subject)
    await subject.actuator.scale("a", "cpu-1", 1)
    assert [r.replica for r in await subject.actuator.observe() if r.state != "retiring"] == [youngest.replica]


async def test_drain_waits_until_every_replica_is_gone(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 1)
    await subject.actuator.scale("b", "cpu-1", 1)
    replicas = await seen(subject)
    async with asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(subject.actuator.drain(DEADLINE_S))
        await asyncio.sleep(0)
        await subject.finish(replicas[0])
        await replica_exit(subject)
        assert not draining.done()
        await subject.finish(replicas[1])
    assert await subject.actuator.observe() == ()


async def test_closing_leaves_nothing_behind(subject: Subject) -> None:
    await subject.actuator.scale("stubborn", "cpu-1", 2)
    await asyncio.sleep(0.2)
    pids = [replica.pid for replica in await seen(subject)]
    await subject.actuator.aclose()
    assert await subject.actuator.observe() == ()
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids if isinstance(subject, Local))


async def test_fewer_than_none_is_refused(subject: Subject) -> None:
    with pytest.raises(ValueError, match="-1 replicas must be 0 or more"):
        await subject.actuator.scale("a", "cpu-1", -1)


async def test_a_kind_whose_replicas_have_places_has_no_limit(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 2)
    assert await subject.actuator.capacity() == {}


async def test_where_no_replica_needs_a_device_none_is_reported(subject: Subject) -> None:
    assert await subject.actuator.devices() == ()


async def test_exactly_the_dispatchers_that_are_listed_run(subject: Subject) -> None:
    async def there() -> list[tuple[str, str, int, int, str]]:
        found = await subject.actuator.dispatchers()
        return sorted((d.dispatcher, d.stage, d.slot, d.incarnation, d.state) for d in found)

    wanted = [
        ("a-0-x", "a", 0, 1, "running"),
        ("a-1-x", "a", 1, 1, "running"),
        ("b-0-x", "b", 0, 1, "running"),
    ]
    await subject.actuator.dispatch("a", [dispatcher("a-0-x"), dispatcher("a-1-x", 1)])
    await subject.actuator.dispatch("b", [dispatcher("b-0-x")])
    assert await there() == wanted
    await subject.actuator.dispatch("a", [dispatcher("a-0-x"), dispatcher("a-1-x", 1)])
    assert await there() == wanted


async def test_a_dispatcher_that_is_listed_no_longer_ends_and_its_name_is_not_used_again(subject: Subject) -> None:
    await subject.actuator.dispatch("a", [dispatcher("a-0-x")])
    await posted(subject)
    await subject.actuator.dispatch("a", [])
    if not isinstance(subject, OnKubernetes):
        gone = await next_dispatcher_exit(subject)
        assert (gone.dispatcher, gone.expected, gone.restarted) == ("a-0-x", True, False)
    async with asyncio.timeout(DEADLINE_S):
        while await subject.actuator.dispatchers():
            await asyncio.sleep(0.01)
    await subject.actuator.dispatch("a", [dispatcher("a-0-x")])
    assert await subject.actuator.dispatchers() == ()


async def posted(subject: Subject) -> None:
    """Wait until dispatchers that are pods have theirs."""
    async with asyncio.timeout(DEADLINE_S):
        while isinstance(subject, OnKubernetes) and not all(d.node for d in await subject.actuator.dispatchers()):
            await asyncio.sleep(0.01)


async def test_a_replaced_dispatcher_is_started_again_under_its_name(subject: Subject) -> None:
    await subject.actuator.dispatch("a", [dispatcher("a-0-x")])
    await posted(subject)
    await subject.actuator.replace_dispatcher("never-heard-of")
    await subject.actuator.replace_dispatcher("a-0-x")
    if isinstance(subject, OnKubernetes):  # its node may be cut off, and it may live on: another name gets its slot
        assert await subject.actuator.dispatchers() == ()
        return
    gone = await next_dispatcher_exit(subject)
    assert (gone.incarnation, gone.expected, gone.restarted) == (1, False, True)
    async with asyncio.timeout(DEADLINE_S):
        while [d.incarnation for d in await subject.actuator.dispatchers() if d.pid] != [2]:
            await asyncio.sleep(0.01)


async def test_drain_stops_dispatchers_before_it_retires_replicas(subject: Subject) -> None:
    await subject.actuator.scale("a", "cpu-1", 1)
    await subject.actuator.dispatch("a", [dispatcher("a-0-x")])
    await posted(subject)
    (replica,) = await seen(subject)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(subject.actuator.drain(DEADLINE_S))
        await asyncio.sleep(0)
        if isinstance(subject, Fake):
            subject.actuator.finish("a-0-x")
        if not isinstance(subject, OnKubernetes):
            assert (await next_dispatcher_exit(subject)).expected
        async with asyncio.timeout(DEADLINE_S):
            while not await seen(subject, "retiring"):
                await asyncio.sleep(0.01)
        await subject.finish(replica)
        assert (await replica_exit(subject)).expected
    assert await subject.actuator.observe() == ()


async def test_a_stage_and_kind_that_is_not_known_is_refused(subject: Subject) -> None:
    with pytest.raises(ValueError, match="no replica is known"):
        await subject.actuator.scale("a", "gpu-t4", 1)
