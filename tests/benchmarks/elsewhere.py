"""The moderation pipeline with its replicas elsewhere, on Apache Kafka: 1 → 4 → 1 while a node and the API server fail.

The API server is `testing.kube_api`, whose pods are real processes; the Ray cluster is real, of two nodes on
this machine. ``lost`` counts events that came in and never out. Models are real, and profiled first.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.actuators.kubernetes import KubernetesActuator
from inferline_stream.actuators.manifests import Cluster
from inferline_stream.actuators.ray import RayActuator
from inferline_stream.controlplane.report import RunReport
from inferline_stream.controlplane.session import Quiet, Run, session
from inferline_stream.pipeline.trace import gamma_trace, levels_trace
from inferline_stream.profiler.profiling import Options
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import find_apache_kafka
from inferline_stream.testing.kube_api import KubeApi, client_of
from inferline_stream.testing.kubelet import kubelet
from inferline_stream.testing.runs import Script, plan_by_hand, trace_feed
from tests.benchmarks._moderation import TOPOLOGY, profiled

RATE, STAGE, MOST = 6.0, "language", 4

Fails = Callable[[Actuator], Awaitable[None]]
"""Takes a node away, and what else can fail there."""


@asynccontextmanager
async def in_kubernetes(run: Run, folder: Path) -> AsyncIterator[tuple[Actuator, Fails]]:
    """Pods of a fake API server."""
    async with KubeApi(run=kubelet(folder)) as api, client_of(api) as client:

        async def fails(actuator: Actuator) -> None:
            await api.lose_node_of(next(r.replica for r in await actuator.observe() if r.stage == STAGE))
            await api.stop_serving()
            await asyncio.sleep(2.0)
            await api.serve()

        cluster = Cluster(api.namespace, "image")
        async with KubernetesActuator(run.pipeline.name, run.spec, cluster, client) as actuator:
            yield actuator, fails


@asynccontextmanager
async def in_ray(run: Run, folder: Path) -> AsyncIterator[tuple[Actuator, Fails]]:
    """Actors of a cluster of two nodes; all that needs a core is on the second."""
    import ray
    from ray.cluster_utils import Cluster as RayCluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=8)]

    async def fails(actuator: Actuator) -> None:
        cluster.add_node(num_cpus=8)
        await asyncio.to_thread(cluster.remove_node, nodes[0])

    try:
        async with RayActuator(run.spec, cluster.address) as actuator:
            yield actuator, fails
    finally:
        ray.shutdown()
        cluster.shutdown()


async def measured_run(servers: str, folder: Path, seconds: float) -> Run:
    """The moderation pipeline, one replica of each stage."""
    example = await profiled(servers, folder, Options(stage_s=0.5))
    pipeline, rng = example.pipeline, np.random.default_rng(5)
    sample = gamma_trace(RATE, 1.0, 30.0, rng)
    most = {stage.name: min(stage.max_batch_size, 4) for stage in pipeline.stages}
    plan = plan_by_hand(
        pipeline, example.measured, sample, {stage.name: 1 for stage in pipeline.stages}, max_batch_sizes=most
    )
    return Run(
        pipeline=pipeline,
        topology=TOPOLOGY,
        bootstrap_servers=servers,
        plan=plan,
        measured=example.measured,
        log_folder=folder / "logs",
        feed=trace_feed(levels_trace([(RATE, seconds)], 1.0, rng), example.events, folder),
        replication=1,
        policy=Script([(0.1 * seconds, {STAGE: MOST}), (0.7 * seconds, {STAGE: 1})]),
        replans=False,
        settings=Settings(start_timeout_s=120.0, drain_timeout_s=60.0),
    )


async def one(run: Run, folder: Path, where: str, seconds: float) -> RunReport:
    """A run with its failures in the middle."""
    place = in_kubernetes if where == "kubernetes" else in_ray
    async with (
        AsyncExitStack() as stack,
        place(run, folder) as (actuator, fails),
    ):
        under_way = await stack.enter_async_context(session(run, Quiet(), actuator))
        await under_way.ready()
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        await asyncio.sleep(0.45 * seconds)
        await fails(actuator)
        await feeding
        report = await under_way.report(await under_way.drain())
        await stack.aclose()
        return report


def measure(quick: bool) -> dict[str, float | int | str | None]:
    seconds = 20.0 if quick else 60.0
    figures: dict[str, float | int | str | None] = {}
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        run = asyncio.run(measured_run(kafka.bootstrap_servers, Path(folder), seconds))
        for where in ("kubernetes", "ray"):
            own = Path(folder, where)
            own.mkdir()
            changes = Script([(0.1 * seconds, {STAGE: MOST}), (0.7 * seconds, {STAGE: 1})])
            report = asyncio.run(one(replace(run, prefix=f"{where}.", policy=changes), own, where, seconds))
            figures |= {
                f"lost_{where}": report.lost,
                f"duplicated_{where}": report.duplicated,
                f"events_{where}": report.events_in,
                f"most_replicas_{where}": report.replicas_most[STAGE],
                f"ends_{where}": len(report.exits),
            }
    return figures
