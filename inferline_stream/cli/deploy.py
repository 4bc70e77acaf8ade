"""`deploy`: newer code of the stages into a running pipeline; or a pipeline into a cluster."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from inferline_stream.cli.options import (
    DeployOptions,
    Output,
    Running,
    Topology,
    pipeline_of,
)
from inferline_stream.cli.output import print_json
from inferline_stream.cli.scale import as_fields, who
from inferline_stream.controlplane.records.control_records import Override
from inferline_stream.errors import Unreachable, UsageError
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.version import DRAIN_FIRST, incompatibilities, structure_of


def deploy(
    topology: Topology,
    *,
    running: Running,
    target: Annotated[
        Literal["running", "kubernetes"],
        typer.Option(help="newer code into the running pipeline; or the pipeline, with its controller, into a cluster"),
    ] = "running",
    wanted: DeployOptions,
    output: Output = "table",
) -> None:
    """Bring newer code into a running pipeline, or a pipeline into a cluster.

    Newer code: every replica is replaced by one that runs the topology as it is now. The new one is READY before an old
    one leaves, unless its kind has no spare place, and nothing is lost or repeated. A change that code alone cannot
    make, e.g. a new stage, is refused with what to do.

    Kubernetes: applies a controller (two, of which one acts), the rights it needs, its network policy, alert rules, and
    the profiles. It makes what each stage needs. The image is yours: the guide to Kubernetes says how to build it.
    """
    if target == "kubernetes":
        from inferline_stream.cli.platform import kubernetes_door

        kubernetes_door()  # before what imports its libraries
        from inferline_stream.cli.kubernetes_installation import install

        install(topology, running, wanted, as_json=output == "json")
    elif wanted != DeployOptions():
        raise UsageError(
            "--image, --path, --namespace, --service-account, --secret, --stock, --reserve, --delivery and --dry-run "
            "are for --target kubernetes"
        )
    else:
        _newer_code(topology, running, output)


def _newer_code(topology: Path, running: Running, output: Output) -> None:
    from inferline_stream.controlplane.leadership import leads
    from inferline_stream.controlplane.observe.recovery import look_up
    from inferline_stream.controlplane.records.record_writers import write_overrides

    pipeline, servers = pipeline_of(topology), running.bootstrap_servers
    names = Names(pipeline.name, running.prefix)
    kinds = catalogue(pipeline.hardware)
    on_gpus = sorted(stage.name for stage in pipeline.stages if any(kinds[name].gpus for name in stage.hardware))
    if on_gpus and output == "table":
        print(f"Where no GPU is spare, a replica of {', '.join(on_gpus)} stops before the new one starts.")

    async def order() -> tuple[Override, str]:
        found = await look_up(servers, names)
        if not await leads(servers, names):
            raise Unreachable(
                f"no controller leads {pipeline.name!r} there: start one with `inferline-stream run`, and try again"
            )
        if found.plan is not None and found.plan.structure is not None:
            reasons = incompatibilities(found.plan.structure, structure_of(pipeline))
            if reasons:
                raise UsageError(f"{'; '.join(reasons)}. {DRAIN_FIRST.capitalize()}")
        override = Override("code", value=time.time(), who=who())
        await write_overrides(servers, names, [(override.key, override)])
        return override, "" if found.plan is None else found.plan.topology

    override, loads = asyncio.run(order())
    if output == "json":
        print_json({"pipeline": pipeline.name, "overrides": [as_fields(override.key, override)]})
        return
    print(
        f"{pipeline.name}: every replica is replaced by one of {loads} as it is now, one after another; the new one is "
        "READY before the old one leaves"
    )
