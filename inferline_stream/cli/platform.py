"""The doors to where dispatchers and replicas run: this machine, Kubernetes, or a Ray cluster."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferline_stream.actuators.actuator import Actuator, ProcessTerms
from inferline_stream.cli.options import Platform
from inferline_stream.controlplane.leadership import LeadershipLost
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.errors import Unreachable, UsageError
from inferline_stream.isolation.confinement import dispatcher_confinement
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.names import Names
from inferline_stream.profiler.bench_dispatcher import MODULE
from inferline_stream.profiler.benches import MakeActuator
from inferline_stream.settings import KAFKA_VARIABLES, dispatcher_environment, dispatcher_keys, given

if TYPE_CHECKING:
    from inferline_stream.actuators.kubernetes.manifests import Cluster

_PROFILING_DRAIN_S = 5.0
"""Of what runs for the profiler alone: nothing is lost with it."""

_PROFILING_ORPHAN_S = 60.0
"""How long that goes on without the command, on Ray."""


def check(platform: Platform, bootstrap_servers: str | None, *, hand_over: bool = False) -> None:
    """Refuse what cannot be done there.

    Raises:
        UsageError: an option is missing, or belongs to another platform.
    """
    on, pods = platform.on, platform.pods
    if platform.elsewhere and bootstrap_servers is None:
        raise UsageError(f"--on {on} needs --bootstrap-servers: the embedded broker is for this machine only")
    if on == "kubernetes":
        if not pods.image:
            raise UsageError("--on kubernetes needs --image: this package, the topology, what its stages import")
        kubernetes_door()
        return
    of_kubernetes = {
        "--image": pods.image, "--path": pods.path,
        "--namespace": pods.namespace, "--secret": pods.secret,
        "--service-account": platform.service_account != "default", "--hand-over": hand_over,
    }  # fmt: skip
    if used := [option for option, value in of_kubernetes.items() if value]:
        raise UsageError(f"{used[0]} is for --on kubernetes, and this is --on {on}: leave it out")
    if on == "ray":
        ray_door()


async def reach(platform: Platform) -> None:
    """Find out that the platform answers, before minutes are spent on profiles and a plan.

    Raises:
        Unreachable: it does not.
    """
    if platform.on == "ray":
        ray_door()
        from inferline_stream.actuators.ray_cluster import join

        await join()


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
    names, tracing = Names(run.pipeline.name, run.records.prefix), run.records.tracing
    drain_s, orphan_s = run.settings.drain_timeout_s, run.settings.orphan_s
    if platform.on == "ray":
        of = f"{names.pipeline} {names.prefix} {run.bootstrap_servers}"
        where = f"inferline-{names.prefix}{names.pipeline}-{hashlib.blake2s(of.encode(), digest_size=4).hexdigest()}"
        how = {"identity": run.identity, "drain_timeout_s": drain_s, "orphan_s": orphan_s}
        cluster: AbstractAsyncContextManager[Actuator] = _on_ray(where, run.log_folder, tracing, **how)
    else:
        cluster = _on_kubernetes(platform, names, run.bootstrap_servers, tracing, drain_timeout_s=drain_s)
    async with cluster as actuator:
        try:
            yield actuator
        except (LeadershipLost, Unreachable):
            raise  # another controller has what runs now, or may have it
        except BaseException:
            if not run.hands_over:
                await actuator.aclose()
            raise
        if not run.hands_over:
            await actuator.aclose()


@asynccontextmanager
async def _on_kubernetes(
    platform: Platform, names: Names, bootstrap_servers: str, tracing: str, **how: Any
) -> AsyncIterator[Actuator]:
    door = kubernetes_door()
    from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator

    async with door.cluster_client() as client:
        namespace = platform.pods.namespace or client.namespace
        cluster = _cluster(platform, namespace, bootstrap_servers, tracing)
        async with KubernetesActuator(names, bootstrap_servers, cluster, client, **how) as pods:
            yield pods


def _on_ray(namespace: str, folder: Path, tracing: str, **how: Any) -> AbstractAsyncContextManager[Actuator]:
    """Return the actuator of the Ray cluster that this process has joined."""
    source = dispatcher_environment()
    of_spans = [name for name in source if name.startswith("OTEL_")] if tracing else []
    environment = given((*KAFKA_VARIABLES, *of_spans), source)
    terms = ProcessTerms(str(folder.absolute()), **how)
    actuator: AbstractAsyncContextManager[Actuator] = ray_door().RayActuator(namespace, terms, environment)
    return actuator


def _cluster(platform: Platform, namespace: str, bootstrap_servers: str, tracing: str) -> Cluster:
    """Return what the pipeline's pods are made of; dispatchers of a Kafka user of their own get that one's alone."""
    from inferline_stream.actuators.kubernetes.manifests import Cluster

    keys, pods = dispatcher_keys(), platform.pods
    if keys and tracing:
        keys |= {name: name for name in dispatcher_environment() if name.startswith("OTEL_")}
    ports = dispatcher_confinement(bootstrap_servers, tracing).ports
    return Cluster(namespace, pods.image, pods.path, platform.service_account, pods.secret, ports, keys)


def profiling_cluster(platform: Platform, bootstrap_servers: str | None) -> MakeActuator | None:
    """Return what starts processes for the profiler on the platform; None on this machine.

    Args:
        platform: where.
        bootstrap_servers: of Kafka.
    """
    if platform.on == "local" or bootstrap_servers is None:
        return None
    servers, how = bootstrap_servers, {"drain_timeout_s": _PROFILING_DRAIN_S, "dispatcher_module": MODULE}

    @asynccontextmanager
    async def profiling(names: Names) -> AsyncIterator[Actuator]:
        await reach(platform)
        with tempfile.TemporaryDirectory(prefix="inferline-profile-") as folder:
            where = f"inferline-{names.prefix}{names.pipeline}"
            on_cluster: AbstractAsyncContextManager[Actuator] = (
                _on_kubernetes(platform, names, servers, "", **how)
                if platform.on == "kubernetes"
                else _on_ray(where, Path(folder), "", orphan_s=_PROFILING_ORPHAN_S, **how)
            )
            async with on_cluster as made:
                try:
                    yield made
                finally:
                    await made.aclose()

    return profiling


async def products_there(kinds: Iterable[Hardware]) -> dict[str, tuple[str, ...]]:
    """Return, by hardware kind, the products that nodes of the Kubernetes cluster have of it, as far as they are seen.

    Raises:
        Unreachable: the API server does not answer.
    """
    door = kubernetes_door()
    from inferline_stream.actuators.kubernetes.gpu_nodes import products_of

    async with door.cluster_client() as client:
        with door.translated():
            nodes = await door.node_labels(client)
    return {kind.name: found for kind in kinds if (found := products_of(kind, nodes))}


def ray_door() -> Any:
    """Return the module that knows Ray.

    Raises:
        UsageError: the library is not installed.
    """
    with _installed("--on ray", "ray"):
        import cryptography  # noqa: F401

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


def grpc_door() -> Any:
    """Return the module that answers KEDA.

    Raises:
        UsageError: the library is not installed.
    """
    with _installed("KedaScaler", "grpc"):
        from inferline_stream.actuators import external_scaler
    return external_scaler


@contextmanager
def _installed(what: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(f"{what}: {error}; pip install 'inferline-stream[{extra}]'") from None
