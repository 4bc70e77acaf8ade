"""`replay`: the production policy on a trace in simulated time, on the user's plan and profiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from inferline_stream.cli.options import Output, Reserve, SearchOptions, Seed, check_plot
from inferline_stream.cli.output import Bar, console, print_json
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.hardware import Catalogue, catalogue
from inferline_stream.pipeline.plan import Allocations, Plan
from inferline_stream.pipeline.shape import Shape, shape_of
from inferline_stream.pipeline.units import duration_s, format_duration
from inferline_stream.planner.plan_document import plan_from_bytes
from inferline_stream.settings import from_environment

if TYPE_CHECKING:
    from inferline_stream.pipeline.profile import PipelineProfile
    from inferline_stream.pipeline.trace import Trace
    from inferline_stream.replay.loop import Conditions
    from inferline_stream.replay.outcome import Outcome
    from inferline_stream.replay.scalers import Tuner
    from inferline_stream.runs.archive import RunRecord
    from inferline_stream.tuner.live_observations import LiveObservations


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
    plot: Annotated[Path | None, typer.Option(help="also draw it into this file, .svg or .png")] = None
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
    save: Annotated[Path | None, typer.Option(help="write every step to this file, .jsonl or .csv")] = None,
    output: Output = "table",
) -> None:
    """Run the production policy on a trace in simulated time: cost, misses, and every step with its reason."""
    from inferline_stream.replay.loop import replay as replayed
    from inferline_stream.replay.replay_document import steps, steps_as_csv, steps_as_json_lines, summary
    from inferline_stream.replay.scalers import Fixed, Scaler
    from inferline_stream.tuner.policy import POLICIES

    if policy != "none" and policy not in POLICIES:
        raise UsageError(f"--policy {policy!r}: there are {', '.join(POLICIES)} and none; `compare` knows others")
    if save is not None and save.suffix not in (".jsonl", ".csv"):
        raise UsageError(f"--save {save}: steps are written as .jsonl or .csv")
    conditions = given.conditions()
    check_plot(given.plot)
    if reserve is not None and policy != "default":
        raise UsageError(f"--reserve is held by the default policy, not by {policy}: leave one of them out")
    inputs = replay_inputs(given)
    if reserve is not None:
        inputs = replace(inputs, plan=replace(inputs.plan, reserve=reserve))
    with Bar("replaying") as bar:
        scaler: Scaler = Fixed("none") if policy == "none" else _tuner(policy, inputs)
        outcome = replayed(
            inputs.shape,
            inputs.plan.allocations if policy == "none" else inputs.begun,
            inputs.measured,
            inputs.trace,
            scaler,
            catalogue=inputs.kinds,
            slo_s=inputs.plan.slo_s,
            order=inputs.plan.order,
            conditions=conditions,
            slots=inputs.plan.slots,
            seed=given.seed,
            observations=inputs.observations,
            progress=bar.show,
        )
    if save is not None:
        save.write_text(steps_as_csv(outcome) if save.suffix == ".csv" else steps_as_json_lines(outcome))
    if given.plot is not None:
        from inferline_stream.observability.plots.replay import draw_replay

        draw_replay(given.plot, outcome, inputs.plan, objective=inputs.objective)
    if output == "json":
        print_json({"pipeline": inputs.name, **summary(outcome), "steps": steps(outcome)})
    else:
        console().print(_steps_table(outcome))
        console().print(_in_words(outcome, inputs.objective))


@dataclass(frozen=True, slots=True)
class ReplayInputs:
    """What policies are tried on."""

    name: str
    shape: Shape
    plan: Plan
    measured: PipelineProfile
    sample: Trace
    trace: Trace
    kinds: Catalogue
    objective: float
    observations: LiveObservations | None = None
    """Of the run's own policy."""
    held: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Replicas that the run's traffic found, by stage and hardware kind, where they were not the plan's."""

    @property
    def begun(self) -> Allocations:
        """The plan's allocations with the replicas that traffic finds."""
        return {
            stage: tuple(replace(a, replicas=self.held.get(stage, {}).get(a.hardware, a.replicas)) for a in kinds)
            for stage, kinds in self.plan.allocations.items()
        }


