"""`advise`: what would change for consumer groups that run already; nothing is changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from inferline_stream.cli.options import Output, duration_of, pipeline_of
from inferline_stream.cli.output import Bar, console, print_json, write_text
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.units import count_of

if TYPE_CHECKING:
    from inferline_stream.pipeline.topology import Pipeline
    from inferline_stream.pipeline.trace import Trace
    from inferline_stream.runs.group_advice import Advice
    from inferline_stream.runs.group_seen import Seen


def advise(
    topology: Annotated[
        Path | None, typer.Argument(help="the topology that declares the groups; without it --group writes one")
    ] = None,
    *,
    bootstrap_servers: Annotated[str, typer.Option(help="Kafka that the groups run on, host:port")],
    watch: Annotated[str, typer.Option("--for", help='how long to watch, e.g. "10m"')] = "10m",
    arrivals: Annotated[
        Path | None,
        typer.Option(
            help="CSV of arrivals to judge on, such as a week's, in place of those that are seen", exists=True
        ),
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="without a topology: a group's id, to declare; may be repeated")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="also write the advice to this file, as one page")] = None,
    output: Output = "table",
) -> None:
    """Watch consumer groups, and say what other numbers of their members would cost and miss; nothing is changed.

    Ours, a fixed number, KEDA's and the HPA's default settings and hindsight are replayed on the same arrivals. With
    --group and no topology it prints a topology.py for a person to correct.
    """
    import uvloop

    from inferline_stream.runs.group_advice import advice_document

    names = [name for name in group or () if name]
    if (topology is None) == (not names):
        raise UsageError("give a topology that declares the groups, or --group NAME for each to declare, not both")
    if topology is None:
        print(uvloop.run(_declared(bootstrap_servers, names)), end="")
        return
    from inferline_stream.dataplane.sample_files import read_arrivals

    pipeline = pipeline_of(topology, groups=True)
    if not pipeline.groups:
        raise UsageError(f"pipeline {pipeline.name!r} declares stages and no consumer group; `plan` plans for stages")
    judged_on = None if arrivals is None else read_arrivals(arrivals)
    watched_s = duration_of("--for", watch)
    with Bar("watching") as bar:
        seen = uvloop.run(_watched(pipeline, bootstrap_servers, watched_s, bar))
    advice = _judged(pipeline, seen, judged_on)
    if output == "json":
        print_json(advice_document(advice))
    else:
        _print(advice)
    if html is not None:  # last: where it cannot be written, nobody has watched in vain
        from inferline_stream.runs.advice_page import advice_page

        write_text(advice_page(advice), html, "the page", "--html")


async def _watched(pipeline: Pipeline, bootstrap_servers: str, watched_s: float, bar: Bar) -> Seen:
    from inferline_stream.kafka.group_watch import GroupWatch
    from inferline_stream.profiler.service_time_query import ServiceTimeQueries
    from inferline_stream.runs.group_seen import Seen

    seen = Seen(pipeline)
    began_s = time.monotonic()
    queries = ServiceTimeQueries(pipeline.groups)
    async with GroupWatch(bootstrap_servers, pipeline.groups) as watch, queries:
        async for looks in watch.looks():
            seen.take(looks)
            passed_s = time.monotonic() - began_s
            bar.show(min(passed_s, watched_s), watched_s, count_of(seen.events, "event"))
            if passed_s >= watched_s:
                break
        others = {each.name: watch.other_topics(each.group) for each in pipeline.groups}
        seen.close(others, queries.trouble, exact=watch.exact)
    known = {each.name: queries.throughput(each.name) for each in pipeline.groups}
    seen.reported = {name: figure for name, figure in known.items() if figure is not None}
    return seen


def _judged(pipeline: Pipeline, seen: Seen, judged_on: Trace | None) -> Advice:
    from inferline_stream.runs.group_advice import WAYS
    from inferline_stream.runs.group_advice import advise as advised

    with Bar("judging") as bar:
        return advised(
            pipeline,
            seen.learners,
            seen.arrivals(),
            watched_s=seen.watched_s,
            judged_on=judged_on,
            reported=seen.reported,
            notes=seen.notes,
            progress=bar.each(len(WAYS)),
        )


async def _declared(bootstrap_servers: str, groups: list[str]) -> str:
    from inferline_stream.kafka.group_watch import groups_of
    from inferline_stream.kafka.offsets import Offsets
    from inferline_stream.runs.group_seen import declaration

    async with Offsets(bootstrap_servers) as offsets:
        return declaration(await groups_of(offsets, groups))


def _print(advice: Advice) -> None:
    from inferline_stream.pipeline.units import format_duration
    from inferline_stream.runs.group_advice import SEEN, WAY_HEADS, seen_rows, verdict, way_rows, way_title

    people = console()
    table = Table(*SEEN, title=f"{count_of(advice.events, 'event')} in {format_duration(advice.watched_s)}")
    for row in seen_rows(advice):
        table.add_row(*row)
    people.print(table)
    if advice.p99_s is not None:
        people.print(
            f"Now: P99 {format_duration(advice.p99_s)}, {advice.miss_rate:.2%} of the events above the SLO of "
            f"{format_duration(advice.slo_s)}.",
            highlight=False,
        )
    if advice.contest is not None:
        table = Table(*WAY_HEADS, title=way_title(advice.contest))
        for row in way_rows(advice.contest):
            table.add_row(*row, style=None if row[3] == "yes" else "dim")
        people.print(table)
    for text in (*verdict(advice), *(f"Note: {note}." for note in advice.notes)):
        people.print(text, markup=False, highlight=False)
