"""`replay`: the production policy on a trace in simulated time, on the user's plan and profiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from inferline_stream.cli.options import Output, Reserve, SearchOptions, Seed
from inferline_stream.cli.output import Bar, console, print_json, write_text
from inferline_stream.cli.plan_changes import plan_in
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.units import count_of, duration_s, format_duration, moment_s
from inferline_stream.planner.plan_document import misfit

if TYPE_CHECKING:
    from inferline_stream.replay.loop import Conditions
    from inferline_stream.replay.outcome import Outcome
    from inferline_stream.runs.replay_inputs import ReplayInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What policies are tried on, and how the world answers."""

    what: Annotated[
        Path, typer.Argument(help="the topology, or the folder of a finished run: its plan, profiles and arrivals")
    ]
    trace: Annotated[
        Path | None, typer.Option(help="CSV of arrivals; without it those of the sample, or of the run")
    ] = None
    plan: Annotated[Path | None, typer.Option(help="a plan saved by `plan --save`; made again without it")] = None
    start_up: Annotated[
        str | None, typer.Option(help='in place of the profiled start-up times, e.g. "5s": what a change would do')
    ] = None
    seed: Seed = 0

    def conditions(self) -> Conditions:
        """How the world answers, with the profiled start-up times or with others."""
        from inferline_stream.replay.loop import Conditions

        try:
            return Conditions(start_up_s=None if self.start_up is None else duration_s(self.start_up))
        except ValueError as error:
            raise UsageError(f"--start-up: {error}") from None


def replay(
    given: ReplayOptions,
    *,
    policy: Annotated[str, typer.Option(help="default, inferline, or none")] = "default",
    reserve: Reserve = None,
    begins: Annotated[
        str | None,
        typer.Option(metavar="TIME", help='when the trace begins, e.g. "2027-11-26T07:00+01:00", for the schedule'),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="write every step to this file, .jsonl or .csv")] = None,
    output: Output = "table",
) -> None:
    """Run the production policy on a trace in simulated time: cost, misses, and every step with its reason."""
    from inferline_stream.replay.replay_document import steps, steps_as_csv, steps_as_json_lines, summary
    from inferline_stream.tuner.policy import POLICIES

    if policy != "none" and policy not in POLICIES:
        raise UsageError(f"--policy {policy!r}: there are {', '.join(POLICIES)} and none; `compare` knows others")
    if save is not None and save.suffix not in (".jsonl", ".csv"):
        raise UsageError(f"--save {save}: steps are written as .jsonl or .csv")
    conditions = given.conditions()
    if reserve is not None and policy != "default":
        raise UsageError(f"--reserve is held by the default policy, not by {policy}: leave one of them out")
    try:
        inputs = replay_inputs(given, None if begins is None else moment_s(begins))
    except ValueError as error:
        raise UsageError(f"--begins: {error}") from None
    if inputs.groups is not None and policy != "none" and (reserve is not None or given.plan is not None):
        raise UsageError(
            f"{given.what} is a run on consumer groups, whose plan is made again: leave --plan and --reserve out"
        )
    if reserve is not None:
        inputs = replace(inputs, plan=replace(inputs.plan, reserve=reserve))
    with Bar("replaying") as bar:
        outcome = inputs.replayed(policy, conditions=conditions, seed=given.seed, progress=bar.show)
    if save is not None:
        text = steps_as_csv(outcome) if save.suffix == ".csv" else steps_as_json_lines(outcome)
        write_text(text, save, "the steps")
    if output == "json":
        print_json({"pipeline": inputs.name, **summary(outcome), "steps": steps(outcome)})
    else:
        console().print(_steps_table(outcome))
        console().print(_in_words(outcome, inputs.objective))


def replay_inputs(given: ReplayOptions, begins_s: float | None = None) -> ReplayInputs:
    """From a run's folder, or from a topology that is profiled and planned where that was not done yet.

    Args:
        given: what policies are tried on.
        begins_s: when the trace begins, in seconds since the epoch; None for when the run did, if it is one's.
    """
    import uvloop

    from inferline_stream.cli.plan_steps import PlanInputs, declared, planned, profiled
    from inferline_stream.dataplane.sample_files import read_arrivals
    from inferline_stream.profiler.profiling_options import Options
    from inferline_stream.runs.archive import DOCUMENT
    from inferline_stream.runs.replay_inputs import ReplayInputs, inputs_of_run
    from inferline_stream.tuner.calendar import Calendar

    what, trace = given.what, given.trace
    plan = None if given.plan is None else plan_in(given.plan)
    if (what / DOCUMENT).exists():
        arrivals = None if trace is None else read_arrivals(trace)
        return _fitting(given, inputs_of_run(what, trace=arrivals, plan=plan, begins_s=begins_s))
    declaration = declared(what)
    pipeline = declaration.pipeline
    arrivals = declaration.trace if trace is None else read_arrivals(trace)
    measured = uvloop.run(profiled(declaration, Options()))
    found = plan or planned(PlanInputs(what=declaration, search=SearchOptions(seed=given.seed)), measured)
    inputs = ReplayInputs(
        pipeline.name,
        shape_of(pipeline),
        found,
        measured,
        declaration.trace,
        arrivals,
        catalogue(pipeline.hardware),
        pipeline.objective,
        pipeline.slo_window_s,
        calendar=None if begins_s is None else Calendar(begins_s, pipeline.scheduled()),
        partitions=pipeline.entry_partitions,
    )
    return _fitting(given, inputs)


def _fitting(given: ReplayOptions, inputs: ReplayInputs) -> ReplayInputs:
    """Return the inputs, or refuse the plan that was given for another pipeline."""
    if given.plan is not None and (why := misfit(inputs.plan, inputs.shape.stages, inputs.measured, inputs.kinds)):
        raise UsageError(f"--plan {given.plan}: {why}")
    return inputs


def _steps_table(outcome: Outcome) -> Table:
    after = Column("after", justify="right")
    table = Table(after, "what", "why", "replicas then", title=f"Policy {outcome.policy}")
    for step in outcome.steps:
        counts = ", ".join(f"{stage} {sum(kinds.values())}" for stage, kinds in step.replicas.items())
        table.add_row(
            f"{step.time_s:.1f} s", step.action.replace("_", " "), f"{step.reason}: {step.detail}".strip(": "), counts
        )
    return table


def _in_words(outcome: Outcome, objective: float) -> str:
    p99 = "never" if outcome.p99_s == float("inf") else format_duration(outcome.p99_s)
    by_class = "".join(
        f", {rate:.2%} of {topic or 'the other events'}" for topic, rate in outcome.miss_rates_by_class.items()
    )
    return (
        f"{count_of(outcome.entry_s.size, 'event')} in {format_duration(outcome.duration_s)}: "
        f"{outcome.miss_rate:.2%} above the SLO of {format_duration(outcome.slo_s)} "
        f"({1 - objective:.2%} allowed{by_class}), "
        f"P99 {p99}, worst 15 s {outcome.worst_miss_rate():.2%}; "
        + (f"{outcome.degraded_share:.2%} degraded; " if outcome.degraded_share else "")
        + f"${outcome.cost:.4f}, ${outcome.cost_per_hour:.4f}/h, "
        f"{count_of(outcome.peak_replicas, 'replica')} at most, {count_of(outcome.changes, 'change')} of a stage"
    )
