"""`scale`, `pause`, `resume`: what people set in place of decisions, while a pipeline runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inferline_stream.cli.checking import Topology

if TYPE_CHECKING:
    from inferline_stream.controlplane.records import Override

Kafka = Annotated[str, typer.Option("--bootstrap-servers", help="Kafka that the pipeline runs on, host:port")]
Prefix = Annotated[str, typer.Option(help="before the name of every topic, as given to `run`")]
For = Annotated[str | None, typer.Option("--for", help='lapses after so long, e.g. "10m"; for good without it')]


def scale(
    topology: Topology,
    stage: Annotated[str, typer.Argument(help="the stage")],
    replicas: Annotated[int, typer.Argument(help="replicas that it is to have", min=0)],
    *,
    bootstrap_servers: Kafka,
    lasting: For = None,
    prefix: Prefix = "",
) -> None:
    """Hold a stage at a number of replicas."""
    from inferline_stream.controlplane.records import Override

    override = Override("scale", stage, replicas, until_s=_until_s(lasting), who=_who())
    _send(topology, bootstrap_servers, prefix, override.key, override, stage=stage)


def pause(topology: Topology, *, bootstrap_servers: Kafka, lasting: For = None, prefix: Prefix = "") -> None:
    """Hold scaling decisions; records keep flowing."""
    from inferline_stream.controlplane.records import Override

    override = Override("pause", until_s=_until_s(lasting), who=_who())
    _send(topology, bootstrap_servers, prefix, override.key, override)


def resume(
    topology: Topology,
    stage: Annotated[str | None, typer.Argument(help="take back what `scale` set for this stage")] = None,
    *,
    bootstrap_servers: Kafka,
    prefix: Prefix = "",
) -> None:
    """Decide again: after `pause`, or on a stage after `scale`."""
    key = "pause" if stage is None else f"scale/{stage}"
    _send(topology, bootstrap_servers, prefix, key, None, stage=stage)


def _send(
    topology: object, servers: str, prefix: str, key: str, override: Override | None, *, stage: str | None = None
) -> None:
    import asyncio
    from pathlib import Path

    from inferline_stream.controlplane.records import encode
    from inferline_stream.dataplane.control import Written, write_once
    from inferline_stream.dataplane.loading import load_topology
    from inferline_stream.errors import UsageError
    from inferline_stream.pipeline.names import Names

    pipeline = load_topology(Path(str(topology)))
    stages = [known.name for known in pipeline.stages]
    if stage is not None and stage not in stages:
        raise UsageError(f"stage {stage!r}: the pipeline has {', '.join(stages)}")
    value = None if override is None else encode(override)
    asyncio.run(write_once(servers, Written(Names(pipeline.name, prefix).control, key, value)))
    print(f"{pipeline.name}: {key} {'taken back' if override is None else 'set'}; decisions from now on follow it")


def _until_s(lasting: str | None) -> float | None:
    import time

    from inferline_stream.errors import UsageError
    from inferline_stream.pipeline.units import duration_s

    if lasting is None:
        return None
    try:
        return time.time() + duration_s(lasting)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from None


def _who() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
