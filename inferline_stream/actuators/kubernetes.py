"""Replicas as pods, one Deployment for each stage and hardware kind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Self, cast

import httpx2
from lightkube import ApiError, AsyncClient
from lightkube.models.autoscaling_v1 import ScaleSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.autoscaling_v2 import HorizontalPodAutoscaler
from lightkube.resources.core_v1 import Event, Pod, ResourceQuota
from lightkube.types import PatchType

from inferline_stream.actuators.actuator import (
    ObservedReplica,
    ReplicaExit,
    placed,
    surplus,
)
from inferline_stream.actuators.api_server import plain, translated
from inferline_stream.actuators.manifests import (
    FIELD_MANAGER,
    MANAGED_BY,
    PIPELINE_LABEL,
    Cluster,
    deployment,
    deployment_name,
    left_by_quotas,
    resources,
)
from inferline_stream.actuators.pods import Pods
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.hardware import Hardware

logger = logging.getLogger(__name__)

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_GOES_FIRST = "-1000"
_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0
_WATCH_S = 300
"""After so long a watch is begun anew: a connection that died silently is noticed."""

_QUOTAS_S = 5.0
_CREATED_WITHIN_S = 10.0
"""Until a Deployment's controller has made the pods asked for; it may be longer where the cluster is busy."""


