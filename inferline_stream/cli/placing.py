"""Where `run` has its dispatchers and replicas: on this machine, on Kubernetes, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.controlplane.run import Run
from inferline_stream.dataplane.control import LeadershipLost
from inferline_stream.errors import UsageError
from inferline_stream.isolation.confinement import dispatcher_confinement
from inferline_stream.pipeline.names import Names

On = Literal["local", "ray", "kubernetes"]

_BUILT = ("local", "kubernetes")


@dataclass(frozen=True, slots=True)
class Place:
    """The command's options; see `cli.run.run`."""

    on: On = "local"
    image: str = ""
    path: str = ""
    namespace: str = ""
    secret: str = ""
    service_account: str = "default"
    hand_over: bool = False

    def check(self, bootstrap_servers: str | None) -> None:
        """Refuse what cannot be done there.

        Raises:
            UsageError: an option is missing, or belongs to another place.
        """
        if self.on != "local" and bootstrap_servers is None:
            raise UsageError(f"--on {self.on} needs --bootstrap-servers: the embedded broker is for this machine only")
        if self.on not in _BUILT:
            raise UsageError(f"--on {self.on}: pools run on one machine in this release; leave out --on")
        kubernetes = {
            "--image": self.image, "--path": self.path, "--namespace": self.namespace, "--secret": self.secret,
            "--hand-over": self.hand_over,
        }  # fmt: skip
        if self.on == "kubernetes":
            if not self.image:
                raise UsageError("--on kubernetes needs --image: this package, the topology, what its stages import")
            kubernetes_door()
        elif given := [option for option, value in kubernetes.items() if value]:
            raise UsageError(f"{given[0]} is for --on kubernetes")


@asynccontextmanager
async def actuator_of(place: Place, run: Run) -> AsyncIterator[Actuator | None]:
    """Start and stop the run's processes there; None for processes of this machine.

    Raises:
        UsageError: a library is not installed, or the cluster refuses.
        Unreachable: the cluster does not answer.
    """
    if place.on == "local":
        yield None
        return
    door = kubernetes_door()
    from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
    from inferline_stream.actuators.kubernetes.manifests import Cluster

    async with door.cluster_client() as client:
        cluster = Cluster(
            place.namespace or client.namespace,
            place.image,
            place.path,
            place.service_account,
            place.secret,
            dispatcher_confinement(run.bootstrap_servers, run.tracing).ports,
        )
        names = Names(run.pipeline.name, run.prefix)
        async with KubernetesActuator(
            names, run.bootstrap_servers, cluster, client, drain_timeout_s=run.settings.drain_timeout_s
        ) as pods:
            try:
                yield pods
            except LeadershipLost:
                raise  # another controller has the pods now
            except BaseException:
                if not place.hand_over:
                    await pods.aclose()
                raise
            if not place.hand_over:
                await pods.aclose()


def kubernetes_door() -> Any:
    """Return the module that asks an API server.

    Raises:
        UsageError: a library is not installed.
    """
    try:
        import cryptography  # noqa: F401

        from inferline_stream.actuators.kubernetes import api_server
    except ImportError as error:
        raise UsageError(f"--on kubernetes: {error}; pip install 'inferline-stream[kubernetes]'") from None
    return api_server
