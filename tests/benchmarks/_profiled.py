"""Pipelines profiled on this machine, of real models and on emulated hardware, and runs of plans for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.controlplane.run_options import RecordOptions
from inferline_stream.dataplane.sample_files import read_events
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.topology import Pipeline, Sample
from inferline_stream.pipeline.trace import Trace
from inferline_stream.profiler.pipeline_profiler import profile_pipeline
from inferline_stream.profiler.profiling_options import Options
from tests.support.emulated_runs import Script, trace_feed

MODERATION, OCR = (Path(__file__).parents[2] / f"topologies/{name}/topology.py" for name in ("moderation", "ocr"))


@dataclass(frozen=True, slots=True)
class Profiled:
    """The pipeline, its topology's file, its sample, the file with its events, its profiles, and their Kafka."""

    pipeline: Pipeline
    topology: Path
    sample: Sample
    events: Path
    measured: PipelineProfile
    bootstrap_servers: str

    def run(self, plan: Plan, trace: Trace, home: Path, key_field: str | None = None, **more: Any) -> Run:
        """A run of a plan, fed with a trace and scaled by nobody.

        Args:
            plan: what runs.
            trace: its traffic.
            home: a folder for what it leaves, whose name every topic and group begins with.
            key_field: field of the events that becomes the record's key.
            more: further fields of `Run`, e.g. another ``policy``.
        """
        chosen: dict[str, Any] = {
            "pipeline": self.pipeline,
            "topology": self.topology,
            "bootstrap_servers": self.bootstrap_servers,
            "plan": plan,
            "measured": self.measured,
            "log_folder": home / "logs",
            "records": RecordOptions(prefix=f"{home.name}-"),
            "feed": trace_feed(trace, self.events, home, key_field),
            "policy": Script(()),
            "replans": False,
        }
        return Run(**{**chosen, **more})


async def profiled(bootstrap_servers: str, topology: Path, folder: Path | None = None, **options: Any) -> Profiled:
    """Load and profile a pipeline with these `Options`; profiles are kept in the folder, or beside the topology."""
    pipeline = load_topology(topology)
    assert pipeline.sample is not None, "the topology has one"
    events = topology.parent / pipeline.sample.events
    measured = await profile_pipeline(
        pipeline, topology, read_events(events),
        bootstrap_servers=bootstrap_servers, options=Options(broker=bootstrap_servers, **options), root=folder,
    )  # fmt: skip
    return Profiled(pipeline, topology, pipeline.sample, events, measured, bootstrap_servers)
