"""What works behind a fake Kubernetes API server: pods come and go as its own controllers and scheduler would have it.

A Deployment makes and ends pods in the order of Kubernetes' ReplicaSet controller; a scheduler gives them places while
there are any; a quota refuses them.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import itertools
import json
import os
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

from inferline_stream.actuators.kubernetes.object_names import HARDWARE_LABEL
from tests.kube.node import Node
from tests.kube.store import Json, Store, belongs, placed, ready

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
TEMPLATE_HASH = "pod-template-hash"


@dataclass(slots=True)
class Controllers:
    """Those of one namespace.

    Args:
        store: has Deployments and pods.
        node: runs every pod that has a place.
        namespace: of all.
        places: pods of a hardware kind that find a place at once; kinds left out have no limit.
        quota: hard limits of the namespace's ResourceQuota, e.g. ``requests.nvidia.com/gpu``; whole numbers.
    """

    store: Store
    node: Node
    namespace: str
    places: dict[str, int]
    quota: dict[str, str]
    every_pod: list[Json] = field(default_factory=list)
    _pods_made: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _addresses: itertools.count[int] = field(default_factory=itertools.count)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def pods(self) -> list[Json]:
        """All pods, oldest first."""
        return list(self.store.of("pods").values())

    def used(self, resource: str) -> int:
        """Of what a quota limits."""
        return sum(_asked(pod, resource) for pod in self.pods())

    def reconcile_soon(self, deployment: Json) -> None:
        """Its controller learns of a change in its own time."""
        task = asyncio.create_task(self.reconcile(deployment))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Nothing is done any more."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def reconcile(self, deployment: Json) -> None:
        """As the Deployment and ReplicaSet controllers do; a changed template replaces pods one after another."""
        spec = deployment["spec"]
        wanted, template = spec.get("replicas", 1), spec["template"]
        version = _hash(template)
        own = self._own(deployment)
        old = [pod for pod in own if pod["metadata"]["labels"][TEMPLATE_HASH] != version]
        if old:
            unavailable = spec.get("strategy", {}).get("rollingUpdate", {}).get("maxUnavailable", 0)
            spare = sum(ready(pod) for pod in own) - wanted + unavailable
            going = [pod for pod in old if not ready(pod)] + [pod for pod in old if ready(pod)][: max(0, spare)]
        else:
            going = sorted(own, key=_goes_before, reverse=True)[: max(0, len(own) - wanted)]
        for pod in going:
            await self.terminate(pod)
        own = self._own(deployment)
        new = sum(pod["metadata"]["labels"][TEMPLATE_HASH] == version for pod in own)
        surge = spec.get("strategy", {}).get("rollingUpdate", {}).get("maxSurge", 1) if len(own) > new else 0
        for _ in range(min(wanted - new, wanted + surge - len(own))):
            labelled = copy.deepcopy(template)
            labelled["metadata"]["labels"][TEMPLATE_HASH] = version
            await self.make_pod(f"{deployment['metadata']['name']}-{version}-{secrets.token_hex(3)}", labelled)

    def _own(self, deployment: Json) -> list[Json]:
        """A Deployment's pods that are not on their way out."""
        return [p for p in self.pods() if belongs(p, deployment) and "deletionTimestamp" not in p["metadata"]]

    async def make_pod(self, name: str, template: Json) -> None:
        """Make one, unless the quota is used up: a Deployment tries again when something else changes."""
        template = copy.deepcopy(template)
        if any(self.used(name) + _asked(template, name) > int(most) for name, most in self.quota.items()):
            return
        pod = {
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "uid": f"{next(self._pods_made):08d}",
                "creationTimestamp": _now(),
                "labels": template["metadata"]["labels"],
                "annotations": {},
            },
            "spec": template["spec"],
            "status": {"phase": "Pending", "conditions": [], "containerStatuses": []},
        }
        self.store.of("pods")[name] = pod
        self.every_pod.append(pod)
        await self.store.tell("ADDED", pod)
        await self._schedule(pod)

    async def look_for_places(self) -> None:
        """The scheduler looks again at every pod that waits, as it does when a node is added."""
        for waiting in self.pods():
            if not placed(waiting) and "deletionTimestamp" not in waiting["metadata"]:
                await self._schedule(waiting)

    async def _schedule(self, pod: Json) -> None:
        kind = pod["metadata"]["labels"].get(HARDWARE_LABEL, "")
        alike = [p for p in self.pods() if p["metadata"]["labels"].get(HARDWARE_LABEL) == kind and placed(p)]
        if len(alike) >= self.places.get(kind, len(alike) + 1):
            message = f"0/1 nodes are available: 1 Insufficient {kind}."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        else:
            condition = {"type": "PodScheduled", "status": "True"}
            number = next(self._addresses)
            pod["spec"]["nodeName"] = f"node-{number}"
            pod["status"]["podIP"] = loopback_address(number)
            self.node.place(pod)
        pod["status"]["conditions"] = [condition]
        await self.store.tell("MODIFIED", pod)

    async def report(self, name: str, status: Json) -> None:
        """What a node says of a pod."""
        if (pod := self.store.of("pods").get(name)) is not None:
            pod["status"].update(status)
            await self.store.tell("MODIFIED", pod)
            for deployment in self._deployments_of(pod) if ready(pod) else ():
                await self.reconcile(deployment)

    async def terminate(self, pod: Json, grace_s: float | None = None) -> None:
        """A pod is deleted: at once, or within its grace period where it has a place."""
        if grace_s is None:
            grace_s = pod["spec"].get("terminationGracePeriodSeconds", 30)
        if "deletionTimestamp" in pod["metadata"] and grace_s > 0:
            return
        name = pod["metadata"]["name"]
        if grace_s == 0 or not placed(pod):
            await self.remove(name)
            return
        pod["metadata"]["deletionTimestamp"] = _now()
        pod["metadata"]["deletionGracePeriodSeconds"] = grace_s
        await self.store.tell("MODIFIED", pod)
        self.node.terminate(name, grace_s)

    async def remove(self, name: str) -> None:
        """A pod is no more; its Deployment makes another, and its place is free."""
        pod = self.store.of("pods").pop(name, None)
        if pod is None:
            return
        self.node.lose(name)
        await self.store.tell("DELETED", pod)
        for deployment in self._deployments_of(pod):
            await self.reconcile(deployment)
        await self.look_for_places()

    def _deployments_of(self, pod: Json) -> list[Json]:
        return [found for found in self.store.of("deployments").values() if belongs(pod, found)]


def loopback_address(number: int) -> str:
    """Return a pod's own address: other processes of this machine have clusters, too."""
    pid = os.getpid()
    return f"127.{64 + pid % 128}.{(pid // 128 + number // 250) % 250}.{number % 250 + 1}"


def _hash(template: Json) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _asked(pod: Json, name: str) -> int:
    """Of a resource, as a quota names it, by a pod or a template of one."""
    if name == "pods":
        return 1
    found = pod["spec"]["containers"][0].get("resources", {}).get("requests", {})
    return int(found.get(name.removeprefix("requests."), "0"))


def _goes_before(pod: Json) -> tuple[bool, bool, int, str, str]:
    """The greatest goes first: no place, not ready, cheapest to delete, youngest."""
    cost = int(pod["metadata"]["annotations"].get(DELETION_COST, "0"))
    return (not placed(pod), not ready(pod), -cost, pod["metadata"]["creationTimestamp"], pod["metadata"]["uid"])
