"""`replay` and `compare`: policies on a trace in simulated time, on the user's plan and profiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferline_stream.cli.options import Output, Plot, Seed

if TYPE_CHECKING:
    from rich.table import Table

    from inferline_stream.pipeline.hardware import Catalogue
    from inferline_stream.pipeline.plan import Plan
    from inferline_stream.pipeline.profile import PipelineProfile
    from inferline_stream.pipeline.shape import Shape
    from inferline_stream.pipeline.trace import Trace
    from inferline_stream.replay.compare import Comparison
    from inferline_stream.replay.conditions import Conditions
    from inferline_stream.replay.live_observations import LiveObservations
    from inferline_stream.replay.outcome import Outcome
    from inferline_stream.replay.scalers import Tuner

What = Annotated[
    Path, typer.Argument(help="the topology, or the folder of a finished run: its plan, profiles and arrivals")
]
Arrivals = Annotated[
    Path | None, typer.Option("--trace", help="CSV of arrivals; without it those of the sample, or of the run")
]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="a plan saved by `plan --save`; made again without it")]
StartUp = Annotated[
    str | None, typer.Option(help='in place of the profiled start-up times, e.g. "5s": what a change would do')
]


@dataclass(frozen=True, slots=True)
class _Ground:
    """What policies are tried on."""

    name: str
    shape: Shape
    plan: Plan
    measured: PipelineProfile
    sample: Trace
    trace: Trace
    kinds: Catalogue
    objective: float
    looks: LiveObservations | None = None
    """Of the run's own policy."""


def replay(
    what: What,
    *,
    trace: Arrivals = None,
    policy: Annotated[str, typer.Option(help="default, inferline, or none")] = "default",
    plan: PlanFile = None,
    start_up: StartUp = None,
    save: Annotated[Path | None, typer.Option(help="write every step to this file, .jsonl or .csv")] = None,
    plot: Plot = None,
    seed: Seed = 0,
    output: Output = "table",
) -> None:
    """Run the production policy on a trace in simulated time: cost, misses, and every step with its reason."""
    from inferline_stream.cli.output import Bar, console, print_json
    from inferline_stream.errors import UsageError
    from inferline_stream.replay.loop import replay as replayed
    from inferline_stream.replay.replay_document import steps, steps_as_csv, steps_as_json_lines, summary
    from inferline_stream.replay.scalers import Fixed, Scaler
    from inferline_stream.tuner.policy import POLICIES

    if policy != "none" and policy not in POLICIES:
        raise UsageError(f"--policy {policy!r}: there are {', '.join(POLICIES)} and none; `compare` knows others")
    if save is not None and save.suffix not in (".jsonl", ".csv"):
        raise UsageError(f"--save {save}: steps are written as .jsonl or .csv")
    conditions = _conditions(start_up)
    _check_picture(plot)
    ground = _ground(what, trace, plan, seed)
    with Bar("replaying") as bar:
        scaler: Scaler = Fixed("none") if policy == "none" else _tuner(policy, ground)
        outcome = replayed(
            ground.shape,
            ground.plan.allocations,
            ground.measured,
            ground.trace,
            scaler,
            catalogue=ground.kinds,
            slo_s=ground.plan.slo_s,
            conditions=conditions,
            seed=seed,
            looks=ground.looks,
            progress=bar.show,
        )
    if save is not None:
        save.write_text(steps_as_csv(outcome) if save.suffix == ".csv" else steps_as_json_lines(outcome))
    if plot is not None:
        from inferline_stream.observability.plots.replay import draw_replay

        draw_replay(plot, outcome, ground.plan, objective=ground.objective)
    if output == "json":
        print_json({"pipeline": ground.name, **summary(outcome), "steps": steps(outcome)})
    else:
        console().print(_steps_table(outcome))
        console().print(_in_words(outcome, ground.objective))


