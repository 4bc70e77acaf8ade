"""Dispatchers and replicas as pods: per stage a Deployment of dispatchers, and one of replicas per hardware kind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Self

import httpx2
from lightkube import ApiError, AsyncClient
from lightkube.resources.core_v1 import Node, Pod, ResourceQuota
from lightkube.types import PatchType

from inferline_stream.actuators.actuator import (
    PATIENCE_S,
    DispatcherExit,
    ObservedDispatcher,
    ObservedReplica,
    ReplicaExit,
    placed,
    surplus,
)
from inferline_stream.actuators.kubernetes import object_names
from inferline_stream.actuators.kubernetes.api_server import (
    What,
    delete,
    follow_pods,
    passing,
    plain,
    translated,
    wanted_pause_s,
)
from inferline_stream.actuators.kubernetes.deployments import Deployments
from inferline_stream.actuators.kubernetes.dispatcher_pods import DispatcherPods
from inferline_stream.actuators.kubernetes.manifests import (
    CREDENTIAL_FOLDER,
    DISPATCHER_PORT,
    LIFE_FOLDER,
    Cluster,
    resources,
)
from inferline_stream.actuators.kubernetes.object_names import COMPONENT_LABEL, DISPATCHER, MANAGED_BY, PIPELINE_LABEL
from inferline_stream.actuators.kubernetes.pods import Pods, is_going, left_by_quotas
from inferline_stream.actuators.network.dispatcher_host import DispatcherHostSpec
from inferline_stream.dataplane.process_specs import DISPATCHER_MODULE, DispatcherSpec, ReplicaSpec
from inferline_stream.errors import InferlineError, Unreachable
from inferline_stream.observability.pipeline_state import DeviceState
from inferline_stream.pipeline.names import Names

logger = logging.getLogger(__name__)

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_GOES_FIRST = "-1000"
_DELETE_AGAIN_S = 2.0
_QUOTAS_S = 5.0
_NODES_S = 5.0
"""How often nodes are looked at, each by a request of its own: the shortest notices are of half a minute."""

_CREATED_WITHIN_S = 10.0
"""Until a Deployment's controller has made the pods asked for; it may be longer where the cluster is busy."""


