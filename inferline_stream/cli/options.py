"""Arguments and options that several commands share, each declared once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

Topology = Annotated[
    Path, typer.Argument(help="the topology file, or the folder that holds a topology.py; file:name for one of several")
]
Output = Annotated[Literal["table", "json"], typer.Option(help="how to print the result")]
Servers = Annotated[
    str | None, typer.Option("--bootstrap-servers", help="Kafka, host:port; an embedded broker is started without it")
]
RunningServers = Annotated[str, typer.Option("--bootstrap-servers", help="Kafka that the pipeline runs on, host:port")]
Prefix = Annotated[str, typer.Option(help="before the name of every topic and consumer group, the same as for `run`")]
On = Annotated[
    Literal["local", "ray", "kubernetes"],
    typer.Option(
        help="where: local is this machine, kubernetes the cluster that kubeconfig names, ray that of RAY_ADDRESS"
    ),
]
Algorithm = Annotated[
    Literal["default", "inferline", "exact"],
    typer.Option(
        help="search for the plan: ours, the paper's greedy, or ours until the plan is proven the cheapest, "
        "where Ctrl-C ends it with the gap"
    ),
]
Delivery = Annotated[
    Literal["at_least_once", "exactly_once"],
    typer.Option(help="at_least_once may repeat results after a crash; exactly_once uses transactions"),
]
Oversubscribe = Annotated[
    bool,
    typer.Option(
        "--oversubscribe",
        help="take more cores than this machine has, and shares of cores that nothing holds: no P99 is credible then",
    ),
]
Stock = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND=REPLICAS", help="this pipeline's share of a hardware kind; may be repeated"),
]


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is no multiple of traffic; give a number such as 2")
    return value


Reserve = Annotated[
    float | None,
    typer.Option(
        min=0,
        callback=_finite,
        metavar="MULTIPLE",
        help="always hold replicas for so many times the planned traffic; without it, as many as leaps of the sample "
        "and since ask for",
    ),
]
Seed = Annotated[int, typer.Option(help="of generated traffic and of the random branches of simulated events")]
Plot = Annotated[Path | None, typer.Option("--plot", help="also draw it into this file, .svg or .png")]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option(help="of the lines on standard error: for people, or one JSON object each")
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    typer.Option(help="least severe lines shown; warning for people, info as JSON, by default"),
]

Image = Annotated[str, typer.Option(help="for Kubernetes: holds this package, the topology and what its stages import")]
PathInImage = Annotated[str, typer.Option("--path", help="of the topology file in the image; by default as here")]
Namespace = Annotated[str, typer.Option(help="by default that of the kubeconfig's context")]
Secret = Annotated[
    str,
    typer.Option(
        help="a Secret whose keys become the environment of dispatchers, and of controllers in the cluster, "
        "such as Kafka's password; with INFERLINE_DISPATCHER_KAFKA_* in it and here, dispatchers get these alone"
    ),
]
ServiceAccount = Annotated[str, typer.Option(help="of the pods, which are given no token of it")]


def duration_of(option: str, text: str) -> float:
    """An option's duration in seconds.

    Raises:
        UsageError: it is none, or not above 0.
    """
    from inferline_stream.errors import UsageError
    from inferline_stream.pipeline.units import duration_s

    try:
        seconds = duration_s(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if seconds <= 0:
        raise UsageError(f"{option}: {text!r} must be above 0, e.g. 10m")
    return seconds
