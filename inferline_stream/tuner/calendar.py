"""What is known of the time ahead: what comes back from week to week, and what people have said.

Arrivals are kept by five minutes: the busiest minute of each, for four weeks. What came next on days of the same kind,
by the clock on the wall, says how many times its present traffic may come now. Of these days those count whose last
hours went most as today's did: a day unlike the others is so believed as soon as it shows. How far the others are
believed is what would have been cheapest lately: nothing, what two of them had, or what any of them had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from inferline_stream.estimator.kernels import Floats, FloatTable
from inferline_stream.pipeline.schedule import TrafficSchedule
from inferline_stream.tuner.forecast import ABSORBED_SHARE

BIN_S = 300
"""Width of a bin: a leap that comes five minutes sooner than on other days is still foreseen."""

WEEKS = 4
"""That are kept: four Mondays show a Monday, and traffic of two months ago is another."""

DAYS = 7 * WEEKS
BINS = DAYS * 86_400 // BIN_S

AHEAD = 12
"""Bins that are looked ahead at most: an hour, more than replicas take to start."""

SHAPE_BINS = 3 * 3600 // BIN_S
"""Before now, by which days are compared: matches, deadlines and holidays show hours before what they lead to."""

NEAREST, FEWEST = 0.5, 3
"""Share of the days of a kind that are most like today, and how many days at least: what two of them had counts."""

BELIEFS = NOTHING, TWO_DAYS, ANY_DAY = range(3)
"""Nothing comes back; what two of the days most like today had, or each day of its name; or what any of them had."""

TRIED_BINS = 3
"""Bins within which what a belief foresees has to come: with the room of one on either side, a leap's own."""

SAVED = 0.06
"""Of the events that a belief would have served beyond the present rate, share that would have been late without it:
other replicas serve the rest, there already or asked for by the rise itself. Measured in ten real weeks
(docs/explanation/policy.md)."""

KEPT = 0.6
"""Of what a belief cost, share that counts a day later: what paid in a tournament ends with it."""

TRIED_DAYS = 8
"""That are looked at when a controller takes over: a leap of one weekday was there last week."""

LEVEL_BINS = 3
"""Before a moment, of which the lowest is its level: a leap that came minutes sooner on another day, or today, is not
taken for the level that it came on."""

MOST_SCALED = 3.0
"""That today's level may be of another day's: what followed an outage is no leap of so many times today's traffic."""

LEAST_RATE = 100 / 60
"""Events per second that show no rate to within a tenth in a minute: levels are compared beyond them."""

_MINUTE_S = 60
_LEAST_WATCHED_S = 30.0
"""Of a minute, for its count to be one."""

_SCALE, _UNKNOWN = 3000.0, 65_535


