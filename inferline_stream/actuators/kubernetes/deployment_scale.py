"""The scale of a Deployment: how many pods it was asked for."""

from __future__ import annotations

from lightkube import AsyncClient
from lightkube.models.autoscaling_v1 import ScaleSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.autoscaling_v2 import HorizontalPodAutoscaler
from lightkube.types import PatchType

from inferline_stream.actuators.kubernetes.api_server import translated
from inferline_stream.errors import UsageError


class DeploymentScale:
    """Reads and sets it by the scale subresource. Raises what `AsyncClient` does; see `api_server.translated`.

    Args:
        client: to the API server.
        namespace: of the Deployment.
        name: of the Deployment.
    """

    def __init__(self, client: AsyncClient, namespace: str, name: str) -> None:
        self._client, self._namespace, self._name = client, namespace, name

    async def pods(self) -> int:
        """Return the pods that it was asked for."""
        found = await self._client.get(Deployment.Scale, self._name, namespace=self._namespace)
        return (found.spec.replicas if found.spec is not None else 0) or 0

    async def set(self, pods: int) -> None:
        """Ask for a number of pods."""
        await self._client.patch(
            Deployment.Scale,
            self._name,
            Deployment.Scale(metadata=ObjectMeta(name=self._name), spec=ScaleSpec(replicas=pods)),
            namespace=self._namespace,
            patch_type=PatchType.MERGE,
        )

    async def refuse_another_scaler(self) -> None:
        """A ScaledObject of KEDA makes a HorizontalPodAutoscaler too, so that one look finds both.

        Raises:
            UsageError: something else scales the Deployment.
        """
        async for scaler in self._client.list(HorizontalPodAutoscaler, namespace=self._namespace):
            target = scaler.spec.scaleTargetRef if scaler.spec is not None else None
            if target is not None and target.kind == "Deployment" and target.name == self._name:
                own = scaler.metadata.name if scaler.metadata is not None else "?"
                raise UsageError(
                    f"HorizontalPodAutoscaler {own!r} scales Deployment {self._name!r} too, and the two would undo "
                    "each other's work; remove it, or the ScaledObject that made it"
                )


class DeploymentWorkers:
    """Workers that are the pods of a team's own Deployment; a `GroupWorkers`.

    Args:
        client: to the API server.
        name: ``namespace/name``, or the name alone for the client's namespace.
    """

    def __init__(self, client: AsyncClient, name: str) -> None:
        namespace, _, own = name.rpartition("/")
        self._scale = DeploymentScale(client, namespace or client.namespace, own)

    async def wanted(self) -> int | None:
        """Return the pods that it was asked for; see `GroupWorkers.wanted`."""
        with translated():
            return await self._scale.pods()

    async def scale(self, workers: int) -> None:
        """Ask for so many pods, unless something else scales it; see `GroupWorkers.scale`."""
        with translated():
            await self._scale.refuse_another_scaler()
            await self._scale.set(workers)
