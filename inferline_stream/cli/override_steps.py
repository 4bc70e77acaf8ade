"""Steps that `scale`, `pause` and `resume` share: what people set in place of decisions, while a pipeline runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferline_stream.cli.options import duration_of

if TYPE_CHECKING:
    from inferline_stream.controlplane.records.control_records import Override
    from inferline_stream.pipeline.topology import Pipeline

Lasting = Annotated[str | None, typer.Option("--for", help='lapses after so long, e.g. "10m"; for good without it')]


def loaded(topology: Path) -> Pipeline:
    """The pipeline of a topology."""
    from inferline_stream.cli.plan_steps import topology_file
    from inferline_stream.dataplane.topology_loader import load_topology

    return load_topology(topology_file(topology))


def check_stage(pipeline: Pipeline, stage: str | None) -> None:
    """Refuse a stage that the pipeline does not have, or none."""
    from inferline_stream.errors import UsageError

    stages = [known.name for known in pipeline.stages]
    if stage is None:
        raise UsageError(f"name the stage: the pipeline has {', '.join(stages)}")
    if stage not in stages:
        raise UsageError(f"stage {stage!r}: the pipeline has {', '.join(stages)}")


def send(
    pipeline: Pipeline, servers: str, prefix: str, records: Sequence[tuple[str, Override | None]], output: str
) -> None:
    """Write overrides to the control topic, those without a value to take them back, and print which."""
    import asyncio

    from inferline_stream.cli.output import print_json
    from inferline_stream.controlplane.records.control_records import encode
    from inferline_stream.kafka.controller_client import Written, write_once
    from inferline_stream.pipeline.names import Names

    async def write() -> None:
        for key, override in records:
            value = None if override is None else encode(override)
            await write_once(servers, Written(Names(pipeline.name, prefix).control, key, value))

    asyncio.run(write())
    if output == "json":
        print_json({"pipeline": pipeline.name, "overrides": [as_fields(key, override) for key, override in records]})
        return
    for key, override in records:
        print(f"{pipeline.name}: {key} {'taken back' if override is None else 'set'}; decisions from now on follow it")


def as_fields(key: str, override: Override | None) -> dict[str, object]:
    """What was set, or taken back, for JSON."""
    if override is None:
        return {"key": key, "set": False, "until_s": None, "who": who()}
    return {"key": key, "set": True, "until_s": override.until_s, "who": override.who}


def until_s(lasting: str | None) -> float | None:
    """When what is set now lapses, in seconds since the epoch; None for good."""
    import time

    return None if lasting is None else time.time() + duration_of("--for", lasting)


def who() -> str:
    """The user whose name goes with what is set."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
