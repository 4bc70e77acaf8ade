"""Where `run` has its replicas: on this machine, on a Ray cluster, or on Kubernetes."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.actuators.manifests import Cluster, dns_label, job
from inferline_stream.controlplane.run import Run
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import isolation_of
from inferline_stream.pipeline.topology import Stage
from inferline_stream.profiler.elsewhere import RunThere, cluster
from inferline_stream.profiler.machine import Machine


@dataclass(frozen=True, slots=True)
class Place:
    """The command's options; see `cli.run.run`."""

    on: Literal["local", "ray", "kubernetes"] = "local"
    ray_address: str = "auto"
    image: str = ""
    namespace: str = ""
    secret: str = ""
    service_account: str = "default"
    hand_over: bool = False

    @property
    def machine(self) -> Machine | None:
        """What profiles of there are kept under; None for this machine."""
        return None if self.on == "local" else cluster(self.on)

    def checked(self, bootstrap_servers: str | None) -> Place:
        """Itself, if it can be.

        Raises:
            UsageError: an option is missing.
        """
        if self.on != "local" and bootstrap_servers is None:
            raise UsageError(f"--on {self.on} needs --bootstrap-servers: the embedded broker is for this machine only")
        if self.on == "kubernetes" and not self.image:
            raise UsageError("--on kubernetes needs --image: this package, the topology and what its stages import")
        if self.hand_over and self.on != "kubernetes":
            raise UsageError(f"--hand-over leaves replicas at work, and those of --on {self.on} end with this run")
        return self


@asynccontextmanager
async def actuator_of(place: Place, run: Run) -> AsyncIterator[Actuator | None]:
    """What makes the run's replicas there; None for processes of this machine."""
    if place.on == "local":
        yield None
    elif place.on == "ray":
        async with _ray().RayActuator(run.spec, place.ray_address) as actors:
            yield actors
    else:
        door = kubernetes_door()
        from inferline_stream.actuators.kubernetes import KubernetesActuator

        async with (
            door.cluster_client() as client,
            KubernetesActuator(
                run.pipeline.name,
                run.spec,
                cluster_of(place, client.namespace),
                client,
                drain_timeout_s=run.settings.drain_timeout_s,
            ) as pods,
        ):
            yield pods


@asynccontextmanager
async def profiling_at(place: Place, deadline_s: float) -> AsyncIterator[RunThere]:
    """What runs commands there, on a hardware kind of the catalogue."""
    if place.on == "ray":
        door = _ray()
        await door.join(place.ray_address)

        async def task(stage: Stage, kind: Hardware, command: list[str]) -> str:
            said: str = await door.run_command(command, kind, deadline_s)
            return said

        yield task
        return
    kubernetes = kubernetes_door()
    async with kubernetes.cluster_client() as client:
        where = cluster_of(place, client.namespace)

        async def as_job(stage: Stage, kind: Hardware, command: list[str]) -> str:
            name = dns_label(f"profile-{stage.name}-{kind.name}-{secrets.token_hex(3)}")
            wanted = job(name, command, kind, isolation_of(stage.isolation), where, deadline_s=deadline_s)
            said: str = await kubernetes.run_job(client, wanted, deadline_s)
            return said

        yield as_job


def cluster_of(place: Place, namespace: str) -> Cluster:
    """Where replicas run.

    Args:
        place: the command's options.
        namespace: where they name none.
    """
    return Cluster(place.namespace or namespace, place.image, place.service_account, secret=place.secret)


def _ray() -> Any:
    try:
        from inferline_stream.actuators import ray
    except ImportError as error:
        raise UsageError(f"--on ray: {error}; pip install 'inferline-stream[ray]'") from None
    return ray


def kubernetes_door() -> Any:
    """The module that asks an API server.

    Raises:
        UsageError: lightkube is not installed.
    """
    try:
        from inferline_stream.actuators import api_server
    except ImportError as error:
        raise UsageError(f"--on kubernetes: {error}; pip install 'inferline-stream[kubernetes]'") from None
    return api_server
