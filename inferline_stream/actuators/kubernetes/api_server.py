"""A Kubernetes API server: manifests applied, objects deleted, pods followed; its errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import httpx2
from lightkube import ApiError, AsyncClient, KubeConfig
from lightkube.codecs import from_dict
from lightkube.core.exceptions import ConfigError
from lightkube.generic_resource import create_namespaced_resource
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.core_v1 import Node, Pod, ResourceQuota, Secret, Service
from lightkube.resources.networking_v1 import NetworkPolicy
from lightkube.resources.policy_v1 import PodDisruptionBudget

from inferline_stream.actuators.kubernetes.object_names import FIELD_MANAGER, PIPELINE_LABEL
from inferline_stream.errors import InferlineError, Unreachable, UsageError

_LONGEST_PAUSE_S = 30.0
"""Longer than any API server asks for; without a bound, a proxy before it could stop watch and scaling for hours."""

_OPTIONAL = {"monitoring.coreos.com": "Prometheus operator"}
"""Groups without which a pipeline is installed all the same, and what lacks where they do."""


async def apply(client: AsyncClient, wanted: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Apply manifests server-side; return the objects as they are then."""
    found = []
    for manifest in wanted:
        made = await client.apply(from_dict(manifest), field_manager=FIELD_MANAGER, force=True)
        found.append(plain(cast("Pod", made)))
    return found


async def secret_exists(client: AsyncClient, name: str, namespace: str) -> bool:
    """Whether there is a Secret of that name; its content is not looked at."""
    with passing(404):
        await client.get(Secret, name, namespace=namespace)
        return True
    return False


async def node_labels(client: AsyncClient) -> list[Mapping[str, str]]:
    """Return the labels of each node; none where this account may not look at nodes."""
    with passing(403):
        return [plain(node)["metadata"].get("labels", {}) async for node in client.list(Node)]
    return []


async def delete(client: AsyncClient, namespace: str, labels: dict[str, Any]) -> None:
    """Delete everything of a pipeline but its pods, which go with their Deployments."""
    for kind in (Deployment, PodDisruptionBudget, NetworkPolicy, Service, Secret):
        async for item in client.list(kind, namespace=namespace, labels=labels):
            with passing(404):  # it is gone already
                await client.delete(kind, plain(cast("Pod", item))["metadata"]["name"], namespace=namespace)


async def install(client: AsyncClient, manifests: Sequence[dict[str, Any]]) -> list[str]:
    """Apply manifests; return in words those whose kind the cluster does not know.

    Raises:
        UsageError: the API server refuses.
        Unreachable: it does not answer.
    """
    unknown = []
    for manifest in manifests:
        version, _, short = manifest["apiVersion"].rpartition("/")
        with translated():
            try:
                if version in _OPTIONAL:
                    create_namespaced_resource(version, short, manifest["kind"], f"{manifest['kind'].lower()}s")
                await client.apply(from_dict(manifest), field_manager=FIELD_MANAGER, force=True)
            except (ApiError, httpx2.HTTPStatusError) as error:
                # Of a group that it does not have, an API server says so in plain text, and lightkube does not read it.
                code = error.status.code if isinstance(error, ApiError) else error.response.status_code
                if code != 404 or version not in _OPTIONAL:
                    raise
                unknown.append(f"{manifest['kind']}: the cluster has no {_OPTIONAL[version]}")
    return unknown


async def controllers(client: AsyncClient, namespace: str) -> list[dict[str, Any]]:
    """Deployments of every pipeline's controllers in a namespace.

    Raises:
        Unreachable: the API server does not answer.
    """
    labels: dict[str, Any] = {"app.kubernetes.io/name": FIELD_MANAGER, "app.kubernetes.io/component": "controller"}
    with translated():
        return [plain(found) async for found in client.list(Deployment, namespace=namespace, labels=labels)]


def cluster_client() -> AsyncClient:
    """A client as kubectl would connect: within a cluster, by KUBECONFIG, or by ``~/.kube/config``.

    Raises:
        UsageError: none of them is there.
    """
    try:
        return AsyncClient(config=KubeConfig.from_env().get(), field_manager=FIELD_MANAGER)
    except ConfigError as error:
        raise UsageError(f"no Kubernetes cluster is configured: {error}; set KUBECONFIG") from None


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """What goes wrong with the API server, in this package's errors.

    Raises:
        UsageError: it forbids what was asked.
        InferlineError: it refuses.
        Unreachable: it does not answer.
    """
    try:
        yield
    except ApiError as error:
        why = error.status.message or "it gives no reason"
        raise _refusal(error.status.code or 0, why) from error
    except (
        httpx2.HTTPStatusError
    ) as error:  # not in Kubernetes' words: a path that it does not have, or a proxy before it
        text = f"{error.response.status_code} {error.response.reason_phrase}: {error.request.url.path}"
        raise _refusal(error.response.status_code, text) from error
    except (httpx2.HTTPError, OSError) as error:
        raise Unreachable(
            f"the Kubernetes API server does not answer: {error or type(error).__name__}; see that it runs and "
            "can be reached from here"
        ) from error