@dataclass(frozen=True, slots=True, eq=False)
class PastWeeks:
    """Arrivals of the weeks before.

    Args:
        first: number of the first bin, in `BIN_S` since the epoch.
        rates: (bins,): events per second in the busiest minute of each; NaN where nobody watched.
    """

    first: int = 0
    rates: Floats = field(default_factory=lambda: np.empty(0))

    def with_rate(self, number: int, rate: float) -> PastWeeks:
        """Those weeks with one more bin, after all others, and without those that are too long ago."""
        if not self.rates.size:
            return PastWeeks(number, np.array([rate]))
        gap = number - self.first - self.rates.size
        if gap < 0:
            return self  # the clock was set back
        rates = np.concatenate([self.rates, np.full(min(gap, BINS), math.nan), [rate]])[-BINS:]
        return PastWeeks(number + 1 - rates.size, rates)

    def busiest(self, number: int, ahead: int) -> Floats:
        """(ahead,): the largest rate from a bin on, within one bin, two bins and so on; NaN from an unknown one on."""
        largest: Floats = np.maximum.accumulate(self._of(number, ahead))
        return largest

    def _of(self, number: int, bins: int) -> Floats:
        """(bins,): the rates from a bin on; NaN where they are not known."""
        found, first = np.full(bins, math.nan), number - self.first
        known = self.rates[max(first, 0) : max(first + bins, 0)]
        found[max(-first, 0) : max(-first, 0) + known.size] = known
        return found

    def alike(self, number: int, zone: str) -> tuple[list[int], list[int]]:
        """Bins of the same time on earlier days of its kind: from Monday to Friday, a Saturday, or a Sunday.

        Returns:
            Those of other days of the kind, and those of the same day of the week; the newest first.
        """
        at = datetime.fromtimestamp(number * BIN_S, ZoneInfo(zone))
        others: list[int] = []
        same: list[int] = []
        for day in range(1, DAYS + 1):
            then = at.replace(tzinfo=None) - timedelta(days=day)
            if _kind(then) != _kind(at):
                continue
            past = int(then.replace(tzinfo=at.tzinfo).timestamp()) // BIN_S
            if past < self.first:
                break
            (others if day % 7 else same).append(past)
        return others, same

    def usual(self, number: int, zone: str, bins: int = 1) -> float | None:
        """The largest rate from a bin on, as half of the days alike had it; None where none is known."""
        others, same = self.alike(number, zone)
        rates = np.array([float(self.busiest(past, bins)[-1]) for past in (*others, *same)])
        known = rates[~np.isnan(rates)]
        return float(np.median(known)) if known.size else None

    def present(self, number: int) -> float:
        """The rate at the beginning of a bin and within it so far; NaN where the bin before is not known."""
        before, so_far = float(self.busiest(number - 1, 1)[0]), float(self.busiest(number, 1)[0])
        return before if math.isnan(so_far) else max(before, so_far)

    def growths(self, number: int, zone: str, present: float) -> FloatTable:
        """Events per second that each of `BELIEFS` foresees beyond the present ones.

        What came on each day alike, in proportion to that day's level before, is taken at today's level, less what has
        come of it already. A day's leap counts up to a bin sooner than it came, and until a bin after: no two days
        keep time. What a minute's count is unsure by is no increase.

        Args:
            number: the bin of now.
            zone: by whose clocks days are alike.
            present: events per second that are there already.

        Returns:
            (beliefs, ahead): within a bin, within it and the next, and so on. Each is 0 or more; all are 0 where fewer
            than two days, or today's level, are known.
        """
        level = self._level(number)
        others, same = self.alike(number, zone)
        followed = {past: after for past in (*same, *others) if (after := self._following(past, level)) is not None}
        levels = np.zeros((len(BELIEFS), AHEAD))
        if math.isnan(level) or len(followed) < 2:
            return levels
        nearest = [followed[past] for past in self._nearest(number, list(followed))]
        levels[TWO_DAYS], levels[ANY_DAY] = np.sort(nearest, axis=0)[-2:]
        if len(named := [followed[past] for past in same if past in followed]) > 1:
            levels[TWO_DAYS] = np.maximum(levels[TWO_DAYS], np.min(named, axis=0))
            levels[ANY_DAY] = np.maximum(levels[TWO_DAYS], levels[ANY_DAY])
        return np.where(levels > present + math.sqrt(present / _MINUTE_S), levels - present, 0.0)

    def _following(self, past: int, level: float) -> Floats | None:
        """(ahead,): what came about a bin of another day, at that level of today; None if it is not known.

        What a minute shows of a rate is believed to within a standard error of its count.
        """
        before, after = self._level(past), self.busiest(past - 1, AHEAD + 1)[1:]
        if math.isnan(before) or math.isnan(after[-1]):
            return None
        least, most = after - np.sqrt(after / _MINUTE_S), before + math.sqrt(before / _MINUTE_S)
        following: Floats = least * min((level + LEAST_RATE) / (most + LEAST_RATE), MOST_SCALED)
        return following

    def _level(self, number: int) -> float:
        """The lowest rate of the bins before one; NaN where one is not known."""
        return float(self._of(number - LEVEL_BINS, LEVEL_BINS).min())

    def _nearest(self, number: int, pasts: list[int]) -> list[int]:
        """Of these bins of other days, those before which traffic went most as it did before this one."""
        logs = np.log(np.array([self._of(at - SHAPE_BINS, SHAPE_BINS) for at in (number, *pasts)]) + LEAST_RATE)
        apart = np.nanmean((logs[1:] - logs[0]) ** 2, axis=1)
        order = np.argsort(apart, kind="stable")
        return [pasts[at] for at in order[: max(FEWEST, math.ceil(NEAREST * len(pasts)))].tolist()]

    def to_bytes(self) -> bytes:
        """Two bytes a bin, to a thousandth."""
        scaled = np.rint(np.log1p(self.rates * _MINUTE_S) * _SCALE)
        return np.where(np.isnan(scaled), _UNKNOWN, np.minimum(scaled, _UNKNOWN - 1)).astype("<u2").tobytes()

    @classmethod
    def from_bytes(cls, first: int, data: bytes) -> PastWeeks:
        """Read back what `to_bytes` gave.

        Raises:
            ValueError: it did not give that.
        """
        if len(data) % 2 or len(data) > 2 * BINS or first < 0:
            raise ValueError(f"{len(data)} bytes from bin {first} are no weeks of arrivals")
        scaled = np.frombuffer(data, "<u2").astype(float)
        return cls(first, np.where(scaled == _UNKNOWN, math.nan, np.expm1(scaled / _SCALE) / _MINUTE_S))