def compare(
    what: What,
    *,
    trace: Arrivals = None,
    policies: Annotated[
        str | None, typer.Option(help="their names, separated by commas; all of them without it")
    ] = None,
    tune: Annotated[
        bool, typer.Option(help="run each rule of others a second time, with the setting that is best on the sample")
    ] = True,
    plan: PlanFile = None,
    start_up: StartUp = None,
    plot: Plot = None,
    seed: Seed = 0,
    output: Output = "table",
) -> None:
    """Put policies side by side on a trace: ours, KEDA, HPA, Flink, DS2, Ray Serve, Dataflow … and hindsight.

    Each begins with our plan and has its hardware and batch limits, start-up times and statistics; coarse-grained
    ones begin with units of their own. Rules of others scale ordinary consumer groups, and once more our pools with one
    queue per stage. The regret is the cost above that of a schedule made in hindsight.
    """
    from inferline_stream.calculus.envelope import compiled_kernel
    from inferline_stream.cli.output import Bar, console, print_json
    from inferline_stream.errors import UsageError
    from inferline_stream.replay.compare import NAMES
    from inferline_stream.replay.compare import compare as compared
    from inferline_stream.replay.replay_document import comparison_to_dict

    chosen = NAMES if policies is None else tuple(name.strip() for name in policies.split(","))
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        raise UsageError(f"--policies: {', '.join(map(repr, unknown))}: there are {', '.join(NAMES)}")
    conditions = _conditions(start_up)
    _check_picture(plot)
    ground = _ground(what, trace, plan, seed)
    with Bar("comparing") as bar:
        comparison = compared(
            ground.shape,
            ground.plan,
            ground.measured,
            ground.sample,
            ground.trace,
            catalogue=ground.kinds,
            policies=chosen,
            tune=tune,
            conditions=conditions,
            objective=ground.objective,
            seed=seed,
            kernel=compiled_kernel(),
            progress=bar.each(len(chosen)),
        )
    if plot is not None:
        from inferline_stream.observability.plots.comparison import draw_comparison

        draw_comparison(plot, comparison, objective=ground.objective, title=ground.name)
    if output == "json":
        print_json({"pipeline": ground.name, **comparison_to_dict(comparison)})
    else:
        console().print(_rows_table(comparison))


def _tuner(policy: str, ground: _Ground) -> Tuner:
    from inferline_stream.calculus.envelope import compiled_kernel
    from inferline_stream.cli.plan_steps import settings
    from inferline_stream.controlplane.decide.policy_memory import shortest_window_s
    from inferline_stream.replay.scalers import Tuner
    from inferline_stream.tuner.policy import POLICIES, initial_state
    from inferline_stream.tuner.staffing_table import staffing

    state = initial_state(
        ground.plan,
        ground.measured,
        ground.kinds,
        objective=ground.objective,
        shortest_window_s=shortest_window_s(settings()),
    )
    later, staffed_s = None, -math.inf if ground.looks is None else ground.looks.staffed_s
    if policy == "default" and not math.isnan(staffed_s):
        prices = {name: kind.price_per_hour for name, kind in ground.kinds.items()}
        table = staffing(ground.shape, ground.plan, ground.measured, ground.sample, prices, objective=ground.objective)
        later = staffed_s, table
    return Tuner(policy, POLICIES[policy], state, ground.shape, later=later, kernel=compiled_kernel())


def _conditions(start_up: str | None) -> Conditions:
    from inferline_stream.errors import UsageError
    from inferline_stream.pipeline.units import duration_s
    from inferline_stream.replay.conditions import Conditions

    try:
        return Conditions(start_up_s=None if start_up is None else duration_s(start_up))
    except ValueError as error:
        raise UsageError(f"--start-up: {error}") from None


def _check_picture(plot: Path | None) -> None:
    if plot is not None:
        from inferline_stream.observability.plots.canvas import check_file

        check_file(plot)


