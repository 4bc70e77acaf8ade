"""`pause`: hold decisions of a running pipeline."""

from __future__ import annotations

from inferline_stream.cli.options import Output, Prefix, RunningServers, Topology
from inferline_stream.cli.override_steps import Lasting, loaded, send, until_s, who


def pause(
    topology: Topology,
    *,
    bootstrap_servers: RunningServers,
    lasting: Lasting = None,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """Hold decisions, new plans included; records keep flowing."""
    from inferline_stream.controlplane.records.control_records import Override

    override = Override("pause", until_s=until_s(lasting), who=who())
    send(loaded(topology), bootstrap_servers, prefix, [(override.key, override)], output)
