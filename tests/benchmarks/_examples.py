"""Examples of real models, profiled on this machine for measurements of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inferline_stream.dataplane.sample_files import read_events
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.topology import Pipeline, Sample
from inferline_stream.profiler.pipeline_profiler import profile_pipeline
from inferline_stream.profiler.profiling_options import Options

MODERATION, OCR = (Path(__file__).parents[2] / f"topologies/{name}/topology.py" for name in ("moderation", "ocr"))


@dataclass(frozen=True, slots=True)
class Example:
    """The pipeline, its sample, the file with its events, and its profiles."""

    pipeline: Pipeline
    sample: Sample
    events: Path
    measured: PipelineProfile


async def profiled(bootstrap_servers: str, topology: Path, folder: Path, options: Options) -> Example:
    """Load and profile an example; profiles are kept in the folder."""
    pipeline = load_topology(topology)
    assert pipeline.sample is not None, "the example has one"
    events = topology.parent / pipeline.sample.events
    measured = await profile_pipeline(
        pipeline, topology, read_events(events), bootstrap_servers=bootstrap_servers, options=options, root=folder
    )
    return Example(pipeline, pipeline.sample, events, measured)
