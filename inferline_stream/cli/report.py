"""`report`: a finished run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inferline_stream.cli.options import Output, pipeline_of, topology_file
from inferline_stream.cli.output import Bar, print_json, write_text


def report(
    run: Annotated[Path, typer.Argument(help="a run's folder, or the topology whose newest run it is", exists=True)],
    *,
    save: Annotated[Path | None, typer.Option(help="the HTML file; report.html in the run's folder without it")] = None,
    output: Output = "table",
) -> None:
    """Write one page about a finished run: what happened, why, what it cost, and what each baseline would have cost."""
    from inferline_stream.replay.compare import NAMES
    from inferline_stream.runs.archive import DOCUMENT, finished_runs, read_events, read_record
    from inferline_stream.runs.html_report import html_report

    folder = run
    if not (run / DOCUMENT).exists():
        folder = finished_runs(topology_file(run).parent, pipeline_of(run, valid=False, groups=True).name)[0]
    record, events = read_record(folder), read_events(folder)
    with Bar("replaying the recorded arrivals") as bar:
        page = html_report(record, events, bar.each(len(NAMES)))
    target = save or folder / "report.html"
    write_text(page, target, "the page")
    if output == "json":
        print_json({"pipeline": record.report.pipeline, "file": str(target), "size_bytes": len(page.encode())})
        return
    typer.echo(f"{target}: {len(page.encode()) / 1024:.0f} KB")
