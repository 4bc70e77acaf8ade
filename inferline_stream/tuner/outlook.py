"""The hours ahead: what traffic is expected, what is held for it, and what that costs, before any of it comes."""

from __future__ import annotations

from inferline_stream.tuner.calendar import BIN_S, Calendar
from inferline_stream.tuner.demand import supply_for
from inferline_stream.tuner.hour_ahead import HOUR_S, HourAhead
from inferline_stream.tuner.plan_basis import Basis, held_per_hour

HOURS = 7 * 24
"""That are looked ahead at most: what is learned comes back after a week."""


def outlook(basis: Basis, calendar: Calendar, hours: int = HOURS) -> tuple[HourAhead, ...]:
    """The hours from the present one on.

    Replicas are in the plan's mixture. What the policy adds as traffic comes, by odds and price, is not in them. Stages
    that may sleep have none where nothing usually comes.

    Args:
        basis: what is planned.
        calendar: what is known of the time ahead.
        hours: so many.
    """
    first = int(calendar.time_s // HOUR_S)
    return tuple(_hour(basis, calendar, (first + hour) * HOUR_S) for hour in range(hours))


def _hour(basis: Basis, calendar: Calendar, time_s: int) -> HourAhead:
    usual = calendar.weeks.usual(time_s // BIN_S, calendar.schedule.zone, HOUR_S // BIN_S)
    said = calendar.schedule.within(time_s, time_s + HOUR_S - 1)
    rate = usual if usual is None or said.traffic is None else usual * said.traffic
    carried_rate = basis.arrival_rate if basis.staffing is None else basis.staffing.carried_rate
    expected = (said.traffic or 1.0) if rate is None else rate / max(carried_rate, 1e-9)
    multiple = max(expected, said.reserve, basis.reserve or 0.0)
    asleep = basis.idle if rate == 0 and not said.reserve else {}
    held = [
        0 if stage.name in asleep else stage.replicas_for(supply_for(basis, stage, multiple)) for stage in basis.stages
    ]
    replicas = {stage.name: count for stage, count in zip(basis.stages, held, strict=True)}
    return HourAhead(float(time_s), rate, replicas, held_per_hour(basis.stages, held), said.words)
