"""`top`: how a running pipeline stands, again and again."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from inferline_stream.cli.command_group import terminated
from inferline_stream.cli.options import Output, Running, Topology, duration_of
from inferline_stream.cli.output import console
from inferline_stream.cli.status import pipeline_states, status_tables
from inferline_stream.observability.page.snapshot import snapshot
from inferline_stream.safe_text import printable_json

if TYPE_CHECKING:
    from rich.live import Live


def top(
    topology: Topology,
    *,
    running: Running,
    every: Annotated[str, typer.Option(help="time between two updates")] = "1s",
    updates: Annotated[int | None, typer.Option(help="end after so many; with Ctrl-C without it", min=1)] = None,
    output: Output = "table",
) -> None:
    """Watch a running pipeline in the terminal: what `status` shows, again and again, until Ctrl-C.

    With `--output json` each update is one line with one object.
    """
    from rich.live import Live

    every_s = duration_of("--every", every)
    screen = console()

    async def watch(live: Live | None) -> None:
        seen = 0
        async for state, arrows in pipeline_states(topology, running, every_s):
            if output == "json":
                sys.stdout.write(printable_json(snapshot(state, arrows).decode()) + "\n")
                sys.stdout.flush()
            elif live is not None:
                live.update(status_tables(state), refresh=True)
            else:
                screen.print(status_tables(state))
            seen += 1
            if seen == updates:
                return

    try:
        if output == "table" and screen.is_terminal:
            with Live(console=screen, auto_refresh=False, screen=updates is None) as live:
                asyncio.run(watch(live))
        else:
            asyncio.run(watch(None))
    except KeyboardInterrupt as error:
        if terminated(error):
            raise  # Ctrl-C is how it ends, SIGTERM is not
