"""`scale`, `pause`, `resume`: what people set in place of decisions, while a pipeline runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferline_stream.cli.options import Output, Prefix, RunningServers, Topology

if TYPE_CHECKING:
    from inferline_stream.controlplane.log.control_records import Override
    from inferline_stream.pipeline.topology import Pipeline

For = Annotated[str | None, typer.Option("--for", help='lapses after so long, e.g. "10m"; for good without it')]


def scale(
    topology: Topology,
    stage: Annotated[str | None, typer.Argument(help="the stage, for replicas, limits and standbys")] = None,
    replicas: Annotated[int | None, typer.Argument(help="hold the stage at so many", min=0)] = None,
    *,
    bootstrap_servers: RunningServers,
    minimum: Annotated[int | None, typer.Option("--min", help="fewest replicas of the stage", min=0)] = None,
    maximum: Annotated[int | None, typer.Option("--max", help="most replicas of the stage", min=1)] = None,
    standby: Annotated[int | None, typer.Option(help="replicas of the stage that stand by", min=0)] = None,
    slo: Annotated[
        str | None, typer.Option(help='in place of the topology\'s, e.g. "150ms": planned for at once')
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(metavar="KIND=DOLLARS", help="per hour of a hardware kind; may be repeated")
    ] = None,
    stock: Annotated[
        list[str] | None, typer.Option(metavar="KIND=REPLICAS", help="most of a hardware kind; may be repeated")
    ] = None,
    lasting: For = None,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """Set replicas or limits of a stage, or the SLO, prices and stock that plans are made for, while it runs."""
    import msgspec

    from inferline_stream.controlplane.log.control_records import Override
    from inferline_stream.errors import UsageError

    pipeline = _loaded(topology)
    until_s = _until_s(lasting)
    of_stage: list[Override] = []
    if replicas is not None:
        of_stage.append(Override("scale", stage or "", replicas))
    if minimum is not None or maximum is not None:
        if maximum is not None and (minimum or 0) > maximum:
            raise UsageError(f"--min {minimum} is above --max {maximum}")
        of_stage.append(Override("limits", stage or "", minimum=minimum, maximum=maximum))
    if standby is not None:
        of_stage.append(Override("standby", stage or "", standby))
    if of_stage:
        _known(pipeline, stage)
    whole: list[Override] = []
    if slo is not None:
        whole.append(Override("slo", value=_slo_s(slo)))
    whole += [Override("price", kind, dollars) for kind, dollars in _of_kinds(pipeline, "price", price or [])]
    whole += [Override("stock", kind, most) for kind, most in _of_kinds(pipeline, "stock", stock or [])]
    if not of_stage and not whole:
        raise UsageError(
            "nothing to set: give a stage and a number of replicas, or one of the options of `scale --help`"
        )
    signed = [msgspec.structs.replace(override, until_s=until_s, who=who()) for override in (*of_stage, *whole)]
    _send(pipeline, bootstrap_servers, prefix, [(override.key, override) for override in signed], output)


def pause(
    topology: Topology,
    *,
    bootstrap_servers: RunningServers,
    lasting: For = None,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """Hold decisions, new plans included; records keep flowing."""
    from inferline_stream.controlplane.log.control_records import Override

    override = Override("pause", until_s=_until_s(lasting), who=who())
    _send(_loaded(topology), bootstrap_servers, prefix, [(override.key, override)], output)


def resume(
    topology: Topology,
    stage: Annotated[str | None, typer.Argument(help="take back what `scale` set for this stage")] = None,
    *,
    bootstrap_servers: RunningServers,
    everything: Annotated[bool, typer.Option("--all", help="take back all that people have set")] = False,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """Decide again: after `pause`, on a stage after `scale`, or on everything."""
    pipeline = _loaded(topology)
    keys = ["pause"]
    if stage is not None:
        _known(pipeline, stage)
        keys = [f"{kind}/{stage}" for kind in ("scale", "limits", "standby")]
    if everything:
        keys = _set_now(pipeline, bootstrap_servers, prefix)
    _send(pipeline, bootstrap_servers, prefix, [(key, None) for key in keys], output)


def _set_now(pipeline: Pipeline, servers: str, prefix: str) -> list[str]:
    """Keys of everything in force but the newest code, which nobody can take back."""
    import asyncio

    from inferline_stream.controlplane.observe.recovery import recover
    from inferline_stream.pipeline.names import Names

    found = asyncio.run(recover(servers, Names(pipeline.name, prefix)))
    return [key for key in found.overrides.by_key if key != "code"]


def _loaded(topology: Path) -> Pipeline:
    from inferline_stream.cli.plan_steps import topology_file
    from inferline_stream.dataplane.topology_loader import load_topology

    return load_topology(topology_file(topology))


def _known(pipeline: Pipeline, stage: str | None) -> None:
    from inferline_stream.errors import UsageError

    stages = [known.name for known in pipeline.stages]
    if stage is None:
        raise UsageError(f"name the stage: the pipeline has {', '.join(stages)}")
    if stage not in stages:
        raise UsageError(f"stage {stage!r}: the pipeline has {', '.join(stages)}")


def _slo_s(slo: str) -> float:
    from inferline_stream.errors import UsageError
    from inferline_stream.pipeline.units import duration_s

    try:
        seconds = duration_s(slo)
    except ValueError as error:
        raise UsageError(f"--slo: {error}") from None
    if seconds <= 0:
        raise UsageError(f"--slo: {slo!r} must be above 0")
    return seconds


def _of_kinds(pipeline: Pipeline, option: str, given: Sequence[str]) -> list[tuple[str, float]]:
    from inferline_stream.errors import UsageError
    from inferline_stream.pipeline.hardware import catalogue

    kinds, found = catalogue(pipeline.hardware), []
    for text in given:
        kind, _, number = text.partition("=")
        if kind not in kinds:
            raise UsageError(f"--{option} {text!r}: no hardware kind {kind!r}; the catalogue has {', '.join(kinds)}")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf") or (option == "stock" and value != int(value)):
            what = "a whole number of replicas" if option == "stock" else "dollars per hour"
            raise UsageError(f"--{option} {text!r}: write {kind}=NUMBER, {what}, 0 or more")
        found.append((kind, value))
    return found


def _send(
    pipeline: Pipeline, servers: str, prefix: str, records: Sequence[tuple[str, Override | None]], output: str
) -> None:
    import asyncio

    from inferline_stream.cli.output import print_json
    from inferline_stream.controlplane.log.control_records import encode
    from inferline_stream.kafka.controller_client import Written, write_once
    from inferline_stream.pipeline.names import Names

    async def send() -> None:
        for key, override in records:
            value = None if override is None else encode(override)
            await write_once(servers, Written(Names(pipeline.name, prefix).control, key, value))

    asyncio.run(send())
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


def who() -> str:
    """The user whose name goes with what is set."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
