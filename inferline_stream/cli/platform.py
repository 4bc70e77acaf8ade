"""Where `run` has its dispatchers and replicas: on this machine, on Kubernetes, or on a Ray cluster."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.cli.options import On
from inferline_stream.errors import UsageError
from inferline_stream.isolation.confinement import dispatcher_confinement
from inferline_stream.kafka.controller_client import LeadershipLost
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.runs.run import Run
from inferline_stream.settings import KAFKA_VARIABLES, dispatcher_environment, from_environment, given

_PROBE_DRAIN_S = 5.0
"""Of what runs for the profiler alone: nothing is lost with it."""


@dataclass(frozen=True, slots=True)
class Platform:
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
            UsageError: an option is missing, or belongs to another platform.
        """
        if self.on != "local" and bootstrap_servers is None:
            raise UsageError(f"--on {self.on} needs --bootstrap-servers: the embedded broker is for this machine only")
        if self.on == "kubernetes":
            if not self.image:
                raise UsageError("--on kubernetes needs --image: this package, the topology, what its stages import")
            kubernetes_door()
            return
        of_kubernetes = {
            "--image": self.image, "--path": self.path, "--namespace": self.namespace, "--secret": self.secret,
            "--service-account": self.service_account != "default", "--hand-over": self.hand_over,
        }  # fmt: skip
        if used := [option for option, value in of_kubernetes.items() if value]:
            raise UsageError(f"{used[0]} is for --on kubernetes, and this is --on {self.on}: leave it out")
        if self.on == "ray":
            ray_door()

    async def reach(self) -> None:
        """Find out that the platform answers, before minutes are spent on profiles and a plan.

        Raises:
            Unreachable: it does not.
        """
        if self.on == "ray":
            await ray_door().join()


@asynccontextmanager
async def actuator_of(platform: Platform, run: Run) -> AsyncIterator[Actuator | None]:
    """Start and stop the run's processes there; None for processes of this machine.

    Raises:
        UsageError: a library is not installed, or the cluster refuses.
        Unreachable: the cluster does not answer.
    """
    if platform.on == "local":
        yield None
        return
    if platform.on == "ray":
        async with on_ray(run) as actuator:
            yield actuator
        return
    names, drain_s = Names(run.pipeline.name, run.records.prefix), run.settings.drain_timeout_s
    async with _on_kubernetes(platform, names, run.bootstrap_servers, run.records.tracing, drain_s) as pods:
        try:
            yield pods
        except LeadershipLost:
            raise  # another controller has the pods now
        except BaseException:
            if not platform.hand_over:
                await pods.aclose()
            raise
        if not platform.hand_over:
            await pods.aclose()


@asynccontextmanager
async def _on_kubernetes(
    platform: Platform, names: Names, bootstrap_servers: str, tracing: str, drain_timeout_s: float
) -> AsyncIterator[Actuator]:
    door = kubernetes_door()
    from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
    from inferline_stream.actuators.kubernetes.manifests import Cluster

    async with door.cluster_client() as client:
        cluster = Cluster(
            platform.namespace or client.namespace,
            platform.image,
            platform.path,
            platform.service_account,
            platform.secret,
            dispatcher_confinement(bootstrap_servers, tracing).ports,
        )
        async with KubernetesActuator(
            names, bootstrap_servers, cluster, client, drain_timeout_s=drain_timeout_s
        ) as pods:
            yield pods


def network_probe(
    platform: Platform, pipeline: Pipeline, topology: Path, events: Sequence[bytes], bootstrap_servers: str | None
) -> Callable[[], Awaitable[float]] | None:
    """Return what measures how long the platform's network takes of a batch; None on this machine.

    Args:
        platform: where.
        pipeline: of which a stage runs there meanwhile.
        topology: its file.
        events: the sample's.
        bootstrap_servers: of Kafka.
    """
    if platform.on == "local" or bootstrap_servers is None:
        return None
    from inferline_stream.profiler.network_time import measure_network

    servers = bootstrap_servers

    @asynccontextmanager
    async def probing(names: Names) -> AsyncIterator[Actuator]:
        with tempfile.TemporaryDirectory(prefix="inferline-probe-") as folder:
            on_cluster: AbstractAsyncContextManager[Actuator] = (
                _on_kubernetes(platform, names, servers, "", _PROBE_DRAIN_S)
                if platform.on == "kubernetes"
                else ray_door().ray_actuator(
                    f"inferline-{names.prefix}{names.pipeline}",
                    Path(folder),
                    environment=given(KAFKA_VARIABLES, dispatcher_environment()),
                    drain_timeout_s=_PROBE_DRAIN_S,
                )
            )
            async with on_cluster as made:
                try:
                    yield made
                finally:
                    await made.aclose()

    async def measure() -> float:
        await platform.reach()
        return await measure_network(pipeline, topology, events, servers, actuator=probing, settings=from_environment())

    return measure


def on_ray(run: Run) -> AbstractAsyncContextManager[Actuator]:
    """Return the actuator of the Ray cluster that this process has joined, for the run."""
    where = f"{run.pipeline.name} {run.records.prefix} {run.bootstrap_servers}"
    source = dispatcher_environment()
    of_spans = [name for name in source if name.startswith("OTEL_")] if run.records.tracing else []
    digest = hashlib.blake2s(where.encode(), digest_size=4).hexdigest()
    actuator: AbstractAsyncContextManager[Actuator] = ray_door().ray_actuator(
        f"inferline-{run.records.prefix}{run.pipeline.name}-{digest}",
        run.log_folder.absolute(),
        identity=run.identity,
        environment=given((*KAFKA_VARIABLES, *of_spans), source),
        drain_timeout_s=run.settings.drain_timeout_s,
        orphan_s=run.settings.orphan_s,
    )
    return actuator


def ray_door() -> Any:
    """Return the module that knows Ray.

    Raises:
        UsageError: the library is not installed.
    """
    with _installed("--on ray", "ray"):
        from inferline_stream.actuators import ray
    return ray


def kubernetes_door() -> Any:
    """Return the module that asks an API server.

    Raises:
        UsageError: a library is not installed.
    """
    with _installed("Kubernetes", "kubernetes"):
        import cryptography  # noqa: F401

        from inferline_stream.actuators.kubernetes import api_server
    return api_server


@contextmanager
def _installed(what: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(f"{what}: {error}; pip install 'inferline-stream[{extra}]'") from None
