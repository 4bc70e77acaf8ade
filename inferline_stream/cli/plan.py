"""`plan`: the cheapest allocation that meets the SLO on the sample; why; and what other SLOs would cost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferline_stream.cli.options import (
    Output,
    Platform,
    SearchOptions,
    Servers,
    Topology,
    duration_of,
    kafka_words,
)
from inferline_stream.cli.output import console, write_text
from inferline_stream.cli.plan_changes import Budget, Markdown, PlanChanges, check_budget, plan_in
from inferline_stream.controlplane.run_options import Prefix
from inferline_stream.errors import UsageError
from inferline_stream.planner.plan_document import plan_to_bytes
from inferline_stream.settings import from_environment

if TYPE_CHECKING:
    from inferline_stream.cli.plan_steps import Declared, PlanInputs
    from inferline_stream.pipeline.plan import Plan
    from inferline_stream.pipeline.profile import PipelineProfile
    from inferline_stream.pipeline.trace import Trace
    from inferline_stream.planner.plan_explanation import CurvePoint, Explanation
    from inferline_stream.planner.problem import Problem
    from inferline_stream.replay.idle_costs import IdleCosts
    from inferline_stream.replay.reserve_costs import Reserve, RiskPoint
    from inferline_stream.replay.spot_mix import SpotMix


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOutput:
    """What is printed, compared and served of a plan."""

    curve: Annotated[bool, typer.Option("--curve", help="also plan for tighter and looser SLOs")] = False
    risk: Annotated[
        bool,
        typer.Option(
            "--risk", help="also say what reserve costs on traffic like the sample, and how many events come beyond it"
        ),
    ] = False
    save: Annotated[Path | None, typer.Option(help="also write the plan as JSON to this file")] = None
    against: Annotated[
        Path | None, typer.Option(help="print what changes from this plan, which `plan --save` wrote, and nothing else")
    ] = None
    markdown: Markdown = False
    budget: Budget = None
    ui: Annotated[
        bool,
        typer.Option("--ui", help="then serve a page to try other SLOs, traffic and prices on, until Ctrl-C"),
    ] = False
    ui_port: Annotated[int, typer.Option(min=0, max=65_535, help="of the page of --ui; 0 for any free one")] = 8788
    output: Output = "table"

    def check(self) -> None:
        """Refuse options that exclude each other, before long work.

        Raises:
            UsageError: says which.
        """
        if self.markdown and self.against is None:
            raise UsageError("--markdown prints what changes; give --against with the plan to compare with")
        if self.against is not None and self.output == "json":
            raise UsageError("--against prints for people: leave --output json out, or give both plans to `diff`")
        if self.ui and (self.against is not None or self.output == "json"):
            raise UsageError("--ui serves a page for people: leave --against and --output json out")


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
    platform: Platform,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse", help="let 10 s of the sample go through the plan's replicas, and plan again if need be"
        ),
    ] = False,
    bootstrap_servers: Servers = None,
    prefix: Prefix = "",
    shown: PlanOutput,
) -> None:
    """Profile what has no profile yet, then find the cheapest plan that keeps the P99 within the SLO, and say why."""
    import uvloop

    from inferline_stream.cli.plan_steps import PlanInputs, declared, planned, profiled, profiling_options
    from inferline_stream.cli.platform import check, profiling_cluster
    from inferline_stream.cli.rehearsal_steps import rehearsed

    check(platform, bootstrap_servers)
    if platform.elsewhere and rehearse:
        raise UsageError(
            f"--rehearse runs the plan on this machine, and --on {platform.on} is another: leave one of them out"
        )
    shown.check()
    before = None if shown.against is None else plan_in(shown.against)
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
    made = _Made(inputs, measured, found)
    if shown.curve:
        made = made.with_curve(slo_s)
    _keep(made, shown)
    if before is not None and shown.against is not None:
        _compare(before, shown.against.name, made, shown)
    elif shown.output == "json":
        typer.echo(made.document(risk=shown.risk).decode(), nl=False)
    else:
        _show(made, shown)
    if shown.ui:
        from inferline_stream.cli.what_if import WhatIf, plan_command, serve

        further = [*(f"--trace={text}" for text in trace or ()), *kafka_words(bootstrap_servers, prefix)]
        command = plan_command(topology, search, platform, further)
        serve(WhatIf(inputs, measured, made.plan, command), shown.ui_port)
    check_budget(made.plan, shown.budget)


@dataclass(frozen=True, slots=True)
class _Made:
    """A plan with all that it was made from, and the plans for other SLOs where they were asked for."""

    inputs: PlanInputs
    measured: PipelineProfile
    plan: Plan
    points: tuple[CurvePoint, ...] = ()

    def with_curve(self, slo_s: float) -> _Made:
        """The same with plans for other SLOs; the one for the SLO asked for is at least as cheap as before."""
        from inferline_stream.cli.plan_steps import planned
        from inferline_stream.cli.plan_text import CURVE_FACTORS
        from inferline_stream.planner.plan_explanation import cost_curve

        points = cost_curve(
            [slo_s * factor for factor in CURVE_FACTORS],
            lambda slo_s, known: planned(self.inputs, self.measured, slo_s=slo_s, known=known),
            known=[self.plan],
        )
        found = next((p.plan for p in points if p.slo_s == slo_s and p.plan is not None), self.plan)
        return replace(self, plan=found, points=points)

    def why(self, *, risk: bool) -> tuple[Explanation, tuple[RiskPoint, ...]]:
        """Why it is this plan, and what more or less reserve would buy."""
        from inferline_stream.planner.plan_explanation import explain

        problem = self.inputs.problem(self.measured, self.plan.slo_s)
        return explain(self.plan, problem), _risks(problem, self.plan) if risk else ()

    @property
    def reserve(self) -> Reserve:
        """What is held for traffic that may come."""
        from inferline_stream.replay.reserve_costs import reserve_of
        from inferline_stream.tuner.plan_basis import basis_of

        objective = self.inputs.what.pipeline.objective
        return reserve_of(basis_of(self.plan, self.measured, self.inputs.kinds, objective=objective))

    @property
    def idle(self) -> tuple[IdleCosts, ...]:
        """What sleeping saves and makes late on the first trace; empty where no stage sleeps."""
        from inferline_stream.pipeline.shape import shape_of
        from inferline_stream.replay.idle_costs import idle_costs, sleepers
        from inferline_stream.tuner.plan_basis import basis_of

        if not self.plan.idle:
            return ()
        of = sleepers(basis_of(self.plan, self.measured, self.inputs.kinds), self.plan, self.measured)
        trace, shape = self.inputs.all_traces[0], shape_of(self.inputs.what.pipeline)
        return tuple(idle_costs(shape, self.plan.idle, of, trace, self.plan.slo_s))

    @property
    def spot(self) -> SpotMix | None:
        """What spot capacity saves, and what comes of its loss; None for a plan without any."""
        from inferline_stream.replay.spot_mix import spot_mix

        problem = self.inputs.problem(self.measured, self.plan.slo_s)
        of = self.plan, problem.shape, self.measured, problem.catalogue
        return spot_mix(*of, trace=problem.traces[0], objective=problem.objective)

    @property
    def doubt(self) -> str:
        """Why nobody should believe the P99 here; empty if somebody may."""
        from inferline_stream.cli.plan_steps import not_credible

        return not_credible(self.plan, self.inputs, self.measured)

    def document(self, *, risk: bool) -> bytes:
        """All of it as JSON."""
        from inferline_stream.cli.plan_steps import planned_without
        from inferline_stream.cli.plan_text import curve_document, explanation_document

        why, risks = self.why(risk=risk)
        return plan_to_bytes(
            self.plan,
            explanation=explanation_document(why, self.reserve, risks, self.idle, self.spot),
            curve=curve_document(self.points),
            not_credible=self.doubt,
            planned_without=planned_without(self.inputs, self.measured),
        )


def _keep(made: _Made, shown: PlanOutput) -> None:
    """Write the plan where it was asked for."""
    if shown.save is not None:
        write_text(plan_to_bytes(made.plan).decode(), shown.save, "the plan")


def _compare(before: Plan, name: str, made: _Made, shown: PlanOutput) -> None:
    """Print what changes from another plan, which has a name."""
    changes = PlanChanges.between(before, made.plan, (name, "now"), made.inputs.kinds)
    if shown.markdown:
        typer.echo(changes.markdown(shown.budget), nl=False)
    else:
        console().print(changes.table())
    if doubt := made.doubt:
        typer.echo(doubt, err=True)


def _show(made: _Made, shown: PlanOutput) -> None:
    """Print the plan for people, and why it is this one."""
    from inferline_stream.cli.plan_steps import plan_table, remarks
    from inferline_stream.cli.plan_text import show_curve, show_risk, show_why

    people, pipeline = console(), made.inputs.what.pipeline
    why, risks = made.why(risk=shown.risk)
    people.print(plan_table(made.plan, made.inputs.kinds, remarks(made.plan, made.inputs, made.measured)))
    show_why(people, made.plan, why, made.reserve)
    for costs in made.idle:
        people.print(costs.in_words(made.plan.slo_s, pipeline.objective))
    if (spot := made.spot) is not None:
        people.print(spot.in_words())
    if shown.risk:
        show_risk(people, risks, pipeline.objective)
    if made.points:
        show_curve(people, made.points, made.plan)


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
            recent, *_ = asyncio.run(
                recent_sample(bootstrap_servers, what.pipeline, prefix, connect_timeout_s=timeout_s)
            )
            found.append(recent)
        else:
            found.append(read_arrivals(Path(text)))
    return tuple(found) or (what.trace,)
