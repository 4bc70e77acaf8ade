"""`replay`: the production policy on a trace in simulated time, on the user's plan and profiles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferline_stream.cli.options import Output, Plot, Reserve, Seed
from inferline_stream.cli.replay_steps import (
    Arrivals,
    PlanFile,
    ReplayInputs,
    RunOrTopology,
    StartUp,
    check_plot,
    conditions_of,
    replay_inputs,
)

if TYPE_CHECKING:
    from rich.table import Table

    from inferline_stream.replay.outcome import Outcome
    from inferline_stream.replay.scalers import Tuner


def replay(
    what: RunOrTopology,
    *,
    trace: Arrivals = None,
    policy: Annotated[str, typer.Option(help="default, inferline, or none")] = "default",
    plan: PlanFile = None,
    reserve: Reserve = None,
    start_up: StartUp = None,
    save: Annotated[Path | None, typer.Option(help="write every step to this file, .jsonl or .csv")] = None,
    plot: Plot = None,
    seed: Seed = 0,
    output: Output = "table",
) -> None:
    """Run the production policy on a trace in simulated time: cost, misses, and every step with its reason."""
    from dataclasses import replace

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
    conditions = conditions_of(start_up)
    check_plot(plot)
    if reserve is not None and policy != "default":
        raise UsageError(f"--reserve is held by the default policy, not by {policy}: leave one of them out")
    inputs = replay_inputs(what, trace, plan, seed)
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
            conditions=conditions,
            slots=inputs.plan.slots,
            seed=seed,
            observations=inputs.observations,
            progress=bar.show,
        )
    if save is not None:
        save.write_text(steps_as_csv(outcome) if save.suffix == ".csv" else steps_as_json_lines(outcome))
    if plot is not None:
        from inferline_stream.observability.plots.replay import draw_replay

        draw_replay(plot, outcome, inputs.plan, objective=inputs.objective)
    if output == "json":
        print_json({"pipeline": inputs.name, **summary(outcome), "steps": steps(outcome)})
    else:
        console().print(_steps_table(outcome))
        console().print(_in_words(outcome, inputs.objective))


def _tuner(policy: str, inputs: ReplayInputs) -> Tuner:
    from inferline_stream.calculus.envelope import compiled_kernel
    from inferline_stream.cli.plan_steps import settings
    from inferline_stream.controlplane.decide.policy_memory import shortest_window_s
    from inferline_stream.replay.scalers import Tuner
    from inferline_stream.tuner.policy import POLICIES, initial_state
    from inferline_stream.tuner.staffing_table import staffing

    state = initial_state(
        inputs.plan,
        inputs.measured,
        inputs.kinds,
        objective=inputs.objective,
        shortest_window_s=shortest_window_s(settings()),
        held=inputs.held,
    )
    later, staffed_s = None, -math.inf if inputs.observations is None else inputs.observations.staffed_s
    if policy == "default" and not math.isnan(staffed_s):
        prices = {name: kind.price_per_hour for name, kind in inputs.kinds.items()}
        table = staffing(inputs.shape, inputs.plan, inputs.measured, inputs.sample, prices, objective=inputs.objective)
        later = staffed_s, table
    return Tuner(policy, POLICIES[policy], state, inputs.shape, later=later, kernel=compiled_kernel())


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
