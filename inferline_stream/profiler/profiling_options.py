"""What to profile, and how thoroughly."""

from __future__ import annotations

from dataclasses import dataclass

from inferline_stream.profiler.profile_store import LOCAL

EMBEDDED = "embedded"
"""What a broker is called that this process has started for itself."""

SAMPLE_S = 4.0
"""Time to spend on running the sample once."""

STAGE_S = 2.0
"""Time to spend on timing one stage on one kind."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to profile, and how thoroughly.

    Args:
        again: also what is known already.
        stages: only these; all by default.
        sample_s: time for running the sample once.
        stage_s: time for one stage on one kind.
        broker: what the bootstrap servers are called in the store: times between stages differ by broker.
        oversubscribe: kinds below one core are measured also where nothing holds a replica to its share.
        elsewhere: replicas will run in a cluster, so that what was measured where something held it counts.
        platform: that they will run on. What was measured there counts before what was measured here, and what its
            network adds to a batch is part of the hop.
    """

    again: bool = False
    stages: frozenset[str] | None = None
    sample_s: float = SAMPLE_S
    stage_s: float = STAGE_S
    broker: str = EMBEDDED
    oversubscribe: bool = False
    elsewhere: bool = False
    platform: str = LOCAL
