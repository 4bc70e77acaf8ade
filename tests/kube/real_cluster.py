"""A Kubernetes cluster on this machine: its own API server, controllers and scheduler, with nodes that tests play.

Its pods are processes that `Kubelet` starts, as behind the fake `KubeApi`. The variable ``KUBERNETES_BINARIES`` names
the folder with kube-apiserver, kube-controller-manager, kube-scheduler and, where it is not installed, etcd: those that
`.ci/cluster` builds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import httpx2
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from lightkube import KubeConfig
from lightkube.config.client_adapter import AsyncClient, ConnectionParams

from inferline_stream.testing.local_kafka import free_ports
from tests.kube.controllers import loopback_address
from tests.kube.kubeconfig import kubeconfig
from tests.kube.node import Node
from tests.kube.store import Json
from tests.support.certificates import certify

BINARIES = "KUBERNETES_BINARIES"
START_S = 120.0
DEADLINE_S = 60.0
NODES = 6

_HEARTBEAT_S = 1.0
_GRACE_S = 8
"""A node that has been silent for so long is lost; by default 50 s."""


def binaries() -> Path | None:
    """Return the folder of Kubernetes' binaries, None where there are none."""
    folder = os.environ.get(BINARIES, "")
    return Path(folder).resolve() if folder else None


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """What a cluster is without its nodes.

    Args:
        url: of the API server.
        certificate: file that the API server's certificate is verified by.
        token: of an administrator.
    """

    url: str
    certificate: Path
    token: str

    def kubeconfig(self, namespace: str) -> Json:
        """What leads there, as a kubeconfig file holds it."""
        cluster = {"server": self.url, "certificate-authority": str(self.certificate)}
        return kubeconfig(cluster, namespace, {"token": self.token})


@contextlib.contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlane]:
    """Start one, wait until it answers, and stop it in the end.

    Args:
        folder: for its data and logs.
    """
    where = binaries()
    assert where is not None, f"{BINARIES} is not set"
    client_port, peer_port, port, managers_port, schedulers_port = free_ports(5)
    key = rsa.generate_private_key(65537, 2048)
    (folder / "account.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    certify(folder, "proxy")
    plane = ControlPlane(f"https://127.0.0.1:{port}", folder / "apiserver.crt", secrets.token_hex(16))
    (folder / "tokens.csv").write_text(f"{plane.token},test,test,system:masters\n")
    (folder / "kubeconfig").write_text(json.dumps(plane.kubeconfig("default")))
    etcd = f"http://127.0.0.1:{client_port}"
    peer = f"http://127.0.0.1:{peer_port}"
    with contextlib.ExitStack() as stack:

        def start(name: str, *options: str) -> None:
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            program = shutil.which(name, path=f"{where}{os.pathsep}{os.defpath}")
            assert program is not None, f"{name} is neither in {where} nor in {os.defpath}"
            process = subprocess.Popen([program, *options], cwd=folder, stdout=log, stderr=log)
            stack.callback(_ended, process)

        start(
            "etcd",
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )
        _until(lambda: httpx2.get(f"{etcd}/health").status_code == 200, "etcd answers", folder)
        for number in range(9):  # so that version 1 is one that the API server has never seen
            httpx2.post(f"{etcd}/v3/kv/put", json={"key": "YQ==", "value": str(number) * 4}).raise_for_status()
        start(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={folder}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder / 'account.key'}",
            f"--service-account-signing-key-file={folder / 'account.key'}",
            # By these it passes requests on to API servers of others, such as KEDA's.
            f"--requestheader-client-ca-file={folder / 'proxy.pem'}",
            f"--proxy-client-cert-file={folder / 'proxy.pem'}",
            f"--proxy-client-key-file={folder / 'proxy-key.pem'}",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        )
        verified = ssl.create_default_context()
        headers = {"Authorization": f"Bearer {plane.token}"}

        def answers() -> bool:
            verified.load_verify_locations(plane.certificate)
            return httpx2.get(f"{plane.url}/readyz", headers=headers, verify=verified).status_code == 200

        _until(answers, "kube-apiserver is ready", folder)
        start(
            "kube-controller-manager",
            f"--kubeconfig={folder / 'kubeconfig'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={managers_port}",
            f"--cert-dir={folder / 'manager'}",
            "--leader-elect=false",
            f"--service-account-private-key-file={folder / 'account.key'}",
            "--node-monitor-period=1s",
            f"--node-monitor-grace-period={_GRACE_S}s",
        )
        start(
            "kube-scheduler",
            f"--kubeconfig={folder / 'kubeconfig'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={schedulers_port}",
            f"--cert-dir={folder / 'scheduler'}",
            "--leader-elect=false",
        )
        yield plane


