"""A small Kubernetes API server for tests: Deployments, pods and whatever is applied, in one namespace.

It keeps what an actuator relies on: resource versions, list and watch that begins where the list ended, 410 for a
version it has forgotten, server-side apply that leaves other managers' fields alone. `controllers` and `node` are what
works behind it.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, Self

from aiohttp import web
from lightkube import AsyncClient, KubeConfig

from tests.kube.answers import (
    POD,
    SUCCESS,
    answer,
    body,
    failure,
    line,
    missing,
    not_applicable,
    refused,
    selector_of,
)
from tests.kube.controllers import Controllers
from tests.kube.kubeconfig import kubeconfig
from tests.kube.node import Container, Node
from tests.kube.store import Json, Store, belongs, merged, ready, selected


class Api(Protocol):
    """A namespace of a cluster, fake or real, whose nodes run containers as the test says."""

    namespace: str
    applied: dict[tuple[str, str], Json]
    node: Node

    @property
    def kubeconfig(self) -> Json:
        """What leads there, as a kubeconfig file holds it."""

    async def account(self, name: str) -> Json:
        """Return what leads there with the rights of a service account, as a kubeconfig file holds it."""

    def pods(self) -> list[Json]:
        """All pods, oldest first."""

    def endpoints(self, service: str) -> list[str]:
        """Addresses of the pods that a Service leads to now."""

    async def lose_node_of(self, pod: str) -> None:
        """The pod's node is gone."""

    async def discard_lost_nodes(self) -> None:
        """Lost nodes are deleted, and their pods forgotten."""

    async def evict(self, pod: str) -> None:
        """The pod is to go in its own time, as when its node is emptied."""


