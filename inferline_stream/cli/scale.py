"""`scale`: what people set in place of decisions while a pipeline runs: replicas, limits, the SLO, prices, stock."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import typer

from inferline_stream.cli.options import Output, Running, Topology, check_stages, duration_of, pipeline_of, stage_names
from inferline_stream.cli.output import print_json
from inferline_stream.controlplane.records.control_records import Override
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.hardware import MOST_REPLICAS, catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.schedule import On, check_amounts, last_s
from inferline_stream.pipeline.spot import is_spot
from inferline_stream.pipeline.topology import Pipeline

Lasting = Annotated[str | None, typer.Option("--for", help='lapses after so long, e.g. "10m"; for good without it')]


def scale(
    topology: Topology,
    stage: Annotated[str | None, typer.Argument(help="the stage, for replicas, limits and standbys")] = None,
    replicas: Annotated[int | None, typer.Argument(help="hold the stage at so many", min=0, max=MOST_REPLICAS)] = None,
    *,
    running: Running,
    minimum: Annotated[
        int | None, typer.Option("--min", help="fewest replicas of the stage", min=0, max=MOST_REPLICAS)
    ] = None,
    maximum: Annotated[
        int | None, typer.Option("--max", help="most replicas of the stage", min=1, max=MOST_REPLICAS)
    ] = None,
    standby: Annotated[
        int | None, typer.Option(help="replicas of the stage that stand by", min=0, max=MOST_REPLICAS)
    ] = None,
    slo: Annotated[
        str | None, typer.Option(help='in place of the topology\'s, e.g. "150ms": planned for at once')
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(metavar="KIND=DOLLARS", help="per hour of a hardware kind; may be repeated")
    ] = None,
    stock: Annotated[
        list[str] | None, typer.Option(metavar="KIND=REPLICAS", help="most of a hardware kind; may be repeated")
    ] = None,
    notice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT=DURATION",
            help="a spot kind or a node is taken away then, t4-spot=2m or node/NAME=2m; may be repeated",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN", help='a day, or hours of it, by the clock of the pipeline, e.g. "2027-11-26 08:00-20:00"'
        ),
    ] = None,
    reserve: Annotated[
        float | None, typer.Option(help="hold replicas then for so many times the planned traffic")
    ] = None,
    traffic: Annotated[float | None, typer.Option(help="expect so many times the usual traffic then")] = None,
    lasting: Lasting = None,
    output: Output = "table",
) -> None:
    """Set replicas or limits of a stage, traffic to come, or the SLO, prices and stock, while it runs."""
    pipeline = pipeline_of(topology, valid=False, groups=True)
    _refuse_for_groups(pipeline, {"--standby": standby, "--slo": slo, "--notice": notice or None})
    lapses_s = until_s(lasting)
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
        if stage is None:
            raise UsageError(f"name the stage: the pipeline has {', '.join(stage_names(pipeline))}")
        check_stages([stage], pipeline, "stage")
    whole: list[Override] = []
    if slo is not None:
        whole.append(Override("slo", value=duration_of("--slo", slo)))
    whole += [Override("price", kind, dollars) for kind, dollars in _of_kinds(pipeline, "price", price or [])]
    whole += [Override("stock", kind, most) for kind, most in _of_kinds(pipeline, "stock", stock or [])]
    notices = [_notice(pipeline, text) for text in notice or []]
    windows = _of_window(pipeline, at, {"reserve": reserve, "traffic": traffic})
    if not (of_stage or whole or notices or windows):
        raise UsageError(
            "nothing to set: give a stage and a number of replicas, or one of the options of `scale --help`"
        )
    if lasting is not None and not (of_stage or whole):
        raise UsageError(f"--for {lasting!r} has nothing to end: windows and notices end by themselves; leave it out")
    signed = [msgspec.structs.replace(override, until_s=lapses_s, who=who()) for override in (*of_stage, *whole)]
    signed += notices
    signed += [msgspec.structs.replace(override, who=who()) for override in windows]
    send(pipeline, running, [(override.key, override) for override in signed], output)
    if replicas == 0 and output == "table":
        ends = f"`inferline-stream resume {topology} {stage}`" + ("" if lasting is None else f", or {lasting} are over")
        print(f"{pipeline.name}: once that is followed {stage} has no replica, and its events wait, until {ends}")


def _refuse_for_groups(pipeline: Pipeline, given: Mapping[str, object]) -> None:
    """Refuse what nothing follows where the workers are somebody else's."""
    if pipeline.groups and (options := [name for name, value in given.items() if value is not None]):
        raise UsageError(
            f"{', '.join(options)}: of stages whose code runs here; {pipeline.name!r} declares groups. "
            "Change the topology's SLO and start `run` again, and set numbers of members by --min and --max"
        )