def _ground(what: Path, trace: Path | None, plan: Path | None, seed: int) -> _Ground:
    """From a run's folder, or from a topology that is profiled and planned where that was not done yet."""
    import uvloop

    from inferline_stream.cli.plan_steps import declared, planned, profiled
    from inferline_stream.controlplane.observe.observation_log import read_observations
    from inferline_stream.dataplane.sample_files import read_arrivals
    from inferline_stream.errors import UsageError
    from inferline_stream.pipeline.hardware import catalogue
    from inferline_stream.pipeline.shape import shape_of
    from inferline_stream.pipeline.trace import Trace
    from inferline_stream.planner.plan_document import plan_from_bytes
    from inferline_stream.runs.archive import DOCUMENT, read_events, read_record

    given = None if plan is None else plan_from_bytes(plan.read_bytes(), str(plan))
    if (what / DOCUMENT).exists():
        record, events = read_record(what), read_events(what)
        arrivals = Trace(events.arrivals_s) if trace is None else read_arrivals(trace)
        if not len(arrivals):
            raise UsageError(f"{what}: no event came in this run; give --trace")
        return _Ground(
            record.report.pipeline,
            record.shape,
            given or plan_from_bytes(bytes(record.plans[0].plan), "the run's plan"),
            record.as_it_ran,
            Trace(events.sample_s) if events.sample_s.size else arrivals,
            arrivals,
            record.kinds,
            record.objective,
            read_observations(what) if trace is None else None,
        )
    declaration = declared(what)
    pipeline = declaration.pipeline
    arrivals = declaration.trace if trace is None else read_arrivals(trace)
    measured = uvloop.run(profiled(declaration, bootstrap_servers=None))
    found = given or planned(declaration, measured, seconds=pipeline.slo_s, seed=seed)
    missing = [stage.name for stage in pipeline.stages if stage.name not in found.allocations]
    if missing:
        raise UsageError(f"--plan {plan}: knows no stage {missing[0]!r}; it is a plan of {found.pipeline!r}")
    return _Ground(
        pipeline.name,
        shape_of(pipeline),
        found,
        measured,
        declaration.trace,
        arrivals,
        catalogue(pipeline.hardware),
        pipeline.objective,
    )


def _steps_table(outcome: Outcome) -> Table:
    from rich.table import Table

    table = Table(title=f"Policy {outcome.policy}")
    table.add_column("after", justify="right")
    for name in ("what", "why", "replicas then"):
        table.add_column(name)
    for step in outcome.steps:
        counts = ", ".join(f"{stage} {sum(kinds.values())}" for stage, kinds in step.replicas.items())
        table.add_row(
            f"{step.time_s:.1f} s", step.action.replace("_", " "), f"{step.reason}: {step.detail}".strip(": "), counts
        )
    return table


def _in_words(outcome: Outcome, objective: float) -> str:
    from inferline_stream.pipeline.units import format_duration

    p99 = "never" if outcome.p99_s == float("inf") else format_duration(outcome.p99_s)
    return (
        f"{outcome.entry_s.size} events in {format_duration(outcome.duration_s)}: "
        f"{outcome.miss_rate:.2%} above the SLO of {format_duration(outcome.slo_s)} ({1 - objective:.2%} allowed), "
        f"P99 {p99}, worst 15 s {outcome.worst_miss_rate():.2%}; "
        f"${outcome.cost:.4f}, ${outcome.cost_per_hour:.4f}/h, "
        f"{outcome.peak_replicas} replicas at most, {outcome.changes} changes of a stage"
    )


def _rows_table(comparison: Comparison) -> Table:
    from rich.table import Table

    table = Table(title="Policies, cheapest first")
    table.add_column("policy")
    table.add_column("setting")
    for name in ("$", "above SLO", "worst 15 s", "steps", "peak", "regret", "to instant"):
        table.add_column(name, justify="right")
    for row in sorted(comparison.rows, key=lambda row: row.outcome.cost):
        outcome = row.outcome
        regrets = ["" if r is None else f"{r:+.1%}" for r in (row.regret, row.regret_instant)]
        table.add_row(
            row.label,
            row.setting,
            f"{outcome.cost:.4f}",
            f"{outcome.miss_rate:.2%}",
            f"{outcome.worst_miss_rate():.2%}",
            str(outcome.changes),
            str(outcome.peak_replicas),
            *regrets,
            style=None if row.keeps_objective else "dim",
        )
    table.caption = (
        f"no policy can serve this trace for less than ${comparison.work_bound:.4f}; "
        "dim rows do not keep the objective; regret is cost above the clairvoyant's"
    )
    return table