class KubernetesActuator:
    """`Actuator` on a cluster.

    What runs outlives this object unless it is asked to drain or close. Another controller, or this one started again,
    finds pods by their labels, and what dispatchers' pods run by their postings. Must be used within one event loop;
    `async with` begins to watch, and only ends watching.

    Args:
        names: of the pipeline in Kafka.
        bootstrap_servers: of Kafka, as pods reach it.
        cluster: where.
        client: to the API server; closed by its maker.
        drain_timeout_s: time a retiring replica, or a stopping dispatcher, has to end by itself.
        dispatcher_module: what each dispatcher's process runs as ``__main__``.
    """

    def __init__(
        self,
        names: Names,
        bootstrap_servers: str,
        cluster: Cluster,
        client: AsyncClient,
        *,
        drain_timeout_s: float = 30.0,
        dispatcher_module: str = DISPATCHER_MODULE,
    ) -> None:
        self._pipeline = object_names.dns_label(names.prefix + names.pipeline)
        self._labels: dict[str, Any] = {PIPELINE_LABEL: self._pipeline, **MANAGED_BY}
        self._cluster = cluster
        self._client = client
        self._drain_timeout_s = drain_timeout_s
        at = (LIFE_FOLDER, CREDENTIAL_FOLDER, DISPATCHER_PORT, drain_timeout_s, dispatcher_module)
        host = DispatcherHostSpec("", bootstrap_servers, names.assignments, *at)
        self._deployments = Deployments(self._pipeline, host, cluster, client)
        self._pods = Pods()
        self._dispatcher_pods = DispatcherPods(bootstrap_servers, names.assignments)
        self._knows = False
        """Whether it was asked to run anything, which only a controller that leads does."""
        self._exits: asyncio.Queue[ReplicaExit | DispatcherExit] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._listed = asyncio.Event()
        self._asked: dict[tuple[str, str], int] = {}
        self._pause_until_s = float("-inf")
        """Until when the API server wants not to be asked for anything."""
        self._replacing: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._one_at_a_time = asyncio.Lock()
        self._sees_nodes = True
        """Whether it may look at nodes, as far as is known."""
        self._quotas: list[dict[str, Any]] = []
        self._quotas_s = self._nodes_s = float("-inf")

    # Actuator

    async def know(self, specs: Mapping[tuple[str, str], ReplicaSpec]) -> None:
        """Set the templates of replicas; see `Actuator.know`."""
        self._knows = True
        self._deployments.know(specs)

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; see `Actuator.scale`.

        The cluster ends pods that have no place or are not ready yet before those named.

        Raises:
            Unreachable: the API server does not answer.
            UsageError: something else scales the same Deployment.
        """
        if replicas < 0:
            raise ValueError(f"stage {stage!r} on {hardware!r}: {replicas} replicas must be 0 or more")
        known, name = self._deployments.knows(stage, hardware), self._deployments.of_replicas(stage, hardware)
        if replicas > 0 and not known:
            raise ValueError(f"stage {stage!r} on {hardware!r}: no replica is known; call know() first")
        await self._listed.wait()
        async with self._one_at_a_time:
            with self._asking():
                if known:
                    await self._deployments.apply_replicas(stage, hardware)
                elif not await self._deployments.exists(name):
                    return
                scale = self._deployments.scale(name)
                asked = await scale.pods()
                if asked != self._asked.get((stage, hardware), asked):  # somebody has set it since
                    await scale.refuse_another_scaler()
                leaving = surplus(self._pods.of(stage, hardware), replicas, retiring) if asked > replicas else ()
                for replica in leaving:
                    await self._goes_first(replica)
                if asked != replicas:
                    going = max(0, asked - replicas)
                    self._pods.retiring(stage, hardware, going)
                    try:
                        await scale.set(replicas)
                    except BaseException:
                        self._pods.retiring(stage, hardware, -going)  # none goes: ends to come are nobody's wish
                        raise
            self._asked[stage, hardware] = replicas
            for replica in leaving:
                if (task := self._replacing.pop(replica, None)) is not None:
                    task.cancel()
            await self._until(lambda: self._has(stage, hardware, replicas), _CREATED_WITHIN_S)

    async def dispatch(self, stage: str, dispatchers: Sequence[DispatcherSpec]) -> None:
        """Ask for exactly these dispatchers for a stage; see `Actuator.dispatch`.

        Each is posted to a pod that has none as soon as there is one; one pod more waits to take over.

        Raises:
            Unreachable: the API server, or Kafka, does not answer.
        """
        await self._listed.wait()
        self._dispatcher_pods.want(stage, dispatchers)
        if dispatchers:
            async with self._one_at_a_time:
                with self._asking():
                    await self._deployments.apply_dispatchers(stage, len(dispatchers))
            await self._dispatcher_pods.post()
        else:  # their hosts drain them; the postings are taken back once the pods are gone
            name = self._deployments.of_dispatchers(stage)
            async with self._one_at_a_time:
                with self._asking():
                    if await self._deployments.exists(name):
                        await self._deployments.scale(name).set(0)

    async def replace_dispatcher(self, dispatcher: str) -> None:
        """Give a silent dispatcher up, and have its pod replaced; see `Actuator.replace_dispatcher`.

        It is not among `dispatchers` any more, and no exit is reported: its node may be cut off, and the process live
        on. Its slot moves once its lease must have expired.
        """
        if (pod := self._dispatcher_pods.give_up(dispatcher)) is not None:
            await self._delete(pod)

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Return every replica that was asked for and is not gone, oldest first."""
        await self._listed.wait()
        return self._pods.observed()

    async def dispatchers(self) -> tuple[ObservedDispatcher, ...]:
        """Return every dispatcher that has a pod, or waits for one."""
        await self._listed.wait()
        return await self._dispatcher_pods.observe()

    async def devices(self) -> tuple[DeviceState, ...]:
        """Return nothing: GPUs of a cluster's nodes are their exporter's to report."""
        return ()

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
        if now_s - self._nodes_s >= _NODES_S:
            self._nodes_s = now_s
            await self._look_at_nodes({r.node for r in observed if r.node})
        room = placed(observed, now_s)
        for (_, kind), spec in self._deployments.applied.items():
            held = sum(r.hardware == kind and r.state != "waiting" for r in observed)
            for left in left_by_quotas(resources(spec.hardware, spec.isolation), self._quotas):
                room[kind] = min(room.get(kind, held + left), held + left)
        try:
            await self._make_room(now_s)
        except InferlineError as error:  # what there is room for is known all the same
            logger.warning("older pods do not make room for newer ones: %s; it is tried again", error)
        return room

    async def _look_at_nodes(self, nodes: Collection[str]) -> None:
        """See which of the nodes that replicas are on will be taken away; nothing where it may not look at them."""
        going = set[str]()
        for name in nodes:
            if not self._sees_nodes:
                return
            try:
                node = plain(await self._client.get(Node, name))
            except (ApiError, httpx2.HTTPError) as error:
                going |= self._pods.going & {name}  # as it was seen last
                if isinstance(error, ApiError) and error.status.code == HTTPStatus.FORBIDDEN:
                    self._sees_nodes = False
                    logger.info("notices of nodes are not seen: this service account may not get nodes")
                continue
            if is_going(node):
                going.add(name)
        if new := going - self._pods.going:
            logger.warning("nodes that are taken away soon: %s", ", ".join(sorted(new)))
        self._pods.going = frozenset(going)

    async def _make_room(self, now_s: float) -> None:
        """Let older pods end before newer ones are made where no node has a place for both."""
        for stage, hardware in sorted(self._pods.stuck(now_s, PATIENCE_S)):
            async with self._one_at_a_time:
                with self._asking():
                    if await self._deployments.stop_first(stage, hardware):
                        logger.warning(
                            "stage %s: no node has a place for a newer replica on %s beside the older ones: from now "
                            "on one of them stops before the next one starts",
                            stage,
                            hardware,
                        )

    async def next_exit(self) -> ReplicaExit | DispatcherExit:
        """Wait for the next replica that ends. Dispatchers start again within their pods, and report that."""
        return await self._exits.get()

    async def drain(self, deadline_s: float) -> None:
        """Stop every dispatcher, retire every replica and wait until all are gone; force them after the deadline."""
        await self._listed.wait()
        self._pause_until_s = float("-inf")  # it is asked once, and nobody asks again
        until_s = asyncio.get_running_loop().time() + deadline_s
        for stage in sorted({*self._deployments.stages, *self._dispatcher_pods.stages}):
            await self.dispatch(stage, [])
        await self._until(lambda: not self._dispatcher_pods.pods, deadline_s)
        for stage, hardware in sorted({(r.stage, r.hardware) for r in await self.observe()}):
            await self.scale(stage, hardware, 0)
        left_s = max(0.0, until_s - asyncio.get_running_loop().time())

        def gone() -> bool:
            return not self._pods.observed() and not self._dispatcher_pods.pods

        if not await self._until(gone, left_s):
            for name in [*self._dispatcher_pods.pods, *(replica.replica for replica in self._pods.observed())]:
                await self._delete(name)
            await self._until(gone, self._drain_timeout_s)

    async def aclose(self) -> None:
        """End every process now, and remove what was made; none is left when this returns."""
        if not self._knows:  # what is there is another controller's
            await self._stop_watching()
            return
        try:
            await self.drain(0.0)
        finally:  # pods go with their Deployments
            try:
                with translated():
                    await delete(self._client, self._cluster.namespace, self._labels)
            finally:
                await self._stop_watching()

    async def __aenter__(self) -> Self:
        """Begin to watch.

        Raises:
            Unreachable: the API server does not answer.
            UsageError: it forbids to list pods.
        """
        with translated():
            async for _ in self._client.list(Pod, namespace=self._cluster.namespace, labels=self._labels):
                break
        following = follow_pods(self._client, self._cluster.namespace, self._labels, self._pods_changed)
        self._tasks = [asyncio.create_task(following, name="pods")]
        self._tasks.append(asyncio.create_task(self._dispatcher_pods.keep_posted()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_watching()

    async def _stop_watching(self) -> None:
        tasks = [*self._replacing.values(), *self._tasks]
        self._tasks = []
        self._replacing.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """As `translated`; nothing is asked while the API server wants a pause, and nobody waits for its end.

        Raises:
            Unreachable: it wants a pause now, or answers that it does.
        """
        loop = asyncio.get_running_loop()
        if (left_s := self._pause_until_s - loop.time()) > 0:
            raise Unreachable(f"the Kubernetes API server wants not to be asked for {left_s:.1f} s; it is tried then")
        try:
            with translated():
                yield
        except Unreachable as error:
            if isinstance(error.__cause__, Exception):
                self._pause_until_s = loop.time() + wanted_pause_s(error.__cause__)
            raise

    # Pods

    def _has(self, stage: str, hardware: str, replicas: int) -> bool:
        """Whether there are so many; while the cluster replaces those of an older template, there is one more."""
        there = [r for r in self._pods.of(stage, hardware) if r.state != "retiring"]
        return len(there) == replicas or self._pods.replaced(stage, hardware)

    async def _until(self, holds: Callable[[], bool], deadline_s: float) -> bool:
        try:
            async with asyncio.timeout(deadline_s), self._changed:
                await self._changed.wait_for(holds)
        except TimeoutError:
            return holds()
        return True

    async def _goes_first(self, pod: str) -> None:
        patch = {"metadata": {"annotations": {DELETION_COST: _GOES_FIRST}}}
        with passing(404):  # it is gone already
            await self._client.patch(Pod, pod, patch, namespace=self._cluster.namespace, patch_type=PatchType.MERGE)

    async def _delete(self, pod: str) -> bool:
        """Delete a pod at once; return whether it is gone."""
        try:
            with translated(), passing(404):  # gone already
                await self._client.delete(Pod, pod, namespace=self._cluster.namespace, grace_period=0)
        except InferlineError as error:
            logger.warning("pod %s cannot be deleted: %s", pod, error)
            return False
        return True

    async def _replace(self, pod: str, delay_s: float) -> None:
        """Delete a dead pod after a wait, so that its Deployment makes another; again until that has worked."""
        await asyncio.sleep(delay_s)
        while True:
            if await self._delete(pod):
                break
            await asyncio.sleep(_DELETE_AGAIN_S)
        self._replacing.pop(pod, None)

    async def _pods_changed(self, pods: list[dict[str, Any]], what: What) -> None:
        names = {pod["metadata"]["name"] for pod in pods}
        exits: list[ReplicaExit] = []
        if what == "listed":
            self._dispatcher_pods.listed(names)
            exits += self._pods.missing(names)
        now_s = asyncio.get_running_loop().time()
        for pod in sorted(pods, key=_age):
            if what == "gone":
                self._dispatcher_pods.gone(pod["metadata"]["name"])
                exits += self._pods.gone(pod["metadata"]["name"])
            elif pod["metadata"]["labels"][COMPONENT_LABEL] == DISPATCHER:
                self._dispatcher_pods.changed(pod, now_s)
            else:
                exits += self._pods.changed(pod, now_s)
        there = {r.replica for r in self._pods.observed()} if exits else set()
        for exit_ in exits:
            self._exits.put_nowait(exit_)
            if exit_.restart_in_s and exit_.replica in there:
                task = asyncio.create_task(self._replace(exit_.replica, exit_.restart_in_s))
                self._replacing[exit_.replica] = task
        async with self._changed:
            self._changed.notify_all()
        if what == "listed":
            self._listed.set()


def _age(pod: dict[str, Any]) -> tuple[str, str]:
    return pod["metadata"].get("creationTimestamp") or "", pod["metadata"]["name"]
