"""The cluster that KUBECONFIG names, with a node without a machine in it: pods run there in name only.

It needs a control plane alone (API server, controllers, scheduler) and the right to make a node. Where the cluster has
nodes of its own, pods would be placed on those and be real: it is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from lightkube import ApiError, AsyncClient, KubeConfig
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import User
from lightkube.resources.core_v1 import Event, Pod, ServiceAccount, ServiceAccountToken
from lightkube.resources.core_v1 import Node as NodeObject
from lightkube.resources.rbac_authorization_v1 import Role, RoleBinding
from lightkube.types import PatchType

from inferline_stream.actuators.installation import RIGHTS
from inferline_stream.actuators.manifests import FIELD_MANAGER
from inferline_stream.testing.kube_node import Node

_HEARTBEAT_S = 5.0
_ROOM = {"cpu": "64", "memory": "256Gi", "pods": "500", "nvidia.com/gpu": "4"}


@contextlib.asynccontextmanager
async def node_without_machine(client: AsyncClient) -> AsyncIterator[Node]:
    """A node of the cluster, for as long as this lasts; its pods do what `Node` says."""
    if others := [
        found.metadata.name async for found in client.list(NodeObject) if "inferline" not in found.metadata.name
    ]:
        pytest.skip(f"the cluster has nodes of its own, e.g. {others[0]}: this needs a control plane alone")
    name = f"inferline-{secrets.token_hex(4)}"
    await client.create(NodeObject.from_dict({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}))
    reporter = _Reporter(client, name)
    node = Node(reporter.report, reporter.remove)
    reporter.node = node
    tasks = [asyncio.create_task(work) for work in (reporter.beat(), reporter.follow())]
    try:
        await reporter.ready()
        yield node
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await node.aclose()
        await client.delete(NodeObject, name)


@contextlib.asynccontextmanager
async def controllers_client(client: AsyncClient) -> AsyncIterator[AsyncClient]:
    """A client with the rights that `deploy` gives a controller, and no others."""
    name, namespace = f"contract-{secrets.token_hex(4)}", client.namespace
    rules = [
        {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)} for group, resources, verbs in RIGHTS
    ]
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    made: list[Any] = [
        ServiceAccount.from_dict({"metadata": {"name": name, "namespace": namespace}}),
        Role.from_dict({"metadata": {"name": name, "namespace": namespace}, "rules": rules}),
        RoleBinding.from_dict(
            {"metadata": {"name": name, "namespace": namespace}, "roleRef": role, "subjects": [subject]}
        ),
    ]
    for item in made:
        await client.create(item)
    asked = ServiceAccountToken.from_dict({"metadata": {}, "spec": {"audiences": [], "expirationSeconds": 3600}})
    given = await client.create(asked, name, namespace=namespace)
    found = KubeConfig.from_env().get()
    user = User(token=given.status.token)
    own = SingleConfig(found.context_name, found.context, found.cluster, user, found.fname)
    try:
        async with AsyncClient(config=own, field_manager=FIELD_MANAGER) as limited:
            yield limited
    finally:
        for item in reversed(made):
            await client.delete(type(item), name, namespace=namespace)


class _Reporter:
    """Speaks for one node, as its kubelet would."""

    node: Node

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client = client
        self._name = name
        self._told: set[str] = set()

    async def beat(self) -> None:
        while True:
            conditions = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
            status = {"capacity": _ROOM, "allocatable": _ROOM, "conditions": conditions}
            await self._client.patch(NodeObject.Status, self._name, {"status": status}, patch_type=PatchType.STRATEGIC)
            await asyncio.sleep(_HEARTBEAT_S)

    async def ready(self) -> None:
        """Until the scheduler may use it."""
        async with asyncio.timeout(30):
            while (found := await self._client.get(NodeObject, self._name)).spec.taints or not found.status.conditions:
                await asyncio.sleep(0.05)

    async def follow(self) -> None:
        placed: set[str] = set()
        ending: set[str] = set()
        pods = self._client.list(Pod, namespace="*", fields={"spec.nodeName": self._name})
        assert [pod async for pod in pods] == []
        async for kind, pod in self._client.watch(
            Pod, namespace="*", fields={"spec.nodeName": self._name}, resource_version=pods.resourceVersion
        ):
            name = pod.metadata.name
            if kind == "DELETED":
                self.node.lose(name)
            elif name not in placed:
                placed.add(name)
                self.node.place(pod.to_dict())
            if kind != "DELETED" and pod.metadata.deletionTimestamp is not None and name not in ending:
                ending.add(name)
                self.node.terminate(name, pod.metadata.deletionGracePeriodSeconds)

    async def report(self, pod: str, status: dict[str, Any]) -> None:
        (container,) = status["containerStatuses"]
        if "running" in container["state"] and pod not in self._told:
            self._told.add(pod)
            await self._pulled(pod)
        conditions = [
            {
                "type": kind,
                "status": "True" if kind in ("PodScheduled", "Initialized") or container["ready"] else "False",
            }
            for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ]
        with contextlib.suppress(ApiError):  # it is gone meanwhile
            await self._client.patch(
                Pod.Status,
                pod,
                {"status": {**status, "conditions": conditions}},
                namespace=self._client.namespace,
                patch_type=PatchType.MERGE,
            )

    async def remove(self, pod: str) -> None:
        with contextlib.suppress(ApiError):
            await self._client.delete(Pod, pod, namespace=self._client.namespace, grace_period=0)

    async def _pulled(self, pod: str) -> None:
        said = {True: "Successfully pulled image", False: "Container image already present on machine"}
        event = {
            "metadata": {"name": f"{pod}.{secrets.token_hex(4)}", "namespace": self._client.namespace},
            "involvedObject": {"kind": "Pod", "name": pod, "namespace": self._client.namespace},
            "reason": "Pulled",
            "message": said[self.node.pulled[pod]],
            "type": "Normal",
        }
        await self._client.create(Event.from_dict(event))
