"""`explain`: plans and decisions of a pipeline, in words."""

from __future__ import annotations

from typing import Annotated

import typer

from inferline_stream.cli.checking import Topology
from inferline_stream.cli.output import Output
from inferline_stream.cli.overriding import Kafka, Prefix


def explain(
    topology: Topology,
    *,
    bootstrap_servers: Kafka,
    last: Annotated[int, typer.Option(help="so many of the newest plans and decisions", min=1)] = 10,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """Tell which plan is in force, what people have set, and what was decided: who, when, why, on which numbers."""
    import asyncio

    import msgspec

    from inferline_stream.cli.provisioning import topology_file
    from inferline_stream.controlplane.recovery import find
    from inferline_stream.controlplane.telling import Story, document, sentences
    from inferline_stream.dataplane.loading import load_topology
    from inferline_stream.pipeline.names import Names

    pipeline = load_topology(topology_file(topology))
    found = asyncio.run(find(bootstrap_servers, Names(pipeline.name, prefix)))
    story = Story(pipeline.name, found.plans, found.decisions, found.overrides)
    if output == "json":
        print(msgspec.json.format(msgspec.json.encode(document(story, last)), indent=2).decode())
        return
    for sentence in sentences(story, last):
        print(sentence)
