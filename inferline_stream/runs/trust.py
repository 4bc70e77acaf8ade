"""How far predictions can be trusted: what the simulation says of finished runs, beside what was measured in them.

A run's own arrivals are replayed with the plan, the profiles and the policy that it had. What is left is the error of
profiles, simulation and policy; that the traffic was another than planned is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median

import msgspec

from inferline_stream.errors import Infeasible, InvalidFile, UsageError
from inferline_stream.pipeline.units import count_of
from inferline_stream.runs.archive import finished_runs, read_record
from inferline_stream.runs.replay_inputs import inputs_of_run

FEWEST_EVENTS = 100
"""A P99 of fewer is the word of their latest event."""


class TrustedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run, predicted and measured. Times are seconds, money is dollars per hour."""

    run: str
    """The name of its folder."""
    events: int
    planned_p99_s: float
    """Of the plan it began with, on the traffic that the plan was made for."""
    predicted_p99_s: float
    """On the traffic that came."""
    p99_s: float
    predicted_cost_per_hour: float
    cost_per_hour: float
    predicted_miss_rate: float
    miss_rate: float

    @property
    def p99_error(self) -> float:
        """|predicted / measured − 1|."""
        return abs(self.predicted_p99_s / self.p99_s - 1)

    @property
    def cost_error(self) -> float:
        """|predicted / measured − 1|."""
        return abs(self.predicted_cost_per_hour / self.cost_per_hour - 1)


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a pipeline, newest first."""

    pipeline: str
    runs: list[TrustedRun]
    left_out: dict[str, str]
    """Run → why it says nothing of predictions."""

    def median_of(self, error: Callable[[TrustedRun], float]) -> float | None:
        """Return the median of an error over the runs; None without any."""
        return median(map(error, self.runs)) if self.runs else None


def trust_of(
    topology_folder: Path, pipeline: str, newest: int, progress: Callable[[int, int, str], None] = lambda *_: None
) -> Trust:
    """Replay a pipeline's finished runs.

    Args:
        topology_folder: that of the topology, beside which runs are kept.
        pipeline: its name.
        newest: how many runs, the newest ones.
        progress: called with how many are done, of how many, and which is next.

    Raises:
        UsageError: the pipeline has no finished run.
    """
    finished = finished_runs(topology_folder, pipeline)[:newest]
    runs: list[TrustedRun] = []
    left_out: dict[str, str] = {}
    for done, run in enumerate(finished):
        progress(done, len(finished), run.name)
        found = _trusted(run)
        if isinstance(found, TrustedRun):
            runs.append(found)
        else:
            left_out[run.name] = found
    return Trust(pipeline=pipeline, runs=runs, left_out=left_out)


def _trusted(folder: Path) -> TrustedRun | str:
    """A run with what its replay predicts, or why there is none."""
    try:
        record = read_record(folder)
        report = record.report
        if report.verified < report.events_in:
            return f"times of only {report.verified} of its {report.events_in} events are kept"
        if report.advisory:
            return "advisory: its decisions were not carried out"
        if report.p99_s is None or report.slo_miss_rate is None or report.events_out < FEWEST_EVENTS:
            return f"{count_of(report.events_out, 'event')} came through; {FEWEST_EVENTS} make a P99"
        outcome = inputs_of_run(folder).replayed()
    except (Infeasible, InvalidFile, UsageError) as error:
        return str(error)
    if not math.isfinite(outcome.p99_s):
        return "by its replay more than 1 % of the events never end"
    return TrustedRun(
        run=folder.name,
        events=report.events_in,
        planned_p99_s=record.plans[0].plan.predicted_p99_s,
        predicted_p99_s=outcome.p99_s,
        p99_s=report.p99_s,
        predicted_cost_per_hour=outcome.cost_per_hour,
        cost_per_hour=(report.cost - report.preparation_cost) / report.duration_s * 3600,
        predicted_miss_rate=outcome.miss_rate,
        miss_rate=report.slo_miss_rate,
    )
