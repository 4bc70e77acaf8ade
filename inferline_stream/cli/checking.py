"""`check`: every mistake of a topology at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Topology = Annotated[Path, typer.Argument(help="the topology file, or the folder that holds a topology.py")]


def check(topology: Topology) -> None:
    """Look for every mistake of a topology, and build each stage in a process of its own."""
    import asyncio

    from inferline_stream.cli.provisioning import shown, topology_file
    from inferline_stream.dataplane.loading import load_topology
    from inferline_stream.errors import InvalidTopology
    from inferline_stream.pipeline.validation import problems
    from inferline_stream.profiler.checking import building_problems, event_problems, sample_problems
    from inferline_stream.settings import from_environment

    file = topology_file(topology)
    pipeline = load_topology(file)
    declared = problems(pipeline)
    files = sample_problems(pipeline, file.parent)
    events = [] if declared or files else event_problems(pipeline, file.parent)
    timeout_s = from_environment().start_timeout_s
    building = asyncio.run(building_problems(pipeline, file, timeout_s))
    found = [*declared, *files, *events, *building]
    if found:
        raise InvalidTopology(*found)
    stages = len(pipeline.stages)
    print(f"{shown(file)}: pipeline {pipeline.name!r} is sound; its {stages} stages were built in worker processes")
