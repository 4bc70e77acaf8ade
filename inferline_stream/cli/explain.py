"""`explain`: plans and decisions of a pipeline, in words."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated

import typer

from inferline_stream.cli.options import Output, Topology, duration_of, pipeline_of, topology_file
from inferline_stream.cli.output import print_json
from inferline_stream.controlplane.records.control_records import Overrides
from inferline_stream.controlplane.run_options import Prefix
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.names import Names


def explain(
    topology: Topology,
    *,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Kafka that the pipeline runs on; without it, its newest finished run")
    ] = None,
    last: Annotated[int, typer.Option(help="so many of the newest plans and decisions", min=1)] = 10,
    ahead: Annotated[
        str | None, typer.Option("--next", help='also the hours that come: traffic, replicas and cost, e.g. "48h"')
    ] = None,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """Tell which plan is in force, what people have set, and what was decided: who, when, why, on which numbers."""
    from inferline_stream.controlplane.observe.recovery import look_up
    from inferline_stream.controlplane.records.explanation import PlanHistory, document, sentences
    from inferline_stream.runs.archive import finished_runs, read_record
    from inferline_stream.tuner.hour_ahead import HOUR_S

    pipeline = pipeline_of(topology, valid=False, groups=True)
    name = pipeline.name
    if bootstrap_servers is None:
        record = read_record(finished_runs(topology_file(topology).parent, name)[0])
        story, calendar = PlanHistory(name, record.plans, record.decisions, Overrides(), record.slo), record.calendar
    else:
        found = asyncio.run(look_up(bootstrap_servers, Names(name, prefix)))
        story, calendar = PlanHistory(name, found.plans, found.decisions, found.overrides, found.slo), found.calendar
    if ahead is not None:
        now_s, span_s = time.time(), duration_of("--next", ahead)
        known = () if calendar is None else calendar.hours
        hours = [hour for hour in known if now_s - HOUR_S < hour.time_s < now_s + span_s]
        if not hours:
            raise UsageError(f"--next {ahead}: no such hour is known; a pipeline that runs foresees a week of them")
        story = replace(story, hours=hours, zone=pipeline.zone)
    if output == "json":
        print_json(document(story, last))
        return
    for sentence in sentences(story, last):
        print(sentence)
