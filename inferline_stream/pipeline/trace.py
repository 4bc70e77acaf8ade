"""Arrival traces: when events entered, as timestamps in seconds from the trace's start."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from inferline_stream.errors import InvalidFile

Seconds = NDArray[np.float64]

Expecting = Callable[[int], None]
"""Called with how many arrivals a trace will have before memory is taken for them; raises if those are too many."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Arrivals in seconds, float64, ascending (ties allowed), shape (events,).

    Args:
        arrivals_s: the times.
        source_of: uint8 (events,) number of each one's source topic (`Shape.sources`); empty where there is one, or
            where nobody knows.

    Raises:
        ValueError: times that are not finite or not ascending, or sources of other events.
    """

    arrivals_s: Seconds
    source_of: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))

    def __post_init__(self) -> None:
        times = np.ascontiguousarray(self.arrivals_s, dtype=np.float64)
        if times.ndim != 1:
            raise ValueError(f"a trace is one row of times, not an array of shape {times.shape}")
        if not np.isfinite(times).all():
            raise ValueError("a trace holds times that are NaN or infinite")
        if times.size and (np.diff(times) < 0).any():
            raise ValueError("a trace's times must ascend; sort them first")
        if self.source_of.size not in (0, times.size):
            raise ValueError(f"{self.source_of.size} sources of {times.size} arrivals")
        times.flags.writeable = False
        object.__setattr__(self, "arrivals_s", times)

    def __len__(self) -> int:
        return int(self.arrivals_s.size)

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last."""
        return float(self.arrivals_s[-1] - self.arrivals_s[0]) if len(self) else 0.0

    @property
    def arrival_rate(self) -> float:
        """Mean λ per second: gaps over duration; 0 for fewer than two distinct times."""
        return (len(self) - 1) / self.duration_s if self.duration_s > 0 else 0.0

    def window(self, start_s: float, end_s: float) -> Trace:
        """Arrivals in [start, end), counted from the start of the window."""
        first, last = np.searchsorted(self.arrivals_s, (start_s, end_s), side="left")
        return Trace(self.arrivals_s[first:last] - start_s, self.source_of[first:last])

    def sped_up(self, factor: float) -> Trace:
        """The same arrivals, ``factor`` times as fast.

        Raises:
            ValueError: a factor that is not above 0.
        """
        if not factor > 0:
            raise ValueError(f"speed-up {factor} must be above 0")
        return Trace(self.arrivals_s / factor, self.source_of)


def busiest(trace: Trace, events: int) -> Trace:
    """The piece with the given number of events that takes the least time; the whole trace if it has no more."""
    if len(trace) <= events:
        return trace
    times = trace.arrivals_s
    first = int(np.argmin(times[events - 1 :] - times[: times.size - events + 1]))
    return Trace(times[first : first + events] - times[first], trace.source_of[first : first + events])


def merged(traces: Sequence[Trace]) -> Trace:
    """Arrivals of several sources, in order, with the source of each; of one, its own."""
    if len(traces) == 1:
        return traces[0]
    times = np.concatenate([trace.arrivals_s for trace in traces])
    source_of = np.repeat(np.arange(len(traces), dtype=np.uint8), [len(trace) for trace in traces])
    order = np.argsort(times, kind="stable")
    return Trace(times[order], source_of[order])


def simulation_bytes(events: int, stages: int) -> int:
    """Memory that simulating so many events takes, about: entry, latency and path of each, and its partition and fate.

    Departures that a search keeps between candidates come on top, up to a limit of their own.
    """
    return events * (8 + 8 + 2 + 1 + 10 * stages)


def gamma_trace(rate: float, cv: float, duration_s: float, rng: np.random.Generator) -> Trace:
    """Gamma-distributed gaps with mean 1/rate and CV = σ²/µ² (InferLine §6: CV 1 is Poisson).

    Args:
        rate: λ per second, above 0.
        cv: squared coefficient of variation; 0 gives equal gaps.
        duration_s: length of the trace.
        rng: source of randomness.

    Raises:
        ValueError: a rate or duration not above 0, or a negative CV.
    """
    if not rate > 0 or not duration_s > 0 or not cv >= 0:
        raise ValueError(f"rate {rate} and duration {duration_s} must be above 0, CV {cv} must be 0 or more")
    times = np.empty(0)
    end = 0.0
    while end < duration_s:
        n = int((duration_s - end) * rate * 1.1) + 16
        gaps = rng.gamma(1 / cv, cv / rate, n) if cv > 0 else np.full(n, 1 / rate)
        times = np.concatenate([times, end + np.cumsum(gaps)])
        end = float(times[-1])
    return Trace(times[times < duration_s])


