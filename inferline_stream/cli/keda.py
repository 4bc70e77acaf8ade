"""`keda`: the ScaledObjects of groups that KEDA scales."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from inferline_stream.cli.options import Topology, pipeline_of
from inferline_stream.cli.output import write_text
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.consumer_group import KedaScaler


def keda(
    topology: Topology,
    *,
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="of the run's scaler, as KEDA reaches it")],
    most: Annotated[int, typer.Option(help="workers of a group: as many as its topic has partitions", min=1)] = 100,
    secret: Annotated[
        str, typer.Option(help="for TLS: a Secret with ca.crt, and with tls.crt and tls.key of KEDA's own")
    ] = "",
    save: Annotated[Path | None, typer.Option(help="file to write; standard output by default")] = None,
    output: Annotated[Literal["yaml", "json"], typer.Option(help="how to print the manifests")] = "yaml",
) -> None:
    """Write the ScaledObjects that have KEDA ask a run for the workers of its groups.

    Each is for a group of the topology with `workers=KedaScaler()`. They leave the waiting to our policy: KEDA follows
    its number at once in either direction, and keeps what runs while the run is away.
    """
    from inferline_stream.cli.platform import kubernetes_door

    kubernetes_door()  # before what imports its libraries
    import yaml

    from inferline_stream.actuators.kubernetes.scaled_objects import scaled_object, trigger_authentication

    if not re.fullmatch(r"[^\s/:]+:[1-9][0-9]{0,4}", address) or int(address.rpartition(":")[2]) >= 2**16:
        raise UsageError(f"--address {address!r} is not host:port; write e.g. inferline.shop:9465")
    pipeline = pipeline_of(topology, groups=True)
    groups = [group for group in pipeline.groups if isinstance(group.workers, KedaScaler)]
    if not groups:
        raise UsageError(f"{pipeline.declared}: KEDA scales none of its groups; declare workers=KedaScaler()")
    manifests: list[dict[str, Any]] = []
    for group in groups:
        if secret:
            manifests.append(trigger_authentication(group, pipeline.name, secret))
        manifests.append(scaled_object(group, pipeline.name, address, most, secret))
    if output == "json":
        text = json.dumps(manifests, indent=2) + "\n"
    else:
        text = yaml.safe_dump_all(manifests, sort_keys=False)
    write_text(text, save, "the manifests")
