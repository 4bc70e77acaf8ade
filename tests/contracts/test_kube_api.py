"""The exchanges that the Kubernetes actuator relies on: as the fake API server answers, so does a real one.

What is expected is what Kubernetes' API reference says, and what real API servers answered, see `tests.contracts.kube`.
``KUBECONFIG=… python -m pytest -m cluster`` asks a real API server the same, in the context's namespace; what is made
there is deleted. Pods need no node for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from lightkube import ApiError, AsyncClient, KubeConfig
from lightkube.models.autoscaling_v1 import ScaleSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.autoscaling_v2 import HorizontalPodAutoscaler
from lightkube.resources.core_v1 import Event, Node, Pod, ResourceQuota
from lightkube.types import PatchType

from inferline_stream.actuators.api_server import cluster_client
from inferline_stream.actuators.manifests import Cluster, deployment
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.testing.kube_api import KubeApi, client_of
from inferline_stream.testing.kube_controllers import DELETION_COST
from tests.contracts.kube import contradictions, exchanges, faked, recorded

DEADLINE_S = 60.0
RECORDED = recorded()
KIND = catalogue()["emulated-cpu"]


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.cluster)])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[AsyncClient]:
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "fake":
            api = await stack.enter_async_context(KubeApi())
            yield await stack.enter_async_context(client_of(api))
        else:
            yield await stack.enter_async_context(cluster_client())


@pytest.fixture
async def wanted(client: AsyncClient) -> AsyncIterator[dict[str, Any]]:
    """A Deployment of no replicas that is there."""
    spec = ReplicaSpec("", "a", "/srv/topology.py", "", "kafka:9092", KIND, 1)
    name = f"contract-{secrets.token_hex(3)}"
    found = deployment(name, spec, Cluster(client.namespace, "registry.k8s.io/pause:3.10"), grace_s=1.0)
    found["spec"]["replicas"] = 0
    await client.create(Deployment.from_dict(found))
    yield found
    await client.delete(Deployment, found["metadata"]["name"], namespace=client.namespace)


@pytest.mark.parametrize("version", RECORDED)
async def test_whatever_the_fake_says_a_real_api_server_has_said(version: str) -> None:
    said = await faked()
    assert said.keys() == RECORDED[version].keys()
    assert contradictions(said, RECORDED[version]) == []


@pytest.mark.cluster
async def test_what_was_written_down_is_what_the_cluster_says() -> None:
    async with cluster_client() as client:
        if nodes := [node.metadata.name async for node in client.list(Node)]:
            pytest.skip(f"the cluster has nodes, e.g. {nodes[0]}, and was asked without any")
    said = await exchanges(KubeConfig.from_env().get())
    for version, answers in RECORDED.items():
        assert contradictions(await faked(), said) == []
        assert said.keys() == answers.keys(), version


def test_a_contradiction_is_found_wherever_it_is_and_saying_less_is_none() -> None:
    real = {"status": 404, "body": {"reason": "NotFound", "items": [{"name": "a"}]}}
    assert contradictions({"status": 404, "body": {"items": [{}]}}, real) == []
    assert contradictions({"status": 200}, real) == [".status: 200, not 404"]
    assert contradictions({"body": {"items": [{"name": "b"}]}}, real) == [".body.items.0.name: 'b', not 'a'"]
    assert contradictions({"body": {"items": []}}, real) == [".body.items: [], not [{'name': 'a'}]"]
    assert contradictions({"body": {"code": 1}}, real) == [".body.code: 1, not said"]


async def refusal(asked: Any) -> tuple[int, str]:
    with pytest.raises(ApiError) as told:
        await asked
    return told.value.status.code, told.value.status.reason


async def pods(client: AsyncClient, wanted: dict[str, Any], count: int) -> tuple[list[Any], str]:
    """The Deployment's pods, once there are so many, and the version of that list."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            listed = client.list(Pod, namespace=client.namespace, labels=wanted["spec"]["selector"]["matchLabels"])
            found = [pod async for pod in listed]
            if len(found) == count:
                return found, listed.resourceVersion
            await asyncio.sleep(0.1)


