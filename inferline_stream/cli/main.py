"""The command line. Commands import what takes long when they are called, so that `--help` answers at once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from inferline_stream.cli import dlq, sandbox
from inferline_stream.cli.advise import advise
from inferline_stream.cli.check import check
from inferline_stream.cli.command_group import CommandGroup, add_commands, add_group
from inferline_stream.cli.compare import compare
from inferline_stream.cli.deploy import deploy
from inferline_stream.cli.diff import diff
from inferline_stream.cli.explain import explain
from inferline_stream.cli.init import init
from inferline_stream.cli.keda import keda
from inferline_stream.cli.options import Output
from inferline_stream.cli.output import print_json
from inferline_stream.cli.pause import pause
from inferline_stream.cli.plan import plan
from inferline_stream.cli.profile import profile
from inferline_stream.cli.replay import replay
from inferline_stream.cli.report import report
from inferline_stream.cli.resume import resume
from inferline_stream.cli.rules import rules
from inferline_stream.cli.run import run
from inferline_stream.cli.scale import scale
from inferline_stream.cli.status import status
from inferline_stream.cli.top import top
from inferline_stream.cli.topics import topics
from inferline_stream.cli.trust import trust
from inferline_stream.errors import UsageError

_INSTEAD = {
    "operate": "deploy TOPOLOGY --target kubernetes --dry-run",
}
"""Commands of the past, and what to type instead of each."""


class Commands(CommandGroup):
    """All commands; one of the past is answered with what to type instead."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that was typed.

        Raises:
            UsageError: it is one of the past.
        """
        if (instead := _INSTEAD.get(args[0])) is not None:
            raise UsageError(f"`{args[0]}` is no command any more: type `inferline-stream {instead}`")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    name="inferline-stream",
    help="The cheapest plan that keeps a pipeline's P99 latency under its SLO, on Kafka, and replicas that follow it.",
    epilog="Every flag may also be set in the environment: INFERLINE_BOOTSTRAP_SERVERS for --bootstrap-servers.\n\n"
    "Exit codes: 0 done, 1 failed, 2 usage, 3 topology or file to correct, 4 no plan meets the SLO, "
    "5 Kafka or a model server does not answer, 6 the SLO gate or a budget did not hold, 130 interrupted, "
    "143 terminated.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def options(
    show: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """What every command shares."""


def version(output: Output = "table") -> None:
    """Print the version."""
    import platform

    from inferline_stream.settings import release

    number = release()
    if output == "json":
        print_json({"version": number, "python": platform.python_version()})
    else:
        print(f"inferline-stream {number}")


add_commands(
    app,
    (
        (init, "inferline-stream init reviews"),
        (check, "inferline-stream check reviews/topology.py"),
        (profile, "inferline-stream profile reviews/topology.py --stage study --again"),
        (plan, "inferline-stream plan reviews/topology.py --slo 150ms --save plan.json"),
        (diff, "inferline-stream diff plan.json newer.json"),
        (advise, "inferline-stream advise groups/topology.py --bootstrap-servers localhost:9092 --html advice.html"),
        (run, "inferline-stream run reviews/topology.py --bootstrap-servers localhost:9092"),
        (replay, "inferline-stream replay reviews/topology.py --trace day.csv"),
        (compare, "inferline-stream compare reviews/topology.py --trace day.csv --policies default,keda,hpa-busy"),
        (scale, "inferline-stream scale reviews/topology.py study 4 --for 10m --bootstrap-servers localhost:9092"),
        (pause, "inferline-stream pause reviews/topology.py --for 1h --bootstrap-servers localhost:9092"),
        (resume, "inferline-stream resume reviews/topology.py --bootstrap-servers localhost:9092"),
        (deploy, "inferline-stream deploy reviews/topology.py --bootstrap-servers localhost:9092"),
        (status, "inferline-stream status reviews/topology.py --bootstrap-servers localhost:9092"),
        (top, "inferline-stream top reviews/topology.py --bootstrap-servers localhost:9092"),
        (explain, "inferline-stream explain reviews/topology.py --bootstrap-servers localhost:9092"),
        (report, "inferline-stream report reviews/topology.py --save report.html"),
        (trust, "inferline-stream trust reviews/topology.py --newest 5"),
        (topics, "inferline-stream topics reviews/topology.py --print --principal User:reviews"),
        (rules, "inferline-stream rules reviews/topology.py --save rules.yml"),
        (keda, "inferline-stream keda groups/topology.py --address inferline.ml:9465 --most 24"),
        (version, "inferline-stream version"),
    ),
)
add_group(
    app,
    "dlq",
    "Look at events that could not be processed, and send them again.",
    (
        (dlq.ls, "inferline-stream dlq ls reviews/topology.py --bootstrap-servers localhost:9092"),
        (dlq.show, "inferline-stream dlq show reviews/topology.py --bootstrap-servers localhost:9092"),
        (dlq.replay, "inferline-stream dlq replay reviews/topology.py --bootstrap-servers localhost:9092"),
    ),
)
add_group(
    app,
    "sandbox",
    "Look at the isolation of replicas: what this machine offers.",
    ((sandbox.check, "inferline-stream sandbox check"),),
)
