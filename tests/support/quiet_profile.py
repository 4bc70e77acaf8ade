"""Profiles as a quiet machine makes them.

A record that waits for a core that other tests have takes ten times as long from stage to stage, and plans are made for
what was measured. How that is measured has tests of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from inferline_stream.pipeline.profile import HOP_PROBABILITIES

HOP_S = 0.001
"""From one stage to the next, always, on a broker that has nothing else to do."""


def quieten(topology_folder: Path, *brokers: str) -> None:
    """Let what is kept of a topology say that records take `HOP_S` from stage to stage, whatever was measured.

    Args:
        topology_folder: of a topology that was profiled.
        brokers: bootstrap servers of those that it was not measured with, and need not be.
    """
    kept = list(topology_folder.glob(".inferline/profiles/*/paths.json"))
    assert kept, f"{topology_folder} was not profiled"
    for file in kept:
        paths = json.loads(file.read_text())
        assert paths["hop_overhead_s"], "no record went from stage to stage"
        known = {*paths["hop_overhead_s"], *brokers}
        paths["hop_overhead_s"] = dict.fromkeys(known, HOP_S)
        paths["hop_spread_s"] = {broker: [0.0] * len(HOP_PROBABILITIES) for broker in known}
        file.write_text(json.dumps(paths))
