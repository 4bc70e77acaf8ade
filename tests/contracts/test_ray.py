"""The Ray actuator on a cluster of two nodes that loses one; and a run whose replicas are Ray actors."""

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from inferline_stream.actuators.ray import RayActuator, join, requirements, run_command
from inferline_stream.controlplane.session import Quiet, Run, run_to_report
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.errors import InferlineError
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.profiler.remote import command, measured
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.testing.runs import emulated_run

DEADLINE_S = 30.0
KINDS = catalogue()
SWING = Path(__file__).parents[1] / "scenarios/swing"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without a GPU; tests add nodes that have one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
        made.connect()
        yield made
        ray.shutdown()
        made.shutdown()


def template(stage: str, hardware: str) -> ReplicaSpec:
    return ReplicaSpec("", stage, "/nowhere/topology.py", "", "127.0.0.1:1", KINDS[hardware], 1)


async def test_a_replica_of_a_lost_node_is_told_and_starts_again_where_there_is_room(cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=1, num_gpus=1, resources={"accelerator_type:T4": 1})
    async with RayActuator(template, cluster.address, drain_timeout_s=1.0, module="replica_double") as actuator:
        await actuator.scale("a", "t4", 1)
        async with asyncio.timeout(DEADLINE_S):
            while (first := (await actuator.observe())[0]).pid is None:
                await asyncio.sleep(0.05)
        cluster.remove_node(node)
        async with asyncio.timeout(DEADLINE_S):
            gone = await actuator.next_exit()
        assert (gone.replica, gone.expected) == (first.replica, False)
        assert "its node or its actor is gone" in gone.reason
        async with asyncio.timeout(DEADLINE_S):
            while not (again := (await actuator.observe())[0]).pending:
                await asyncio.sleep(0.05)
        assert again.pending.endswith("Ray cluster that has num_cpus 1.0, num_gpus 1, accelerator_type T4 free")
        other = cluster.add_node(num_cpus=1, num_gpus=1, resources={"accelerator_type:T4": 1})
        async with asyncio.timeout(DEADLINE_S):
            while (again := (await actuator.observe())[0]).pid is None:
                await asyncio.sleep(0.05)
        assert again.restarts == 1
        assert os.path.exists(f"/proc/{again.pid}")
    cluster.remove_node(other)


async def test_a_stage_is_profiled_on_a_node_of_the_cluster(cluster: Cluster) -> None:
    await join(cluster.address)
    line = command(str(SWING / "topology.py"), "parse", "emulated-cpu", 0.1, whole=True)
    async with asyncio.timeout(4 * DEADLINE_S):
        files = measured(await run_command(line, KINDS["emulated-cpu"], 4 * DEADLINE_S))
    assert {Path(name).name for name in files} == {"paths.json", "parse.emulated-cpu.json"}


async def test_a_command_without_a_node_says_what_it_waits_for(cluster: Cluster) -> None:
    await join(cluster.address)
    with pytest.raises(InferlineError, match="num_gpus 1, accelerator_type V100 free"):
        await run_command(["python", "-c", ""], KINDS["v100"], 1.0)


def test_actors_ask_for_what_the_catalogue_says() -> None:
    assert requirements(KINDS["cpu-0.5"]) == {"num_cpus": 0.5, "num_gpus": 0.0}
    assert requirements(KINDS["v100"]) == {"num_cpus": 1.0, "num_gpus": 1, "accelerator_type": "V100"}
    assert requirements(KINDS["emulated-gpu-small"]) == {"num_cpus": 0, "num_gpus": 0.0}


async def test_a_run_scales_its_actors_up_and_down_and_loses_nothing(
    cluster: Cluster, embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    build = partial(emulated_run, SWING, folder=tmp_path, probability={("parse", "check"): 1 / 3}, key_field="number")
    run: Run = build(
        embedded_broker.bootstrap_servers,
        levels=[(50, 12)],
        changes=[(1.0, {"parse": 4, "check": 2}), (8.0, {"parse": 1, "check": 1})],
    )
    async with asyncio.timeout(120), RayActuator(run.spec, cluster.address) as actuator:
        report = await run_to_report(run, Quiet(), asyncio.Event(), actuator)
    assert (report.lost, report.duplicated, report.unknown) == (0, 0, 0)
    assert report.events_in == report.events_out > 400
    assert report.replicas_most["parse"] == 4
    assert report.exits == []