def _kind(day: datetime) -> int:
    return max(day.weekday(), 4)


@dataclass(frozen=True, slots=True)
class Calendar:
    """What is known of the time ahead, at one instant.

    Args:
        time_s: now, in seconds since the epoch.
        schedule: what people have said.
        weeks: what came before.
        recurring: see `PastWeeks.growths`, of the belief that is held, from the bin of now on.
        present: see `PastWeeks.present`, which they come on top of.
    """

    time_s: float
    schedule: TrafficSchedule = field(default_factory=TrafficSchedule)
    weeks: PastWeeks = field(default_factory=PastWeeks)
    recurring: tuple[float, ...] = ()
    present: float = 0.0

    def growth(self, lead_s: float) -> float:
        """Events per second that come back beyond the present ones within the lead, or a bin later; 0 if none do."""
        if not self.recurring:
            return 0.0
        bins = int((self.time_s + lead_s) // BIN_S - self.time_s // BIN_S) + 1
        return self.recurring[min(bins, AHEAD - 1)]

    def said(self, lead_s: float, planned_rate: float) -> tuple[float, str]:
        """What people want held within the lead, in multiples of the planned rate, and in words; 0 for nothing."""
        found = self.schedule.within(self.time_s, self.time_s + lead_s)
        if found.traffic is None:
            return found.reserve, f"the schedule holds {found.reserve:g} times the planned traffic: {found.words}"
        usual = self.weeks.usual(int((self.time_s + lead_s) // BIN_S), self.schedule.zone)
        multiple = found.traffic * (1.0 if usual is None or planned_rate <= 0 else usual / planned_rate)
        if found.reserve > multiple:
            return found.reserve, f"the schedule holds {found.reserve:g} times the planned traffic: {found.words}"
        of = "the planned traffic" if usual is None else f"the usual {usual:.1f}/s"
        return multiple, f"the schedule expects {found.traffic:g} times {of}: {found.words}"


@dataclass(frozen=True, slots=True, eq=False)
class BeliefTrial:
    """What each belief would have cost lately.

    Args:
        zone: by whose clocks days are alike.
        next_: number of the bin that is not looked at yet.
        held: (beliefs,): Σ of events per second that it would have held beyond those there, over bins.
        missed: (beliefs,): Σ of those that came beyond what it would have held.
    """

    zone: str
    next_: int
    held: Floats = field(default_factory=lambda: np.zeros(len(BELIEFS)))
    missed: Floats = field(default_factory=lambda: np.zeros(len(BELIEFS)))

    def up_to(self, weeks: PastWeeks, number: int) -> BeliefTrial:
        """The same after all bins of which it is known before this one what came."""
        held, missed, kept = self.held, self.missed, KEPT ** (BIN_S / 86_400)
        first = max(self.next_, weeks.first, number - TRIED_DAYS * 86_400 // BIN_S)
        for bin_ in range(first, number - TRIED_BINS + 1):
            level, most = float(weeks.busiest(bin_ - 1, 1)[0]), float(weeks.busiest(bin_, TRIED_BINS)[-1])
            if math.isnan(level) or math.isnan(most):
                continue
            foreseen = weeks.growths(bin_, self.zone, level)[:, TRIED_BINS - 1]
            came = most - level if most > level * (1 + ABSORBED_SHARE) else 0.0
            held, missed = kept * held + foreseen, kept * missed + np.maximum(came - foreseen, 0.0)
        return BeliefTrial(self.zone, max(first, number - TRIED_BINS + 1), held, missed)

    def cheapest(self, start_up_s: float, objective: float) -> int:
        """The belief that would have cost least.

        A leap that is missed makes a share of its events late (`SAVED`) until replicas have started and the backlog is
        gone. A late event costs what serving it does, divided by the share that may be late
        (docs/explanation/reserve.md). Where nothing speaks against what two days had, that is believed.
        """
        late = SAVED * min(2 * start_up_s / BIN_S, 1.0)
        costs = self.held + late / (1 - objective) * self.missed
        return min((TWO_DAYS, NOTHING, ANY_DAY), key=costs.__getitem__)


class WeekCounter:
    """Counts arrivals into weeks, and gives what the policy sees of them. One class for live use and replay.

    Args:
        weeks: what is known already.
    """

    def __init__(self, weeks: PastWeeks | None = None) -> None:
        self.weeks = weeks or PastWeeks()
        self._since_s: float | None = None
        self._minute, self._count, self._watched_s = 0, 0, 0.0
        self._bin, self._busiest = -1, math.nan
        self._trial = BeliefTrial("", 0)
        self._known: tuple[int, str, tuple[float, ...], float] = (-1, "", (), 0.0)
        """Minute and zone for which it is known what comes back, that, and what it comes on top of."""

    def add(self, time_s: float, count: int) -> None:
        """So many came since the call before, at the latest at that time, in seconds since the epoch.

        A gap of more than a minute is one that nobody watched.
        """
        since_s, self._since_s = self._since_s, time_s
        minute = int(time_s // _MINUTE_S)
        if since_s is None or not 0 <= time_s - since_s <= _MINUTE_S:
            self._close(minute)
            return
        if minute != self._minute:
            # Those between two looks belong to both minutes.
            share = (minute * _MINUTE_S - since_s) / (time_s - since_s)
            self._count += round(count * share)
            self._watched_s += minute * _MINUTE_S - since_s
            count -= round(count * share)
            self._close(minute)
            since_s = minute * _MINUTE_S
        self._count += count
        self._watched_s += time_s - since_s

    def _close(self, minute: int) -> None:
        """Another minute begins, and perhaps another bin."""
        if self._watched_s >= _LEAST_WATCHED_S:
            self._busiest = np.fmax(self._busiest, self._count / self._watched_s).item()
        self._minute, self._count, self._watched_s = minute, 0, 0.0
        number = minute * _MINUTE_S // BIN_S
        if number != self._bin:
            if not math.isnan(self._busiest):
                self.weeks = self.weeks.with_rate(self._bin, self._busiest)
            self._bin, self._busiest = number, math.nan

    def calendar(self, time_s: float, schedule: TrafficSchedule, start_up_s: float, objective: float) -> Calendar:
        """What is known now.

        Args:
            time_s: now, in seconds since the epoch.
            schedule: what people have said.
            start_up_s: of the slowest replica.
            objective: share of the events that must meet the SLO.
        """
        zone = schedule.zone
        if self._known[:2] != (self._minute, zone):
            number = int(time_s // BIN_S)
            so_far = self.weeks if math.isnan(self._busiest) else self.weeks.with_rate(number, self._busiest)
            present = so_far.present(number)
            if self._trial.zone != zone:
                self._trial = BeliefTrial(zone, 0)
            self._trial = self._trial.up_to(self.weeks, number)
            growths = so_far.growths(number, zone, present)[self._trial.cheapest(start_up_s, objective)]
            self._known = self._minute, zone, tuple(growths.tolist()), present
        return Calendar(time_s, schedule, self.weeks, *self._known[2:])