class KubeApi:
    """The API server and what works behind it; `async with` serves it on a free port of 127.0.0.1.

    Args:
        start_up_s: from a pod's place to its container's start.
        places: pods of a hardware kind that find a place at once; kinds left out have no limit.
        run: what a container does until it ends, see `Node`.
        keep_events: changes remembered for watches; a watch from before them gets 410.
        namespace: of everything.
        quota: hard limits of the namespace's ResourceQuota, e.g. ``requests.nvidia.com/gpu``; whole numbers.
        unknown_groups: API groups that this server does not have, such as those of an operator not installed.
    """

    def __init__(
        self,
        *,
        start_up_s: float = 0.0,
        places: Mapping[str, int] | None = None,
        run: Callable[[Container], Awaitable[int]] | None = None,
        keep_events: int = 1000,
        namespace: str = "test",
        quota: Mapping[str, str] | None = None,
        unknown_groups: frozenset[str] = frozenset(),
    ) -> None:
        self.namespace = namespace
        self.url = ""
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request so far."""
        self.applied: dict[tuple[str, str], Json] = {}
        """What was applied beside Deployments, by plural and name."""
        self.places = dict(places or {})
        self.quota = dict(quota or {})
        self.refuse: Callable[[web.Request], web.Response | None] = lambda request: None
        """What is answered in the place of the usual, for some requests."""
        self.node_labels: list[Mapping[str, str]] = []
        """Of each node, where somebody lists them."""
        self.mute = False
        """Whether watches get nothing, as behind a connection that died silently."""
        self._unknown_groups = unknown_groups
        self._store = Store(keep_events)
        self.node = Node(self._reported, self.lose_node_of, start_up_s, run)
        self.containers = self.node.containers
        """Running containers by their pod's name."""
        self._controllers = Controllers(self._store, self.node, namespace, self.places, self.quota)
        self._cluster_ips = itertools.count(1)
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.serve()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_serving()
        await self._controllers.aclose()
        await self.node.aclose()

    @property
    def kubeconfig(self) -> Json:
        """What leads there, as a kubeconfig file holds it."""
        return kubeconfig({"server": self.url}, self.namespace, {})

    async def account(self, name: str) -> Json:
        """Return the same for every service account: rights are not kept here."""
        return self.kubeconfig

    async def serve(self) -> None:
        """Answer, on the same port as before if there was one."""
        app = web.Application(middlewares=[self._noted])
        deployments = f"/apis/apps/v1/namespaces/{self.namespace}/deployments"
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        app.add_routes(
            [
                web.get(f"/api/v1/namespaces/{self.namespace}/resourcequotas", self._list_quotas),
                web.get("/api/v1/nodes", self._list_nodes),
                web.get(pods, self._list_pods),
                web.patch(pods + "/{name}", self._patch_pod),
                web.delete(pods + "/{name}", self._delete_pod),
                web.get(deployments, self._list_deployments),
                web.post(deployments, self._create_deployment),
                web.get(deployments + "/{name}", self._get_deployment),
                web.patch(deployments + "/{name}", self._apply_deployment),
                web.delete(deployments + "/{name}", self._delete_deployment),
                web.get(deployments + "/{name}/scale", self._get_scale),
                web.patch(deployments + "/{name}/scale", self._patch_scale),
                web.get(f"/apis/autoscaling/v2/namespaces/{self.namespace}/horizontalpodautoscalers", self._list_hpas),
                web.patch(f"/api/v1/namespaces/{self.namespace}/{{plural}}/{{name}}", self._apply),
                web.patch(f"/apis/{{group}}/{{version}}/namespaces/{self.namespace}/{{plural}}/{{name}}", self._apply),
                *(
                    route
                    for root in ("/api/v1", "/apis/{group}/{version}")
                    for route in (
                        web.get(f"{root}/namespaces/{self.namespace}/{{plural}}", self._list_applied),
                        web.get(f"{root}/namespaces/{self.namespace}/{{plural}}/{{name}}", self._get_applied),
                        web.delete(f"{root}/namespaces/{self.namespace}/{{plural}}/{{name}}", self._delete_applied),
                    )
                ),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop_serving(self) -> None:
        """An outage: connections are cut, nobody answers; pods go on."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def forget_events(self) -> None:
        """Answer every watch that resumes from before now with 410."""
        self._store.forget()

    def autoscaler(self, deployment: str) -> None:
        """Somebody else scales this Deployment."""
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment}
        self._store.of("hpas")[deployment] = {
            "metadata": {"name": f"{deployment}-hpa", "namespace": self.namespace},
            "spec": {"scaleTargetRef": target, "maxReplicas": 9},
        }

    async def lose_node_of(self, pod: str) -> None:
        """The pod's node is gone: the pod is deleted by force."""
        await self._controllers.remove(pod)

    async def discard_lost_nodes(self) -> None:
        """Nothing is left of them here."""

    async def evict(self, pod: str) -> None:
        """The pod is to go in its own time, as when its node is emptied."""
        await self._controllers.terminate(self._store.of("pods")[pod])

    async def look_for_places(self) -> None:
        """The scheduler looks again at every pod that waits, as it does when a node is added."""
        await self._controllers.look_for_places()

    def endpoints(self, service: str) -> list[str]:
        """Addresses of the pods that a Service leads to now."""
        selector = self.applied["services", service]["spec"]["selector"]
        return [
            pod["status"]["podIP"]
            for pod in self.pods()
            if selected(pod, selector) and ready(pod) and "deletionTimestamp" not in pod["metadata"]
        ]

    @property
    def every_pod(self) -> list[Json]:
        """Every pod that there ever was, oldest first."""
        return self._controllers.every_pod

    def pods(self) -> list[Json]:
        """All pods, oldest first."""
        return self._controllers.pods()

    def deployments(self) -> list[Json]:
        """All Deployments."""
        return list(self._store.of("deployments").values())

    def deployment(self, name: str) -> Json:
        """A Deployment as it is now."""
        return self._store.of("deployments")[name]

    async def _reported(self, pod: str, status: Json) -> None:
        await self._controllers.report(pod, status)

    @web.middleware
    async def _noted(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if (refusal := self.refuse(request)) is not None:
            return refusal
        return await handler(request)

    def _list(self, kind: str, items: list[Json], version: str = "v1") -> web.Response:
        metadata = {"resourceVersion": str(self._store.version)}
        return answer({"kind": f"{kind}List", "apiVersion": version, "metadata": metadata, "items": items})

    async def _list_pods(self, request: web.Request) -> web.StreamResponse:
        selector = selector_of(request)
        if request.query.get("watch") == "true":
            return await self._watch(request, selector)
        found = sorted(self.pods(), key=lambda pod: pod["metadata"]["name"])
        items = [copy.deepcopy(pod) for pod in found if selected(pod, selector)]
        return self._list("Pod", items)

    async def _watch(self, request: web.Request, selector: Mapping[str, str]) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or self._store.version)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):  # the watcher is gone
            seen = since
            while (news := await self._store.after(seen)) is not None:
                seen = news[-1][0]
                for _, kind, pod in news:
                    if selected(pod, selector) and not self.mute:
                        await response.write(line(kind, POD | pod))
            message = f"too old resource version: {since} ({self._store.version})"
            await response.write(line("ERROR", failure(410, "Expired", message)))
        return response

    async def _patch_pod(self, request: web.Request) -> web.Response:
        pod = self._store.of("pods").get(request.match_info["name"])
        if pod is None:
            return missing("pods", request.match_info["name"])
        patch = await request.json()
        pod["metadata"].setdefault("annotations", {}).update(patch["metadata"]["annotations"])
        await self._store.tell("MODIFIED", pod)
        return answer(POD | pod)

    async def _delete_pod(self, request: web.Request) -> web.Response:
        pod = self._store.of("pods").get(request.match_info["name"])
        if pod is None:
            return missing("pods", request.match_info["name"])
        grace_s = float(request.query.get("gracePeriodSeconds") or (await body(request)).get("gracePeriodSeconds", 30))
        await self._controllers.terminate(pod, grace_s)
        return answer(POD | pod)

    async def _list_deployments(self, request: web.Request) -> web.Response:
        selector = selector_of(request)
        items = [item for item in self.deployments() if selected(item, selector)]
        return self._list("Deployment", items, "apps/v1")

    async def _create_deployment(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        name = wanted["metadata"]["name"]
        if name in self._store.of("deployments"):
            return refused(409, "AlreadyExists", f'deployments.apps "{name}" already exists')
        wanted["spec"].setdefault("replicas", 1)
        wanted["metadata"]["uid"] = f"deployment-{name}"
        self._store.of("deployments")[name] = self._store.stamp(wanted)
        await self._controllers.reconcile(wanted)
        return answer(wanted, status=201)

    async def _get_deployment(self, request: web.Request) -> web.Response:
        found = self._store.of("deployments").get(request.match_info["name"])
        if found is None:
            return missing("deployments.apps", request.match_info["name"])
        return answer(found)

    async def _delete_deployment(self, request: web.Request) -> web.Response:
        gone = self._store.of("deployments").pop(request.match_info["name"])
        for pod in self.pods():
            if belongs(pod, gone):
                await self._controllers.remove(pod["metadata"]["name"])
        return answer(SUCCESS)

    async def _apply_deployment(self, request: web.Request) -> web.Response:
        if (refusal := not_applicable(request)) is not None:
            return refusal
        wanted = json.loads(await request.text())
        name = wanted["metadata"]["name"]
        current = self._store.of("deployments").get(name)
        found = wanted if current is None else merged(current, wanted)
        found["spec"].setdefault("replicas", 1)
        self._store.of("deployments")[name] = self._store.stamp(found)
        await self._controllers.reconcile(found)
        return answer(found, status=201 if current is None else 200)

    async def _apply(self, request: web.Request) -> web.Response:
        plural, name = request.match_info["plural"], request.match_info["name"]
        if request.match_info.get("group") in self._unknown_groups:
            return web.Response(status=404, text="404 page not found\n")
        if (refusal := not_applicable(request)) is not None:
            return refusal
        wanted = json.loads(await request.text())
        current = self.applied.get((plural, name))
        found = self.applied[plural, name] = self._store.stamp(wanted if current is None else merged(current, wanted))
        if plural == "services":
            found["spec"].setdefault("clusterIP", f"127.96.0.{next(self._cluster_ips)}")
        for key, text in found.pop("stringData", {}).items():
            found.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()
        return answer(self.applied[plural, name], status=201 if current is None else 200)

    async def _list_applied(self, request: web.Request) -> web.Response:
        selector = selector_of(request)
        found = [item for (plural, _), item in self.applied.items() if plural == request.match_info["plural"]]
        return self._list("", [item for item in found if selected(item, selector)])

    async def _get_applied(self, request: web.Request) -> web.Response:
        plural, name = request.match_info["plural"], request.match_info["name"]
        found = self.applied.get((plural, name))
        return missing(plural, name) if found is None else answer(found)

    async def _delete_applied(self, request: web.Request) -> web.Response:
        plural, name = request.match_info["plural"], request.match_info["name"]
        gone = self.applied.pop((plural, name), None)
        return missing(plural, name) if gone is None else answer(SUCCESS)

    async def _list_quotas(self, request: web.Request) -> web.Response:
        used = {name: str(self._controllers.used(name)) for name in self.quota}
        quota = {
            "metadata": {"name": "quota", "namespace": self.namespace},
            "spec": {"hard": self.quota},
            "status": {"hard": self.quota, "used": used},
        }
        return answer(
            {"metadata": {"resourceVersion": str(self._store.version)}, "items": [quota] if self.quota else []}
        )

    async def _list_nodes(self, request: web.Request) -> web.Response:
        nodes = [{"metadata": {"name": f"node-{n}", "labels": {**each}}} for n, each in enumerate(self.node_labels)]
        return answer({"metadata": {"resourceVersion": str(self._store.version)}, "items": nodes})

    async def _get_scale(self, request: web.Request) -> web.Response:
        found = self._store.of("deployments").get(request.match_info["name"])
        if found is None:
            return missing("deployments.apps", request.match_info["name"])
        return answer(self._scale_of(found))

    async def _patch_scale(self, request: web.Request) -> web.Response:
        found = self._store.of("deployments").get(request.match_info["name"])
        if found is None:
            return missing("deployments.apps", request.match_info["name"])
        found["spec"]["replicas"] = (await request.json())["spec"].get("replicas", 0)
        self._store.stamp(found)
        self._controllers.reconcile_soon(found)  # its controller learns of it in its own time
        return answer(self._scale_of(found))

    def _scale_of(self, deployment: Json) -> Json:
        metadata = {key: deployment["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
        own = sum(belongs(pod, deployment) for pod in self.pods())
        # The API leaves out a number of 0.
        spec = {"replicas": deployment["spec"]["replicas"]} if deployment["spec"]["replicas"] else {}
        return {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": metadata,
            "spec": spec,
            "status": {"replicas": own},
        }

    async def _list_hpas(self, request: web.Request) -> web.Response:
        items = list(self._store.of("hpas").values())
        return self._list("HorizontalPodAutoscaler", items, "autoscaling/v2")


MakeApi = Callable[[], contextlib.AbstractAsyncContextManager[Api]]


def client_of(api: Api) -> AsyncClient:
    """A client of it."""
    return AsyncClient(config=KubeConfig.from_dict(api.kubeconfig), field_manager="test", trust_env=False)
