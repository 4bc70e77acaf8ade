"""A small Kubernetes API server for tests: Deployments, Jobs, pods and whatever is applied, in one namespace.

It keeps what an actuator relies on: resource versions, list and watch that begins where the list ended, 410 for a
version it has forgotten, server-side apply that leaves other managers' fields alone, and the controllers behind it: a
Deployment makes and ends pods in the order of Kubernetes' own ReplicaSet controller, a scheduler gives them places
while there are any, and a kubelet starts them after a while, terminates them within their grace period, and starts a
container again that has ended. What a container does is the test's business.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from aiohttp import web
from lightkube import AsyncClient, KubeConfig

from inferline_stream.actuators.manifests import HARDWARE_LABEL

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"

Json = dict[str, Any]


@dataclass(slots=True)
class Container:
    """One life of a pod's only container."""

    pod: Json
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """SIGTERM."""
    end: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """To be given the exit code, 128 + n for signal n."""
    log: str = ""
    """What it has written, for whoever asks for its pod's log."""


@dataclass(slots=True)
class KubeApi:
    """The API server and what works behind it; `async with` serves it on a free port of 127.0.0.1.

    Args:
        start_up_s: from a pod's place to its container's start.
        places: pods of a hardware kind that find a place at once; kinds left out have no limit.
        run: what a container does until it ends; returns its exit code. By default it ends when it is told to through
            `Container.end`, or is killed when its grace period is over.
        keep_events: events remembered for watches; a watch from before them is told 410.
    """

    start_up_s: float = 0.0
    places: dict[str, int] = field(default_factory=dict)
    run: Callable[[Container], Awaitable[int]] | None = None
    keep_events: int = 1000
    namespace: str = "test"
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of every request so far."""
    containers: dict[str, Container] = field(default_factory=dict)
    """Running containers by their pod's name."""
    logs: dict[str, str] = field(default_factory=dict)
    """What pods have written whose container has ended, by pod."""
    quota: dict[str, str] = field(default_factory=dict)
    """Hard limits of the namespace's ResourceQuota, e.g. ``requests.nvidia.com/gpu``; whole numbers."""
    images: set[str] = field(default_factory=set)
    """Images that need not be pulled any more."""
    unknown_groups: frozenset[str] = frozenset()
    """API groups that this server does not have, such as those of an operator that was not installed."""
    applied: dict[tuple[str, str], Json] = field(default_factory=dict)
    """What was applied beside Deployments, by plural and name."""
    _objects: dict[str, dict[str, Json]] = field(default_factory=lambda: {"deployments": {}, "pods": {}, "hpas": {}})
    _pulled: dict[str, bool] = field(default_factory=dict)
    _version: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _pods_made: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _last: int = 0
    _forgotten: int = 0
    _events: list[tuple[int, str, Json]] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _runner: web.AppRunner | None = None
    _port: int = 0

    async def __aenter__(self) -> Self:
        await self.serve()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_serving()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self) -> None:
        """Answer, on the same port as before if there was one."""
        app = web.Application()
        deployments = f"/apis/apps/v1/namespaces/{self.namespace}/deployments"
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        app.add_routes(
            [
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
                web.get(f"/api/v1/namespaces/{self.namespace}/resourcequotas", self._list_quotas),
                web.get(f"/api/v1/namespaces/{self.namespace}/events", self._list_events),
                web.get(pods + "/{name}/log", self._log),
                web.post(f"/apis/batch/v1/namespaces/{self.namespace}/jobs", self._create_job),
                web.delete(f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{{name}}", self._delete_job),
                web.patch(f"/api/v1/namespaces/{self.namespace}/{{plural}}/{{name}}", self._apply),
                web.patch(f"/apis/{{group}}/{{version}}/namespaces/{self.namespace}/{{plural}}/{{name}}", self._apply),
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
        """Every watch that resumes from before now is told 410."""
        self._events.clear()
        self._forgotten = self._last

    def autoscaler(self, deployment: str) -> None:
        """Somebody else scales this Deployment."""
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment}
        self._objects["hpas"][deployment] = {
            "metadata": {"name": f"{deployment}-hpa", "namespace": self.namespace},
            "spec": {"scaleTargetRef": target, "maxReplicas": 9},
        }

    async def lose_node_of(self, pod: str) -> None:
        """The pod's node is gone: the pod is deleted by force."""
        await self._remove(pod)

    async def evict(self, pod: str) -> None:
        """The pod is to go in its own time, as when its node is emptied."""
        found = self._objects["pods"][pod]
        await self._terminate(found, found["spec"].get("terminationGracePeriodSeconds", 30))

    def pods(self) -> list[Json]:
        """All pods, oldest first."""
        return list(self._objects["pods"].values())

    def deployments(self) -> list[Json]:
        """All Deployments."""
        return list(self._objects["deployments"].values())

    def deployment(self, name: str) -> Json:
        """A Deployment as it is now."""
        return self._objects["deployments"][name]

    # Objects

    def _stamp(self, item: Json) -> Json:
        self._last = next(self._version)
        item["metadata"]["resourceVersion"] = str(self._last)
        return item

    async def _tell(self, kind: str, pod: Json) -> None:
        self._stamp(pod)
        async with self._news:
            self._events.append((self._last, kind, copy.deepcopy(pod)))
            dropped = self._events[: -self.keep_events]
            del self._events[: len(dropped)]
            self._forgotten = dropped[-1][0] if dropped else self._forgotten
            self._news.notify_all()

    def _spawn(self, work: Awaitable[None]) -> None:
        async def done() -> None:
            await work

        task = asyncio.create_task(done())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Controllers

    async def _reconcile(self, deployment: Json) -> None:
        """As the ReplicaSet controller does."""
        own = [p for p in self.pods() if _belongs(p, deployment) and "deletionTimestamp" not in p["metadata"]]
        wanted = deployment["spec"].get("replicas", 1)
        for _ in range(wanted - len(own)):
            name = f"{deployment['metadata']['name']}-{secrets.token_hex(5)}-{secrets.token_hex(3)}"
            await self._make_pod(name, deployment["spec"]["template"])
        for pod in sorted(own, key=_goes_before, reverse=True)[: max(0, len(own) - wanted)]:
            await self._terminate(pod, deployment["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30))

    async def _make_pod(self, name: str, template: Json) -> None:
        template = copy.deepcopy(template)
        if any(self._used(name) + _asked(template, name) > int(most) for name, most in self.quota.items()):
            return  # refused; its controller tries again when something else changes
        pod = {
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "uid": f"{next(self._pods_made):08d}",
                "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "labels": template["metadata"]["labels"],
                "annotations": {},
            },
            "spec": template["spec"],
            "status": {"phase": "Pending", "conditions": [], "containerStatuses": []},
        }
        self._objects["pods"][name] = pod
        await self._tell("ADDED", pod)
        await self._schedule(pod)

    async def look_for_places(self) -> None:
        """The scheduler looks again at every pod that waits, as it does when a node is added."""
        for waiting in self.pods():
            if not _placed(waiting) and "deletionTimestamp" not in waiting["metadata"]:
                await self._schedule(waiting)

    async def _schedule(self, pod: Json) -> None:
        kind = pod["metadata"]["labels"].get(HARDWARE_LABEL, "")
        placed = [p for p in self.pods() if p["metadata"]["labels"].get(HARDWARE_LABEL) == kind and _placed(p)]
        if len(placed) >= self.places.get(kind, len(placed) + 1):
            message = f"0/1 nodes are available: 1 Insufficient {kind}."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        else:
            condition = {"type": "PodScheduled", "status": "True"}
            self._spawn(self._kubelet(pod))
        pod["status"]["conditions"] = [condition]
        await self._tell("MODIFIED", pod)

    async def _kubelet(self, pod: Json) -> None:
        await asyncio.sleep(self.start_up_s)
        name, restarts, last = pod["metadata"]["name"], 0, None
        while name in self._objects["pods"] and "deletionTimestamp" not in pod["metadata"]:
            image = pod["spec"]["containers"][0]["image"]
            self._pulled.setdefault(name, image not in self.images)
            self.images.add(image)
            container = Container(pod)
            self.containers[name] = container
            await self._status(pod, {"running": {}}, restarts, last)
            code = await (self.run(container) if self.run is not None else container.end)
            self.containers.pop(name, None)
            self.logs[name] = self.logs.get(name, "") + container.log
            if name not in self._objects["pods"]:
                return
            last = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": _words(code)}
            if "deletionTimestamp" in pod["metadata"]:
                await self._status(pod, {"terminated": last}, restarts, None)
                break
            if pod["spec"].get("restartPolicy") == "Never":
                await self._status(pod, {"terminated": last}, restarts, None)
                pod["status"]["phase"] = "Failed" if code else "Succeeded"
                return
            restarts += 1
            await self._status(pod, {"waiting": {"reason": "CrashLoopBackOff"}}, restarts, last)
            await asyncio.sleep(0.05 * 2**restarts)
        await self._remove(name)

    async def _status(self, pod: Json, state: Json, restarts: int, last: Json | None) -> None:
        ready = "running" in state
        pod["status"]["phase"] = "Running"
        pod["status"]["containerStatuses"] = [
            {
                "name": "replica",
                "image": "",
                "imageID": "",
                "ready": ready,
                "restartCount": restarts,
                "state": state,
                "lastState": {"terminated": last} if last else {},
            }
        ]
        if pod["metadata"]["name"] in self._objects["pods"]:
            await self._tell("MODIFIED", pod)

    async def _terminate(self, pod: Json, grace_s: float) -> None:
        if "deletionTimestamp" in pod["metadata"] and grace_s > 0:
            return
        name = pod["metadata"]["name"]
        if grace_s == 0 or not _placed(pod):
            await self._remove(name)
            return
        pod["metadata"]["deletionTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        pod["metadata"]["deletionGracePeriodSeconds"] = grace_s
        await self._tell("MODIFIED", pod)
        container = self.containers.get(name)
        if container is None:
            await self._remove(name)
            return
        container.stop.set()

        async def kill() -> None:
            await asyncio.sleep(grace_s)
            if not container.end.done():
                container.end.set_result(137)

        self._spawn(kill())

    async def _remove(self, name: str) -> None:
        pod = self._objects["pods"].pop(name, None)
        if pod is None:
            return
        container = self.containers.pop(name, None)
        if container is not None and not container.end.done():
            container.end.set_result(137)
        await self._tell("DELETED", pod)
        for deployment in list(self._objects["deployments"].values()):
            if _belongs(pod, deployment):
                await self._reconcile(deployment)
        await self.look_for_places()

    # Requests

    def _note(self, request: web.Request) -> None:
        self.requests.append((request.method, request.path))

    async def _list_pods(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        selector = dict(part.split("=", 1) for part in request.query.get("labelSelector", "").split(",") if part)
        if request.query.get("watch") == "true":
            return await self._watch(request, selector)
        found = sorted(self.pods(), key=lambda pod: pod["metadata"]["name"])
        items = [copy.deepcopy(pod) for pod in found if _selected(pod, selector)]
        return _json(
            {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": str(self._last)}, "items": items}
        )

    async def _watch(self, request: web.Request, selector: Mapping[str, str]) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or self._last)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            async with self._news:
                if since < self._forgotten:  # too old from the start, or too slow
                    await response.write(_line("ERROR", _status(410, "Expired", "too old resource version")))
                    return response
                news = [event for event in self._events if event[0] > since]
                if not news:
                    await self._news.wait()
                    continue
            since = news[-1][0]
            for _, kind, pod in news:
                if _selected(pod, selector):
                    await response.write(_line(kind, pod))

    async def _patch_pod(self, request: web.Request) -> web.Response:
        self._note(request)
        pod = self._objects["pods"].get(request.match_info["name"])
        if pod is None:
            return _refused(404, "NotFound", f"pods {request.match_info['name']!r} not found")
        patch = await request.json()
        pod["metadata"].setdefault("annotations", {}).update(patch["metadata"]["annotations"])
        await self._tell("MODIFIED", pod)
        return _json(pod)

    async def _delete_pod(self, request: web.Request) -> web.Response:
        self._note(request)
        pod = self._objects["pods"].get(request.match_info["name"])
        if pod is None:
            return _refused(404, "NotFound", f"pods {request.match_info['name']!r} not found")
        grace_s = float(request.query.get("gracePeriodSeconds") or (await _body(request)).get("gracePeriodSeconds", 30))
        await self._terminate(pod, grace_s)
        return _json(pod)

    async def _list_deployments(self, request: web.Request) -> web.Response:
        self._note(request)
        selector = dict(part.split("=", 1) for part in request.query.get("labelSelector", "").split(",") if part)
        items = [item for item in self.deployments() if _selected(item, selector)]
        return _json({"metadata": {"resourceVersion": str(self._last)}, "items": items})

    async def _create_deployment(self, request: web.Request) -> web.Response:
        self._note(request)
        wanted = await request.json()
        name = wanted["metadata"]["name"]
        if name in self._objects["deployments"]:
            return _refused(409, "AlreadyExists", f"deployments {name!r} already exists")
        wanted["spec"].setdefault("replicas", 1)
        self._objects["deployments"][name] = self._stamp(wanted)
        await self._reconcile(wanted)
        return _json(wanted, status=201)

    async def _get_deployment(self, request: web.Request) -> web.Response:
        self._note(request)
        found = self._objects["deployments"].get(request.match_info["name"])
        if found is None:
            return _refused(404, "NotFound", f"deployments {request.match_info['name']!r} not found")
        return _json(found)

    async def _delete_deployment(self, request: web.Request) -> web.Response:
        self._note(request)
        gone = self._objects["deployments"].pop(request.match_info["name"])
        for pod in self.pods():
            if _belongs(pod, gone):
                await self._remove(pod["metadata"]["name"])
        return _json(gone)

    async def _apply_deployment(self, request: web.Request) -> web.Response:
        self._note(request)
        if request.content_type != "application/apply-patch+yaml" or "fieldManager" not in request.query:
            return _refused(415, "UnsupportedMediaType", "only server-side apply is understood here")
        wanted = json.loads(await request.text())
        name = wanted["metadata"]["name"]
        current = self._objects["deployments"].get(name)
        merged = wanted if current is None else _merged(current, wanted)
        merged["spec"].setdefault("replicas", 1)
        self._objects["deployments"][name] = self._stamp(merged)
        await self._reconcile(merged)
        return _json(merged, status=201 if current is None else 200)

    async def _apply(self, request: web.Request) -> web.Response:
        self._note(request)
        plural, name = request.match_info["plural"], request.match_info["name"]
        if request.match_info.get("group") in self.unknown_groups:
            return _refused(404, "NotFound", "the server could not find the requested resource")
        if request.content_type != "application/apply-patch+yaml" or "fieldManager" not in request.query:
            return _refused(415, "UnsupportedMediaType", "only server-side apply is understood here")
        wanted = json.loads(await request.text())
        current = self.applied.get((plural, name))
        self.applied[plural, name] = self._stamp(wanted if current is None else _merged(current, wanted))
        return _json(self.applied[plural, name], status=201 if current is None else 200)

    def _used(self, name: str) -> int:
        return sum(_asked(pod, name) for pod in self.pods())

    async def _list_quotas(self, request: web.Request) -> web.Response:
        self._note(request)
        used = {name: str(self._used(name)) for name in self.quota}
        quota = {
            "metadata": {"name": "quota", "namespace": self.namespace},
            "spec": {"hard": self.quota},
            "status": {"hard": self.quota, "used": used},
        }
        return _json({"metadata": {"resourceVersion": str(self._last)}, "items": [quota] if self.quota else []})

    async def _list_events(self, request: web.Request) -> web.Response:
        self._note(request)
        about = dict(part.split("=", 1) for part in request.query["fieldSelector"].split(","))
        pod = about["involvedObject.name"]
        said = {True: "Successfully pulled image in 3.1s", False: "Container image already present on machine"}
        item = {
            "metadata": {"name": f"{pod}.pulled", "namespace": self.namespace},
            "involvedObject": {"kind": "Pod", "name": pod},
            "reason": "Pulled",
            "message": said[self._pulled.get(pod, False)],
        }
        items = [item] if pod in self._pulled and about["reason"] == "Pulled" else []
        return _json({"metadata": {"resourceVersion": str(self._last)}, "items": items})

    async def _log(self, request: web.Request) -> web.Response:
        self._note(request)
        return web.Response(text=self.logs.get(request.match_info["name"], ""))

    async def _create_job(self, request: web.Request) -> web.Response:
        self._note(request)
        wanted = await request.json()
        self.applied["jobs", wanted["metadata"]["name"]] = self._stamp(wanted)
        await self._make_pod(f"{wanted['metadata']['name']}-{secrets.token_hex(3)}", wanted["spec"]["template"])
        return _json(wanted, status=201)

    async def _delete_job(self, request: web.Request) -> web.Response:
        self._note(request)
        for pod in self.pods():
            if pod["metadata"]["labels"].get("job-name") == request.match_info["name"]:
                await self._remove(pod["metadata"]["name"])
        return _json(self.applied.pop(("jobs", request.match_info["name"])))

    async def _get_scale(self, request: web.Request) -> web.Response:
        self._note(request)
        found = self._objects["deployments"].get(request.match_info["name"])
        if found is None:
            return _refused(404, "NotFound", f"deployments {request.match_info['name']!r} not found")
        return _json(self._scale_of(found))

    async def _patch_scale(self, request: web.Request) -> web.Response:
        self._note(request)
        found = self._objects["deployments"].get(request.match_info["name"])
        if found is None:
            return _refused(404, "NotFound", f"deployments {request.match_info['name']!r} not found")
        found["spec"]["replicas"] = (await request.json())["spec"].get("replicas", 0)
        self._stamp(found)
        self._spawn(self._reconcile(found))  # its controller learns of it in its own time
        return _json(self._scale_of(found))

    def _scale_of(self, deployment: Json) -> Json:
        metadata = {key: deployment["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
        own = sum(_belongs(pod, deployment) for pod in self.pods())
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
        self._note(request)
        items = list(self._objects["hpas"].values())
        return _json({"metadata": {"resourceVersion": str(self._last)}, "items": items})


def kubeconfig_of(api: KubeApi) -> Json:
    """What leads there, as a kubeconfig file holds it."""
    # lightkube wants a user even where nobody asks who it is.
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": api.url}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": api.namespace}}],
        "users": [{"name": "test", "user": {}}],
    }


def client_of(api: KubeApi) -> AsyncClient:
    """A client of it."""
    return AsyncClient(config=KubeConfig.from_dict(kubeconfig_of(api)), field_manager="test", trust_env=False)


def _merged(current: Json, wanted: Json) -> Json:
    """Fields that are applied win; the others stay."""
    merged = dict(current)
    for key, value in wanted.items():
        both = isinstance(value, dict) and isinstance(current.get(key), dict)
        merged[key] = _merged(current[key], value) if both else value
    return merged


def _belongs(pod: Json, deployment: Json) -> bool:
    return _selected(pod, deployment["spec"]["selector"]["matchLabels"])


def _selected(item: Json, selector: Mapping[str, str]) -> bool:
    labels = item["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in selector.items())


def _placed(pod: Json) -> bool:
    return any(c["type"] == "PodScheduled" and c["status"] == "True" for c in pod["status"]["conditions"])


def _asked(pod: Json, name: str) -> int:
    """Of a resource, as a quota names it, by a pod or a template of one."""
    if name == "pods":
        return 1
    found = pod["spec"]["containers"][0].get("resources", {}).get("requests", {})
    return int(found.get(name.removeprefix("requests."), "0"))


def _goes_before(pod: Json) -> tuple[bool, bool, int, str, str]:
    """The greatest goes first: no place, not ready, cheapest to delete, youngest."""
    statuses = pod["status"]["containerStatuses"]
    ready = bool(statuses and statuses[0]["ready"])
    cost = int(pod["metadata"]["annotations"].get(DELETION_COST, "0"))
    return (not _placed(pod), not ready, -cost, pod["metadata"]["creationTimestamp"], pod["metadata"]["uid"])


def _words(code: int) -> str:
    return f"killed by {'SIGKILL' if code == 137 else f'signal {code - 128}'}" if code > 128 else ""


def _line(kind: str, item: Json) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def _status(code: int, reason: str, message: str) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def _json(item: Json, status: int = 200) -> web.Response:
    # Without a charset, as the real one: clients look for exactly this type before they read an error's body.
    return web.Response(body=json.dumps(item).encode(), status=status, headers={"Content-Type": "application/json"})


def _refused(code: int, reason: str, message: str) -> web.Response:
    return _json(_status(code, reason, message), status=code)


async def _body(request: web.Request) -> Json:
    text = await request.text()
    found: Json = json.loads(text) if text else {}
    return found
