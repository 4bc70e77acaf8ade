"""Profiles one stage on one hardware kind where this process runs, a pod or a Ray node, and prints what it found.

``python -m inferline_stream.profiler.remote TOPOLOGY STAGE KIND SECONDS whole|upstream``. What is measured goes to
standard output as one line after `MARK`, since a pod's log holds whatever else was written.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import msgspec

from inferline_stream.dataplane.loading import load_topology
from inferline_stream.dataplane.sample_files import read_events
from inferline_stream.errors import InferlineError, InvalidTopology
from inferline_stream.pipeline.validation import validated
from inferline_stream.profiler.machine import this_machine
from inferline_stream.profiler.profiling import Options, profile_pipeline
from inferline_stream.profiler.store import ProfileStore
from inferline_stream.settings import from_environment

MARK = "inferline-stream profiled: "


def command(topology: str, stage: str, kind: str, seconds: float, *, whole: bool) -> list[str]:
    """Command line that profiles there; ``whole`` builds every stage, which tells the paths of events, too."""
    return ["python", "-m", __name__, topology, stage, kind, f"{seconds:g}", "whole" if whole else "upstream"]


def measured(said: str) -> dict[str, str]:
    """The files that it printed among other things.

    Raises:
        InvalidTopology: it printed none; says what it printed last instead.
    """
    lines = said.splitlines()
    for line in reversed(lines):
        if line.startswith(MARK):
            return msgspec.json.decode(line.removeprefix(MARK), type=dict[str, str])
    raise InvalidTopology(next((line for line in reversed(lines) if line.strip()), "it wrote nothing"))


def main(topology: str, stage: str, kind: str, seconds: str, built: str) -> int:
    """Profile, print, and return the exit code."""
    try:
        pipeline = validated(load_topology(topology))
        if pipeline.sample is None:
            raise InvalidTopology(f"{pipeline.declared}: declares no sample, which profiling elsewhere needs")
        file = Path(topology).resolve()
        events = read_events(file.parent / pipeline.sample.events)
        options = Options(
            stages=frozenset((stage,)),
            kinds=frozenset((kind,)),
            stage_s=float(seconds),
            forks=False,
            upstream=built == "upstream",
        )
        with tempfile.TemporaryDirectory(prefix="inferline-profiles-") as folder:
            root = Path(folder)
            asyncio.run(
                profile_pipeline(pipeline, file, events, options=options, settings=from_environment(), root=root)
            )
            files = ProfileStore(pipeline, file.parent, events, this_machine(), root).files()
    except InferlineError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    print(f"{MARK}{msgspec.json.encode(files).decode()}")  # noqa: T201  how it answers
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
