"""`deploy`: newer code of the stages into a running pipeline; or a pipeline into a cluster."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inferline_stream.cli.options import (
    DeployOptions,
    Output,
    PodOptions,
    Running,
    Topology,
    duration_of,
    pipeline_of,
    topology_file,
)
from inferline_stream.cli.output import print_json
from inferline_stream.cli.scale import as_fields, who
from inferline_stream.controlplane.records.control_records import CodeVersion, Override
from inferline_stream.errors import InferlineError, InvalidTopology, Unreachable, UsageError
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.version import DRAIN_FIRST, incompatibilities, structure_of

if TYPE_CHECKING:
    from inferline_stream.controlplane.observe.recovery import Recovered

_MOST_SHARE = 0.5
"""Of a canary: what it fails on runs on the running version, which has to be able to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryOptions:
    """How newer code is tried out first."""

    canary: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help='try it out on a share of the events, e.g. "10%"; then promote it or roll it back'
        ),
    ] = None
    mirror: Annotated[
        bool,
        typer.Option("--mirror", help="try it out on copies: its results are compared with the running version's only"),
    ] = False
    within: Annotated[str, typer.Option(help="roll it back unless it is found good in so long")] = "30m"


def deploy(
    topology: Topology,
    *,
    running: Running,
    target: Annotated[
        Literal["running", "kubernetes"],
        typer.Option(help="newer code into the running pipeline; or the pipeline, with its controller, into a cluster"),
    ] = "running",
    trial: CanaryOptions,
    wanted: DeployOptions,
    output: Output = "table",
) -> None:
    """Bring newer code into a running pipeline, or a pipeline into a cluster.

    Newer code: every replica is replaced by one that runs the topology as it is now. The new one is READY before an old
    one leaves, unless its kind has no spare place, and nothing is lost or repeated. A change that code alone cannot
    make, e.g. a new stage, is refused with what to do.

    With --canary, replicas of the topology given, which lies in another folder than the one that runs, or in another
    --image, serve a share of the events beside the running version. They are judged on failures, service time, memory
    and, with --mirror, on their results. What they fail on runs on the running version. `status` and `explain` show it.

    Kubernetes: applies a controller (two, of which one acts), the rights it needs, its network policy, alert rules, and
    the profiles. It makes what each stage needs. The image is yours: the guide to Kubernetes says how to build it.
    """
    if trial.canary is None and trial != CanaryOptions():
        raise UsageError("--mirror and --within are for --canary: give it a share, e.g. --canary 10%")
    if target == "kubernetes" and trial.canary is not None:
        raise UsageError("--canary is for a pipeline that runs: leave --target out, and give the --image to try out")
    if target == "kubernetes":
        from inferline_stream.cli.platform import kubernetes_door

        kubernetes_door()  # before what imports its libraries
        from inferline_stream.cli.kubernetes_installation import install

        install(topology, running, wanted, as_json=output == "json")
    elif trial.canary is not None and wanted == DeployOptions(pods=PodOptions(image=wanted.pods.image)):
        _canary(topology, running, trial, wanted.pods.image, output)
    elif wanted != DeployOptions():
        raise UsageError(
            "--image, --path, --namespace, --service-account, --secret, --stock, --reserve, --delivery and --dry-run "
            "are for --target kubernetes; --image is for --canary, too"
        )
    else:
        _newer_code(topology, running, output)


def _newer_code(topology: Path, running: Running, output: Output) -> None:
    from inferline_stream.controlplane.observe.recovery import look_up
    from inferline_stream.controlplane.records.record_writers import write_overrides

    pipeline, file, servers = pipeline_of(topology), str(topology_file(topology)), running.bootstrap_servers
    names = Names(pipeline.name, running.prefix)
    kinds = catalogue(pipeline.hardware)
    on_gpus = sorted(stage.name for stage in pipeline.stages if any(kinds[name].gpus for name in stage.hardware))
    if on_gpus and output == "table":
        print(f"Where no GPU is spare, a replica of {', '.join(on_gpus)} stops before the new one starts.")

    async def order() -> tuple[Override, str]:
        found = await look_up(servers, names)
        await _check(running, names, pipeline, found, UsageError)
        began_with = "" if found.plan is None else found.plan.topology
        code = None if file == began_with else found.overrides.code(began_with)
        override = Override("code", value=time.time(), who=who(), code=code)
        await write_overrides(servers, names, [(override.key, override)])
        return override, began_with if code is None else code.topology or code.image

    override, loads = asyncio.run(order())
    if output == "json":
        print_json({"pipeline": pipeline.name, "overrides": [as_fields(override.key, override)]})
        return
    print(
        f"{pipeline.name}: every replica is replaced by one of {loads} as it is now, one after another; the new one is "
        "READY before the old one leaves"
    )


def _canary(topology: Path, running: Running, trial: CanaryOptions, image: str, output: Output) -> None:
    from inferline_stream.controlplane.observe.recovery import look_up
    from inferline_stream.controlplane.records.record_writers import write_overrides
    from inferline_stream.profiler.profile_store import stage_digest

    share, within_s = share_of(trial.canary or ""), duration_of("--within", trial.within)
    pipeline, file, servers = pipeline_of(topology), str(topology_file(topology)), running.bootstrap_servers
    names, now_s = Names(pipeline.name, running.prefix), time.time()
    digests = {stage.name: stage_digest(stage, Path(file).parent) for stage in pipeline.stages}
    code = CodeVersion(secrets.token_hex(2), "" if image else file, now_s, "", image, trial.mirror, digests)
    override = Override("canary", value=share, until_s=now_s + within_s, who=who(), code=code)

    async def order() -> None:
        found = await look_up(servers, names)
        await _check(running, names, pipeline, found, InvalidTopology)
        runs = "" if found.plan is None else found.plan.topology
        if (code_in_place := found.overrides.code(runs)) is not None:
            runs = code_in_place.topology
        if not image and file == runs:
            raise InvalidTopology(
                f"{file} is what the pipeline runs: each replica that starts would load the version to try out. Leave "
                "it as it is, put the new version into a folder of its own, and give that"
            )
        await write_overrides(servers, names, [(override.key, override)])

    asyncio.run(order())
    if output == "json":
        print_json({"pipeline": pipeline.name, "overrides": [as_fields(override.key, override)]})
        return
    events = f"copies of {share:.1%}" if trial.mirror else f"{share:.1%}"
    print(
        f"{pipeline.name}: version {code.name} gets {events} of the events, and is promoted or rolled back within "
        f"{trial.within}; `status` shows its share and what is known of it, `explain` the verdict"
    )


async def _check(
    running: Running, names: Names, pipeline: Pipeline, found: Recovered, refuse: type[InferlineError]
) -> None:
    """Refuse code that the running pipeline cannot take, with this error.

    Raises:
        Unreachable: no controller leads.
    """
    from inferline_stream.controlplane.leadership import leads

    if not await leads(running.bootstrap_servers, names):
        raise Unreachable(
            f"no controller leads {pipeline.name!r} there: start one with `inferline-stream run`, and try again"
        )
    if found.plan is not None and found.plan.structure is not None:
        reasons = incompatibilities(found.plan.structure, structure_of(pipeline))
        if reasons:
            raise refuse(f"{'; '.join(reasons)}. {DRAIN_FIRST.capitalize()}")


def share_of(text: str) -> float:
    """Return the share of events that a text says, such as ``10%``.

    Raises:
        UsageError: it is no share, or none that a canary may have.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= _MOST_SHARE:
        raise UsageError(f"--canary {text!r}: give a share above 0% and up to {_MOST_SHARE:.0%}, e.g. 10%")
    return share