async def scaled(client: AsyncClient, name: str, replicas: int) -> Any:
    scale = Deployment.Scale(metadata=ObjectMeta(name=name), spec=ScaleSpec(replicas=replicas))
    return await client.patch(Deployment.Scale, name, scale, namespace=client.namespace, patch_type=PatchType.MERGE)


async def test_what_is_not_there_and_what_is_there_already_are_told_by_code_and_reason(client, wanted) -> None:
    missing = client.get(Deployment, "contract-nothing", namespace=client.namespace)
    assert await refusal(missing) == (404, "NotFound")
    assert await refusal(client.create(Deployment.from_dict(wanted))) == (409, "AlreadyExists")
    assert await refusal(client.delete(Pod, "contract-nothing", namespace=client.namespace)) == (404, "NotFound")


async def test_a_scale_without_a_number_is_none_and_a_patched_one_makes_pods(client, wanted) -> None:
    name = wanted["metadata"]["name"]
    before = await client.get(Deployment.Scale, name, namespace=client.namespace)
    assert not before.spec.replicas
    assert (await scaled(client, name, 2)).spec.replicas == 2
    await pods(client, wanted, 2)


async def test_applying_without_a_number_leaves_the_number_as_it_is(client, wanted) -> None:
    name = wanted["metadata"]["name"]
    await scaled(client, name, 1)
    applied = {**wanted, "spec": {key: value for key, value in wanted["spec"].items() if key != "replicas"}}
    for _ in range(2):
        await client.apply(Deployment.from_dict(applied), field_manager="inferline-stream", force=True)
    assert (await client.get(Deployment.Scale, name, namespace=client.namespace)).spec.replicas == 1


async def test_a_watch_from_a_lists_version_tells_what_came_after_it(client, wanted) -> None:
    await scaled(client, wanted["metadata"]["name"], 1)
    (pod,), version = await pods(client, wanted, 1)
    labels = wanted["spec"]["selector"]["matchLabels"]
    await client.delete(Pod, pod.metadata.name, namespace=client.namespace, grace_period=0)
    told: list[tuple[str, bool]] = []
    async with asyncio.timeout(DEADLINE_S):
        async for kind, seen in client.watch(Pod, namespace=client.namespace, labels=labels, resource_version=version):
            told.append((kind, seen.metadata.name == pod.metadata.name))
            if ("DELETED", True) in told and ("ADDED", False) in told:
                break
    assert ("ADDED", True) not in told


async def test_the_cost_of_deleting_a_pod_is_taken_and_the_cheapest_goes_first(client, wanted) -> None:
    name = wanted["metadata"]["name"]
    await scaled(client, name, 2)
    (first, second), _ = await pods(client, wanted, 2)
    patch = {"metadata": {"annotations": {DELETION_COST: "-1000"}}}
    found = await client.patch(Pod, first.metadata.name, patch, namespace=client.namespace, patch_type=PatchType.MERGE)
    assert found.metadata.annotations[DELETION_COST] == "-1000"
    await scaled(client, name, 1)
    async with asyncio.timeout(DEADLINE_S):
        while True:
            left = [pod for pod in (await pods(client, wanted, 1))[0] if pod.metadata.deletionTimestamp is None]
            if left:
                break
            await asyncio.sleep(0.1)
    assert [pod.metadata.name for pod in left] == [second.metadata.name]


async def test_lists_of_what_is_not_there_are_empty(client, wanted) -> None:
    about = {"involvedObject.name": "contract-nothing", "reason": "Pulled"}
    assert [event async for event in client.list(Event, namespace=client.namespace, fields=about)] == []
    for kind in (HorizontalPodAutoscaler, ResourceQuota):
        async for found in client.list(kind, namespace=client.namespace):
            assert found.metadata.name
