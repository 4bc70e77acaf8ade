"""An `InferencePipeline` with an image, from its first to its last day, on the real API server of `.ci/cluster`.

Operator, installer, controllers, dispatchers and replicas are processes with the rights of their service accounts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightkube import AsyncClient
from lightkube.generic_resource import create_namespaced_resource
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.batch_v1 import Job
from lightkube.resources.core_v1 import ConfigMap, Secret, Service

from inferline_stream.actuators.kubernetes.api_server import apply, plain
from inferline_stream.actuators.kubernetes.inference_pipeline import GROUP, KIND, PLURAL, VERSION
from inferline_stream.actuators.kubernetes.operator import operator_manifests
from inferline_stream.testing.kafka import KafkaServer
from tests.kube.api import client_of
from tests.kube.kubelet import Kubelet
from tests.kube.real_cluster import RealApi, binaries, control_plane
from tests.scenarios.test_deploy_to_kubernetes import COMMAND, called, until

RESOURCE: Any = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)
OURS = (ConfigMap, Deployment, Job, Secret, Service)

if binaries() is not None:

    async def test_a_resource_becomes_ready_follows_its_edits_and_takes_everything_away(
        embedded_broker: KafkaServer, tmp_path: Path
    ) -> None:
        await called(COMMAND, "init", tmp_path / "reviews")
        files = {file.name: file.read_text() for file in (tmp_path / "reviews").iterdir() if file.is_file()}
        wanted: dict[str, Any] = {
            "image": "reviews:1",
            "topology": {"configMap": "reviews"},
            "kafka": {"bootstrapServers": embedded_broker.bootstrap_servers},
            "prefix": "operated.",
        }
        with control_plane(tmp_path) as plane:
            async with RealApi(plane) as api, client_of(api) as client:
                (tmp_path / "pods").mkdir()
                kubelet = api.node.run = Kubelet(tmp_path / "pods", api)

                async def put(**spec: Any) -> None:
                    named = {"namespace": api.namespace, "name": "reviews"}
                    resource = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": named}
                    data = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "data": files}
                    await apply(client, [data, resource | {"spec": wanted | spec}])

                async def status() -> dict[str, Any]:
                    found = plain(await client.get(RESOURCE, "reviews", namespace=api.namespace)).get("status", {})
                    return found | {c["type"]: c for c in found.get("conditions", ())}

                def said() -> str:
                    return "\n".join(
                        f"{name}: {kubelet.log(name)[-2000:]}" for name in [p["metadata"]["name"] for p in api.pods()]
                    )

                async def reached(what: str, holds: Any) -> None:
                    async def reached() -> bool:
                        found = await status()
                        assert found.get("Installed", {}).get("status") != "False", (found, said())
                        return bool(holds(found))

                    await until(reached, f"{what}; pods said {said()}")

                def ready(found: dict[str, Any]) -> bool:
                    return [found.get(kind, {}).get("status") for kind in ("Installed", "Ready")] == ["True", "True"]

                before = await names(client, api.namespace)
                await apply(client, operator_manifests("operator:1", api.namespace))
                await put()
                await reached("the resource to be Ready", ready)
                first = await status()
                holds = sum(int(each["holds"].split(" ")[0]) for each in first["plan"])
                assert first["replicas"] == f"{holds}/{holds}"

                await put(schedule=[{"when": "mon-sun", "reserve": 3.0}])
                await reached("more replicas", lambda s: ready(s) and int(s["replicas"].split("/")[0]) > holds)
                assert (await status())["schedule"] == ["mon-sun"]

                files["topology.py"] += "\n# newer\n"
                job = first["Installed"]["message"]
                await put()
                await reached("a Job of the newer topology", lambda s: ready(s) and s["Installed"]["message"] != job)
                await reached("the window to be taken back", lambda s: s["schedule"] == [])

                await client.delete(RESOURCE, "reviews", namespace=api.namespace)

                async def gone() -> bool:
                    left = await names(client, api.namespace) - before
                    return (
                        left == {("ConfigMap", "reviews"), ("Deployment", "inferline-operator")}
                        and len(api.pods()) == 1
                    )

                await until(gone, "everything to be taken away")

    async def names(client: AsyncClient, namespace: str) -> set[tuple[str, str]]:
        """What there is, by kind and name."""
        return {
            (kind.__name__, plain(each)["metadata"]["name"])
            for kind in OURS
            async for each in client.list(kind, namespace=namespace)
        }
