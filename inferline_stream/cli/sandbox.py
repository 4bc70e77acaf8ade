"""`sandbox`: what this machine can isolate, what a level withstands, and what a stage would need."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from inferline_stream.cli.options import Output, Topology, check_stages
from inferline_stream.cli.output import console
from inferline_stream.errors import InvalidInput
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.settings import from_environment

if TYPE_CHECKING:
    from inferline_stream.isolation.probes import Probed

_SHOWN = 4
"Findings of a kind, on screen."


def check(
    *,
    gpu: Annotated[bool, typer.Option(help="also what a stage on a GPU needs of this machine")] = False,
    output: Output = "table",
) -> None:
    """Print what this machine's kernel offers to isolate replicas; exit code 3 where that is not all."""
    from inferline_stream.actuators.gpu_needs import gpu_needs
    from inferline_stream.isolation.probes import kernel_features
    from inferline_stream.isolation.seal import unsupported

    found = kernel_features()
    lacking = unsupported(Isolation())
    needs = gpu_needs() if gpu else ()
    if output == "json":
        known = {"abilities": found, "sandbox": not lacking, "lacking": list(lacking)}
        typer.echo(json.dumps({**known, **({"gpu": [asdict(need) for need in needs]} if gpu else {})}))
    else:
        width = max(map(len, found))
        for name, value in found.items():
            print(f"{name:<{width}}  {value}")
        print('isolation "sandbox" is whole here' if not lacking else 'isolation "sandbox" is not whole here')
        for need in needs:
            print(need.in_words(max(len(each.name) for each in needs)))
    lacking = (*lacking, *(f"{need.name}: {need.found}" for need in needs if need.remedy and not need.optional))
    if lacking:
        raise InvalidInput(*lacking)


def probe(
    *,
    level: Annotated[
        Literal["none", "launch", "imports", "strict", "gpu"] | None,
        typer.Option(help="no isolation, before the seal, either seal, or as on a GPU; all of them by default"),
    ] = None,
    output: Output = "table",
) -> None:
    """Try each known way out of a replica, and print which are blocked."""
    from inferline_stream.isolation import probes

    isolations = {
        "none": Isolation("none"),
        "launch": Isolation(seal="off"),
        "imports": Isolation(seal="imports"),
        "strict": Isolation(),
        "gpu": Isolation(),
    }
    found = {
        one: asyncio.run(probes.probe(isolations[one], gpu=one == "gpu")) for one in ([level] if level else isolations)
    }
    if output == "json":
        typer.echo(json.dumps({level: {"blocked": one.blocked, **asdict(one)} for level, one in found.items()}))
    else:
        _show_probes(found)


def _show_probes(found: dict[str, Probed]) -> None:
    table = Table("tried", *found, title="Ways out of a replica")
    columns = [one.attempts for one in found.values()]
    for row in zip(*columns, strict=True):
        table.add_row(
            row[0].name, *(f"[green]{one.answer}[/]" if one.blocked else f"[red]{one.answer}[/]" for one in row)
        )
    count = len(columns[0])
    table.add_section()
    table.add_row("blocked", *(f"{one.blocked} of {count}" for one in found.values()))
    table.add_row("system calls", *(str(one.held.system_calls or "all") for one in found.values()))
    console().print(table)


def audit(
    topology: Topology,
    *,
    stage: Annotated[list[str] | None, typer.Option(help="only this stage; may be repeated")] = None,
    output: Output = "table",
) -> None:
    """Run the sample through the stages without isolation, and print what each would have been refused."""
    from inferline_stream.cli.plan_steps import declared
    from inferline_stream.profiler.stage_audit import audit_pipeline

    what = declared(topology)
    check_stages(stage, what.pipeline)
    audit = audit_pipeline(
        what.pipeline, what.file, what.events, from_environment(), stages=stage or [], sources=what.sources
    )
    found = asyncio.run(audit)
    if output == "json":
        rows = [
            {
                "stage": one.stage,
                "declaration": one.declaration,
                "found": [{**asdict(finding), "times": times} for finding, times in one.found.items()],
            }
            for one in found
        ]
        typer.echo(json.dumps(rows))
        return
    for one in found:
        if not one.found:
            print(f"stage {one.stage!r}: lacks nothing")
            continue
        print(f"stage {one.stage!r}: would lack what follows, some of which it may do without; all of it is granted by")
        print(f"  isolation={one.declaration}")
        for sealed, kind in dict.fromkeys((finding.sealed, finding.kind) for finding in one.found):
            alike = [finding for finding in one.found if (finding.sealed, finding.kind) == (sealed, kind)]
            when = "after the seal" if sealed else "while it starts"
            print(f"  {kind}, {when}: {', '.join(finding.what for finding in alike[:_SHOWN])}", end="")
            print(f" and {len(alike) - _SHOWN} more" if len(alike) > _SHOWN else "")
