"""`resume`: decide again, after `pause` or `scale`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from inferline_stream.cli.options import Output, Running, Topology, check_stages, pipeline_of
from inferline_stream.cli.scale import send
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline


def resume(
    topology: Topology,
    stage: Annotated[str | None, typer.Argument(help="take back what `scale` set for this stage")] = None,
    *,
    running: Running,
    at: Annotated[str | None, typer.Option(metavar="WHEN", help="take back what `scale --at` set for it")] = None,
    everything: Annotated[bool, typer.Option("--all", help="take back all that people have set")] = False,
    output: Output = "table",
) -> None:
    """Decide again: after `pause`, on a stage after `scale`, or on everything."""
    pipeline = pipeline_of(topology, valid=False, groups=True)
    keys = ["pause"]
    if stage is not None:
        check_stages([stage], pipeline, "stage")
        keys = [f"{kind}/{stage}" for kind in ("scale", "limits", "standby")]
    if at is not None:
        keys = [*(keys if stage is not None else ()), f"reserve/{at}", f"traffic/{at}"]
    if everything:
        keys = _set_now(pipeline, running)
    send(pipeline, running, [(key, None) for key in keys], output)


def _set_now(pipeline: Pipeline, running: Running) -> list[str]:
    """Keys of everything in force but the newest code, which nobody can take back."""
    from inferline_stream.controlplane.observe.recovery import look_up

    found = asyncio.run(look_up(running.bootstrap_servers, Names(pipeline.name, running.prefix)))
    return [key for key in found.overrides.by_key if key != "code"]