class KubernetesActuator:
    """`Actuator` on a cluster.

    Replicas outlive this object unless it is asked to drain or close: with the controller gone, they go on. Another
    controller, or this one started again, finds them by their labels. Must be used within one event loop; `async with`
    begins to watch, and only ends watching.

    Args:
        pipeline: its name.
        template: the spec of a replica of that stage and hardware kind.
        cluster: where replicas run.
        client: to the API server; closed by whoever made it.
        drain_timeout_s: time a retiring replica has to hand over.
    """

    def __init__(
        self,
        pipeline: str,
        template: Callable[[str, str], ReplicaSpec],
        cluster: Cluster,
        client: AsyncClient,
        *,
        drain_timeout_s: float = 30.0,
    ) -> None:
        self._pipeline = pipeline
        self._template = template
        self._cluster = cluster
        self._client = client
        self._drain_timeout_s = drain_timeout_s
        self._pods = Pods()
        self._exits: asyncio.Queue[ReplicaExit] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._listed = asyncio.Event()
        self._applied: set[tuple[str, str]] = set()
        self._asked: dict[tuple[str, str], int] = {}
        self._replacing: dict[str, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._scaling = asyncio.Lock()
        self._kinds: dict[str, Hardware] = {}
        self._quotas: list[dict[str, Any]] = []
        self._quotas_s = float("-inf")
        self._asking: set[asyncio.Task[None]] = set()

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; see `Actuator.scale`.

        The cluster ends pods that have no place or are not ready yet before those named.

        Raises:
            Unreachable: the API server does not answer.
            UsageError: something else scales the same Deployment.
        """
        if replicas < 0:
            raise ValueError(f"stage {stage!r} on {hardware!r}: {replicas} replicas must be 0 or more")
        await self._listed.wait()
        async with self._scaling:
            name = deployment_name(self._pipeline, stage, hardware)
            with translated():
                if (stage, hardware) not in self._applied:
                    await self._apply(name, stage, hardware)
                before = (await self._client.get(Deployment.Scale, name, namespace=self._cluster.namespace)).spec
                asked = (before.replicas if before is not None else 0) or 0
                if asked != self._asked.get((stage, hardware), asked):  # somebody has set it since
                    await self._refuse_another_scaler(name)
                leaving = surplus(self._alike(stage, hardware), replicas, retiring) if asked > replicas else ()
                for replica in leaving:
                    await self._goes_first(replica)
                if asked != replicas:
                    self._pods.retiring(stage, hardware, max(0, asked - replicas))
                    await self._client.patch(
                        Deployment.Scale,
                        name,
                        Deployment.Scale(metadata=ObjectMeta(name=name), spec=ScaleSpec(replicas=replicas)),
                        namespace=self._cluster.namespace,
                        patch_type=PatchType.MERGE,
                    )
            self._asked[stage, hardware] = replicas
            for replica in leaving:
                if (task := self._replacing.pop(replica, None)) is not None:
                    task.cancel()
            await self._until(lambda: self._has(stage, hardware, replicas), _CREATED_WITHIN_S)

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Every replica that was asked for and is not gone, oldest first."""
        await self._listed.wait()
        return self._pods.observed()

    async def capacity(self) -> Mapping[str, int]:
        """Replicas that have a place, of each kind without more of them; and what the namespace's quotas leave.

        What is held is counted in pods of this pipeline: others in the namespace use up its quotas all the same.
        """
        await self._listed.wait()
        now_s = asyncio.get_running_loop().time()
        if now_s - self._quotas_s >= _QUOTAS_S:
            self._quotas_s = now_s
            with contextlib.suppress(ApiError, httpx2.HTTPError):  # not allowed to look, or an outage: the last holds
                found = self._client.list(ResourceQuota, namespace=self._cluster.namespace)
                self._quotas = [plain(quota) async for quota in found]
        observed = self._pods.observed()
        room = placed(observed, now_s)
        for _, kind in self._applied:
            held = sum(r.hardware == kind and r.state != "waiting" for r in observed)
            wanted = resources(self._kinds[kind], self._cluster.memory)
            for left in left_by_quotas(wanted, self._quotas):
                room[kind] = min(room.get(kind, held + left), held + left)
        return room

    async def next_exit(self) -> ReplicaExit:
        """Wait for the next replica that ends."""
        return await self._exits.get()

    async def drain(self, deadline_s: float) -> None:
        """Retire every replica and wait until all are gone: by themselves, or made to after the deadline."""
        for stage, hardware in sorted({(r.stage, r.hardware) for r in await self.observe()}):
            await self.scale(stage, hardware, 0)
        if not await self._until(lambda: not self._pods.observed(), deadline_s):
            for replica in self._pods.observed():
                await self._delete(replica.replica)
            await self._until(lambda: not self._pods.observed(), self._drain_timeout_s)

    async def aclose(self) -> None:
        """End every replica now; none is left when this returns."""
        await self.drain(0.0)
        await self._stop_watching()

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch(), name="pods")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop_watching()

    async def _stop_watching(self) -> None:
        tasks = [*self._replacing.values(), *self._asking, *([self._watching] if self._watching is not None else [])]
        self._watching = None
        self._replacing.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _alike(self, stage: str, hardware: str) -> list[ObservedReplica]:
        return [r for r in self._pods.observed() if (r.stage, r.hardware) == (stage, hardware)]

    def _has(self, stage: str, hardware: str, replicas: int) -> bool:
        """Whether there are so many; while the cluster replaces those of an older template, there is one more."""
        there = [r for r in self._alike(stage, hardware) if r.state != "retiring"]
        return len(there) == replicas or any(r.older for r in there)

    async def _until(self, holds: Callable[[], bool], deadline_s: float) -> bool:
        try:
            async with asyncio.timeout(deadline_s), self._changed:
                await self._changed.wait_for(holds)
        except TimeoutError:
            return holds()
        return True

    async def _apply(self, name: str, stage: str, hardware: str) -> None:
        """Make the Deployment, or bring it up to date; its number of replicas stays as it is, 0 for a new one."""
        await self._refuse_another_scaler(name)
        namespace = self._cluster.namespace
        spec = self._template(stage, hardware)
        self._kinds[hardware] = spec.hardware
        wanted = deployment(self._pipeline, spec, self._cluster, grace_s=self._drain_timeout_s)
        try:
            await self._client.get(Deployment, name, namespace=namespace)
        except ApiError as error:
            if error.status.code != 404:
                raise
            # Without a number, the API server would begin with one replica.
            new = {**wanted, "spec": {**wanted["spec"], "replicas": 0}}
            with contextlib.suppress(ApiError):  # another controller was faster
                await self._client.create(_typed(new), field_manager=FIELD_MANAGER)
        await self._client.apply(_typed(wanted), field_manager=FIELD_MANAGER, force=True)
        self._applied.add((stage, hardware))

    async def _refuse_another_scaler(self, name: str) -> None:
        """A ScaledObject of KEDA makes a HorizontalPodAutoscaler too, so that one look finds both."""
        async for scaler in self._client.list(HorizontalPodAutoscaler, namespace=self._cluster.namespace):
            target = scaler.spec.scaleTargetRef if scaler.spec is not None else None
            if target is not None and target.kind == "Deployment" and target.name == name:
                own = scaler.metadata.name if scaler.metadata is not None else "?"
                raise UsageError(
                    f"HorizontalPodAutoscaler {own!r} scales Deployment {name!r} too, and the two would undo each "
                    f"other's work; remove it, or the ScaledObject that made it"
                )

    async def _goes_first(self, pod: str) -> None:
        patch = {"metadata": {"annotations": {DELETION_COST: _GOES_FIRST}}}
        with contextlib.suppress(ApiError):  # it is gone already
            await self._client.patch(Pod, pod, patch, namespace=self._cluster.namespace, patch_type=PatchType.MERGE)

    async def _delete(self, pod: str) -> None:
        with contextlib.suppress(ApiError, httpx2.HTTPError):  # gone already; or the next list will tell
            await self._client.delete(Pod, pod, namespace=self._cluster.namespace, grace_period=0)

    async def _replace(self, pod: str, delay_s: float) -> None:
        """Delete a dead pod after a wait, so that its Deployment makes another."""
        await asyncio.sleep(delay_s)
        await self._delete(pod)
        self._replacing.pop(pod, None)

    async def _watch(self) -> None:
        """List, then watch from there; from the start again whenever the API server ends it, fails or has forgotten."""
        retry_s = _FIRST_RETRY_S
        labels: dict[str, Any] = {PIPELINE_LABEL: self._pipeline, **MANAGED_BY}
        namespace = self._cluster.namespace
        while True:
            try:
                pods = self._client.list(Pod, namespace=namespace, labels=labels)
                found = [plain(pod) async for pod in pods]
                await self._told([*self._pods.missing(pod["metadata"]["name"] for pod in found)], found)
                self._listed.set()
                retry_s = _FIRST_RETRY_S
                async with asyncio.timeout(_WATCH_S):
                    watch = self._client.watch(
                        Pod, namespace=namespace, labels=labels, resource_version=pods.resourceVersion
                    )
                    async for kind, pod in watch:
                        seen = plain(pod)
                        if kind == "DELETED":
                            await self._told(self._pods.gone(seen["metadata"]["name"]))
                        elif kind in ("ADDED", "MODIFIED"):
                            await self._told([], [seen])
            except TimeoutError:
                continue
            except (ApiError, httpx2.HTTPError, OSError) as error:
                logger.warning("watching pods of %s: %s; again in %.1f s", self._pipeline, error, retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    async def _told(self, exits: list[ReplicaExit], pods: list[dict[str, Any]] | None = None) -> None:
        now_s = asyncio.get_running_loop().time()
        for pod in sorted(pods or (), key=_age):
            exits += self._pods.told(pod, now_s)
        for exit_ in exits:
            self._exits.put_nowait(exit_)
            if exit_.restart_in_s and exit_.replica in {r.replica for r in self._pods.observed()}:
                task = asyncio.create_task(self._replace(exit_.replica, exit_.restart_in_s))
                self._replacing[exit_.replica] = task
        for name in self._pods.newly_running():
            self._pods.came(name, pulled=False)  # until it is known otherwise
            task = asyncio.create_task(self._look_how_it_came(name))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        async with self._changed:
            self._changed.notify_all()

    async def _look_how_it_came(self, pod: str) -> None:
        """Whether its node had to pull the image is told by the kubelet's events alone."""
        with contextlib.suppress(ApiError, httpx2.HTTPError):
            about: dict[str, Any] = {"involvedObject.name": pod, "reason": "Pulled"}
            events = self._client.list(Event, namespace=self._cluster.namespace, fields=about)
            told = [event.message or "" async for event in events]
            self._pods.came(pod, pulled=any("already present" not in message for message in told))


def _typed(manifest: dict[str, Any]) -> Deployment:
    return cast("Deployment", Deployment.from_dict(manifest))


def _age(pod: dict[str, Any]) -> tuple[str, str]:
    return pod["metadata"].get("creationTimestamp") or "", pod["metadata"]["name"]
