"""Every number of the default policy: unit, default, reason. Each deviation from the paper can be turned off."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Numbers of the default policy. Durations are seconds."""

    burst_slack_share: float = 0.5
    """Share of the SLO by which each window of the envelope is lengthened before rates are compared: a burst shorter
    than the slack that events have is absorbed by waiting. 0 is the paper's comparison of bare rates."""

    forecast_confidence: float = 1.0
    """Standard errors by which a rate or trend over the longest span must be exceeded before it counts; shorter spans
    need more, see `tuner.forecast`. Infinite turns this off; of forecasts, climbs are left then (`climb_limit`)."""

    inner_confidence: float = 2.0
    """The same for rates that the plan carries: what such a forecast may cost by being late is known to end there. At
    1.0 a calm day of web traffic costs 5 % more and has 43 reversals in place of 19."""

    forecast_limit: float = 1.5
    """Most that a forecast may exceed the rate seen by: no ramp is believed to go on for ever."""

    leap_limit: float = 2.0
    """The same where traffic leaps, because leaps go further. With 1.5, replicas for a spike that rises for a minute
    are asked for too late. With 3, traffic that no replica can start in time for costs 0.6 % more."""

    climb_limit: float = 4.0
    """The same for a climb from a level, where replicas can follow leaps (`tuner.forecast.climbing_rate`): it is seen
    when it has hardly begun. 0 looks for none: traffic that leaps then costs 0.2 % less, and misses a third more."""

    leap_belief: float = 3.0
    """Where traffic leaps, a level or a trend is believed for so many times as long as it was seen: else a burst of
    seconds starts replicas that are ready only when it is over. What drifts goes on. Infinite believes everything."""

    reaction_s: float = 1.0
    """Time from deciding to working beyond the start-up time: reports, attaching, the batch in flight."""

    shift: float = 0.1
    """Relative change of a visit ratio or throughput that is acted on: smaller ones are within what is measured."""

    drain_s: float = 5.0
    """Time within which a backlog has to be gone once the replicas for it are there, where they do not take longer to
    start: then it may take as long as they do."""

    stuck_s: float = 5.0
    """A partition whose committed offset has stood still for this long, with records waiting, is stuck."""

    down_after_s: float = 30.0
    """How long a stage must have needed fewer replicas without a break before it loses them. Traffic that comes in
    levels comes back: half as long saves 1 % and loses nearly three times as many events on the Big Spike, a minute
    costs 1 % more and saves few."""

    fallen_wait_s: float = 10.0
    """The same once the rate has surely fallen (`tuner.forecast.fallen_to`): noise does not bring it back. With
    `down_after_s` or more, no fall is looked for. Five seconds save another 0.3 %, and the Big Spike misses a little
    more."""

    down_margin: float = 0.0
    """Supply kept above the need when scaling down, as a share of it."""

    plan_memory_s: float = 1800.0
    """How long traffic that leaps must have needed less than the plan before the plan's own replicas are given back:
    they were bought so that the sample's traffic needs no scaling. 0 gives them back like any others."""

    calm_memory_s: float = 60.0
    """The same for traffic that has not leapt for `plan_memory_s`: what it will need is seen in time. Also how long
    more than the plan is held from the beginning, and after arrivals beyond the plan."""

    calm_start_ups: float = 2.0
    """`calm_memory_s` in start-up times, at least: where replicas take 90 s to start, one that was given back too soon
    is missing for 90 s."""

    insurance: tuple[tuple[float, float], ...] = ((1.75, 0.25), (2.5, 0.05))
    """What is held beyond the plan where it may not be enough, as replicas take time to start: (multiple of the planned
    rate that every stage shall be able to carry, largest share of the plan's cost that this may add), one layer after
    another. The second one is for stages whose replicas cost next to nothing. Empty for none."""

    sudden_share: float = 0.5
    """Largest share of the largest rise, of the sample or a leap since, that may come while a replica starts for only a
    part of a leap to be held in reserve. With two thirds, 0.1 % would be saved, and the Big Spike misses twice as much:
    leaps are not all alike. 0 always holds the plan and what is insured beyond it. Where more than that comes within
    `unanswered_share` of the start-up time, a trend is taken for a leap that is over."""

    unanswered_share: float = 0.5
    """Share of the start-up time for which a leap that is not sudden is held in reserve: supply for the present traffic
    and what comes of a leap meanwhile. Replicas that forecasts ask for carry the rest, and the room that the plan
    leaves. With 1.0, spikes cost 8 % more, and no more of them keep the objective."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name == "insurance":
                continue
            if math.isnan(value) or value < 0:
                raise ValueError(f"{name} {value} must be 0 or more")
