"""`plan`: the cheapest allocation that meets the SLO on the sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inferline_stream.cli.checking import Topology
from inferline_stream.cli.output import Output
from inferline_stream.cli.profiling import Servers

if TYPE_CHECKING:
    from inferline_stream.pipeline.profile import PipelineProfile


def plan(
    topology: Topology,
    *,
    algorithm: Annotated[
        Literal["default", "inferline", "exact"],
        typer.Option(help="search: ours, the paper's greedy, or exhaustive for small pipelines"),
    ] = "default",
    slo: Annotated[str | None, typer.Option(help='in place of the topology\'s, e.g. "150ms"')] = None,
    trace: Annotated[
        Path | None, typer.Option(help="CSV of arrivals to plan for in place of the sample's", exists=True)
    ] = None,
    queues: Annotated[
        Literal["shared", "partitioned"] | None,
        typer.Option(help="one queue per stage as in the paper, or partitions as in Kafka (default)"),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="also write the plan as JSON to this file")] = None,
    bootstrap_servers: Servers = None,
    prefix: Annotated[str, typer.Option(help="before the name of every topic, as for `run`")] = "",
    seed: Annotated[int, typer.Option(help="of the random branches of the simulated events")] = 0,
    output: Output = "table",
) -> None:
    """Profile what has no profile yet, then find the cheapest plan that keeps the P99 within the SLO."""
    import uvloop

    from inferline_stream.cli.output import console
    from inferline_stream.cli.provisioning import (
        declared,
        existing_partitions,
        plan_table,
        planned,
        profiled,
        settings,
        slo_s,
    )
    from inferline_stream.planner.document import plan_to_bytes

    what = declared(topology, trace, bootstrap_servers=bootstrap_servers, prefix=prefix)
    seconds = slo_s(what.pipeline, slo)
    limits = settings()

    async def measure() -> tuple[PipelineProfile, dict[str, int]]:
        existing = {}
        if bootstrap_servers is not None:
            existing = await existing_partitions(bootstrap_servers, what, prefix, limits.connect_timeout_s)
        return await profiled(what, bootstrap_servers=bootstrap_servers, limits=limits), existing

    measured, existing = uvloop.run(measure())
    found = planned(what, measured, seconds=seconds, algorithm=algorithm, queues=queues, seed=seed, existing=existing)
    document = plan_to_bytes(found)
    if save is not None:
        save.write_bytes(document)
    if output == "json":
        typer.echo(document.decode(), nl=False)
    else:
        console().print(plan_table(found, what.pipeline))
