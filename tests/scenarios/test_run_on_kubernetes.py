"""Runs whose dispatchers and replicas are pods: a fake API server's kubelet starts what the manifests name."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
from inferline_stream.actuators.kubernetes.manifests import DISPATCHER, STAGE_LABEL, Cluster
from inferline_stream.controlplane.session import Quiet, Run, session
from inferline_stream.controlplane.waiting import until
from inferline_stream.pipeline.names import Names
from inferline_stream.testing.kafka import KafkaServer
from tests.kube.api import KubeApi, client_of, kubeconfig_of
from tests.kube.kubelet import Kubelet

DEADLINE_S = 150.0


async def test_scaling_lost_nodes_and_an_outage_of_the_api_server_lose_nothing(
    swing, embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    changes = [(2.0, {"parse": 4, "check": 2}), (14.0, {"parse": 1, "check": 1})]
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(60, 22)], changes=changes)
    async with KubeApi() as api, client_of(api) as client:
        kubelet = api.node.run = Kubelet(tmp_path, api)
        names = Names(run.pipeline.name, run.prefix)
        async with (
            asyncio.timeout(DEADLINE_S),
            KubernetesActuator(names, run.bootstrap_servers, Cluster(api.namespace, "image"), client) as actuator,
            session(run, Quiet(), actuator) as under_way,
        ):
            await under_way.ready()
            feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
            await asyncio.sleep(5.0)
            lost = next(r.replica for r in await actuator.observe() if r.stage == "parse")
            await api.lose_node_of(lost)
            serving = next(d for d in await actuator.dispatchers() if d.stage == "check")
            pod = actuator._postings.host_of(serving.dispatcher)
            host = kubelet.processes[pod]
            os.kill(host, signal.SIGKILL)  # the dispatcher, its child, dies with it
            await api.lose_node_of(pod)
            await api.stop_serving()
            await asyncio.sleep(1.0)
            await api.serve()

            async def taken_over() -> bool:
                found = [d.dispatcher for d in await actuator.dispatchers() if d.stage == "check"]
                return bool(found) and serving.dispatcher not in found

            assert await until(taken_over, 30.0)
            await feeding
            report = await under_way.report(await under_way.drain())
            await actuator.aclose()
        assert api.pods() == []
        assert api.applied == {}, "something was left in the cluster"
    assert report.lost == 0
    assert report.events_in == report.events_out > 1000
    assert report.replicas_most["parse"] == 4
    assert [text for text in report.exits if lost in text and "node is gone" in text]


async def test_the_command_runs_a_pipeline_in_the_cluster_that_kubeconfig_names(
    embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    topology = tmp_path / "reviews/topology.py"
    command = Path(sys.executable).with_name("inferline-stream")
    assert (await (await asyncio.create_subprocess_exec(command, "init", topology.parent)).wait()) == 0
    async with KubeApi() as api:
        api.node.run = Kubelet(tmp_path, api)
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(kubeconfig_of(api)))
        async with asyncio.timeout(DEADLINE_S):
            process = await asyncio.create_subprocess_exec(
                *(command, "run", topology, "--on", "kubernetes", "--image", "reviews:1", "--replay"),
                *("--bootstrap-servers", embedded_broker.bootstrap_servers, "--duration", "5s", "--output", "json"),
                *("--ui-port", "0", "--metrics-port", "0"),
                env={**os.environ, "KUBECONFIG": str(kubeconfig)},
                stdout=asyncio.subprocess.PIPE,
            )
            said, _ = await process.communicate()
        assert process.returncode == 0
        assert api.pods() == []
        stages = {pod["metadata"]["labels"][STAGE_LABEL] for pod in api.every_pod}
        components = [pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in api.every_pod]
        images = {pod["spec"]["containers"][0]["image"] for pod in api.every_pod}
    report = json.loads(said)
    assert report["lost"] == 0
    assert report["events_in"] == report["events_out"] > 20
    assert images == {"reviews:1"}
    assert len(stages) == 3
    assert components.count(DISPATCHER) == 6, "one that serves and one that waits, of each stage"
