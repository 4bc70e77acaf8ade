"""`run`: profile, plan, start, scale, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from inferline_stream.cli.options import (
    Algorithm,
    Delivery,
    Image,
    Namespace,
    On,
    Output,
    Oversubscribe,
    PathInImage,
    Prefix,
    Reserve,
    Secret,
    Seed,
    Servers,
    ServiceAccount,
    Stock,
    Topology,
)


def run(
    topology: Topology,
    *,
    bootstrap_servers: Servers = None,
    replay: Annotated[
        bool | None,
        typer.Option(
            "--replay/--no-replay",
            help="replay the sample's events into the source topic; by default only on the embedded broker",
        ),
    ] = None,
    arrivals: Annotated[
        Path | None,
        typer.Option(help="CSV of arrivals to replay in place of the sample's", exists=True, dir_okay=False),
    ] = None,
    speed_up: Annotated[float, typer.Option(help="seconds of the traces per second, in plan and replay")] = 1.0,
    duration: Annotated[str | None, typer.Option(help='stop after so long, e.g. "60s"; it drains all the same')] = None,
    advisory: Annotated[bool, typer.Option("--advisory", help="report decisions without acting on them")] = False,
    algorithm: Algorithm = "default",
    policy: Annotated[
        Literal["default", "inferline"], typer.Option(help="scaling: ours, or the paper's Tuner to the letter")
    ] = "default",
    reserve: Reserve = None,
    delivery: Delivery = "at_least_once",
    tracing: Annotated[
        str,
        typer.Option(
            metavar="EXPORTER",
            help="a span per batch by OpenTelemetry (the extra tracing): otlp_proto_http, console, or another",
        ),
    ] = "",
    start: Annotated[
        str, typer.Option(help="where to read from: committed, earliest, latest, or an ISO time")
    ] = "committed",
    create_topics: Annotated[
        bool,
        typer.Option(
            "--create-topics/--no-create-topics",
            help="create topics that are missing; or only verify them, and name each difference (see `topics`)",
        ),
    ] = True,
    prefix: Prefix = "",
    ui: Annotated[bool, typer.Option("--ui/--no-ui", help="serve the live page")] = True,
    ui_port: Annotated[int, typer.Option(help="of the live page; 0 for any free one", min=0, max=65535)] = 8765,
    ui_token: Annotated[
        str,
        typer.Option(
            help="lets people who enter it on the page hold decisions and set replicas; 16 characters or more",
            show_default=False,
        ),
    ] = "",
    metrics_port: Annotated[int, typer.Option(help="of /metrics; 0 for any free one", min=0, max=65535)] = 9464,
    metrics_host: Annotated[
        str, typer.Option(help="address of /metrics; 0.0.0.0 for other machines to scrape it")
    ] = "127.0.0.1",
    seed: Seed = 0,
    on: On = "local",
    oversubscribe: Oversubscribe = False,
    image: Image = "",
    path: PathInImage = "",
    namespace: Namespace = "",
    secret: Secret = "",
    service_account: ServiceAccount = "default",
    hand_over: Annotated[
        bool, typer.Option("--hand-over", help="leave the pods at work at the end, for the controller that follows")
    ] = False,
    stock: Stock = None,
    profiles: Annotated[
        Path | None,
        typer.Option(
            help="folder of profiles that were measured on another machine like this one", exists=True, file_okay=False
        ),
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="end with code 6 unless the objective held and no event was lost")
    ] = False,
    output: Output = "table",
) -> None:
    """Profile what has no profile yet, plan, start the replicas, and scale them while traffic swings.

    Ctrl-C stops the feed, drains what has arrived and reports; a second Ctrl-C ends everything at once.
    """
    from inferline_stream.cli.platform import Platform
    from inferline_stream.cli.run_steps import RunOptions, run_and_report
    from inferline_stream.runs.run import Endpoints, RecordOptions

    run_and_report(
        RunOptions(
            platform=Platform(on, image, path, namespace, secret, service_account, hand_over),
            topology=topology,
            bootstrap_servers=bootstrap_servers,
            replay=replay,
            arrivals=arrivals,
            speed_up=speed_up,
            duration=duration,
            advisory=advisory,
            algorithm=algorithm,
            policy=policy,
            reserve=reserve,
            records=RecordOptions(
                prefix=prefix, create_topics=create_topics, start=start, delivery=delivery, tracing=tracing
            ),
            endpoints=Endpoints(
                page_port=ui_port if ui else None,
                page_token=ui_token,
                metrics_port=metrics_port,
                metrics_host=metrics_host,
            ),
            seed=seed,
            gate=gate,
            oversubscribe=oversubscribe,
            profiles=profiles,
            stock=tuple(stock or ()),
            as_json=output == "json",
        )
    )