def _until(holds: Callable[[], bool], what: str, logs: Path) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError, httpx2.HTTPError):
            if holds():
                return
        time.sleep(0.2)
    raise AssertionError(f"waited {START_S:g} s until {what}; logs are in {logs}")


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class RealApi:
    """A namespace of a real cluster, and nodes for its pods; used as `KubeApi` is.

    Args:
        plane: the cluster.
    """

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.namespace = f"test-{secrets.token_hex(3)}"
        self.kubeconfig = plane.kubeconfig(self.namespace)
        self.applied: dict[tuple[str, str], Json] = {}
        """ConfigMaps, Secrets and Services by plural and name, when a pod got its place last."""
        self.node = Node(self._report, self._remove)
        """All of them: a pod's spec says which."""
        self._nodes = [f"node-{number}-{self.namespace}" for number in range(NODES)]
        self._silent: set[str] = set()
        self._pods: dict[str, Json] = {}
        self._slices: dict[str, Json] = {}
        self._addresses: dict[str, str] = {}
        """Of pods by name, as the cluster knows them: it takes no loopback addresses."""
        self._loopback: dict[str, str] = {}
        """By these, the addresses that they really have."""
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            config = KubeConfig.from_dict(self.kubeconfig).get()
            self._client = await stack.enter_async_context(AsyncClient(config, ConnectionParams(trust_env=False)))
            await self._ask("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
            stack.push_async_callback(self._ask, "DELETE", f"/api/v1/namespaces/{self.namespace}")
            for name in self._nodes:
                await self._register(name)
                stack.push_async_callback(self._ask, "DELETE", f"/api/v1/nodes/{name}", missing=True)
            await self._until_there(f"{self._of('serviceaccounts')}/default")
            stack.push_async_callback(self.node.aclose)
            pods, slices = self._of("pods"), self._of("endpointslices", "/apis/discovery.k8s.io/v1")
            work = (self._beat(), self._follow(pods, self._pod_changed), self._follow(slices, self._slice_changed))
            self._tasks = [asyncio.create_task(each) for each in work]
            stack.push_async_callback(self._stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _stop(self) -> None:
        failed = [task.exception() for task in self._tasks if task.done() and not task.cancelled()]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert not failed, failed

    async def account(self, name: str) -> Json:
        """Return what leads there with the rights of a service account, as a kubeconfig file holds it."""
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        granted = await self._ask("POST", f"{self._of('serviceaccounts')}/{name}/token", request)
        users = [{"name": "test", "user": {"token": granted["status"]["token"]}}]
        return {**self.kubeconfig, "users": users}

    def pods(self) -> list[Json]:
        """All pods, oldest first."""
        return list(self._pods.values())

    def endpoints(self, service: str) -> list[str]:
        """Addresses of the pods that a Service leads to now, as its EndpointSlices say."""
        return [
            self._loopback[address]
            for found in self._slices.values()
            if found["metadata"]["labels"]["kubernetes.io/service-name"] == service
            for endpoint in found["endpoints"] or ()
            if endpoint["conditions"].get("ready")
            for address in endpoint["addresses"]
        ]

    async def lose_node_of(self, pod: str) -> None:
        """The pod's node has lost its power: its processes are gone, and it is silent."""
        node = self._pods[pod]["spec"]["nodeName"]
        self._silent.add(node)
        for name, other in self._pods.items():
            if other["spec"].get("nodeName") == node:
                self.node.lose(name)

    async def discard_lost_nodes(self) -> None:
        """Silent nodes are deleted, as a cloud does once a machine is no more: their pods are forgotten."""
        for name in self._silent:
            await self._ask("DELETE", f"/api/v1/nodes/{name}", missing=True)

    async def evict(self, pod: str) -> None:
        """The pod is to go in its own time, as when its node is emptied; a disruption budget may delay it."""
        metadata = {"name": pod, "namespace": self.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        async with asyncio.timeout(DEADLINE_S):
            while await self._status("POST", f"{self._of('pods')}/{pod}/eviction", eviction) == 429:
                await asyncio.sleep(0.2)

    def _of(self, plural: str, root: str = "/api/v1") -> str:
        return f"{root}/namespaces/{self.namespace}/{plural}"

    async def _register(self, name: str) -> None:
        capacity = {"cpu": "64", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}
        labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        await self._ask("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
        lease = {
            "metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": _GRACE_S, "renewTime": _now()},
        }
        await self._ask("POST", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", lease)
        condition = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "lastHeartbeatTime": _now()[:19] + "Z",
        }
        status = {"capacity": capacity, "allocatable": capacity, "conditions": [condition]}
        await self._ask("PATCH", f"/api/v1/nodes/{name}/status", {"status": status})

    async def _beat(self) -> None:
        while True:
            for name in self._nodes:
                if name not in self._silent:
                    path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"
                    await self._ask("PATCH", path, {"spec": {"renewTime": _now()}})
            await asyncio.sleep(_HEARTBEAT_S)

    async def _follow(self, path: str, take: Callable[[str, Json], Awaitable[None]]) -> None:
        found = await self._ask("GET", path)
        for item in found["items"]:
            await take("ADDED", item)
        params = {"watch": "true", "resourceVersion": found["metadata"]["resourceVersion"]}
        async with self._client.stream("GET", path, params=params, timeout=None) as answer:
            async for text in answer.aiter_lines():
                change = json.loads(text)
                await take(change["type"], change["object"])
        raise AssertionError(f"the watch of {path} has ended")

    async def _slice_changed(self, change: str, found: Json) -> None:
        name = found["metadata"]["name"]
        if change == "DELETED":
            self._slices.pop(name, None)
        else:
            self._slices[name] = found

    async def _pod_changed(self, change: str, pod: Json) -> None:
        name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
        before = self._pods.get(name)
        if change == "DELETED":
            self._pods.pop(name, None)
            self.node.lose(name)
            return
        self._pods[name] = pod
        if node is None or node in self._silent:
            return
        if name not in self._addresses:
            number = len(self._addresses)
            address = self._addresses[name] = f"10.244.{number // 250}.{number % 250 + 1}"
            self._loopback[address] = loopback_address(number)
            await self._read_applied()
            self.node.place({**pod, "status": {**pod["status"], "podIP": self._loopback[address]}})
        if "deletionTimestamp" in pod["metadata"] and "deletionTimestamp" not in (before or pod)["metadata"]:
            self.node.terminate(name, pod["metadata"]["deletionGracePeriodSeconds"])

    async def _read_applied(self) -> None:
        for plural in ("configmaps", "secrets", "services"):
            found = await self._ask("GET", self._of(plural))
            self.applied |= {(plural, item["metadata"]["name"]): item for item in found["items"]}

    async def _report(self, name: str, status: Json) -> None:
        """What a node says of a pod."""
        if (pod := self._pods.get(name)) is None:
            return
        address = self._addresses[name]
        (container,) = status["containerStatuses"]
        ready = str(container["ready"])
        status = {
            **status,
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": kind, "status": ready} for kind in ("Ready", "ContainersReady")],
            "containerStatuses": [{**container, "name": pod["spec"]["containers"][0]["name"]}],
        }
        await self._ask("PATCH", f"{self._of('pods')}/{name}/status", {"status": status}, missing=True)

    async def _remove(self, name: str) -> None:
        """A pod has ended as it was asked to, says its node."""
        await self._ask("DELETE", f"{self._of('pods')}/{name}", {"gracePeriodSeconds": 0}, missing=True)

    async def _until_there(self, path: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while await self._status("GET", path) != 200:
                await asyncio.sleep(0.1)

    async def _status(self, method: str, path: str, body: Json | None = None) -> int:
        answer = await self._client.request(method, path, json=body)
        assert answer.status_code in (200, 201, 404, 429), answer.text
        return answer.status_code

    async def _ask(self, method: str, path: str, body: Json | None = None, *, missing: bool = False) -> Json:
        kind = "application/strategic-merge-patch+json" if method == "PATCH" else "application/json"
        content = None if body is None else json.dumps(body)
        answer = await self._client.request(method, path, content=content, headers={"Content-Type": kind})
        assert answer.is_success or (missing and answer.status_code == 404), f"{method} {path}: {answer.text}"
        found: Json = answer.json()
        return found


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
