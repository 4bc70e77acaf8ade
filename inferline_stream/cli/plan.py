"""`plan`: the cheapest allocation that meets the SLO on the sample; why; and what other SLOs would cost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from inferline_stream.cli.options import (
    Output,
    Platform,
    SearchOptions,
    Servers,
    Topology,
    check_plot,
    duration_of,
)
from inferline_stream.cli.output import console
from inferline_stream.cli.plan_changes import Budget, Markdown, PlanChanges, check_budget, plan_in
from inferline_stream.controlplane.run_options import Prefix
from inferline_stream.errors import UsageError
from inferline_stream.planner.plan_document import plan_to_bytes
from inferline_stream.settings import from_environment

if TYPE_CHECKING:
    from inferline_stream.cli.plan_steps import Declared
    from inferline_stream.pipeline.plan import Plan
    from inferline_stream.pipeline.trace import Trace
    from inferline_stream.planner.problem import Problem
    from inferline_stream.replay.reserve_costs import RiskPoint


def plan(
    topology: Topology,
    *,
    search: SearchOptions,
    slo: Annotated[str | None, typer.Option(help='in place of the topology\'s, e.g. "150ms"')] = None,
    trace: Annotated[
        list[str] | None,
        typer.Option(
            help='arrivals in place of the sample\'s: a CSV file, "gamma:rate=150,cv=4,for=10m", '
            '"ramp:from=100,to=250,over=60s", "levels:150x60s,250x30s", or "topic", the source topic\'s last hour; '
            "given several times, the plan meets the SLO on each"
        ),
    ] = None,
    curve: Annotated[bool, typer.Option("--curve", help="also plan for tighter and looser SLOs")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="also draw the curve of --curve into this .png or .svg file")
    ] = None,
    risk: Annotated[
        bool,
        typer.Option(
            "--risk", help="also say what reserve costs on traffic like the sample, and how many events come beyond it"
        ),
    ] = False,
    save: Annotated[Path | None, typer.Option(help="also write the plan as JSON to this file")] = None,
    against: Annotated[
        Path | None, typer.Option(help="print what changes from this plan, which `plan --save` wrote, and nothing else")
    ] = None,
    markdown: Markdown = False,
    budget: Budget = None,
    ui: Annotated[
        bool,
        typer.Option("--ui", help="then serve a page to try other SLOs, traffic and prices on, until Ctrl-C"),
    ] = False,
    ui_port: Annotated[int, typer.Option(min=0, max=65_535, help="of the page of --ui; 0 for any free one")] = 8788,
    platform: Platform,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse", help="let 10 s of the sample go through the plan's replicas, and plan again if need be"
        ),
    ] = False,
    bootstrap_servers: Servers = None,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """Profile what has no profile yet, then find the cheapest plan that keeps the P99 within the SLO, and say why."""
    import uvloop

    from inferline_stream.cli.plan_steps import (
        PlanInputs,
        declared,
        not_credible,
        plan_table,
        planned,
        profiled,
        profiling_options,
    )
    from inferline_stream.cli.plan_text import (
        CURVE_FACTORS,
        curve_document,
        explanation_document,
        show_curve,
        show_risk,
        show_why,
    )
    from inferline_stream.cli.platform import check, profiling_cluster
    from inferline_stream.cli.rehearsal_steps import rehearsed
    from inferline_stream.planner.plan_explanation import CurvePoint, cost_curve, explain
    from inferline_stream.replay.reserve_costs import reserve_of
    from inferline_stream.tuner.plan_basis import basis_of

    check(platform, bootstrap_servers)
    if platform.elsewhere and rehearse:
        raise UsageError(
            f"--rehearse runs the plan on this machine, and --on {platform.on} is another: leave one of them out"
        )
    check_plot(plot)
    if markdown and against is None:
        raise UsageError("--markdown prints what changes; give --against with the plan to compare with")
    if against is not None and output == "json":
        raise UsageError("--against prints for people: leave --output json out, or give both plans to `diff`")
    if ui and (against is not None or output == "json"):
        raise UsageError("--ui serves a page for people: leave --against and --output json out")
    known = None if against is None else plan_in(against)
    what = declared(topology, bootstrap_servers, prefix)
    traces = _traces(trace or (), what, bootstrap_servers=bootstrap_servers, prefix=prefix, seed=search.seed)
    slo_s = what.pipeline.slo_s if slo is None else duration_of("--slo", slo)
    options, cluster = profiling_options(platform, bootstrap_servers), profiling_cluster(platform, bootstrap_servers)
    measured = uvloop.run(profiled(what, options, bootstrap_servers, cluster))
    inputs = PlanInputs(what=what, platform=platform, search=search, slo_s=slo_s, traces=traces).limited(absent=False)
    found = planned(inputs, measured)
    if rehearse:
        note = partial(typer.echo, err=True)
        measured, found = uvloop.run(rehearsed(inputs, measured, found, partial(planned, inputs), note=note))
    points: tuple[CurvePoint, ...] = ()
    if curve or plot is not None:
        points = cost_curve(
            [slo_s * factor for factor in CURVE_FACTORS],
            lambda slo_s, known: planned(inputs, measured, slo_s=slo_s, known=known),
            known=[found],
        )
        found = next((p.plan for p in points if p.slo_s == slo_s and p.plan is not None), found)
    pipeline = inputs.what.pipeline
    problem = inputs.problem(measured, found.slo_s)
    why = explain(found, problem)
    reserved = reserve_of(basis_of(found, measured, inputs.kinds, objective=pipeline.objective))
    risks = _risks(problem, found) if risk else ()
    if save is not None:
        save.write_bytes(plan_to_bytes(found))
    if plot is not None:
        from inferline_stream.observability.plots.plan_pictures import draw_cost_curve

        draw_cost_curve(plot, points, pipeline.name, title=f"What an SLO costs: {pipeline.name}", chosen=found)
    doubt = not_credible(found, inputs, measured)
    if known is not None and against is not None:
        changes = PlanChanges.between(known, found, (against.name, "now"), inputs.kinds)
        if markdown:
            typer.echo(changes.markdown(budget), nl=False)
        else:
            console().print(changes.table())
        if doubt:
            typer.echo(doubt, err=True)
        return check_budget(found, budget)
    if output == "json":
        curves = curve_document(points) if points else msgspec.UNSET
        document = plan_to_bytes(
            found, explanation=explanation_document(why, reserved, risks), curve=curves, not_credible=doubt
        )
        typer.echo(document.decode(), nl=False)
        return check_budget(found, budget)
    people = console()
    people.print(plan_table(found, pipeline, doubt))
    show_why(people, found, why, reserved)
    if risk:
        show_risk(people, risks, pipeline.objective)
    if points:
        show_curve(people, points, found)
    if ui:
        from inferline_stream.cli.what_if import WhatIf, serve

        serve(WhatIf(inputs, measured, found, ("inferline-stream", "plan", str(topology))), ui_port)
    check_budget(found, budget)


def _risks(problem: Problem, found: Plan) -> tuple[RiskPoint, ...]:
    """What reserve buys on the first of the traces; empty where that is too short for a record."""
    from inferline_stream.replay.reserve_costs import frontier
    from inferline_stream.tuner.plan_basis import basis_of
    from inferline_stream.tuner.staffing_table import staffing

    prices = {name: kind.price_per_hour for name, kind in problem.catalogue.items()}
    sample, objective = problem.traces[0], problem.objective
    table = staffing(problem.shape, found, problem.measured, sample, prices, objective=objective, seed=problem.seed)
    basis = basis_of(found, problem.measured, problem.catalogue, objective=objective, staffing=table)
    if table.record is None or basis.levels is None:
        return ()
    return frontier(basis.levels, table.record, basis.start_up_s + basis.knobs.reaction_s)


def _traces(
    given: Sequence[str], what: Declared, *, bootstrap_servers: str | None, prefix: str, seed: int
) -> tuple[Trace, ...]:
    """The traces to plan for: those given, or the sample's."""
    import numpy as np

    from inferline_stream.cli.plan_steps import check_memory
    from inferline_stream.dataplane.sample_files import read_arrivals
    from inferline_stream.dataplane.source_sample import recent_sample
    from inferline_stream.pipeline.generated import generated_trace, is_generated

    def expecting(events: int) -> None:
        check_memory(events, len(what.pipeline.stages))

    found: list[Trace] = []
    for number, text in enumerate(given):
        if is_generated(text):
            try:
                found.append(generated_trace(text, np.random.default_rng([seed, number]), expecting))
            except ValueError as error:
                raise UsageError(f"--trace: {error}") from None
        elif text == "topic":
            if bootstrap_servers is None:
                raise UsageError("--trace topic reads the source topic; give --bootstrap-servers too")
            timeout_s = from_environment().connect_timeout_s
            recent, _, _ = asyncio.run(
                recent_sample(bootstrap_servers, what.pipeline, prefix, connect_timeout_s=timeout_s)
            )
            found.append(recent)
        else:
            found.append(read_arrivals(Path(text)))
    return tuple(found) or (what.trace,)
