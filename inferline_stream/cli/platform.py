"""Where `run` has its dispatchers and replicas: on this machine, on Kubernetes, or on a Ray cluster."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.cli.options import On
from inferline_stream.dataplane.process_specs import DISPATCHER_MODULE
from inferline_stream.errors import Unreachable, UsageError
from inferline_stream.isolation.confinement import dispatcher_confinement
from inferline_stream.kafka.controller_client import LeadershipLost
from inferline_stream.pipeline.names import Names
from inferline_stream.profiler.cluster_bench import MakeActuator
from inferline_stream.profiler.remote_bench_dispatcher import MODULE
from inferline_stream.runs.run import Run
from inferline_stream.settings import KAFKA_VARIABLES, dispatcher_environment, dispatcher_keys, given

if TYPE_CHECKING:
    from inferline_stream.actuators.kubernetes.manifests import Cluster

_PROFILING_DRAIN_S = 5.0
"""Of what runs for the profiler alone: nothing is lost with it."""

_PROFILING_ORPHAN_S = 60.0
"""How long that goes on without the command, on Ray."""


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
    async with _on_kubernetes(
        platform, names, run.bootstrap_servers, run.records.tracing, drain_timeout_s=drain_s
    ) as pods:
        try:
            yield pods
        except (LeadershipLost, Unreachable):
            raise  # another controller has the pods now, or may have them
        except BaseException:
            if not platform.hand_over:
                await pods.aclose()
            raise
        if not platform.hand_over:
            await pods.aclose()


@asynccontextmanager
async def _on_kubernetes(
    platform: Platform,
    names: Names,
    bootstrap_servers: str,
    tracing: str,
    *,
    drain_timeout_s: float,
    dispatcher_module: str = DISPATCHER_MODULE,
) -> AsyncIterator[Actuator]:
    door = kubernetes_door()
    from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator

    async with door.cluster_client() as client:
        cluster = _cluster(platform, platform.namespace or client.namespace, bootstrap_servers, tracing)
        async with KubernetesActuator(
            names,
            bootstrap_servers,
            cluster,
            client,
            drain_timeout_s=drain_timeout_s,
            dispatcher_module=dispatcher_module,
        ) as pods:
            yield pods


def _cluster(platform: Platform, namespace: str, bootstrap_servers: str, tracing: str) -> Cluster:
    """Return what the pipeline's pods are made of; dispatchers of a Kafka user of their own get that one's alone."""
    from inferline_stream.actuators.kubernetes.manifests import Cluster

    keys = dispatcher_keys()
    if keys and tracing:
        keys |= {name: name for name in dispatcher_environment() if name.startswith("OTEL_")}
    ports = dispatcher_confinement(bootstrap_servers, tracing).ports
    return Cluster(namespace, platform.image, platform.path, platform.service_account, platform.secret, ports, keys)


def profiling_cluster(platform: Platform, bootstrap_servers: str | None) -> MakeActuator | None:
    """Return what starts processes for the profiler on the platform; None on this machine.

    Args:
        platform: where.
        bootstrap_servers: of Kafka.
    """
    if platform.on == "local" or bootstrap_servers is None:
        return None
    servers = bootstrap_servers

    @asynccontextmanager
    async def profiling(names: Names) -> AsyncIterator[Actuator]:
        await platform.reach()
        with tempfile.TemporaryDirectory(prefix="inferline-profile-") as folder:
            on_cluster: AbstractAsyncContextManager[Actuator] = (
                _on_kubernetes(
                    platform, names, servers, "", drain_timeout_s=_PROFILING_DRAIN_S, dispatcher_module=MODULE
                )
                if platform.on == "kubernetes"
                else ray_door().ray_actuator(
                    f"inferline-{names.prefix}{names.pipeline}",
                    Path(folder),
                    environment=given(KAFKA_VARIABLES, dispatcher_environment()),
                    drain_timeout_s=_PROFILING_DRAIN_S,
                    orphan_s=_PROFILING_ORPHAN_S,
                    dispatcher_module=MODULE,
                )
            )
            async with on_cluster as made:
                try:
                    yield made
                finally:
                    await made.aclose()

    return profiling


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
