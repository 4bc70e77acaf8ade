"""`sandbox`: what this machine can isolate."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from inferline_stream.cli.options import Output
from inferline_stream.errors import InvalidInput
from inferline_stream.pipeline.isolation import Isolation


def check(
    *,
    gpu: Annotated[bool, typer.Option(help="also what a stage on a GPU needs of this machine")] = False,
    output: Output = "table",
) -> None:
    """Print what this machine's kernel offers to isolate replicas; exit code 3 where that is not all."""
    from inferline_stream.actuators.gpu_needs import gpu_needs
    from inferline_stream.isolation.kernel_features import kernel_features
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
