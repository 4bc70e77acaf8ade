"""Arguments and options that several commands share, each declared once; a dataclass is a group of them.

A command takes a group as one parameter. `command_group` gives it an option for each field.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import typer

from inferline_stream.controlplane.run_options import Delivery, Endpoints, Prefix, RecordOptions
from inferline_stream.dataplane.topology_loader import file_and_name, load_topology
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.schedule import MOST
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.units import duration_s
from inferline_stream.pipeline.validation import validated

Topology = Annotated[
    Path, typer.Argument(help="the topology file, or the folder that holds a topology.py; file:name for one of several")
]
Output = Annotated[Literal["table", "json"], typer.Option(help="how to print the result")]
Servers = Annotated[
    str | None, typer.Option("--bootstrap-servers", help="Kafka, host:port; an embedded broker is started without it")
]
Stock = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND=REPLICAS", help="this pipeline's share of a hardware kind; may be repeated"),
]


Reserve = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=MOST,
        metavar="MULTIPLE",
        help="always hold replicas for so many times the planned traffic; without it, as many as the odds of the "
        "sample and since are worth",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="of generated traffic and of the random branches of simulated events")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """What every command writes to standard error."""

    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(help="of the lines on standard error: for people, or one JSON object each"),
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="least severe lines shown; warning for people, info as JSON, by default"),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Where a pipeline runs already."""

    bootstrap_servers: Annotated[str, typer.Option(help="Kafka that the pipeline runs on, host:port")]
    prefix: Prefix = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How a plan is searched for."""

    algorithm: Annotated[
        Literal["default", "inferline", "exact"],
        typer.Option(
            help="search for the plan: ours, the paper's greedy, or ours until the plan is proven the cheapest, "
            "where Ctrl-C ends it with the gap"
        ),
    ] = "default"
    reserve: Reserve = None
    seed: Seed = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOptions:
    """What pods on Kubernetes are made of."""

    image: Annotated[
        str, typer.Option(help="for Kubernetes: holds this package, the topology and what its stages import")
    ] = ""
    path: Annotated[str, typer.Option(help="of the topology file in the image; by default as here")] = ""
    namespace: Annotated[str, typer.Option(help="by default that of the kubeconfig's context")] = ""
    secret: Annotated[
        str,
        typer.Option(
            help="a Secret whose keys become the environment of dispatchers, and of controllers in the cluster, such "
            "as Kafka's password; with INFERLINE_DISPATCHER_KAFKA_* in it and here, dispatchers get these alone"
        ),
    ] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Where stages are measured, and dispatchers and replicas run."""

    on: Annotated[
        Literal["local", "ray", "kubernetes"],
        typer.Option(
            help="where: local is this machine, kubernetes the cluster that kubeconfig names, ray that of RAY_ADDRESS"
        ),
    ] = "local"
    pods: PodOptions = field(default_factory=PodOptions)
    service_account: Annotated[str, typer.Option(help="of the pods, which are given no token of it")] = "default"
    oversubscribe: Annotated[
        bool,
        typer.Option(
            "--oversubscribe",
            help="take more cores than this machine has, and shares of cores that nothing holds: no P99 is credible "
            "then",
        ),
    ] = False

    @property
    def elsewhere(self) -> bool:
        """Whether replicas run in a cluster, which finds places for them by itself."""
        return self.on != "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of `run`."""

    topology: Topology
    bootstrap_servers: Servers = None
    replay: Annotated[
        bool | None,
        typer.Option(
            "--replay/--no-replay",
            help="replay the sample's events into the source topic; by default only on the embedded broker",
        ),
    ] = None
    arrivals: Annotated[
        Path | None,
        typer.Option(help="CSV of arrivals to replay in place of the sample's", exists=True, dir_okay=False),
    ] = None
    speed_up: Annotated[float, typer.Option(help="seconds of the traces per second, in plan and replay")] = 1.0
    duration: Annotated[str | None, typer.Option(help='stop after so long, e.g. "60s"; it drains all the same')] = None
    advisory: Annotated[bool, typer.Option("--advisory", help="report decisions without acting on them")] = False
    search: SearchOptions = field(default_factory=SearchOptions)
    policy: Annotated[
        Literal["default", "inferline"], typer.Option(help="scaling: ours, or the paper's Tuner to the letter")
    ] = "default"
    records: RecordOptions = field(default_factory=RecordOptions)
    endpoints: Endpoints = field(default_factory=Endpoints)
    platform: Platform = field(default_factory=Platform)
    hand_over: Annotated[
        bool, typer.Option("--hand-over", help="leave the pods at work at the end, for the controller that follows")
    ] = False
    stock: Stock = None
    profiles: Annotated[
        Path | None,
        typer.Option(
            help="folder of profiles that were measured on another machine like this one", exists=True, file_okay=False
        ),
    ] = None
    gate: Annotated[
        bool, typer.Option("--gate", help="end with code 6 unless the objective held and no event was lost")
    ] = False
    output: Output = "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployOptions:
    """The options of `deploy` for a cluster."""

    pods: PodOptions = field(default_factory=PodOptions)
    service_account: Annotated[str, typer.Option(help="of dispatchers and replicas; made, without a right")] = ""
    delivery: Delivery = "at_least_once"
    stock: Stock = None
    reserve: Reserve = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the manifests, and ask no cluster")] = False


