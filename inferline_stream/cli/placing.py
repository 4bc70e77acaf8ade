"""Where `run` has its replicas: on this machine, on a Ray cluster, or on Kubernetes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.controlplane.run import Run
from inferline_stream.errors import UsageError


@dataclass(frozen=True, slots=True)
class Place:
    """The command's options; see `cli.run.run`."""

    on: Literal["local", "ray", "kubernetes"] = "local"
    ray_address: str = "auto"
    image: str = ""
    namespace: str = ""
    secret: str = ""

    def checked(self, bootstrap_servers: str | None) -> Place:
        """Itself, if it can be.

        Raises:
            UsageError: an option is missing.
        """
        if self.on != "local" and bootstrap_servers is None:
            raise UsageError(f"--on {self.on} needs --bootstrap-servers: the embedded broker is for this machine only")
        if self.on == "kubernetes" and not self.image:
            raise UsageError("--on kubernetes needs --image: this package, the topology and what its stages import")
        return self


@asynccontextmanager
async def actuator_of(place: Place, run: Run) -> AsyncIterator[Actuator | None]:
    """What makes the run's replicas there; None for processes of this machine."""
    if place.on == "local":
        yield None
    elif place.on == "ray":
        try:
            from inferline_stream.actuators.ray import RayActuator
        except ImportError as error:
            raise UsageError(f"--on ray: {error}; pip install 'inferline-stream[ray]'") from None
        async with RayActuator(run.spec, place.ray_address) as actors:
            yield actors
    else:
        try:
            from inferline_stream.actuators.kubernetes import KubernetesActuator, cluster_client
        except ImportError as error:
            raise UsageError(f"--on kubernetes: {error}; pip install 'inferline-stream[kubernetes]'") from None
        from inferline_stream.actuators.manifests import Cluster

        async with cluster_client() as client:
            cluster = Cluster(place.namespace or client.namespace, place.image, secret=place.secret)
            async with KubernetesActuator(
                run.pipeline.name, run.spec, cluster, client, drain_timeout_s=run.settings.drain_timeout_s
            ) as pods:
                yield pods
