"""Every knob: unit, default, reason. The only reader of the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Knobs of a run. Durations are seconds, sizes bytes."""

    fetch_wait_s: float = 0.020
    """Longest a fetch waits for records. A grant joins the next fetch: this bounds how late it starts."""

    heartbeat_s: float = 0.5
    """How often a replica reports and renews its lease."""

    lease_s: float = 2.0
    """A replica that could not report for this long stops: its partitions may be another's."""

    dead_after_s: float = 3.0
    """Silence after which a replica counts as dead; above `lease_s`, so that two never own a partition."""

    arrivals_sample_s: float = 0.020
    """How often end offsets are read: the resolution of the live traffic envelope."""

    tuner_step_s: float = 0.1
    """How often the Tuner decides."""

    planner_every_s: float = 300.0
    """How often the plan is looked at again."""

    planner_beyond_s: float = 30.0
    """How long traffic must have been beyond the plan for it to be looked at at once: longer than a burst."""

    planner_recent_s: float = 3600.0
    """How much of the recorded traffic a new plan is made for; its busiest stretch where that is many events."""

    planner_saves_share: float = 0.1
    """Share of its cost by which a new plan must be cheaper: below it, a change costs more than it brings."""

    planner_effort_s: float = 60.0
    """Longest time that one search for a plan may take."""

    connect_timeout_s: float = 10.0
    """Longest wait for Kafka's first answer before the command ends with exit code 5."""

    start_timeout_s: float = 60.0
    """Longest a replica may take to import and load its stage."""

    drain_timeout_s: float = 30.0
    """Longest a stopping run waits for the last events."""

    batch_deadline_s: float = 60.0
    """Longest a stage may take for one batch: a replica that hangs is given up, and says so."""

    offsets_check_s: float = 5.0
    """How often a replica looks whether somebody else has overwritten its committed offsets."""


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings with `INFERLINE_<NAME>` applied, e.g. ``INFERLINE_TUNER_STEP_S=0.05``.

    Raises:
        ValueError: a variable that is no number.
    """
    source = os.environ if environment is None else environment
    found: dict[str, float] = {}
    for name in Settings.__dataclass_fields__:
        variable = f"INFERLINE_{name.upper()}"
        if variable in source:
            try:
                found[name] = float(source[variable])
            except ValueError:
                raise ValueError(f"{variable}={source[variable]!r} is not a number of seconds") from None
    return Settings(**found)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the machine offers to tests that need Apache Kafka."""

    kafka_bootstrap_servers: str | None
    """`KAFKA_BOOTSTRAP_SERVERS`: a Kafka that is already there, used before any other."""

    container_engine: str | None
    """`DOCKER_HOST`: where a Docker or podman engine listens, if not at its usual sockets."""

    cache: Path
    """Where downloads are kept: `INFERLINE_CACHE`, else `inferline-stream` in the user's cache folder."""

    ci: bool
    """`CI`: nothing may be skipped."""


def surroundings(environment: Mapping[str, str] | None = None) -> Surroundings:
    """What the environment says about Kafka for tests."""
    source = os.environ if environment is None else environment
    caches = Path(source.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Surroundings(
        kafka_bootstrap_servers=source.get("KAFKA_BOOTSTRAP_SERVERS") or None,
        container_engine=source.get("DOCKER_HOST") or None,
        cache=Path(source.get("INFERLINE_CACHE") or caches / "inferline-stream"),
        ci=source.get("CI", "").lower() not in ("", "0", "false"),
    )