def as_words(group: Platform | SearchOptions | PodOptions) -> Iterator[str]:
    """Yield the options of a group that are not as by default, as they are given."""
    for option in fields(group):
        value = getattr(group, option.name)
        if isinstance(value, PodOptions):
            yield from as_words(value)
        elif value != option.default:
            flag = f"--{option.name.replace('_', '-')}"
            yield flag if value is True else f"{flag}={value}"


def kafka_words(bootstrap_servers: str | None, prefix: str) -> tuple[str, ...]:
    """Return where a pipeline runs, as options."""
    named = (("bootstrap-servers", bootstrap_servers), ("prefix", prefix))
    return tuple(f"--{name}={text}" for name, text in named if text)


def topology_file(topology: Path) -> Path:
    """The file meant by a path: itself, or the topology.py of a folder; ``:name`` stays behind it."""
    file, variable = file_and_name(topology)
    return file.with_name(f"{file.name}:{variable}") if variable else file


def pipeline_of(topology: Path, *, valid: bool = True, groups: bool = False) -> Pipeline:
    """The pipeline that a topology declares.

    Args:
        topology: the file.
        valid: whether it has to be valid.
        groups: whether the command is for consumer groups that run already, too.

    Raises:
        InvalidTopology: everything that is wrong with it, where it has to be valid.
        UsageError: it declares consumer groups, and the command is for stages alone.
    """
    with _printed_to_stderr():
        pipeline = load_topology(topology_file(topology))
    pipeline = validated(pipeline) if valid else pipeline
    if pipeline.groups and not groups:
        raise UsageError(
            f"pipeline {pipeline.name!r} declares consumer groups that run already, and this command is for stages, "
            "whose code runs here; `inferline-stream advise` plans for groups"
        )
    return pipeline


@contextlib.contextmanager
def _printed_to_stderr() -> Iterator[None]:
    """What a topology prints as it is loaded, by any means, is not part of a command's result."""
    sys.stdout.flush()
    result = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(result, 1)
        os.close(result)


def stage_names(pipeline: Pipeline) -> list[str]:
    """Of its stages, or of the groups in their place."""
    return [*(stage.name for stage in pipeline.stages), *(group.name for group in pipeline.groups)]


def check_stages(names: list[str] | None, pipeline: Pipeline, what: str = "--stage") -> None:
    """Refuse stages that the pipeline does not have; ``what`` is how they were given.

    Raises:
        UsageError: names the first of them.
    """
    known = stage_names(pipeline)
    if unknown := [name for name in names or () if name not in known]:
        raise UsageError(f"{what} {unknown[0]!r}: the pipeline has {', '.join(known)}")


def duration_of(option: str, text: str) -> float:
    """An option's duration in seconds.

    Raises:
        UsageError: it is none, or not above 0.
    """
    try:
        seconds = duration_s(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if seconds <= 0:
        raise UsageError(f"{option}: {text!r} must be above 0, e.g. 10m")
    return seconds
