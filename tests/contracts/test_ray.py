"""Pools on a Ray cluster of several nodes that lose nodes, actors and replicas under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from ray.cluster_utils import Cluster

from inferline_stream.actuators import ray as on_ray
from inferline_stream.actuators import ray_cluster as on_cluster
from inferline_stream.actuators.actuator import Actuator, ObservedDispatcher, ObservedReplica, ProcessTerms
from inferline_stream.actuators.network.credentials import new_credential
from inferline_stream.actuators.ray import RayActuator
from inferline_stream.actuators.ray_cluster import accelerator_type, requirements
from inferline_stream.actuators.ray_host import HostState, HostTerms, RayHost
from inferline_stream.actuators.wanted_processes import WantedProcess
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import Routes
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.testing.kafka import KafkaServer
from tests.support.deadlines import alive, until
from tests.support.emulated_runs import emulated_run

DEADLINE_S = 90.0
MINIMAL = Path(__file__).parents[2] / "topologies" / "minimal"
TOPOLOGY = """
from inferline_stream import Hardware, Pipeline, Sample, Stage, Topic


def same(numbers: list[int]) -> list[int]:
    return numbers


work = Stage("work", same, hardware=["emulated-core"], emulated={"emulated-core": {1: "20ms", 4: "32ms"}},
             max_batch_size=4)
pipeline = Pipeline("rayed", slo="400ms", source=Topic("in", partitions=4), sink=Topic("out", partitions=2),
                    stages=[work], sample=Sample(arrivals="arrivals.csv", events="events.jsonl"),
                    hardware=[Hardware("emulated-core", 0.1, cores=1)])
"""


def host_of(pid: int) -> int:
    """The process of the actor that hosts a child."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def thaw(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Rayed:
    """A run on the cluster."""

    def __init__(self, under_way: LiveRun, actuator: Actuator) -> None:
        self.under_way, self.actuator = under_way, actuator

    async def running(self) -> list[ObservedReplica]:
        return [r for r in await self.actuator.observe() if r.state == "running" and r.pid is not None]

    async def dispatchers(self) -> list[ObservedDispatcher]:
        return [d for d in await self.actuator.dispatchers() if d.pid is not None]

    async def gone(self, replica: ObservedReplica) -> None:
        async def is_gone() -> bool:
            return replica.replica not in [r.replica for r in await self.actuator.observe() if r.state == "running"]

        await until(is_gone, f"the end of {replica.replica} is seen")

    async def served_by_another(self, before: ObservedDispatcher) -> None:
        async def another() -> bool:
            return any(d.pid != before.pid for d in await self.dispatchers())

        await until(another, "another dispatcher runs")

    def pending(self) -> int:
        state = self.under_way.controller.state
        return sum(kind.pending for kind in state.stages[0].replicas) if state is not None else 0

    def ready(self) -> int:
        state = self.under_way.controller.state
        return sum(kind.ready for kind in state.stages[0].replicas) if state is not None else 0

    async def scaled(self, replicas: int) -> None:
        self.under_way.controller.wanted["work"]["emulated-core"] = replicas
        self.under_way.controller.fleet.changed()
        await until(lambda: self.ready() == replicas, f"{replicas} replicas are ready")

    def replicas_by_node(self) -> int:
        state = self.under_way.controller.state
        return sum(on.replicas for on in state.stages[0].nodes.values()) if state is not None else 0

    def events(self) -> int:
        state = self.under_way.controller.state
        return state.stages[0].total.events if state is not None else 0

    async def flows(self) -> None:
        """Wait until events come through again."""
        before = self.events()
        await until(lambda: self.events() > before + 20, "events come through")


@contextlib.asynccontextmanager
async def rayed(kafka: KafkaServer, folder: Path, delivery: str) -> AsyncIterator[Rayed]:
    folder.mkdir()
    (folder / "topology.py").write_text(TOPOLOGY)
    (folder / "events.jsonl").write_text("".join(f"{number}\n" for number in range(50)))
    run = emulated_run(folder, kafka.bootstrap_servers, folder, levels=[(40, 600)], delivery=delivery)
    actuator = RayActuator(str(folder), ProcessTerms(str(folder / "logs"), identity=run.identity, drain_timeout_s=10.0))
    async with contextlib.aclosing(actuator), open_run(run, actuator) as under_way:
        await under_way.ready()
        yield Rayed(under_way, actuator)


