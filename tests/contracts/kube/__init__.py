"""Exchanges with a Kubernetes API server, as the actuator has them on the wire, and how two servers' answers compare.

``KUBECONFIG=… python -m tests.contracts.kube`` has them with a real API server and writes its answers down beside this
file. No node is needed: pods stay without a place.
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

from inferline_stream.actuators.installation import Installation
from inferline_stream.actuators.installation import manifests as installation
from inferline_stream.actuators.manifests import FIELD_MANAGER, Cluster, deployment, job
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.observability.rules import Target
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.testing.kube_api import KubeApi, kubeconfig_of
from inferline_stream.testing.kube_controllers import DELETION_COST

FOLDER = Path(__file__).parent
DEADLINE_S = 60.0
KIND = catalogue()["emulated-cpu"]
_LEFT_OUT = {"managedFields", "ownerReferences", "details", "template", "controller-uid"}
_ITS_OWN = re.compile(r"resourceVersion|uid|\w+Timestamp|lastTransitionTime|generateName|template-hash$")


class Wire:
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
        """Kinds of change that a watch tells, each once, until all of those wanted came or it ends."""
        told: dict[str, Any] = {}
        params = {"watch": "true", **options}
        async with (
            asyncio.timeout(DEADLINE_S),
            self._client.stream("GET", self._path(path), params=params) as answer,
        ):
            async for line in answer.aiter_lines():
                change = json.loads(line)
                told.setdefault(change["type"], change["object"])
                if until <= told.keys():
                    break
        what = {kind: told.get(kind, {}) for kind in sorted(until)}
        body = {kind: item if kind == "ERROR" else {"kind": item.get("kind")} for kind, item in what.items()}
        self.answers[words] = {
            "status": answer.status_code,
            "type": answer.headers.get("Content-Type", ""),
            "body": body,
        }

    def _path(self, path: str) -> str:
        return path.replace("NAMESPACE", self._namespace)


def _type(answer: httpx2.Response) -> str:
    found: str = answer.headers.get("Content-Type", "")
    return found


async def exchanges(config: SingleConfig) -> dict[str, dict[str, Any]]:
    """Everything that the actuator asks, and what it can be told, of the server that a kubeconfig names; by words."""
    namespace, name = config.namespace, f"exchange-{secrets.token_hex(3)}"
    deployments, pods = "/apis/apps/v1/namespaces/NAMESPACE/deployments", "/api/v1/namespaces/NAMESPACE/pods"
    cluster = Cluster(namespace, "registry.k8s.io/pause:3.10")
    wanted = deployment(name, ReplicaSpec("", "a", "/srv/t.py", "", "kafka:9092", KIND, 1), cluster, grace_s=1.0)
    own = wanted["metadata"]["name"]
    labels = ",".join(f"{key}={value}" for key, value in wanted["spec"]["selector"]["matchLabels"].items())
    new = {**wanted, "spec": {**wanted["spec"], "replicas": 0}}
    async with AsyncClient(config, ConnectionParams(trust_env=False)) as client:
        wire = Wire(client, namespace)

        async def listed(words: str, selector: str, count: int) -> Any:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    found = await wire.ask(words, "GET", pods, labelSelector=selector)
                    looked_at = [pod for pod in found["items"] if pod["status"].get("conditions")]
                    if len(found["items"]) == len(looked_at) == count:
                        return found
                    await asyncio.sleep(0.1)

        async def scaled(words: str, replicas: int) -> None:
            body = {"metadata": {"name": own}, "spec": {"replicas": replicas}}
            await wire.ask(words, "PATCH", f"{deployments}/{own}/scale", body, patch="merge")

        await wire.ask("a Deployment that is not there", "GET", f"{deployments}/{own}")
        await wire.ask("a scale that is not there", "GET", f"{deployments}/{own}/scale")
        await wire.ask("create a Deployment", "POST", deployments, new, fieldManager=FIELD_MANAGER)
        await wire.ask("create it again", "POST", deployments, new, fieldManager=FIELD_MANAGER)
        told = {"patch": "apply", "fieldManager": FIELD_MANAGER, "force": "true"}
        await wire.ask("apply it without a number", "PATCH", f"{deployments}/{own}", wanted, **told)
        await wire.ask("apply without a manager", "PATCH", f"{deployments}/{own}", wanted, patch="apply")
        await wire.ask("its scale", "GET", f"{deployments}/{own}/scale")
        await scaled("scale to two", 2)
        before = await listed("its pods", labels, 2)
        first = before["items"][0]["metadata"]["name"]
        cost = {"metadata": {"annotations": {DELETION_COST: "-1000"}}}
        await wire.ask("a pod's cost", "PATCH", f"{pods}/{first}", cost, patch="merge")
        await wire.ask("cost of a pod that is not there", "PATCH", f"{pods}/none", cost, patch="merge")
        await wire.ask("delete a pod at once", "DELETE", f"{pods}/{first}", {"gracePeriodSeconds": 0})
        await wire.ask("delete a pod that is not there", "DELETE", f"{pods}/none", {"gracePeriodSeconds": 0})
        version = before["metadata"]["resourceVersion"]
        changes = {"ADDED", "MODIFIED", "DELETED"}
        await wire.watch("changes since a list", pods, changes, labelSelector=labels, resourceVersion=version)
        await wire.watch("changes since what is forgotten", pods, {"ERROR"}, resourceVersion="1")
        second = (await listed("its pods again", labels, 2))["items"][0]["metadata"]["name"]
        await wire.ask("the log of a pod without a place", "GET", f"{pods}/{second}/log")
        await wire.ask("the log of a pod that is not there", "GET", f"{pods}/none/log")
        await scaled("scale to none", 0)
        await listed("no pods", labels, 0)
        pulled = "involvedObject.name=none,reason=Pulled"
        await wire.ask("no events", "GET", "/api/v1/namespaces/NAMESPACE/events", fieldSelector=pulled)
        await wire.ask("no quotas", "GET", "/api/v1/namespaces/NAMESPACE/resourcequotas")
        scalers = "/apis/autoscaling/v2/namespaces/NAMESPACE/horizontalpodautoscalers"
        await wire.ask("no other scaler", "GET", scalers)
        jobs, once = "/apis/batch/v1/namespaces/NAMESPACE/jobs", f"{name}-once"
        asked = job(once, ["true"], KIND, Isolation("none"), cluster, deadline_s=60.0)
        await wire.ask("create a Job", "POST", jobs, asked)
        await wire.ask("create it a second time", "POST", jobs, asked)
        await listed("the Job's pod", f"job-name={once}", 1)
        await wire.ask("delete a Job", "DELETE", f"{jobs}/{once}", {"propagationPolicy": "Background"})
        await listed("the Job's pod is gone", f"job-name={once}", 0)
        for manifest in _installed(name, cluster):
            plural, group = f"{manifest['kind'].lower()}s".replace("policys", "policies"), manifest["apiVersion"]
            root = f"/api/{group}" if "/" not in group else f"/apis/{group}"
            path = f"{root}/namespaces/NAMESPACE/{plural}/{manifest['metadata']['name']}"
            await wire.ask(f"apply {manifest['kind']} {manifest['metadata']['name']}", "PATCH", path, manifest, **told)
            if manifest["kind"] == "ConfigMap":
                await wire.ask("apply a ConfigMap again", "PATCH", path, manifest, **told)
            if "coreos" not in group:
                await client.delete(wire._path(path), params={"propagationPolicy": "Background"})
        await wire.ask("delete a Deployment", "DELETE", f"{deployments}/{own}")
    return {_named(words, name): plain(answer, name, namespace) for words, answer in wire.answers.items()}


def _installed(name: str, cluster: Cluster) -> list[dict[str, Any]]:
    of = Installation(
        target=Target(name, 0.5, 0.99),
        topology="/srv/t.py",
        cluster=Cluster(cluster.namespace, cluster.image, f"{name}-replica"),
        bootstrap_servers="kafka:9092",
        profiles={"paths.json": "{}"},
    )
    return installation(of)


def plain(found: Any, name: str, namespace: str) -> Any:
    """An answer without what is another one each time, or long and said in the manifests already."""
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
    """Names that differ from run to run, as one word each."""
    return re.sub(r"(NAME\S*?)-(?:[0-9a-f]{9,10}-|once-)[0-9a-z]{5,6}\b", r"\1-POD", text.replace(name, "NAME"))


def contradictions(one: Any, other: Any, path: str = "") -> list[str]:
    """Where the one says something that the other does not say; the other may say more."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{path}.{key}: {value!r}, not said" for key, value in one.items() if key not in other and value]
        both = [key for key in one if key in other]
        return found + [text for key in both for text in contradictions(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [text for at, pair in pairs for text in contradictions(*pair, f"{path}.{at}")]
    return [] if one == other else [f"{path}: {one!r}, not {other!r}"]


def recorded() -> dict[str, dict[str, Any]]:
    """Answers of real API servers, by version."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("v*.json"))}


async def faked() -> dict[str, dict[str, Any]]:
    """What the fake answers, with no place for any pod and without the Prometheus operator."""
    nowhere = {KIND.name: 0, "": 0}
    async with KubeApi(places=nowhere, unknown_groups=frozenset({"monitoring.coreos.com"})) as api:
        return await exchanges(KubeConfig.from_dict(kubeconfig_of(api)).get())


async def record() -> Path:
    """Have the exchanges with the cluster that KUBECONFIG names, and write its answers down."""
    config = KubeConfig.from_env().get()
    async with AsyncClient(config, ConnectionParams(trust_env=False)) as client:
        version = (await client.get("/version")).json()["gitVersion"]
    file = FOLDER / f"{version}.json"
    file.write_text(json.dumps(await exchanges(config), indent=1, sort_keys=True) + "\n")
    return file
