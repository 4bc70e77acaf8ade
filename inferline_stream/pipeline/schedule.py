"""What people know of traffic to come: hours in which a reserve is held, days on which more comes than usual.

A window holds by the clock on the wall: at each moment whose local date and time lie within it. So a time of day that a
clock change leaves out does not come that day, and one that comes twice counts twice.
"""

from __future__ import annotations

import difflib
import math
import re
import zoneinfo
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MOST = 20.0
"""Times the planned traffic: more is a slip of the pen, and no table of replicas goes further."""

_MINUTE_S, _DAY_MINUTES = 60, 24 * 60
_EVERY = re.compile(r"(?P<days>[a-z]+(?:[,-][a-z]+)*)?\s*(?P<hours>\d\d:\d\d-\d\d:\d\d)?")
_ON = re.compile(r"(?P<date>\d{4}-\d\d-\d\d)(?:\s+(?P<hours>\d\d:\d\d-\d\d:\d\d))?")


@dataclass(frozen=True, slots=True)
class Every:
    """A window that comes again each week.

    Args:
        when: days, hours or both, such as ``"mon-fri 07:45-10:00"``, ``"sat,sun"`` or ``"12:00-24:00"``.
        reserve: replicas for so many times the planned traffic are held at least.
        traffic: so many times the traffic that this time otherwise has, as far as weeks have taught it; of the planned
            traffic before.
        zone: time zone of the window, such as ``"Europe/Berlin"``; None for the pipeline's.
    """

    when: str
    reserve: float | None = None
    traffic: float | None = None
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class On:
    """A window of one day.

    Args:
        when: the date, and perhaps hours, such as ``"2027-11-26"`` or ``"2027-11-26 08:00-20:00"``.
        reserve: see `Every`.
        traffic: see `Every`.
        zone: see `Every`.
    """

    when: str
    reserve: float | None = None
    traffic: float | None = None
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What people have said of some time.

    Args:
        reserve: times the planned traffic for which replicas are held; 0 for none.
        traffic: times the traffic that otherwise comes; None where nobody has said so.
        words: of the entries that say so.
    """

    reserve: float = 0.0
    traffic: float | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class _Window:
    entry: Every | On
    zone: zoneinfo.ZoneInfo
    days: frozenset[int] | date
    since: int
    until: int
    """Minutes of the day: from the first one until before the last one."""

    def holds(self, local: datetime) -> bool:
        day = local.weekday() in self.days if isinstance(self.days, frozenset) else local.date() == self.days
        return day and self.since <= local.hour * 60 + local.minute < self.until

    def overlap(self, other: _Window) -> str:
        """Where both hold, in words; empty where they never do. Of windows in one zone."""
        if isinstance(self.days, frozenset) and isinstance(other.days, frozenset):
            both = [DAYS[day] for day in sorted(self.days & other.days)]
        else:
            both = [str(self.days)] if self.days == other.days else []
        since, until = max(self.since, other.since), min(self.until, other.until)
        return f"{both[0]} {_clock(since)}-{_clock(until)}" if both and since < until else ""


@dataclass(frozen=True, slots=True)
class TrafficSchedule:
    """All that people have said.

    Args:
        entries: windows; where several hold, the largest reserve and the largest traffic count.
        zone: of entries that have none.

    Raises:
        ValueError: an entry or its zone cannot be read.
    """

    entries: tuple[Every | On, ...] = ()
    zone: str = "UTC"
    _windows: tuple[_Window, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_windows", tuple(_window(entry, self.zone) for entry in self.entries))

    def at(self, time_s: float) -> Said:
        """What people have said of a moment, in seconds since the epoch."""
        held = [window.entry for window in self._windows if window.holds(datetime.fromtimestamp(time_s, window.zone))]
        reserve = max((entry.reserve for entry in held if entry.reserve is not None), default=0.0)
        traffic = max((entry.traffic for entry in held if entry.traffic is not None), default=None)
        return Said(reserve, traffic, ", ".join(repr(entry.when) for entry in held))

    def within(self, since_s: float, until_s: float) -> Said:
        """The most that people have said of any moment from ``since_s`` until ``until_s``."""
        if not self._windows:
            return _NOTHING
        minutes = range(math.floor(since_s / _MINUTE_S) + 1, math.floor(until_s / _MINUTE_S) + 1)
        said = [self.at(since_s), *(self.at(float(minute * _MINUTE_S)) for minute in minutes)]
        traffic = max((each.traffic for each in said if each.traffic is not None), default=None)
        words = dict.fromkeys(word for each in said if each.words for word in each.words.split(", "))
        return Said(max(each.reserve for each in said), traffic, ", ".join(words))


_NOTHING = Said()


def problems_of_schedule(entries: Sequence[Any], zone: Any) -> Iterator[str]:
    """Yield what is wrong with a declared schedule, each with the value and the remedy."""
    known: list[_Window] = []
    sound = True
    try:
        _zone(zone)
    except ValueError as error:
        sound = False
        yield str(error)
    for entry in entries:
        if not isinstance(entry, Every | On):
            yield f'schedule holds {entry!r}; write Every("mon-fri 07:45-10:00", reserve=1.6) or On("2027-11-26", ...)'
            continue
        try:
            check_amounts(entry)
            window = _window(entry, zone if sound else "UTC")
        except ValueError as error:
            yield f"schedule: {error}"
            continue
        for other in known:
            if window.zone.key == other.zone.key and (where := window.overlap(other)):
                yield (
                    f"schedule: {other.entry.when!r} and {entry.when!r} overlap on {where}: end one where the other "
                    "begins, or leave one out"
                )
        known.append(window)


def check_amounts(entry: Every | On) -> None:
    """Raise ValueError unless an entry has a reserve or a traffic, each a number that can be."""
    given = {"reserve": entry.reserve, "traffic": entry.traffic}
    if all(value is None for value in given.values()):
        raise ValueError(f"{entry.when!r} says nothing: give reserve= or traffic=")
    for name, value in given.items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST
        ):
            raise ValueError(f"{entry.when!r}: {name} {value!r} must be above 0 and at most {MOST:g}")


def last_s(entry: On, zone: str) -> float:
    """When the window of an entry is over, in seconds since the epoch.

    Raises:
        ValueError: it cannot be read.
    """
    window = _window(entry, zone)
    assert isinstance(window.days, date)
    end = datetime(window.days.year, window.days.month, window.days.day, tzinfo=window.zone)
    # Of a time that comes twice, the second; of one that is left out, a time after it.
    at = end.replace(hour=(window.until - 1) // 60, minute=(window.until - 1) % 60, fold=1)
    return max(at.timestamp(), at.replace(fold=0).timestamp()) + _MINUTE_S


def _window(entry: Every | On, zone: str) -> _Window:
    when: Any = entry.when
    pattern, example = (_EVERY, "mon-fri 07:45-10:00") if isinstance(entry, Every) else (_ON, "2027-11-26 08:00-20:00")
    match = pattern.fullmatch(when.strip()) if isinstance(when, str) else None
    if match is None or not any(match.groups()):
        raise ValueError(f'{when!r} is no window: write one such as "{example}"')
    days = _days(match["days"], when) if isinstance(entry, Every) else _date(match["date"])
    since, until = _hours(match["hours"], when)
    return _Window(entry, _zone(entry.zone or zone), days, since, until)


def _zone(name: Any) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        near = difflib.get_close_matches(str(name), zoneinfo.available_timezones(), n=2, cutoff=0.5)
        meant = f"did you mean {' or '.join(map(repr, near))}?" if near else "write one such as 'Europe/Berlin'"
        raise ValueError(f"unknown time zone {name!r}; {meant}") from None


def _days(text: str | None, when: str) -> frozenset[int]:
    found: list[int] = []
    for part in (text or "mon-sun").split(","):
        names = part.split("-")
        if len(names) > 2 or any(name not in DAYS for name in names):
            raise ValueError(f"{when!r}: {part!r} is no day; days are {', '.join(DAYS)}, and mon-fri")
        first, last = DAYS.index(names[0]), DAYS.index(names[-1])
        if last < first:
            raise ValueError(f"{when!r}: {part!r} runs backwards; write {names[0]}-sun,mon-{names[1]}")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        twice = next(DAYS[day] for day in found if found.count(day) > 1)
        raise ValueError(f"{when!r} overlaps itself: it has {twice} twice; name it once")
    return frozenset(found)


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no date: write one such as 2027-11-26") from None


def _hours(text: str | None, when: str) -> tuple[int, int]:
    """Minutes of the day from which and until which."""
    if text is None:
        return 0, _DAY_MINUTES
    ends = []
    for part in text.split("-"):
        hour, minute = map(int, part.split(":"))
        if minute > 59 or hour * 60 + minute > _DAY_MINUTES:
            raise ValueError(f"{when!r}: {part!r} is no time of day; the last one is 24:00")
        ends.append(hour * 60 + minute)
    if ends[1] <= ends[0]:
        since, until = text.split("-")
        raise ValueError(
            f"{when!r} runs backwards; past midnight it takes two: {since}-24:00, and 00:00-{until} on the day after"
        )
    return ends[0], ends[1]


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
