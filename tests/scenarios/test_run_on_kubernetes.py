"""Runs whose dispatchers and replicas are pods: a fake API server's kubelet starts what the manifests name."""

from __future__ import annotations

import asyncio
from pathlib import Path

from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
from inferline_stream.actuators.kubernetes.manifests import Cluster
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.pipeline.names import Names
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import KafkaServer
from tests.kube.api import KubeApi, client_of
from tests.kube.kubelet import Kubelet
from tests.kube.takeover import takeover_s

DEADLINE_S = 150.0


async def test_scaling_lost_nodes_and_an_outage_of_the_api_server_lose_nothing(
    swing, embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    changes = [(2.0, {"parse": 4, "check": 2}), (14.0, {"parse": 1, "check": 1})]
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(60, 22)], changes=changes)
    async with KubeApi() as api, client_of(api) as client:
        kubelet = api.node.run = Kubelet(tmp_path, api)
        names = Names(run.pipeline.name, run.records.prefix)
        async with (
            asyncio.timeout(DEADLINE_S),
            KubernetesActuator(names, run.bootstrap_servers, Cluster(api.namespace, "image"), client) as actuator,
            open_run(run, actuator) as under_way,
        ):
            await under_way.ready()
            feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
            await asyncio.sleep(5.0)
            lost = next(r.replica for r in await actuator.observe() if r.stage == "parse")
            await api.lose_node_of(lost)
            taking_over = asyncio.create_task(takeover_s(actuator, under_way, kubelet, api, "check", silent=False))
            await asyncio.sleep(0.1)
            await api.stop_serving()
            await asyncio.sleep(1.0)
            await api.serve()
            async with asyncio.timeout(30.0):  # the benchmark `engines` prints how long it takes
                await taking_over
            await feeding
            report = await under_way.report(await under_way.drain())
            await actuator.aclose()
        assert api.pods() == []
        assert api.applied == {}, "something was left in the cluster"
    assert report.lost == 0
    assert report.events_in == report.events_out > 1000
    assert report.replicas_most["parse"] == 4
    assert [text for text in report.exits if lost in text and "node is gone" in text]
