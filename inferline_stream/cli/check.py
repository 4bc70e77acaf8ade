"""`check`: every mistake of a topology at once, and where each value of the configuration comes from."""

from __future__ import annotations

import asyncio
import inspect
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from inferline_stream.cli.command_group import flag_variables
from inferline_stream.cli.options import Output, Topology, pipeline_of, stage_names, topology_file
from inferline_stream.cli.output import console, print_json
from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.idle import idle_of
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.validation import problems, validated
from inferline_stream.settings import (
    DISPATCHER_KAFKA_VARIABLES,
    KAFKA_VARIABLES,
    Settings,
    dispatcher_environment,
    from_environment,
    given,
    kafka_security,
    reasons,
)

if TYPE_CHECKING:
    from inferline_stream.replay.idle_costs import IdleCosts


def check(
    context: typer.Context,
    topology: Topology,
    *,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="only show every setting, its value, and where that comes from")
    ] = False,
    output: Output = "table",
) -> None:
    """Look for every mistake of a topology, and build each stage in a process of its own."""
    file, pipeline = topology_file(topology), pipeline_of(topology, valid=False, groups=True)
    try:
        shown = str(file.relative_to(Path.cwd()))
    except ValueError:
        shown = str(file)
    if show_config:
        rows = configuration(pipeline, shown, context)
        if output == "json":
            print_json({"settings": rows})
        else:
            console().print(_table(rows))
        return
    idle: list[IdleCosts] = []
    if pipeline.groups:
        validated(pipeline)
    else:
        idle = _idle(pipeline, file, _check(pipeline, file))
    names = stage_names(pipeline)
    if output == "json":
        document = {"pipeline": pipeline.name, "topology": str(file), "stages": names} | _many(pipeline)
        print_json({**document, **({"idle": idle} if idle else {})})
        return
    if pipeline.groups:
        print(f"{shown}: pipeline {pipeline.name!r} is sound; consumer groups that run already: {', '.join(names)}")
        return
    stages = len(pipeline.stages)
    built = f"{stages} stages were built in worker processes" if stages > 1 else "stage was built in a worker process"
    print(f"{shown}: pipeline {pipeline.name!r} is sound; its {built}")
    if many := _many(pipeline):
        given = ", ".join(f"{stage} up to {most}" for stage, most in many["most"].items())
        print(f"results of an event: {given}; the SLO counts {many['slo_counts']}")
    for costs in idle:
        print(costs.in_words(pipeline.slo_s, pipeline.objective))


def _many(pipeline: Pipeline) -> dict[str, Any]:
    """How many results stages may give an event, and what the SLO counts then; empty where none gives many."""
    from inferline_stream.pipeline.shape import shape_of

    most = {stage.name: stage.most for stage in pipeline.stages if stage.many}
    return {"most": most, "slo_counts": "results" if shape_of(pipeline).counted() else "events"} if most else {}


def _check(pipeline: Pipeline, file: Path) -> dict[str, float]:
    """Refuse an invalid topology, else return how long each stage took to build."""
    from inferline_stream.profiler.topology_check import (
        building_problems,
        deadline_problems,
        event_problems,
        sample_problems,
    )

    declared = problems(pipeline)
    files = sample_problems(pipeline, file.parent)
    events = [] if declared or files else event_problems(pipeline, file.parent)
    over = [] if declared else deadline_problems(pipeline, time.time())
    building, start_ups_s = asyncio.run(building_problems(pipeline, file, from_environment()))
    found = [*declared, *files, *events, *over, *building]
    if found:
        raise InvalidTopology(*found)
    return start_ups_s


def _idle(pipeline: Pipeline, file: Path, start_ups_s: dict[str, float]) -> list[IdleCosts]:
    """What sleeping makes late of the sample, as far as it is known before stages are profiled."""
    import numpy as np

    from inferline_stream.dataplane.sample_files import read_arrivals
    from inferline_stream.pipeline.shape import shape_of
    from inferline_stream.pipeline.trace import Trace, merged
    from inferline_stream.replay.idle_costs import Sleeper, idle_costs
    from inferline_stream.tuner.policy_settings import PolicySettings

    idle = idle_of(pipeline)
    if not idle:
        return []
    samples = (sample for sample in pipeline.samples.values() if sample is not None)
    traces = [read_arrivals(file.parent / sample.arrivals) for sample in samples]
    trace = merged(traces) if traces else Trace(np.zeros(1))
    reaction_s = PolicySettings().reaction_s
    of = {name: Sleeper(reaction_s + start_up_s) for name, start_up_s in start_ups_s.items()}
    # How long a server takes to wake is not known before it is profiled, but no longer than a start.
    ready = [each for each in pipeline.stages if each.standby and not (each.server and each.server.sleep)]
    of |= {stage.name: Sleeper(0.0) for stage in ready}
    return list(idle_costs(shape_of(pipeline), idle, of, trace, pipeline.slo_s))


def configuration(pipeline: Pipeline, file: str, context: typer.Context) -> list[dict[str, Any]]:
    """Every setting: name, value, where it comes from, and what it is."""
    rows = []
    defaults = {name: p.default for name, p in inspect.signature(Pipeline.__init__).parameters.items()}
    for name in ("slo", "objective", "slo_window", "on_expired", "order", "idle"):
        value = getattr(pipeline, name)
        rows.append(_row(name, value, "default" if value == defaults[name] else file, "of the pipeline"))
    chosen, usual, why = from_environment(), Settings(), reasons()
    variables = {name: f"INFERLINE_{name.upper()}" for name in Settings.__dataclass_fields__}
    present = given(variables.values())
    for name, variable in variables.items():
        source = variable if variable in present else "default"
        value = getattr(chosen if variable in present else usual, name)
        rows.append(_row(name, value, source, why.get(name, "")))
    kafka, dispatchers = given(KAFKA_VARIABLES), given(DISPATCHER_KAFKA_VARIABLES)
    rows.append(
        _row("kafka_security", str(kafka_security()), ", ".join(kafka) or "default", "how clients speak to Kafka")
    )
    if dispatchers:
        found = str(kafka_security(dispatcher_environment()))
        rows.append(_row("dispatcher_kafka_security", found, ", ".join(dispatchers), "how dispatchers speak to Kafka"))
    flags = flag_variables(context.parent.command) if context.parent is not None else {}
    for variable, value in given(flags).items():
        rows.append(_row(flags[variable], value, variable, "flag of the command line"))
    return rows


def _row(name: str, value: object, source: str, meaning: str) -> dict[str, Any]:
    return {"name": name, "value": value, "from": source, "meaning": meaning}


def _table(rows: list[dict[str, Any]]) -> object:
    table = Table(title="Configuration")
    for column in ("name", "value", "from", "meaning"):
        table.add_column(column, overflow="fold")
    for row in rows:
        source = str(row["from"])
        table.add_row(
            row["name"], str(row["value"]), source, row["meaning"], style="dim" if source == "default" else "bold"
        )
    return table
