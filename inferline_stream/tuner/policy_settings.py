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

    reaction_s: float = 1.0
    """Time from deciding to working beyond the start-up time: reports, attaching, the batch in flight."""

    shift: float = 0.1
    """Relative change of a visit ratio or throughput that is acted on: smaller ones are within what is measured."""

    drain_s: float = 5.0
    """Time within which a backlog has to be gone once the replicas for it are there, where they do not take longer to
    start: then it may take as long as they do."""

    stuck_s: float = 5.0
    """A partition whose committed offset has stood still for this long, with records waiting, is stuck."""

    jump_s: float = 5.0
    """Longest pause between two steps after which what was seen before still counts as just before; beyond it the clock
    has jumped, or the controller has slept. More where a policy is asked less often, as in replays of weeks."""

    down_after_s: float = 30.0
    """How long a stage must have needed fewer replicas without a break before it loses them: as long as the envelope
    looks back, so that what was seen is gone from two spans in a row."""

    fallen_wait_s: float = 10.0
    """The same once the rate has surely fallen (`tuner.forecast.fallen_to`): noise does not bring it back. With
    `down_after_s` or more, no fall is looked for. As long as the span that a fall is read off, so that it is seen in
    two of them."""

    insurance: tuple[tuple[float, float], ...] = ((1.75, 0.25), (2.5, 0.05))
    """What is held beyond the plan in a beginning, of a run or of new traffic beyond the sample, of which no record can
    tell the odds: (multiple of the planned rate that every stage shall be able to carry, largest share of the plan's
    cost that this may add), one layer after another. The second one is for stages whose replicas cost next to nothing.
    Empty for none."""

    beginning_s: float = 60.0
    """How long a beginning lasts: the span of the envelope. Where replicas take more than half as long to start, twice
    the start-up time, so that what is asked for at its end is seen to work. 0 knows no beginnings, and with
    ``insurance`` empty the plan has no reserve but that of the odds."""

    def leap_memory_s(self, lead_s: float, share: float) -> float:
        """Return how long a reserve is worth holding after a leap that nothing foretold, of the sample or live.

        It is what the odds ask for, times the multiple of the first layer of ``insurance``, and no more than in a
        beginning. The next leap may go further than any in the record, and comes as suddenly. See
        docs/explanation/reserve.md.

        Args:
            lead_s: from asking for a replica to its working.
            share: of the events to come that may be late.
        """
        if not self.insurance:
            return 0.0
        multiple, cost_share = self.insurance[0]
        return (multiple - 1) / cost_share * lead_s / share

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name == "insurance":
                continue
            if math.isnan(value) or value < 0:
                raise ValueError(f"{name} {value} must be 0 or more")