def _of_window(pipeline: Pipeline, at: str | None, amounts: Mapping[str, float | None]) -> list[Override]:
    """What is set for one window, until it is over."""
    given = {name: value for name, value in amounts.items() if value is not None}
    if at is None and given:
        raise UsageError(f'--{next(iter(given))} needs --at, e.g. --at "2027-11-26 08:00-20:00"')
    if at is None:
        return []
    try:
        check_amounts(On(at, amounts["reserve"], amounts["traffic"]))
        until_s = last_s(On(at), pipeline.zone)
        found = [
            Override("reserve" if name == "reserve" else "traffic", at, value, until_s=until_s)
            for name, value in given.items()
        ]
    except ValueError as error:
        raise UsageError(f"--at {at!r}: {error}") from None
    if until_s <= time.time():
        raise UsageError(f"--at {at!r} is over; name a window to come, by the clock of {pipeline.zone}")
    return found


def _of_kinds(pipeline: Pipeline, option: str, given: Sequence[str]) -> list[tuple[str, float]]:
    kinds, found = catalogue(pipeline.hardware), []
    for text in given:
        kind, _, number = text.partition("=")
        if kind not in kinds:
            known = ", ".join(name for name, each in kinds.items() if each.parts == 1)
            raise UsageError(f"--{option} {text!r}: no hardware kind {kind!r}; the catalogue has {known}")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value <= MOST_REPLICAS or (option == "stock" and value != int(value)):
            what = "a whole number of replicas" if option == "stock" else "dollars per hour"
            raise UsageError(f"--{option} {text!r}: write {kind}=NUMBER, {what}, 0 to {MOST_REPLICAS}")
        found.append((kind, value))
    return found


def _notice(pipeline: Pipeline, text: str) -> Override:
    kind, _, given = text.partition("=")
    is_node = kind.startswith("node/") and kind != "node/"
    lent = [name for name in catalogue(pipeline.hardware) if is_spot(name)]
    if not is_node and kind not in lent:
        known = f"declared are {', '.join(lent)}" if lent else "none is declared: see Hardware(spot=...)"
        raise UsageError(f"--notice {text!r}: {kind!r} is no spot kind, and no node/NAME; {known}")
    left_s = duration_of("--notice", given)
    return Override("notice", kind, left_s, until_s=time.time() + left_s, who=who())


def send(pipeline: Pipeline, running: Running, records: Sequence[tuple[str, Override | None]], output: str) -> None:
    """Write overrides to the control topic, those without a value to take them back, and print what follows."""
    from inferline_stream.controlplane.observe.recovery import recover
    from inferline_stream.controlplane.records.record_writers import write_overrides

    names = Names(pipeline.name, running.prefix)
    asyncio.run(write_overrides(running.bootstrap_servers, names, records))
    if output == "json":
        print_json({"pipeline": pipeline.name, "overrides": [as_fields(key, override) for key, override in records]})
        return
    for key, override in records:
        print(f"{pipeline.name}: {key} is {'not set' if override is None else 'set'}; later decisions follow that")
    overrides = asyncio.run(recover(running.bootstrap_servers, names)).overrides
    if overrides.paused(time.time()):
        lapses = "" if overrides.by_key["pause"].until_s is None else " or the pause's time is over"
        print(f"{pipeline.name} is paused: no decision follows what is set, until `inferline-stream resume`{lapses}")


def as_fields(key: str, override: Override | None) -> dict[str, object]:
    """What was set, or taken back, for JSON."""
    if override is None:
        return {"key": key, "set": False, "until_s": None, "who": who()}
    return {"key": key, "set": True, "until_s": override.until_s, "who": override.who}


def until_s(lasting: str | None) -> float | None:
    """When what is set now lapses, in seconds since the epoch; None for good."""
    return None if lasting is None else time.time() + duration_of("--for", lasting)


def who() -> str:
    """The user whose name goes with what is set."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
