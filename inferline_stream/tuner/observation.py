"""What the policy sees of a running pipeline: one value per step, the same live and in replay.

As each step makes new ones, they are structs of msgspec: these cost a tenth of frozen dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from inferline_stream.tuner.calendar import Calendar


RECENT_S = 10.0
"""What recent figures were counted in."""


class Supply(Struct, frozen=True):
    """Replicas of one stage on one hardware kind.

    Args:
        ready: replicas that work or could work at once.
        pending: replicas asked for that are not ready yet.
        throughput: µ of one replica at the planned batch limit as measured recently, events per second;
            None where too little was measured: the profile's is used.
        start_up_s: start-up time as measured recently; None: the profile's is used.
        leaving: replicas that have got a notice, or were taken away without one: others have to take their place.
    """

    ready: int
    pending: int = 0
    throughput: float | None = None
    start_up_s: float | None = None
    leaving: int = 0


class StageObservation(Struct, frozen=True):
    """One stage as seen through its replicas' reports and its consumer group.

    Args:
        supply: by hardware kind.
        age_s: age of the newest report of any of its replicas, on the clock of `Observation.time_s`;
            None if there never was one.
        visit_ratio: recent visits per event; None where too few events were seen to know.
        partition_lags: records that are not finished, by partition; empty if unknown.
        partition_idle_s: by partition, how long its committed offset has stood still while it had lag;
            0 where it moves or has no lag. Empty if unknown.
        oldest_lag_s: age of the oldest record that is not finished, from its entry into the stage's topic.
        degraded_share: share of the events of the last `RECENT_S` that the stage's fallback made.
        utilization: share of time in which ready replicas were busy, over the last seconds; None if unknown.
        background_busy: replicas that background events have to keep busy, beside those of live ones.
    """

    supply: Mapping[str, Supply]
    age_s: float | None = 0.0
    visit_ratio: float | None = None
    partition_lags: tuple[int, ...] = ()
    partition_idle_s: tuple[float, ...] = ()
    oldest_lag_s: float = 0.0
    utilization: float | None = None
    background_busy: float = 0.0
    degraded_share: float = 0.0

    @property
    def lag(self) -> int:
        """Records that are not finished, over all partitions."""
        return sum(self.partition_lags)


class Limits(Struct, frozen=True):
    """Fewest and most replicas of a stage, all hardware kinds together, that people allow now.

    With ``awake`` people have asked for the fewest themselves: the stage does not sleep.
    """

    minimum: int = 1
    maximum: int | None = None
    awake: bool = False


class Observation(Struct, frozen=True):
    """A pipeline at one instant.

    Args:
        time_s: now, on a clock that only goes forward (monotonic); any origin.
        envelope: most arrivals in any window lately (`tuner.traffic`), by window of `TunerState.windows_s`.
        arrival_rate: arrivals per second over the last 5 s.
        peak_rate: largest rate of 5 s windows over the last 30 s.
        stages: by name; a stage missing here counts as never having reported.
        arrivals_age_s: age of the newest sample of arrivals (not of the newest arrival); None if there
            never was one.
        watched_s: how long arrivals have been watched without a gap; below 60 s the envelope does not
            yet show that traffic fell.
        stock: most replicas of a hardware kind that this pipeline may hold now; a kind missing here
            has the catalogue's stock.
        limits: by stage, where people set any.
        recent: arrivals in each of the last 30 seconds, oldest first, for trends; empty if unknown.
        oversubscribed: why replicas do not have the cores that they were planned with, in words; empty while they
            have. `stock` allows no more of them then, and time that replicas wait for a core is in no throughput.
        background: what background events need, in words; empty where nothing.
        background_left: background events that are not done, whether anything has to be started for them or not.
        late_share: of the events to come in the SLO's window, how many may be late (`tuner.error_budget`); None: as
            many as of all.
        calendar: what is known of the time ahead; None where nothing is.
        away_until_s: by spot kind of which people have given a notice, when it may be asked for again.
    """

    time_s: float
    envelope: tuple[int, ...]
    arrival_rate: float
    peak_rate: float
    stages: Mapping[str, StageObservation]
    arrivals_age_s: float | None = 0.0
    watched_s: float = float("inf")
    stock: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=dict)
    recent: tuple[int, ...] = ()
    oversubscribed: str = ""
    background: str = ""
    background_left: int = 0
    late_share: float | None = None
    calendar: Calendar | None = None
    away_until_s: Mapping[str, float] = field(default_factory=dict)