def wanted_pause_s(error: Exception) -> float:
    """Return the seconds that the API server asks clients to wait (Retry-After), within bounds; 0 if it names none."""
    response = error.response if isinstance(error, httpx2.HTTPStatusError) else None
    wanted = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(wanted), _LONGEST_PAUSE_S) if wanted.isdecimal() else 0.0


def _refusal(code: int, message: str) -> InferlineError:
    """Return the error of an answer by its status: what may pass by itself, and what somebody has to change."""
    if code == 429 or code >= 500:
        return Unreachable(f"the Kubernetes API server cannot do it now: {message} ({code}); try again in a while")
    if code == 409:  # somebody changed it at the same moment
        return Unreachable(f"Kubernetes could not do it at this moment: {message} ({code}); try again")
    if code == 401:
        return UsageError(f"Kubernetes does not know who asks: {message}; renew the kubeconfig's credentials")
    if code == 403 and "exceeded quota" in message:
        return InferlineError(f"Kubernetes refuses: {message}; raise the quota")
    if code == 403:
        return UsageError(f"Kubernetes refuses: {message}; grant the controller's Role")
    return InferlineError(
        f"Kubernetes refuses: {message} ({code}); change what it names in the topology, or in the cluster"
    )


@contextlib.contextmanager
def passing(code: int) -> Iterator[None]:
    """Let one refusal pass, and no other."""
    try:
        yield
    except ApiError as error:
        if error.status.code != code:
            raise


def plain(item: Pod | ResourceQuota | Deployment | Node) -> dict[str, Any]:
    """An object as in the API server's JSON."""
    found: dict[str, Any] = json.loads(json.dumps(item.to_dict(), default=str))
    return found


logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0
_WATCH_S = 300
"""After so long a watch is begun again: a connection that died silently is noticed."""


What = Literal["listed", "seen", "gone"]
"""What is said of pods: they are all that there are, one was added or has changed, or one is no more."""


async def follow_pods(
    client: AsyncClient,
    namespace: str,
    labels: Mapping[str, Any],
    take: Callable[[list[dict[str, Any]], What], Awaitable[None]],
) -> None:
    """List, then watch from there; from the start again whenever the API server ends it, fails or has forgotten.

    Args:
        client: to the API server.
        namespace: of the pods.
        labels: that they have.
        take: called with pods, as in the API server's JSON, and what is said of them; the next change waits for it.
    """
    retry_s, loop = _FIRST_RETRY_S, asyncio.get_running_loop()
    chosen = dict(labels)
    while True:
        began_s, wait_s = loop.time(), 0.0
        try:
            pods = client.list(Pod, namespace=namespace, labels=chosen)
            await take([plain(pod) async for pod in pods], "listed")
            async with asyncio.timeout(_WATCH_S):
                watch = client.watch(Pod, namespace=namespace, labels=chosen, resource_version=pods.resourceVersion)
                async for kind, pod in watch:
                    if kind in ("ADDED", "MODIFIED", "DELETED"):
                        await take([plain(pod)], "gone" if kind == "DELETED" else "seen")
        except TimeoutError:
            continue
        except (ApiError, httpx2.HTTPError, OSError) as error:
            why, wait_s = str(error) or type(error).__name__, wanted_pause_s(error)
        except Exception as error:  # without it the controller would be blind, and nobody would know
            logger.exception("what the API server says of the pods of %s cannot be read", labels[PIPELINE_LABEL])
            why = repr(error)
        else:
            why = "the watch has ended"
        if loop.time() - began_s > _LONGEST_RETRY_S:  # it has worked for a while
            retry_s = _FIRST_RETRY_S
        wait_s = max(wait_s, retry_s)
        logger.warning("watching pods of %s: %s; again in %.1f s", labels[PIPELINE_LABEL], why, wait_s)
        await asyncio.sleep(wait_s)
        retry_s = min(2 * retry_s, _LONGEST_RETRY_S)
