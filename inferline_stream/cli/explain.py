"""`explain`: plans and decisions of a pipeline, in words."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from inferline_stream.cli.options import Output, Topology, pipeline_of, topology_file
from inferline_stream.cli.output import print_json
from inferline_stream.controlplane.records.control_records import Overrides
from inferline_stream.controlplane.run_options import Prefix
from inferline_stream.pipeline.names import Names


def explain(
    topology: Topology,
    *,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Kafka that the pipeline runs on; without it, its newest finished run")
    ] = None,
    last: Annotated[int, typer.Option(help="so many of the newest plans and decisions", min=1)] = 10,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """Tell which plan is in force, what people have set, and what was decided: who, when, why, on which numbers."""
    from inferline_stream.controlplane.observe.recovery import recover
    from inferline_stream.controlplane.records.explanation import PlanHistory, document, sentences
    from inferline_stream.runs.archive import newest_run, read_record

    name = pipeline_of(topology, valid=False, groups=True).name
    if bootstrap_servers is None:
        record = read_record(newest_run(topology_file(topology).parent, name))
        story = PlanHistory(name, record.plans, record.decisions, Overrides(), record.slo)
    else:
        found = asyncio.run(recover(bootstrap_servers, Names(name, prefix)))
        story = PlanHistory(name, found.plans, found.decisions, found.overrides, found.slo)
    if output == "json":
        print_json(document(story, last))
        return
    for sentence in sentences(story, last):
        print(sentence)
