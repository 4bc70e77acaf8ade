"""Exchanges with a Kubernetes API server, as the actuator has them on the wire, and how two servers' answers compare.

``v1.36.3.json`` holds what a real kube-apiserver answered on 25 November 2026, without nodes: no pod has a place.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from pathlib import Path
from typing import Any

import httpx2
from lightkube import KubeConfig
from lightkube.config.client_adapter import AsyncClient, ConnectionParams
from lightkube.config.kubeconfig import SingleConfig

from tests.kube.api import KubeApi
from tests.kube.controllers import DELETION_COST

FOLDER = Path(__file__).parent
DEADLINE_S = 60.0
MANAGER = "inferline-stream"
_LEFT_OUT = {"managedFields", "ownerReferences", "details", "template", "controller-uid"}
_ITS_OWN = re.compile(r"resourceVersion|uid|\w+Timestamp|lastTransitionTime|generateName|template-hash$")


def deployment(name: str, namespace: str) -> dict[str, Any]:
    """A Deployment like those of replicas, as it was when the answers were written down."""
    labels = {
        "app.kubernetes.io/managed-by": MANAGER,
        "inferline-stream.dev/pipeline": name,
        "inferline-stream.dev/stage": "a",
        "inferline-stream.dev/hardware": "emulated-cpu",
    }
    pod = {
        "containers": [{"name": "replica", "image": "registry.k8s.io/pause:3.10"}],
        "terminationGracePeriodSeconds": 1,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"{name}-a-emulated-cpu", "namespace": namespace, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        },
    }


class Recorder:
    """Asks and writes down: what was asked in words, the answer's status, type and body."""

    def __init__(self, client: httpx2.AsyncClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self.answers: dict[str, dict[str, Any]] = {}

    async def ask(self, words: str, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """One exchange; returns the answer's body."""
        patch = {"merge": "application/merge-patch+json", "apply": "application/apply-patch+yaml"}
        headers = {"Content-Type": patch[options.pop("patch")] if method == "PATCH" else "application/json"}
        content = None if body is None else json.dumps(body)
        answer = await self._client.request(
            method, self._path(path), content=content, headers=headers, params=options or None
        )
        found = answer.json() if answer.headers.get("Content-Type", "").startswith("application/json") else answer.text
        self.answers[words] = {
            "status": answer.status_code,
            "type": answer.headers.get("Content-Type", ""),
            "body": found,
        }
        return found

    async def watch(self, words: str, path: str, until: set[str], **options: str) -> None:
        """Write down kinds of change that a watch sends, each once, until all of those wanted came or it ends."""
        found: dict[str, Any] = {}
        params = {"watch": "true", **options}
        async with (
            asyncio.timeout(DEADLINE_S),
            self._client.stream("GET", self._path(path), params=params) as answer,
        ):
            async for line in answer.aiter_lines():
                change = json.loads(line)
                found.setdefault(change["type"], change["object"])
                if until <= found.keys():
                    break
        what = {kind: found.get(kind, {}) for kind in sorted(until)}
        body = {kind: item if kind == "ERROR" else {"kind": item.get("kind")} for kind, item in what.items()}
        self.answers[words] = {
            "status": answer.status_code,
            "type": answer.headers.get("Content-Type", ""),
            "body": body,
        }

    def _path(self, path: str) -> str:
        return path.replace("NAMESPACE", self._namespace)


async def exchanges(config: SingleConfig) -> dict[str, dict[str, Any]]:
    """Return what the server that a kubeconfig names answers to what the actuator asks, by words."""
    namespace, name = config.namespace, f"exchange-{secrets.token_hex(3)}"
    deployments, pods = "/apis/apps/v1/namespaces/NAMESPACE/deployments", "/api/v1/namespaces/NAMESPACE/pods"
    wanted = deployment(name, namespace)
    own = wanted["metadata"]["name"]
    labels = ",".join(f"{key}={value}" for key, value in wanted["spec"]["selector"]["matchLabels"].items())
    new = {**wanted, "spec": {**wanted["spec"], "replicas": 0}}
    async with AsyncClient(config, ConnectionParams(trust_env=False)) as client:
        recorder = Recorder(client, namespace)

        async def listed(words: str, selector: str, count: int) -> Any:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    found = await recorder.ask(words, "GET", pods, labelSelector=selector)
                    looked_at = [pod for pod in found["items"] if pod["status"].get("conditions")]
                    if len(found["items"]) == len(looked_at) == count:
                        return found
                    await asyncio.sleep(0.1)

        async def scaled(words: str, replicas: int) -> None:
            body = {"metadata": {"name": own}, "spec": {"replicas": replicas}}
            await recorder.ask(words, "PATCH", f"{deployments}/{own}/scale", body, patch="merge")

        await recorder.ask("a Deployment that is not there", "GET", f"{deployments}/{own}")
        await recorder.ask("a scale that is not there", "GET", f"{deployments}/{own}/scale")
        await recorder.ask("create a Deployment", "POST", deployments, new, fieldManager=MANAGER)
        await recorder.ask("create it again", "POST", deployments, new, fieldManager=MANAGER)
        options = {"patch": "apply", "fieldManager": MANAGER, "force": "true"}
        await recorder.ask("apply it without a number", "PATCH", f"{deployments}/{own}", wanted, **options)
        await recorder.ask("apply without a manager", "PATCH", f"{deployments}/{own}", wanted, patch="apply")
        await recorder.ask("its scale", "GET", f"{deployments}/{own}/scale")
        await scaled("scale to two", 2)
        before = await listed("its pods", labels, 2)
        first = before["items"][0]["metadata"]["name"]
        cost = {"metadata": {"annotations": {DELETION_COST: "-1000"}}}
        await recorder.ask("a pod's cost", "PATCH", f"{pods}/{first}", cost, patch="merge")
        await recorder.ask("cost of a pod that is not there", "PATCH", f"{pods}/none", cost, patch="merge")
        await recorder.ask("delete a pod at once", "DELETE", f"{pods}/{first}", {"gracePeriodSeconds": 0})
        await recorder.ask("delete a pod that is not there", "DELETE", f"{pods}/none", {"gracePeriodSeconds": 0})
        version = before["metadata"]["resourceVersion"]
        changes = {"ADDED", "MODIFIED", "DELETED"}
        await recorder.watch("changes since a list", pods, changes, labelSelector=labels, resourceVersion=version)
        await recorder.watch("changes since what is forgotten", pods, {"ERROR"}, resourceVersion="1")
        await listed("its pods again", labels, 2)
        await scaled("scale to none", 0)
        await listed("no pods", labels, 0)
        await recorder.ask("no quotas", "GET", "/api/v1/namespaces/NAMESPACE/resourcequotas")
        scalers = "/apis/autoscaling/v2/namespaces/NAMESPACE/horizontalpodautoscalers"
        await recorder.ask("no other scaler", "GET", scalers)
        monitor = {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "ServiceMonitor",
            "metadata": {"name": f"{name}-controller", "namespace": namespace},
        }
        path = f"/apis/monitoring.coreos.com/v1/namespaces/NAMESPACE/servicemonitors/{name}-controller"
        await recorder.ask("apply a ServiceMonitor", "PATCH", path, monitor, **options)
        await recorder.ask("delete a Deployment", "DELETE", f"{deployments}/{own}")
    return {_named(words, name): plain(answer, name, namespace) for words, answer in recorder.answers.items()}


def plain(found: Any, name: str, namespace: str) -> Any:
    """Return an answer without what is another one each time, or long and said in the manifests already."""
    if isinstance(found, dict):
        if found.get("reason") == "Unschedulable":  # says of which nodes, and of what they have too little
            found = {**found, "message": "ITS OWN"}
        if found.get("kind") == "Scale":  # its number comes when the Deployment's controller has counted
            found = {**found, "status": {"replicas": "ITS OWN"}}
        return {
            key: "ITS OWN" if _ITS_OWN.search(key) and isinstance(value, str) else plain(value, name, namespace)
            for key, value in found.items()
            if key not in _LEFT_OUT and "controller-uid" not in key and not _is_pod_spec(key, value)
        }
    if isinstance(found, list):
        return [plain(value, name, namespace) for value in found]
    if isinstance(found, str):
        return "NAMESPACE" if found == namespace else re.sub(r"\d+ \(\d+\)", "N (N)", _named(found, name))
    return found


def _is_pod_spec(key: str, value: Any) -> bool:
    return key == "spec" and "containers" in value


def _named(text: str, name: str) -> str:
    """Return a text with names that differ from run to run as one word each."""
    return re.sub(r"(NAME\S*?)-(?:[0-9a-f]{9,10}-|once-)[0-9a-z]{5,6}\b", r"\1-POD", text.replace(name, "NAME"))


def contradictions(one: Any, other: Any, path: str = "") -> list[str]:
    """Return where the one says something that the other does not say; the other may say more."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{path}.{key}: {value!r}, not said" for key, value in one.items() if key not in other and value]
        both = [key for key in one if key in other]
        return found + [text for key in both for text in contradictions(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [text for at, pair in pairs for text in contradictions(*pair, f"{path}.{at}")]
    return [] if one == other else [f"{path}: {one!r}, not {other!r}"]


def recorded() -> dict[str, dict[str, Any]]:
    """Return answers of real API servers, by version."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("v*.json"))}


async def faked() -> dict[str, dict[str, Any]]:
    """Return what the fake answers, with no place for any pod and without the Prometheus operator."""
    nowhere = {"emulated-cpu": 0, "": 0}
    async with KubeApi(places=nowhere, unknown_groups=frozenset({"monitoring.coreos.com"})) as api:
        return await exchanges(KubeConfig.from_dict(api.kubeconfig).get())
