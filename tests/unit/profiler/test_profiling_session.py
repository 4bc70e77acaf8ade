"""A session of the profiler, with stages that run here and a cluster that is this test's."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import Unreachable
from inferline_stream.profiler.machine import Machine
from inferline_stream.profiler.missing_profiles import pairs_to_profile
from inferline_stream.profiler.profile_store import Known, ProfileStore
from inferline_stream.profiler.profiling_options import Options
from inferline_stream.profiler.profiling_progress import Progress, Steps
from inferline_stream.profiler.profiling_session import OpenBenches, ProfilingSession
from inferline_stream.settings import Settings

EVENTS = [b"%d" % number for number in range(20)]
MACHINE = Machine("Test CPU", 2)

HEAD = """
from inferline_stream import Hardware, Pipeline, ServerUnavailable, Stage, Topic

def same(values: list[bytes]) -> list[bytes]:
    return values
"""
TAIL = """
pipeline = Pipeline("p", slo="250ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"), stages=[only],
                    hardware=[Hardware("full", 0.5, cores=1), Hardware("core", 0.1, cores=1)])
"""


async def measured(folder: Path, stage: str, open_benches: OpenBenches | None = None) -> tuple[Known, list[str]]:
    """Measure all that a topology of one stage lacks; return what is known then, and what was noted."""
    (topology := folder / "topology.py").write_text(HEAD + stage + TAIL)
    pipeline, notes = load_topology(topology), list[str]()
    options = Options(sample_s=0.2, stage_s=0.05, platform="local" if open_benches is None else "kubernetes")
    store = ProfileStore(pipeline, folder, EVENTS, MACHINE, folder / "profiles", platform=options.platform)
    known = store.load()
    pairs, _ = pairs_to_profile(pipeline, known, options, MACHINE, in_cluster=open_benches is not None)

    def note(progress: Progress) -> None:
        notes.extend([progress.note] if progress.note else [])

    steps = Steps(note, 1)
    async with ProfilingSession(pipeline, topology, Settings(), options, steps, open_benches=open_benches) as session:
        await session.measure(EVENTS, pairs, known, store)
        if open_benches is not None:
            await session.measure_network(known)
    return known, notes


async def test_a_server_that_does_not_answer_a_stage_as_it_is_built_is_no_fault_of_the_topology(tmp_path: Path) -> None:
    stage = """
class Asks:
    def __init__(self) -> None:
        raise ServerUnavailable("http://models:8000 does not answer")

    def __call__(self, values: list[bytes]) -> list[bytes]:
        return values

only = Stage("only", Asks, hardware=["core"], max_batch_size=1)
"""
    with pytest.raises(Unreachable, match="http://models:8000 does not answer; stage 'only', declared at "):
        await measured(tmp_path, stage)
