"""`deploy --target kubernetes`: the controllers that it installs are real processes here, and so are their replicas."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from inferline_stream.actuators.kubernetes.object_names import (
    COMPONENT_LABEL,
    DISPATCHER,
    MANAGED_BY,
    REPLICA,
    STAGE_LABEL,
)
from inferline_stream.controlplane.leadership import leads
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.names import Names
from inferline_stream.testing.kafka import KafkaServer
from tests.contracts.wire import next_release
from tests.kube.api import KubeApi, MakeApi
from tests.kube.kubelet import Kubelet
from tests.kube.store import Json, ready
from tests.support import deadlines
from tests.support.director import event_id

until = partial(deadlines.until, within_s=400.0)
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


async def test_a_pipeline_is_installed_goes_on_without_its_acting_controller_and_is_upgraded_under_load(
    make_api: MakeApi, embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    topology, servers = tmp_path / "reviews/topology.py", embedded_broker.bootstrap_servers
    prefix = "deployed."
    names = Names("reviews", prefix)
    await called(COMMAND, "init", topology.parent)

    async with make_api() as api:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(api.kubeconfig))
        later = {"reviews:2": {"PYTHONPATH": str(next_release(tmp_path / "next"))}}
        api.node.run = Kubelet(tmp_path / "pods", api, later)
        (tmp_path / "pods").mkdir()

        async def profiled() -> bool:
            """With this broker, so that controllers need not measure; a busy machine may hold a record up too long."""
            command = (COMMAND, "profile", topology.parent, "--bootstrap-servers", servers, "--on", "kubernetes")
            environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
            process = await asyncio.create_subprocess_exec(*map(str, command), "--image", "reviews:1", env=environment)
            return await process.wait() == 0

        await until(profiled, "profiles, and what the network adds")
        assert api.pods() == [], "what ran for the profiler is gone"
        (kept,) = topology.parent.glob(".inferline/profiles/*/paths.json")
        assert json.loads(kept.read_text())["network_s"]["kubernetes"] > 0

        async def deployed(image: str) -> None:
            said = await called(
                *(COMMAND, "deploy", topology, "--target", "kubernetes", "--image", image, "--prefix", prefix),
                *("--bootstrap-servers", servers, "--delivery", "exactly_once"),
                KUBECONFIG=str(kubeconfig),
            )
            assert f"applied to namespace {api.namespace}" in said

        async def fed(seconds: int) -> None:
            await called(
                *(sys.executable, "-m", "inferline_stream.connectors.sources.trace_replay"),
                *("--bootstrap-servers", servers, "--topic", f"{prefix}reviews-in", "--duration-s", seconds),
                *("--arrivals", topology.with_name("arrivals.csv"), "--events", topology.with_name("events.jsonl")),
            )

        await deployed("reviews:1")

        def log_of(pod: str) -> str:
            file = tmp_path / "pods" / f"{pod}.log"
            return file.read_text() if file.exists() else ""

        def said() -> list[str]:
            return [*map(log_of, api.node.containers)]

        def acting() -> list[str]:
            """Controllers that lead by what they wrote since they were last started."""
            since = {name: log_of(name).rpartition("looking at profiles")[2] for name in api.node.containers}
            return [name for name, text in since.items() if "starting replicas" in text]

        def are(component: str) -> list[Json]:
            wanted = MANAGED_BY | {COMPONENT_LABEL: component}
            return [pod for pod in api.pods() if pod["metadata"]["labels"].items() >= wanted.items()]

        def replicas() -> set[str]:
            return {pod["metadata"]["name"] for pod in are(REPLICA)}

        def at_work() -> bool:
            found = [*are(REPLICA), *are(DISPATCHER)]
            stages = [{p["metadata"]["labels"][STAGE_LABEL] for p in are(of)} for of in (REPLICA, DISPATCHER)]
            return [len(each) for each in stages] == [3, 3] and all(map(ready, found))

        async def served() -> bool:
            try:
                return await leads(servers, names) and len(acting()) == 1 and at_work()
            except Unreachable:  # its topics are not there yet
                return False

        await until(served, f"replicas of every stage to be ready; a controller said {said()}")
        (first,), before = acting(), replicas()
        feed = asyncio.create_task(fed(5))
        await asyncio.sleep(2.0)
        await api.evict(first)

        async def replaced() -> bool:
            return first not in api.node.containers and len(acting()) == 1

        await until(replaced, "the waiting controller to act")
        # On a busy machine the one that waits may have found it silent just before.
        assert "at work" in log_of(first) or "another controller leads" in log_of(first)
        assert before <= replicas()
        await feed

        feed = asyncio.create_task(fed(10))
        await deployed("reviews:2")

        async def upgraded() -> bool:
            served = {p["metadata"]["labels"][STAGE_LABEL] for p in are(REPLICA) if ready(p)}
            assert len(served) == 3, f"only {served} have a replica that is READY"
            images = {pod["spec"]["containers"][0]["image"] for pod in api.pods()}
            return images == {"reviews:2"} and len(acting()) == 1 and at_work()

        await until(upgraded, f"every pod to be of the newer image; a controller said {said()}")
        assert not before & replicas()
        await feed
        async with TopicFollower(servers, names.assignments) as assignments:

            async def granted() -> bool:
                return any(b"by the next release" in (record.value or b"") for record in await assignments.read(0.2))

            await until(granted, "a controller of the next release to write grants")

        source, sink = f"{prefix}reviews-in", f"{prefix}ratings"
        async with Offsets(servers) as offsets:
            arrived = sum((await offsets.ends(await offsets.existing([source])))[source])
        assert arrived > 200
        rated: Counter[str] = Counter()
        async with TopicFollower(servers, sink) as ratings:

            async def through() -> bool:
                rated.update(map(event_id, await ratings.read(0.2)))
                return len(rated) == arrived

            await until(through, "a rating of each review")
            await asyncio.sleep(1.0)
            await through()
        assert set(rated.values()) == {1}, "a review was rated twice"
        if isinstance(api, KubeApi):  # the other has no Prometheus operator
            assert api.applied["prometheusrules", "reviews-controller"]["spec"]["groups"]
