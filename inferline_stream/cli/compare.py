"""`compare`: policies side by side on a trace in simulated time, on the user's plan and profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from inferline_stream.cli.options import Output
from inferline_stream.cli.output import Bar, console, print_json
from inferline_stream.cli.replay import ReplayOptions, replay_inputs
from inferline_stream.errors import UsageError

if TYPE_CHECKING:
    from inferline_stream.replay.compare import Comparison


def compare(
    given: ReplayOptions,
    *,
    policies: Annotated[
        str | None, typer.Option(help="their names, separated by commas; all of them without it")
    ] = None,
    tune: Annotated[
        bool, typer.Option(help="run each rule of others a second time, with the setting that is best beforehand")
    ] = True,
    tune_on: Annotated[
        Path | None,
        typer.Option(help="CSV of arrivals that the rules of others are tuned on; without it those of the sample"),
    ] = None,
    output: Output = "table",
) -> None:
    """Put policies side by side on a trace: ours, KEDA, HPA, Flink, DS2, Ray Serve, Dataflow … and hindsight.

    Each begins with our plan and has its hardware and batch limits, start-up times and statistics; coarse-grained
    ones begin with units of their own. Rules of others scale ordinary consumer groups, and once more our pools with one
    queue per dispatcher, each of which keeps a replica. Where a stage runs several batches at once, they scale our
    pools only. The regret is the cost above that of a schedule made in hindsight.
    """
    from inferline_stream.calculus.envelope import compiled_kernel
    from inferline_stream.dataplane.sample_files import read_arrivals
    from inferline_stream.replay.compare import NAMES
    from inferline_stream.replay.compare import compare as compared
    from inferline_stream.replay.replay_document import comparison_to_dict

    if tune_on is not None and not tune:
        raise UsageError("--tune-on is what rules are tuned on, and --no-tune tunes none: leave one of them out")
    chosen = NAMES if policies is None else tuple(name.strip() for name in policies.split(","))
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        raise UsageError(f"--policies: {', '.join(map(repr, unknown))}: there are {', '.join(NAMES)}")
    conditions = given.conditions()
    inputs = replay_inputs(given)
    if inputs.groups is not None:
        raise UsageError(f"{given.what} is a run on consumer groups: `report` and `advise` compare ways to scale those")
    with Bar("comparing") as bar:
        comparison = compared(
            inputs.shape,
            inputs.plan,
            inputs.measured,
            inputs.sample,
            inputs.trace,
            catalogue=inputs.kinds,
            partitions=inputs.partitions,
            policies=chosen,
            tune=tune,
            tune_on=None if tune_on is None else read_arrivals(tune_on),
            conditions=conditions,
            objective=inputs.objective,
            slo_window_s=inputs.slo_window_s,
            seed=given.seed,
            kernel=compiled_kernel(),
            progress=bar.each(len(chosen)),
        )
    if output == "json":
        print_json({"pipeline": inputs.name, **comparison_to_dict(comparison)})
    else:
        console().print(_rows_table(comparison))


def _rows_table(comparison: Comparison) -> Table:
    from inferline_stream.replay.compare import AS_DEFAULT

    table = Table("policy", "setting", title="Policies, cheapest first")
    for name in ("$", "above SLO", "worst 15 s", "steps", "peak", "regret", "to instant"):
        table.add_column(name, justify="right")
    best_as_default = {row.label for row in comparison.rows if row.setting == AS_DEFAULT}
    for row in comparison.shown:
        outcome, tuned = row.outcome, row.setting == "default" and row.label in best_as_default
        regrets = ["" if r is None else f"{r:+.1%}" for r in (row.regret, row.regret_instant)]
        table.add_row(
            row.label,
            "default, also tuned" if tuned else row.setting,
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
    if comparison.without_groups is not None:
        table.caption += (
            f"; rules of others scale our pools only: stage {comparison.without_groups} runs several batches at once, "
            "and members of ordinary consumer groups do not"
        )
    return table
