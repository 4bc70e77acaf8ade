"""What an API server reports of a pipeline's pods: a list, and every change after it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import httpx2
from lightkube import ApiError, AsyncClient
from lightkube.resources.core_v1 import Pod

from inferline_stream.actuators.kubernetes.api_server import plain, wanted_pause_s
from inferline_stream.actuators.kubernetes.object_names import PIPELINE_LABEL

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
