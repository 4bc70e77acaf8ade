"""A run whose replicas are pods: a fake API server's kubelet starts the real processes that the manifests name."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from inferline_stream.actuators.kubernetes import KubernetesActuator
from inferline_stream.actuators.manifests import READY_FILE, Cluster
from inferline_stream.controlplane.session import Quiet, Run, session
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.testing.kube_api import KubeApi, client_of, kubeconfig_of
from inferline_stream.testing.kubelet import kubelet

DEADLINE_S = 90.0


async def test_scaling_a_lost_node_and_an_outage_of_the_api_server_lose_nothing(
    swing, apache_kafka: KafkaServer, tmp_path: Path
) -> None:
    changes = [(2.0, {"parse": 4, "check": 2}), (8.0, {"parse": 1, "check": 1})]
    run: Run = swing(apache_kafka.bootstrap_servers, levels=[(60, 12)], changes=changes)
    async with KubeApi(run=kubelet(tmp_path)) as api, client_of(api) as client:
        cluster = Cluster(api.namespace, "image")
        async with (
            asyncio.timeout(DEADLINE_S),
            KubernetesActuator(run.pipeline.name, run.spec, cluster, client) as actuator,
            session(run, Quiet(), actuator) as under_way,
        ):
            await under_way.ready()
            mark = Path(READY_FILE).name
            assert all((tmp_path / pod["metadata"]["name"] / mark).exists() for pod in api.pods())
            feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
            await asyncio.sleep(5.0)
            lost = next(r.replica for r in await actuator.observe() if r.stage == "parse")
            await api.lose_node_of(lost)
            await api.stop_serving()
            await asyncio.sleep(1.0)
            await api.serve()
            await feeding
            report = await under_way.report(await under_way.drain())
        assert api.pods() == []
    assert report.lost == 0
    assert report.events_in == report.events_out > 500
    assert report.replicas_most["parse"] == 4
    assert len(report.exits) == 1
    assert "node is gone" in report.exits[0]


async def test_the_command_runs_a_pipeline_in_the_cluster_that_kubeconfig_names(
    embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    topology = tmp_path / "reviews/topology.py"
    command = Path(sys.executable).with_name("inferline-stream")
    assert (await (await asyncio.create_subprocess_exec(command, "init", topology.parent)).wait()) == 0
    async with KubeApi(run=kubelet(tmp_path)) as api:
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
            told, _ = await process.communicate()
        assert process.returncode == 0
        assert api.pods() == []
        images = {d["spec"]["template"]["spec"]["containers"][0]["image"] for d in api.deployments()}
    report = json.loads(told)
    assert report["lost"] == 0
    assert report["events_in"] == report["events_out"] > 20
    assert images == {"reviews:1"}
