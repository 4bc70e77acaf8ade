"""`deploy --target kubernetes`: the controllers that it installs are real processes here, and so are their replicas."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from inferline_stream.actuators.manifests import MANAGED_BY, STAGE_LABEL
from inferline_stream.controlplane.leadership import leads
from inferline_stream.dataplane.control import OffsetReader
from inferline_stream.errors import Unreachable
from inferline_stream.pipeline.names import Names
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.testing.kube_api import KubeApi, kubeconfig_of
from inferline_stream.testing.kubelet import kubelet

DEADLINE_S = 180.0
COMMAND = Path(sys.executable).with_name("inferline-stream")


async def called(*command: object, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await holds():
                await asyncio.sleep(0.2)
    except TimeoutError:
        pytest.fail(f"waited {DEADLINE_S:.0f} s for {what}")


async def test_a_pipeline_is_installed_and_goes_on_while_its_acting_controller_is_replaced(
    embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    topology, servers = tmp_path / "reviews/topology.py", embedded_broker.bootstrap_servers
    prefix = "deployed."
    await called(COMMAND, "init", topology.parent)
    async with KubeApi() as api:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(kubeconfig_of(api)))
        api.node.run = kubelet(tmp_path / "pods", api, {"KUBECONFIG": str(kubeconfig)})
        (tmp_path / "pods").mkdir()
        told = await called(
            *(COMMAND, "deploy", topology, "--target", "kubernetes", "--image", "reviews:1", "--prefix", prefix),
            *("--bootstrap-servers", servers),
            KUBECONFIG=str(kubeconfig),
        )
        assert "applied to namespace test" in told

        def log_of(pod: str) -> str:
            file = tmp_path / "pods" / f"{pod}.log"
            return file.read_text() if file.exists() else ""

        def acting() -> list[str]:
            """Controllers that lead by what they wrote since they were last started."""
            since = {name: log_of(name).rpartition("looking at profiles")[2] for name in api.containers}
            return [name for name, text in since.items() if "starting replicas" in text]

        def replicas() -> set[str]:
            found = [pod["metadata"] for pod in api.pods()]
            return {own["name"] for own in found if own["labels"].items() >= MANAGED_BY.items()}

        def at_work() -> bool:
            stages = {p["metadata"]["labels"].get(STAGE_LABEL) for p in api.pods()} - {None}
            ready = [(tmp_path / "pods" / name / "ready").exists() for name in replicas()]
            return len(stages) == 3 and all(ready)

        async def served() -> bool:
            try:
                return await leads(servers, Names("reviews", prefix)) and len(acting()) == 1 and at_work()
            except Unreachable:  # its topics are not there yet
                return False

        await until(served, f"replicas of every stage to be ready; a controller said {[*map(log_of, api.containers)]}")
        (first,), before = acting(), replicas()
        feed = asyncio.create_task(
            called(
                *(sys.executable, "-m", "inferline_stream.connectors.sources.trace_replay"),
                *("--bootstrap-servers", servers, "--topic", f"{prefix}reviews-in", "--duration-s", "14"),
                *("--arrivals", topology.with_name("arrivals.csv"), "--events", topology.with_name("events.jsonl")),
            )
        )
        await asyncio.sleep(2.0)
        await api.evict(first)

        async def replaced() -> bool:
            return first not in api.containers and len(acting()) == 1

        await until(replaced, "the waiting controller to act")
        # On a busy machine the one that waits may have found it silent just before.
        assert "Left the replicas at work" in log_of(first) or "another controller leads" in log_of(first)
        assert before <= replicas()
        await feed

        async with OffsetReader(servers) as offsets:
            topics = [f"{prefix}reviews-in", f"{prefix}ratings"]
            partitions = {topic: await offsets.partitions(topic) for topic in topics}

            async def through() -> bool:
                ends = await offsets.ends(partitions)
                arrived, left = (sum(ends[topic]) for topic in topics)
                return arrived == left > 300

            await until(through, "as many ratings as reviews")
        monitor = api.applied["prometheusrules", "reviews-controller"]
    assert monitor["spec"]["groups"]
