"""`status`: how a running pipeline stands, from anywhere that reaches its Kafka."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from inferline_stream.cli.options import Output, Running, Topology, pipeline_of
from inferline_stream.cli.output import console
from inferline_stream.observability.page.snapshot import Arrows, snapshot
from inferline_stream.observability.pipeline_state import DecisionRecord, PipelineState
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.units import format_duration
from inferline_stream.settings import from_environment
from inferline_stream.tuner.error_budget import left_in_words

_LOOK_S, _GROUPS_LOOK_S = 2.5, 6.0
"""Rates are growth between two looks: this long, at first, more than `event_class` needs for one. Of groups that run
already nobody writes arrivals down: as long as a rate is taken over."""

_SILENT_S = 3.0
_BAR_COLUMNS = 30
_DECISIONS_SHOWN = 5


def status(topology: Topology, *, running: Running, output: Output = "table") -> None:
    """Show how a running pipeline stands: replicas, latencies, lag, its traffic against the plan's, the last decisions.

    Everything is read from Kafka, so it works from any machine, and also when the controller is gone.
    """

    async def once() -> tuple[PipelineState, Arrows]:
        return await anext(pipeline_states(topology, running, 1.0))

    state, arrows = asyncio.run(once())
    if output == "json":
        sys.stdout.write(snapshot(state, arrows).decode() + "\n")
    else:
        console().print(status_tables(state))


async def pipeline_states(
    topology: Path, running: Running, every_s: float
) -> AsyncIterator[tuple[PipelineState, Arrows]]:
    """Yield a running pipeline's state again and again, with the arrows of its DAG."""
    from inferline_stream.controlplane.pipeline_watch import watch_pipeline

    pipeline = pipeline_of(topology, groups=True)
    shape = shape_of(pipeline)
    arrows = [(shape.stages[a.parent], shape.stages[a.child], a.conditional) for a in shape.arrows]
    async with watch_pipeline(pipeline, running.bootstrap_servers, running.prefix, from_environment()) as observer:
        yield await observer.look(_GROUPS_LOOK_S if pipeline.groups else _LOOK_S), arrows
        while True:
            yield await observer.look(every_s), arrows


def status_tables(state: PipelineState) -> Group:
    """Everything on one screen."""
    from inferline_stream.cli.screen import StagesTable, headline

    newest = state.decisions[: -1 - _DECISIONS_SHOWN : -1]
    decisions = [Text("\nlast decisions", style="bold"), *(_decision(made, state.time_s) for made in newest)]
    return Group(
        controller_line(state), headline(state), Text(), StagesTable(state), Text(), envelope_table(state),
        *(decisions if newest else ()),
    )  # fmt: skip


def controller_line(state: PipelineState) -> Text:
    """Who leads, and whether decisions are held."""
    line = Text(f"{state.pipeline}  ", style="bold")
    age_s = state.input_age_s.get("controller")
    if age_s is None:
        line.append("no controller", style="bold red")
    elif age_s > _SILENT_S:
        line.append(f"controller silent for {format_duration(age_s)}", style="bold red")
    else:
        line.append(f"controller in term {state.term}", style="green")
    if state.budget_left is not None:
        style = "bold red" if state.budget_left < 0 else ""
        line.append(f"  SLO's window: {left_in_words(state.budget_left)}", style=style)
    if state.slo_wanted_s not in (None, state.slo_s):
        line.append(f"  SLO {format_duration(state.slo_wanted_s)} waits for the next plan", style="bold yellow")
    if state.paused:
        line.append("  decisions are held", style="bold yellow")
    return line


def envelope_table(state: PipelineState) -> Table:
    """Most arrivals in any window of each length: live against the plan's, 100 % a full bar."""
    table = Table(box=None, pad_edge=False)
    for name in ("window", "live", "plan"):
        table.add_column(name, justify="right")
    table.add_column("of the plan's traffic")
    for window in state.envelope:
        share = window.live / window.planned if window.planned else 0.0
        bar = "█" * min(_BAR_COLUMNS, round(share * _BAR_COLUMNS))
        style = "bold red" if share > 1 else "green"
        shown = f"[{style}]{bar:<{_BAR_COLUMNS}}[/] {share:.0%}" if window.planned else "–"
        table.add_row(format_duration(window.window_s), str(window.live), str(window.planned), shown)
    return table


def _decision(made: DecisionRecord, now_s: float) -> Text:
    advised = "" if made.applied or made.action == "hold" else " (advised)"
    age = format_duration(max(0.0, now_s - made.time_s))
    return Text(f"{age:>8} ago  {made.action}{advised}  {made.reason}: {made.detail}")
