"""`deploy`: newer code of the stages into a running pipeline."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from inferline_stream.cli.checking import Topology
from inferline_stream.cli.output import Output
from inferline_stream.cli.overriding import Kafka, Prefix
from inferline_stream.cli.profiling import refuse_cluster


def deploy(
    topology: Topology,
    *,
    bootstrap_servers: Kafka,
    prefix: Prefix = "",
    target: Annotated[
        Literal["running", "kubernetes"], typer.Option(help="where: kubernetes returns with remote pools")
    ] = "running",
    output: Output = "table",
) -> None:
    """Bring newer code into a running pipeline.

    Every replica is replaced by one that runs the topology as it is now. The new one is READY before an old one leaves,
    and nothing is lost or repeated. A change that code alone cannot make, e.g. a new stage, is refused with what to do.
    """
    refuse_cluster("--target", target)

    import asyncio
    import time

    from inferline_stream.cli.output import print_json
    from inferline_stream.cli.overriding import as_fields, who
    from inferline_stream.cli.provisioning import topology_file
    from inferline_stream.controlplane.leadership import leads
    from inferline_stream.controlplane.records import Override, encode
    from inferline_stream.controlplane.recovery import find
    from inferline_stream.dataplane.control import Written, write_once
    from inferline_stream.dataplane.loading import load_topology
    from inferline_stream.errors import UsageError
    from inferline_stream.pipeline.names import Names
    from inferline_stream.pipeline.validation import validated
    from inferline_stream.pipeline.version import DRAIN_FIRST, incompatibilities, structure_of

    pipeline = validated(load_topology(topology_file(topology)))
    names = Names(pipeline.name, prefix)

    override = Override("code", value=time.time(), who=who())

    async def order() -> None:
        if not await leads(bootstrap_servers, names):
            raise UsageError(f"no run leads {pipeline.name!r} there: start one with `inferline-stream run`")
        plan = (await find(bootstrap_servers, names)).plan
        if plan is not None and plan.structure is not None:
            reasons = incompatibilities(plan.structure, structure_of(pipeline))
            if reasons:
                raise UsageError(f"{'; '.join(reasons)}. {DRAIN_FIRST.capitalize()}")
        await write_once(bootstrap_servers, Written(names.control, override.key, encode(override)))

    asyncio.run(order())
    if output == "json":
        print_json({"pipeline": pipeline.name, "overrides": [as_fields(override.key, override)]})
        return
    print(
        f"{pipeline.name}: every replica is replaced, one after another; the new one is READY before the old one leaves"
    )
