"""`rules`: Prometheus alert rules of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inferline_stream.cli.checking import Topology


def rules(
    topology: Topology,
    *,
    save: Annotated[Path | None, typer.Option(help="file to write; standard output by default")] = None,
) -> None:
    """Write recording and alert rules on SLO risk, for Prometheus."""
    from inferline_stream.cli.provisioning import topology_file
    from inferline_stream.dataplane.loading import load_topology
    from inferline_stream.errors import UsageError
    from inferline_stream.observability.rules import rules_yaml
    from inferline_stream.pipeline.validation import validated

    pipeline = validated(load_topology(topology_file(topology)))
    text = rules_yaml(pipeline.name, pipeline.slo_s, pipeline.objective)
    if save is None:
        print(text, end="")
        return
    try:
        save.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the rules to {save}: {error.strerror}; choose another --save") from None
