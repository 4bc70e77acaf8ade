"""`rules`: Prometheus alert rules of a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from inferline_stream.cli.options import Topology, pipeline_of
from inferline_stream.cli.output import console, write_text
from inferline_stream.observability.alert_rules import Target, rules_document, rules_yaml


def rules(
    topology: Topology,
    *,
    save: Annotated[Path | None, typer.Option(help="file to write; standard output by default")] = None,
    faster: Annotated[
        float,
        typer.Option(help="divide every window and hold by this, to rehearse alerts in minutes", min=1.0, max=1000.0),
    ] = 1.0,
    output: Annotated[
        Literal["yaml", "table", "json"], typer.Option(help="a rule file as YAML or JSON, or a list to read")
    ] = "yaml",
) -> None:
    """Write recording and alert rules on SLO risk, for Prometheus.

    They are made from the same list as the metrics' latency buckets, for the topology's SLO and objective: alerts on
    the burn rate of the error budget over several windows, and on what endangers the SLO before it is missed.
    """
    pipeline = pipeline_of(topology, groups=True)
    target = Target(pipeline.name, pipeline.slo_s, pipeline.objective, faster)
    document = rules_document(target)
    if output == "table" and save is None:
        console().print(_table(document))
        return
    text = rules_yaml(target) if output == "yaml" else json.dumps(document, indent=2) + "\n"
    write_text(text, save, "the rules")


def _table(document: dict[str, Any]) -> object:
    (group,) = document["groups"]
    title = f"Alerts of {group['name'].removeprefix('inferline.')}"
    table = Table("alert", "severity", "for", "tells", title=title)
    for rule in group["rules"]:
        if "alert" in rule:
            table.add_row(rule["alert"], rule["labels"]["severity"], rule["for"], rule["annotations"]["summary"])
    return table
