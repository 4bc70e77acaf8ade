"""The command line. Commands import what they need when they are called, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from inferline_stream.cli.alerting import rules
from inferline_stream.cli.checking import check
from inferline_stream.cli.overriding import pause, resume, scale
from inferline_stream.cli.planning import plan
from inferline_stream.cli.profiling import profile
from inferline_stream.cli.run import run
from inferline_stream.cli.starting import init
from inferline_stream.errors import InferlineError

_INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns the errors that users can do something about into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except InferlineError as error:
            _fail(error)
        except BaseExceptionGroup as group:
            ours, others = group.split(InferlineError)
            if ours is None or others is not None:
                raise
            _fail(_first(ours))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from None


def _fail(error: BaseException) -> None:
    problems = getattr(error, "problems", None) or (str(error),)
    here = f"{Path.cwd()}{os.sep}"
    for problem in problems:
        print(f"error: {problem.replace(here, '')}", file=sys.stderr)
    raise typer.Exit(getattr(error, "exit_code", 1)) from None


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


app = typer.Typer(
    cls=_Commands,
    name="inferline-stream",
    help="The cheapest plan that keeps a pipeline's P99 latency under its SLO, on Kafka, and replicas that follow it.",
    epilog="Exit codes: 2 usage, 3 topology or file to correct, 4 no plan meets the SLO, 5 Kafka does not answer, "
    "6 the SLO gate did not hold.",
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


def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    print(f"inferline-stream {installed('inferline-stream')}")


for _command in (init, check, profile, plan, run, scale, pause, resume, rules, version):
    app.command()(_command)
