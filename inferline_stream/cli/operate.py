"""`operate`: follows the `InferencePipeline` resources of a namespace, and installs what they want."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from inferline_stream.cli.stop_signals import Stopping
from inferline_stream.dataplane.until_first import until_first


def operate(
    *,
    namespace: Annotated[str, typer.Option(help="by default that of the kubeconfig's context")] = "",
    install: Annotated[
        str, typer.Option(metavar="IMAGE", help="print what runs it in the cluster, with this image, and end")
    ] = "",
) -> None:
    """Install the pipelines of InferencePipeline resources, and what changes of them, until Ctrl-C.

    A resource that has an image gets a Job of that image, which profiles its stages in the cluster and installs them as
    `deploy` does. Its condition Installed says how far that is. All goes with the resource, but for topics.
    """
    from inferline_stream.cli.platform import kubernetes_door

    door = kubernetes_door()
    from inferline_stream.actuators.kubernetes.inference_pipeline import definition
    from inferline_stream.actuators.kubernetes.operator import operate as follow
    from inferline_stream.actuators.kubernetes.operator import operator_manifests

    if install:
        import yaml

        yaml.safe_dump_all([definition(), *operator_manifests(install, namespace or "default")], sys.stdout)
        return

    async def followed() -> None:
        stopping = Stopping()
        stopping.watch()
        async with door.cluster_client() as client:
            await until_first(follow(client, namespace or client.namespace), stopping.stop.wait())

    asyncio.run(followed())