def levels_trace(levels: list[tuple[float, float]], cv: float, rng: np.random.Generator) -> Trace:
    """Consecutive levels of (rate per second, duration in seconds), gamma arrivals within each."""
    parts = []
    start = 0.0
    for rate, duration_s in levels:
        if rate > 0:
            parts.append(gamma_trace(rate, cv, duration_s, rng).arrivals_s + start)
        start += duration_s
    return Trace(np.concatenate(parts) if parts else np.empty(0))


_DAY_S = 86_400.0
LONGEST_S = 366 * _DAY_S
"""Of a trace: replays step through it, and a longer one is a mistake of units, or has a stray time."""

_TIME_COLUMNS = ("arrival_s", "timestamp", "time", "t")
_COUNT_COLUMNS = ("count", "requests", "events", "arrivals")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d)?)?)(\.\d+)?\s?(Z|[+-]\d\d:?\d\d)?")


def trace_from_csv(text: str, where: str, expecting: Expecting = lambda _: None) -> Trace:
    """Read a CSV of timestamps (one arrival a line) or of counts (period start and arrivals in the period).

    Timestamps are seconds, or dates such as ``2023-11-16 18:15:46.6805900``. A second column named
    count, requests, events or arrivals makes it a table of counts: the arrivals of a period are spread
    evenly over it. Times are counted from the first and sorted.

    Args:
        text: the file's contents.
        where: the file's name, for messages.
        expecting: see `Expecting`.

    Raises:
        InvalidFile: no rows, a missing column, a value that is no time or count, with its line, or times that span
            more than a year.
    """
    try:
        read = csv.reader(io.StringIO(text, newline=None))
        numbered = [(line, row) for line, row in enumerate(read, start=1) if any(row)]
    except csv.Error as error:
        raise InvalidFile(f"{where}:{read.line_num}: is no CSV ({error})") from None
    lines, rows = [line for line, _ in numbered], [row for _, row in numbered]
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if header and not any(name in _TIME_COLUMNS for name in header):
        if len(header) == 1 and _is_number(header[0]):
            header, rows, lines = ["arrival_s"], [["arrival_s"], *rows], [0, *lines]
        else:
            raise InvalidFile(f"{where}: no time column among {header}; name one of them {' or '.join(_TIME_COLUMNS)}")
    if len(rows) < 2:
        raise InvalidFile(f"{where}: holds no arrivals; give at least one line below the header")
    time_column = next(i for i, name in enumerate(header) if name in _TIME_COLUMNS)
    count_column = next((i for i, name in enumerate(header) if name in _COUNT_COLUMNS), None)
    times = np.empty(len(rows) - 1)
    counts = np.ones(len(rows) - 1, dtype=np.int64)
    for i, row in enumerate(rows[1:]):
        try:
            times[i] = _time_s(row[time_column])
            if count_column is not None:
                counts[i] = int(row[count_column])
        except (ValueError, IndexError, OverflowError) as error:
            said, why = ",".join(row)[:80], str(error)[:80]
            raise InvalidFile(f"{where}:{lines[i + 1]}: {said!r} is no arrival ({why})") from None
    if not np.isfinite(times).all() or (counts < 0).any():
        worst = int(np.flatnonzero(~np.isfinite(times) | (counts < 0))[0])
        raise InvalidFile(f"{where}:{lines[worst + 1]}: times must be finite and counts 0 or more")
    order = np.argsort(times, kind="stable")
    with np.errstate(over="ignore"):
        times, counts = times[order] - times.min(), counts[order]
    if times[-1] > LONGEST_S:
        raise InvalidFile(
            f"{where}: its times span {times[-1] / _DAY_S:,.4g} days, at most {LONGEST_S / _DAY_S:g} are replayed; "
            "give them in seconds, and remove stray ones"
        )
    if count_column is None:
        return Trace(times)
    distinct = np.unique(times)  # a table may have a line for each of several sources of a period
    period_s = float(np.median(np.diff(distinct))) if distinct.size > 1 else 0.0
    if period_s <= 0:
        raise InvalidFile(f"{where}: a table of counts needs two different times or more, to know a period's length")
    if not counts.any():
        raise InvalidFile(f"{where}: every count is 0; give at least one arrival")
    expecting(sum(map(int, counts)))
    spread = [t + period_s * (np.arange(n) + 0.5) / n for t, n in zip(times, counts, strict=True)]
    return Trace(np.sort(np.concatenate(spread)))  # a line that comes sooner than a period after another overlaps it


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _time_s(text: str) -> float:
    """Seconds of a number, or of a date and time; without a zone it counts as UTC."""
    try:
        return float(text)
    except ValueError:
        match = _MOMENT.fullmatch(text.strip())
        if match is None:
            raise ValueError("neither a number of seconds nor a date and time") from None
        date, fraction, zone = match.groups()
        moment = datetime.fromisoformat(date + (zone or "+00:00"))
        # The fraction apart: datetime keeps six digits, published traces have seven.
        return moment.timestamp() + (float(fraction) if fraction else 0.0)
