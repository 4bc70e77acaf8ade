"""Versions of a stage: what the judge says of those that are tried out (`canary_verdicts`), what a fallback gains
(`fallback_gains`), and a live run with one against its replay (`_fallback_live`, not with --quick)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import uvloop

from inferline_stream.testing.kafka import find_apache_kafka
from tests.benchmarks import _fallback_live, canary_verdicts, fallback_gains


def measure(quick: bool) -> dict[str, float | int | str | None]:
    found: dict[str, float | int | str | None] = {}
    found |= {f"canary_{name}": value for name, value in canary_verdicts.measure(quick).items()}
    found |= {f"fallback_{name}": value for name, value in fallback_gains.measure(quick).items()}
    if not quick:
        with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
            live = uvloop.run(_fallback_live.measure(kafka.bootstrap_servers, Path(folder)))
        found |= {f"fallback_live_{name}": value for name, value in live.items()}
    return found
