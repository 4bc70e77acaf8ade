"""What `replay` and `compare` try policies on: a finished run, or a topology with its plan and profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from inferline_stream.pipeline.hardware import Catalogue
    from inferline_stream.pipeline.plan import Allocations, Plan
    from inferline_stream.pipeline.profile import PipelineProfile
    from inferline_stream.pipeline.shape import Shape
    from inferline_stream.pipeline.trace import Trace
    from inferline_stream.replay.conditions import Conditions
    from inferline_stream.replay.live_observations import LiveObservations
    from inferline_stream.runs.archive import RunRecord

RunOrTopology = Annotated[
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


def replay_inputs(what: Path, trace: Path | None, plan: Path | None, seed: int) -> ReplayInputs:
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
        observations = read_observations(what) if trace is None else None
        return ReplayInputs(
            record.report.pipeline,
            record.shape,
            given or plan_from_bytes(bytes(record.plans[0].plan), "the run's plan"),
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
    measured = uvloop.run(profiled(declaration, bootstrap_servers=None))
    found = given or planned(declaration, measured, seconds=pipeline.slo_s, seed=seed)
    missing = [stage.name for stage in pipeline.stages if stage.name not in found.allocations]
    if missing:
        raise UsageError(f"--plan {plan}: knows no stage {missing[0]!r}; it is a plan of {found.pipeline!r}")
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


def conditions_of(start_up: str | None) -> Conditions:
    """How the world answers, with the profiled start-up times or with others."""
    from inferline_stream.errors import UsageError
    from inferline_stream.pipeline.units import duration_s
    from inferline_stream.replay.conditions import Conditions

    try:
        return Conditions(start_up_s=None if start_up is None else duration_s(start_up))
    except ValueError as error:
        raise UsageError(f"--start-up: {error}") from None


def check_plot(plot: Path | None) -> None:
    """Say before long work what would keep a picture from being written."""
    if plot is not None:
        from inferline_stream.observability.plots.canvas import check_file

        check_file(plot)