def replay_inputs(given: ReplayOptions) -> ReplayInputs:
    """From a run's folder, or from a topology that is profiled and planned where that was not done yet."""
    import uvloop

    from inferline_stream.cli.plan_steps import PlanInputs, declared, planned, profiled
    from inferline_stream.controlplane.observe.observation_log import read_observations
    from inferline_stream.dataplane.sample_files import read_arrivals
    from inferline_stream.pipeline.trace import Trace
    from inferline_stream.profiler.profiling_options import Options
    from inferline_stream.runs.archive import DOCUMENT, read_events, read_record

    what, trace = given.what, given.trace
    plan = None if given.plan is None else plan_from_bytes(given.plan.read_bytes(), str(given.plan))
    if (what / DOCUMENT).exists():
        record, events = read_record(what), read_events(what)
        arrivals = Trace(events.arrivals_s) if trace is None else read_arrivals(trace)
        if not len(arrivals):
            raise UsageError(f"{what}: no event came in this run; give --trace")
        observations = read_observations(what) if trace is None else None
        return ReplayInputs(
            record.report.pipeline,
            record.shape,
            plan or record.plans[0].plan,
            record.as_it_ran,
            Trace(events.sample_s) if events.sample_s.size else arrivals,
            arrivals,
            record.kinds,
            record.objective,
            observations,
            {} if observations is None else _held(record, events.began_s + float(observations.asked_s[0])),
        )
    declaration = declared(what)
    pipeline = declaration.pipeline
    arrivals = declaration.trace if trace is None else read_arrivals(trace)
    measured = uvloop.run(profiled(declaration, Options()))
    found = plan or planned(PlanInputs(what=declaration, search=SearchOptions(seed=given.seed)), measured)
    missing = [stage.name for stage in pipeline.stages if stage.name not in found.allocations]
    if missing:
        raise UsageError(f"--plan {given.plan}: knows no stage {missing[0]!r}; it is a plan of {found.pipeline!r}")
    return ReplayInputs(
        pipeline.name,
        shape_of(pipeline),
        found,
        measured,
        declaration.trace,
        arrivals,
        catalogue(pipeline.hardware),
        pipeline.objective,
    )


def _held(record: RunRecord, asked_s: float) -> Mapping[str, Mapping[str, int]]:
    """Replicas by what was decided before traffic, on what was known to come; empty where nothing was."""
    before = [d.replicas for d in record.decisions if d.applied and d.action != "hold" and d.time_s < asked_s]
    return before[-1] if before else {}


def _tuner(policy: str, inputs: ReplayInputs) -> Tuner:
    from inferline_stream.calculus.envelope import compiled_kernel
    from inferline_stream.replay.scalers import Tuner
    from inferline_stream.tuner.policy import POLICIES, initial_state
    from inferline_stream.tuner.staffing_table import staffing

    state = initial_state(
        inputs.plan,
        inputs.measured,
        inputs.kinds,
        objective=inputs.objective,
        shortest_window_s=from_environment().shortest_window_s,
        held=inputs.held,
    )
    later, staffed_s = None, -math.inf if inputs.observations is None else inputs.observations.staffed_s
    if policy == "default" and not math.isnan(staffed_s):
        prices = {name: kind.price_per_hour for name, kind in inputs.kinds.items()}
        table = staffing(inputs.shape, inputs.plan, inputs.measured, inputs.sample, prices, objective=inputs.objective)
        later = staffed_s, table
    return Tuner(policy, POLICIES[policy], state, inputs.shape, later=later, kernel=compiled_kernel())


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
    return (
        f"{outcome.entry_s.size} events in {format_duration(outcome.duration_s)}: "
        f"{outcome.miss_rate:.2%} above the SLO of {format_duration(outcome.slo_s)} ({1 - objective:.2%} allowed), "
        f"P99 {p99}, worst 15 s {outcome.worst_miss_rate():.2%}; "
        f"${outcome.cost:.4f}, ${outcome.cost_per_hour:.4f}/h, "
        f"{outcome.peak_replicas} replicas at most, {outcome.changes} changes of a stage"
    )
