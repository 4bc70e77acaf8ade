"""`pause`: hold decisions of a running pipeline."""

from __future__ import annotations

from inferline_stream.cli.options import Output, Running, Topology, pipeline_of
from inferline_stream.cli.scale import Lasting, send, until_s, who
from inferline_stream.controlplane.records.control_records import Override


def pause(
    topology: Topology,
    *,
    running: Running,
    lasting: Lasting = None,
    output: Output = "table",
) -> None:
    """Hold decisions, new plans included; records keep flowing."""
    override = Override("pause", until_s=until_s(lasting), who=who())
    send(pipeline_of(topology, valid=False, groups=True), running, [(override.key, override)], output)