STAND_IN = "stand_in_dispatcher"
UNSEALED = Isolation("none")
SPEC = ReplicaSpec("", "a", "/nowhere/topology.py", catalogue()["emulated-cpu"])
DISPATCHER = DispatcherSpec(
    "a-0-x", 0, Routes("p", "", "a", "in", "out", ("a",), (), (), True, 1.0, "process", b"1"), "127.0.0.1:1"
)
CONTROLLER = """
import asyncio, os, sys
from pathlib import Path
from inferline_stream.actuators.ray_cluster import join
from tests.contracts.test_ray import DISPATCHER, SPEC, on_the_cluster, pids

async def main() -> None:
    await join()
    actuator = on_the_cluster(Path(sys.argv[1]))
    await actuator.know({("a", "emulated-cpu"): SPEC})
    await actuator.scale("a", "emulated-cpu", 2)
    await actuator.dispatch("a", [DISPATCHER])
    while None in await pids(actuator):
        await asyncio.sleep(0.05)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def on_the_cluster(folder: Path, **more: Any) -> RayActuator:
    modules = {"replica_module": "replica_double", "dispatcher_module": STAND_IN}
    terms = {"identity": "the same", "drain_timeout_s": 1.0, "kill_after_s": 0.3, **modules, **more}
    return RayActuator(str(folder), ProcessTerms(str(folder), **terms))


async def killed_controller(cluster: Cluster, folder: Path) -> None:
    """Run a controller that starts a dispatcher and two replicas and is killed."""
    repository = Path(__file__).parents[2]
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CONTROLLER, str(folder)),
        env={
            **os.environ,
            "PYTHONPATH": f"{repository}:{os.environ['PYTHONPATH']}",
            "RAY_ADDRESS": cluster.address,
        },
    )
    async with asyncio.timeout(DEADLINE_S):
        assert await killed.wait() == -signal.SIGKILL


async def pids(actuator: Actuator) -> set[int | None]:
    return {each.pid for each in (*await actuator.observe(), *await actuator.dispatchers())}


async def test_a_controller_finds_what_one_that_was_killed_has_left_and_takes_it_over(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    await killed_controller(ray_cluster, tmp_path)
    async with on_the_cluster(tmp_path) as second:
        await second.know({("a", "emulated-cpu"): SPEC})
        left = await pids(second)
        assert len(left) == 3
        assert all(alive(pid) for pid in left)
        await second.scale("a", "emulated-cpu", 2)
        await second.dispatch("a", [DISPATCHER])
        assert await pids(second) == left

        (replica, _), (dispatcher,) = await second.observe(), await second.dispatchers()
        os.kill(dispatcher.pid, signal.SIGKILL)
        third = on_the_cluster(tmp_path)
        await third.know({("a", "emulated-cpu"): SPEC})
        await second.aclose()  # it ends nothing: a later controller has taken over
    async with contextlib.aclosing(third):
        assert replica.replica in [each.replica for each in await third.observe()]
        log = tmp_path / "a-0-x.log"
        await until(lambda: "started a-0-x 2" in log.read_text(), "its host has started the dispatcher again")
        await until(lambda: restarted(third), "it is known to the third controller")
        left = await pids(third)
        assert all(alive(pid) for pid in left)
        others = on_the_cluster(tmp_path, identity="other code")
        async with contextlib.aclosing(others):
            await others.know({("a", "emulated-cpu"): SPEC})
            assert await pids(others) == set()
            await until(lambda: not any(alive(pid) for pid in left), "what other code runs has drained")


async def restarted(actuator: RayActuator) -> bool:
    return [(each.incarnation, each.pid is None) for each in await actuator.dispatchers()] == [(2, False)]


async def test_without_a_controller_a_host_ends(
    ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Any] = []
    monkeypatch.setattr("inferline_stream.actuators.ray_host.ray.kill", ended.append)
    monkeypatch.setattr("ray.runtime_context.RuntimeContext.current_actor", "the host")
    orphan_s, began_s = 2.0, time.monotonic()  # longer than its child takes to start
    terms = HostTerms(
        dispatcher=DISPATCHER,
        credential=new_credential("a"),
        processes=ProcessTerms(str(tmp_path), "", 1.0, 1.0, orphan_s, "replica_double", STAND_IN),
        controller="me",
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as the host sets it in its process, which is the tests' here
    found = msgspec.json.decode(await RayHost().start(msgspec.json.encode(terms)), type=HostState)
    assert found.address
    assert found.pid is not None
    await until(lambda: ended == ["the host"], "the host has ended")
    assert time.monotonic() - began_s >= orphan_s, "a controller may be silent for so long"
    assert not alive(found.pid)
    assert (tmp_path / "a-0-x.log").read_text().splitlines()[-1] == "stopped"


def test_models_are_called_what_ray_calls_them() -> None:
    rays: Any = NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type
    models = {kind.gpu_model for kind in catalogue().values() if kind.gpu_model}
    models |= {"NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 5090", "Quadro RTX 6000"}
    models |= {"NVIDIA RTX PRO 6000 Blackwell Server Edition", "NVIDIA GB200", "Tesla P100-PCIE-16GB", "NVIDIA TITAN V"}
    assert {model: accelerator_type(model) for model in models} == {model: rays(model) for model in models}


def test_actors_ask_for_what_the_catalogue_says() -> None:
    def asked(hardware: Hardware, isolation: Isolation = UNSEALED) -> dict[str, Any]:
        return requirements(ReplicaSpec("", "a", "/nowhere/topology.py", hardware, isolation=isolation))

    kinds = catalogue()
    assert asked(kinds["cpu-0.5"]) == {"num_cpus": 0.5, "num_gpus": 0.0}
    assert asked(kinds["v100"]) == {"num_cpus": 7, "num_gpus": 1, "accelerator_type": "V100"}
    assert asked(kinds["h100"])["accelerator_type"] == "H100"
    in_full = Hardware("mine", 6.88, gpus=1, gpu_model="NVIDIA H100 80GB HBM3")
    assert asked(in_full)["accelerator_type"] == "H100", "as Ray names the node of such a device"
    assert asked(kinds["emulated-gpu-small"]) == {"num_cpus": 0, "num_gpus": 0.0}
    assert asked(kinds["cpu-1"], Isolation("none", memory_mb=512))["memory"] == 512 << 20
    slice_ = Hardware("a100-1g.10gb", 0.5, gpus=1, gpu_model="NVIDIA A100")
    assert asked(slice_) == {"num_cpus": 1.0, "num_gpus": 1, "resources": {"a100-1g.10gb": 1}}


async def test_what_a_cluster_may_grow_to_at_most_binds_what_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_cluster.state, "get_max_resources_from_cluster_config", lambda: {"CPU": 8, "GPU": 3})
    monkeypatch.setattr(on_cluster.ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    monkeypatch.setattr(on_cluster.ray, "available_resources", lambda: {"CPU": 1.0, "GPU": 1.0})
    monkeypatch.setattr(on_ray, "list_named_actors", lambda _: [])
    actuator = RayActuator("n", ProcessTerms("/nowhere"))
    whole = Hardware("t4", 0.5, cores=1, gpus=1, gpu_model="Tesla T4")
    kinds = catalogue([whole, Hardware("half-t4", 0.3, cores=1, gpus=0.5, gpu_model="Tesla T4")])
    names = ("t4", "half-t4", "cpu-2", "cpu-0.5", "emulated-cpu")
    await actuator.know({("a", name): ReplicaSpec("", "a", "/nowhere/topology.py", kinds[name]) for name in names})
    assert await actuator.capacity() == {"t4": 2, "half-t4": 4, "cpu-2": 2, "cpu-0.5": 10}
    actuator._wanted.replicas += [WantedProcess("a", "t4", running=True), WantedProcess("a", "t4")]
    assert (await actuator.capacity())["t4"] == 3, "with the one that has a place"
    monkeypatch.setattr(on_cluster.state, "get_max_resources_from_cluster_config", lambda: None)
    assert await actuator.capacity() == {}, "who knows what it may grow to"


COMMAND = [sys.executable, "-c", "from inferline_stream.cli.main import app; app()"]


def command(arguments: str, *, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND[:-1], before + COMMAND[-1], *arguments.split()],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def test_the_command_runs_the_minimal_example_on_the_cluster(
    ray_cluster: Cluster, embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    minimal = tmp_path / "minimal"
    shutil.copytree(MINIMAL, minimal, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    arguments = (
        f"run {minimal} --on ray --bootstrap-servers {embedded_broker.bootstrap_servers} --prefix r. --replay --no-ui "
        "--metrics-port 0 --output json"
    )
    running = subprocess.Popen(
        [*COMMAND, *arguments.split()],
        env={**os.environ, "RAY_ADDRESS": ray_cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stderr is not None
    while b"  out " not in (line := running.stderr.readline()) or b"  out 0" in line:  # events come through
        assert line, "it has ended"
    running.send_signal(signal.SIGTERM)  # Ray's library would abort here
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    report = json.loads(said)
    assert (report["lost"], report["exits"]) == (0, [])
    assert report["events_in"] == report["events_out"] > 0


def test_no_cluster_is_code_5_and_no_library_is_code_2(embedded_broker: KafkaServer) -> None:
    run = f"run {MINIMAL} --on ray --bootstrap-servers {embedded_broker.bootstrap_servers}"
    none = command(run, RAY_ADDRESS="127.0.0.1:1")
    assert (none.returncode, "no Ray cluster answers" in none.stderr) == (5, True), none.stderr
    missing = command(run, before="import sys; sys.modules['ray'] = None; ")
    assert (missing.returncode, "inferline-stream[ray]" in missing.stderr) == (2, True), missing.stderr


async def test_no_end_of_a_node_an_actor_or_a_replica_loses_an_event(
    ray_cluster: Cluster, embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def node() -> Any:
        return ray_cluster.add_node(num_cpus=1, resources={"replicas": 6, "dispatchers": 2}, wait=False)

    nodes = {each.node_id: each for each in (node(), node())}
    monkeypatch.setattr(on_ray, "DISPATCHER_NEEDS", {"num_cpus": 0, "resources": {"dispatchers": 1}})
    monkeypatch.setattr(on_ray, "requirements", lambda spec: {"num_cpus": 0, "resources": {"replicas": 1}})
    ray_cluster.wait_for_nodes()
    stop = asyncio.Event()
    async with (
        rayed(embedded_broker, tmp_path / "once", "exactly_once") as once,
        rayed(embedded_broker, tmp_path / "least", "at_least_once") as least,
    ):
        pools = (once, least)

        async def both(work: Callable[[Rayed], Any]) -> None:
            await asyncio.gather(*map(work, pools))

        feeding = [asyncio.create_task(pool.under_way.fed(stop)) for pool in pools]
        await both(lambda pool: pool.scaled(4))
        await both(Rayed.flows)
        await both(lambda pool: until(lambda: pool.replicas_by_node() == 4, "four replicas are shown by node"))

        frozen = []
        for pool in pools:
            victim, other, *_ = await pool.running()
            os.kill(host_of(victim.pid), signal.SIGKILL)
            await pool.gone(victim)
            frozen += [other.pid, host_of(other.pid)]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        thawing = asyncio.get_running_loop().call_later(10.0, thaw, frozen)
        await both(Rayed.flows)

        before = [(await pool.dispatchers())[0] for pool in pools]
        for dispatcher in before:
            os.kill(host_of(dispatcher.pid), signal.SIGKILL)
        await asyncio.gather(*(pool.served_by_another(than) for pool, than in zip(pools, before, strict=True)))
        await both(Rayed.flows)

        (dispatcher,) = await once.dispatchers()
        (lost,) = (node_id for node_id in nodes if dispatcher.node.endswith(node_id[:8]))
        theirs = [each for pool in pools for each in await pool.running() if each.node == dispatcher.node]
        ray_cluster.remove_node(nodes.pop(lost), allow_graceful=False)
        await once.served_by_another(dispatcher)
        assert (await once.dispatchers())[0].dispatcher != dispatcher.dispatcher  # nobody saw it end: its name is gone
        for each in theirs:
            await once.gone(each)
            await least.gone(each)
        await until(lambda: once.pending() + least.pending() == 2, "two of eight replicas have no place")
        await both(Rayed.flows)
        nodes["new"] = node()
        await both(lambda pool: pool.scaled(4))
        await both(lambda pool: pool.scaled(1))
        stop.set()
        await asyncio.gather(*feeding)
        thawing.cancel()
        thaw(frozen)
        reports = [await pool.under_way.report(await pool.under_way.drain()) for pool in pools]
    for each in nodes.values():
        ray_cluster.remove_node(each)  # in order: Ray would else go on placing actors there
    for report in reports:
        assert (report.lost, report.unknown, report.unaccounted) == (0, 0, 0)
        assert report.completed == {}  # no dead letter
    assert reports[0].duplicated == 0
