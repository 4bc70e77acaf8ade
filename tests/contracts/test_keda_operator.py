"""A real KEDA on a real API server has a Deployment follow our external scaler; where `.ci/cluster` has built them.

What `inferline-stream keda` writes is applied as it is, and what `inferline-stream run` says comes from load on Apache
Kafka, which the Deployment's pods work off as an ordinary consumer group. KEDA and the HorizontalPodAutoscaler have
their default periods.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import uuid
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from lightkube import AsyncClient
from lightkube.generic_resource import create_namespaced_resource
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.autoscaling_v2 import HorizontalPodAutoscaler

from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.testing.local_kafka import free_ports
from tests.kube.api import client_of
from tests.kube.keda import keda
from tests.kube.kubelet import Kubelet
from tests.kube.real_cluster import RealApi, binaries, control_plane
from tests.support.feed import fed

logger = logging.getLogger(__name__)

FOLDER = binaries()
COMMAND = Path(sys.executable).with_name("inferline-stream")
WORKER = Path(__file__).parents[1] / "integration" / "grouped" / "worker.py"
MU = 4 / (0.1 + 0.05 * 4)
PARTITIONS = 6
LOW, HIGH = 1.4 * MU, 3.5 * MU
STABILIZATION_S = 300.0
"""That a HorizontalPodAutoscaler waits by default before it lowers."""

DEADLINE_S, AWAY_S = 240.0, 75.0

ScaledObject = create_namespaced_resource("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects")

TOPOLOGY = """
from inferline_stream import ConsumerGroup, KedaScaler, Pipeline

workers = KedaScaler("{namespace}/enrich", tolerance=0)
enrich = ConsumerGroup("enrich", group="{group}", topic="{topic}", workers=workers)
pipeline = Pipeline("{name}", slo="10s", stages=[enrich])
"""


def workers(namespace: str, *arguments: str) -> dict[str, Any]:
    """A team's Deployment, before anybody scales it."""
    labels = {"app": "enrich"}
    container = {"name": "enrich", "image": "shop/enrich", "command": ["python", str(WORKER), "plain", *arguments]}
    pod = {"containers": [container], "terminationGracePeriodSeconds": 5, "automountServiceAccountToken": False}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "enrich", "namespace": namespace},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


@asynccontextmanager
async def running(folder: Path, servers: str, scaler: int, metrics: int) -> AsyncIterator[Process]:
    command = (COMMAND, "run", str(folder), "--bootstrap-servers", servers)
    ports = ("--keda-port", str(scaler), "--metrics-port", str(metrics), "--no-ui", "--output", "json")
    with (folder / "run.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, *ports, cwd=folder, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(DEADLINE_S):
            while b"KEDA's scaler" not in (folder / "run.log").read_bytes():
                await asyncio.sleep(0.2)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def decided(metrics: int) -> None:
    """Wait until the run has a plan."""
    async with asyncio.timeout(DEADLINE_S), httpx2.AsyncClient() as client:
        while 'state="wanted"' not in (await client.get(f"http://127.0.0.1:{metrics}/metrics")).text:
            await asyncio.sleep(0.5)


async def until(holds: Callable[[int], bool], replicas: Callable[[], Any], what: str) -> float:
    """Wait until a number of replicas holds; returns how long that took."""
    began_s, count = time.monotonic(), 0
    while time.monotonic() < began_s + DEADLINE_S:
        if holds(count := await replicas()):
            return time.monotonic() - began_s
        await asyncio.sleep(0.5)
    raise AssertionError(f"not in {DEADLINE_S:g} s: {what}; there are {count}")


if FOLDER is not None:

    async def test_keda_scales_a_deployment_up_and_down_by_our_number_and_keeps_it_while_we_are_away(
        apache_kafka: KafkaServer, tmp_path: Path
    ) -> None:
        servers, topic, group = apache_kafka.bootstrap_servers, f"posts-{uuid.uuid4().hex[:6]}", uuid.uuid4().hex
        admin = AIOKafkaAdminClient(bootstrap_servers=servers)
        await admin.start()
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
        await admin.close()
        for name in ("cluster", "keda", "pods", "shop"):
            (tmp_path / name).mkdir()
        with control_plane(tmp_path / "cluster") as plane, keda(plane, tmp_path / "keda"):
            async with RealApi(plane) as api, client_of(api) as client:
                api.node.run = Kubelet(tmp_path / "pods", api)
                await client.create(
                    cast("Deployment", Deployment.from_dict(workers(api.namespace, servers, topic, group)))
                )
                await scaled(client, api.namespace, servers, topic, group, tmp_path / "shop")

    async def scaled(  # noqa: PLR0917
        client: AsyncClient, namespace: str, servers: str, topic: str, group: str, folder: Path
    ) -> None:
        (scaler, metrics), rate = free_ports(2), [LOW]
        text = TOPOLOGY.format(group=group, topic=topic, namespace=namespace, name=f"p-{group[:6]}")
        (folder / "topology.py").write_text(text)

        async def replicas() -> int:
            found = await client.get(Deployment, "enrich", namespace=namespace)
            return (found.status.readyReplicas if found.status is not None else 0) or 0

        async with fed(servers, topic, rate, PARTITIONS):
            async with running(folder, servers, scaler, metrics) as process:
                await until(lambda n: n == 2, replicas, "the team's own workers")
                address = ("--address", f"127.0.0.1:{scaler}", "--most", str(PARTITIONS), "--output", "json")
                command = (COMMAND, "keda", str(folder), *address)
                written = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=asyncio.subprocess.PIPE)
                for manifest in json.loads((await written.communicate())[0]):
                    await client.create(ScaledObject(manifest), namespace=namespace)
                await decided(metrics)
                assert await replicas() >= 2
                rate[0] = HIGH
                raised_s = await until(lambda n: n >= 4, replicas, "workers for more traffic")
                rate[0] = LOW
                lowered_s = await until(lambda n: n <= 3, replicas, "fewer workers")
                assert lowered_s < STABILIZATION_S
                assert process.returncode is None, (folder / "run.log").read_text()
            kept = await replicas()
            away_s = time.monotonic() + AWAY_S
            while time.monotonic() < away_s:
                assert await replicas() == kept > 1
                await asyncio.sleep(1.0)
            (autoscaler,) = [each async for each in client.list(HorizontalPodAutoscaler, namespace=namespace)]
            (metric,) = autoscaler.spec.metrics
            assert metric.external is not None
            assert metric.external.target.averageValue == "1"
            conditions = {each.type: each for each in autoscaler.status.conditions}
            assert conditions["ScalingActive"].status == "False", conditions  # it has nothing to go by
        logger.info("up in %.0f s, down in %.0f s, %d kept for %g s without us", raised_s, lowered_s, kept, AWAY_S)
