"""How service times depend on the events of a batch, from batches of which both were seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.service_table import MIDDLES, expected_unit
from inferline_stream.pipeline.profile import NOISE_PROBABILITIES, PROBABILITIES, STEADY, ServiceTime, Variation

FEWEST_EVENTS = 16
"""Distinct events below which nothing is said of how they differ."""

DOUBT = 3.0
"""Standard errors by which events have to differ more than repeats of one of them do."""

PRIOR_SD = 0.2
"""Of the share of the time that follows the events, from one batch size to the next: with few batches it says more than
they do."""

PRIOR_BATCHES = 8
"""As many batches count for the spread that all batch sizes have together."""

BETTER = 0.8
"""The largest event of a batch stands for it only if that leaves less than this share of the squared error."""

LEAST_UNIT = 0.01
"""Of the mean: an event that asks for nothing takes some time all the same."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TimedBatch:
    """One batch: positions of its events among the inputs, and how long it took."""

    events: tuple[int, ...]
    time_s: float


def fitted(
    timed: Mapping[int, Sequence[TimedBatch]], costs: Sequence[float] | None
) -> tuple[tuple[ServiceTime, ...], Variation | None]:
    """Service times by batch size, and how they vary; nothing varies by less than `STEADY`.

    What an event asks for is the cost that the user gives, or the time that events of its class take alone. At each
    batch size the time is linear in the mean, or in the largest, of what the events of a batch ask for; in which is
    decided by the squared error over all sizes. What is left is a factor, whose logarithm has the same shape at all
    sizes and a spread at each.

    Args:
        timed: by batch size, starting at 1.
        costs: what each input asks for; None if the user does not say.
    """
    times_s = {size: np.array([batch.time_s for batch in batches]) for size, batches in timed.items()}
    plain = tuple(service_time(size, times_s[size]) for size in sorted(timed))
    units = events_alone(timed[1]) if costs is None else dict(enumerate(costs))
    by_size = None
    if units and _deviation(np.array(list(units.values()))) >= STEADY:
        by_mean = _Fit(timed, units, largest=False, alone=costs is None)
        by_largest = _Fit(timed, units, largest=True, alone=costs is None)
        found = by_largest if by_largest.error < BETTER * by_mean.error else by_mean
        by_size = found if found.explains >= STEADY else None
    expected_s = {size: np.full(t.size, t.mean()) for size, t in times_s.items()}
    if by_size is not None:
        plain, expected_s = by_size.times(plain), by_size.expected_s
    ratios = {size: times_s[size] / expected_s[size] for size in times_s}
    if by_size is not None and costs is None:  # units were made from these times: they follow them too closely
        ratios[1] = _repeats(timed[1])
    spreads, noise = _noise(ratios)
    variation = Variation(
        units=() if by_size is None else by_size.shares,
        largest=by_size is not None and by_size.largest,
        noise=noise,
    )
    if variation == Variation():
        return plain, None
    return tuple(replace(entry, spread=spreads[entry.batch_size]) for entry in plain), variation


def service_time(batch_size: int, times_s: Sequence[float] | Floats) -> ServiceTime:
    """Mean and distribution of measured times."""
    quantiles = np.maximum.accumulate(np.quantile(times_s, PROBABILITIES))
    return ServiceTime(batch_size, float(np.mean(times_s)), tuple(map(float, quantiles)))


def events_alone(singles: Sequence[TimedBatch]) -> dict[int, float]:
    """What each event asks for, from how long it took alone; empty where events do not differ, as far as repeats tell.

    Events are put into classes, each of which is given the mean of its events: classes are split as long as the events
    of one differ by more than repeats of one event do. All of it is on the scale of logarithms.
    """
    logs: dict[int, list[float]] = {}
    for batch in singles:
        logs.setdefault(batch.events[0], []).append(math.log(batch.time_s))
    repeated = [np.array(times) for times in logs.values() if len(times) > 1]
    if len(repeated) < FEWEST_EVENTS:
        return {}
    freedom = sum(times.size - 1 for times in repeated)
    within = sum(float(((times - times.mean()) ** 2).sum()) for times in repeated) / freedom
    means = {event: float(np.mean(times)) for event, times in logs.items()}
    chance = within * float(np.mean([1 / len(times) for times in logs.values()]))
    if np.std(list(means.values())) < STEADY:
        return {}
    found = _classes(sorted(means, key=lambda event: means[event]), means, chance)
    if len(found) == 1:
        return {}
    return {event: math.exp(float(np.mean([means[e] for e in members]))) for members in found for event in members}


def _classes(events: list[int], means: Mapping[int, float], chance: float) -> list[list[int]]:
    """Split events, in order of their means, where that explains most, until chance explains what is left."""
    values = np.array([means[event] for event in events])
    count = values.size
    if count < 2 or values.var(ddof=1) <= chance * (1 + DOUBT * math.sqrt(2 / (count - 1))):
        return [events]
    sums = np.cumsum(values - values.mean())[:-1]
    left = np.arange(1, count)
    at = int((sums**2 / (left * (count - left))).argmax()) + 1  # the largest sum of squares between the two
    return _classes(events[:at], means, chance) + _classes(events[at:], means, chance)


class _Fit:
    """Times linear in what batches ask for, one line per batch size.

    A batch of nothing takes no less than nothing: where a line falls below that, as it does where units contain what a
    batch takes only once, units are lowered by so much that it does not.

    Args:
        timed: by batch size.
        units: by event.
        largest: whether the largest event of a batch counts, rather than the mean.
        alone: whether units are the times of events alone: then these follow them in full.
    """

    def __init__(
        self,
        timed: Mapping[int, Sequence[TimedBatch]],
        units: Mapping[int, float],
        *,
        largest: bool,
        alone: bool,
    ) -> None:
        self.largest = largest
        least = LEAST_UNIT * float(np.mean(list(units.values())))
        units = {event: max(unit, least) for event, unit in units.items()}
        levels = np.quantile(list(units.values()), MIDDLES, method="inverted_cdf")
        lowest = (1 - LEAST_UNIT) * float(levels[0])
        self.expected_s: dict[int, Floats] = {}
        self.error = 0.0
        self.explains = 0.0
        """Largest deviation of a batch size, over its mean, that follows the events."""
        slopes: dict[int, tuple[float, float]] = {}
        lowered = 0.0
        share, sd = 1.0, 0.0 if alone else math.inf
        for size in sorted(timed):
            asked = [[units[event] for event in batch.events] for batch in timed[size]]
            x = np.array([max(each) if largest else float(np.mean(each)) for each in asked])
            y = np.array([batch.time_s for batch in timed[size]])
            middle, mean_s = float(x.mean()), float(y.mean())
            share = min(_share(x, y, share, sd), middle / (middle - lowest))
            sd = PRIOR_SD
            lowered = max(lowered, middle * (1 - 1 / max(share, 1.0)))
            slope = share * mean_s / middle
            self.expected_s[size] = mean_s + slope * (x - middle)
            self.error += float(((y / self.expected_s[size] - 1) ** 2).mean())
            self.explains = max(self.explains, _deviation(self.expected_s[size]))
            expected = expected_unit(levels, size, largest=largest)
            slopes[size] = mean_s + slope * (expected - middle), slope * expected
        values, counts = np.unique(levels - lowered, return_counts=True)
        mean = float((values * counts).sum() / counts.sum())
        self.shares = tuple((float(value) / mean, int(count)) for value, count in zip(values, counts, strict=True))
        """The `Variation`'s units."""
        self._times = {
            size: (
                mean_s,
                max(0.0, mean_s - following_s * (1 - lowered / expected_unit(levels, size, largest=largest))),
            )
            for size, (mean_s, following_s) in slopes.items()
        }

    def times(self, plain: Sequence[ServiceTime]) -> tuple[ServiceTime, ...]:
        """Means as they are over batches of all events of the sample, with the part that does not follow them."""
        found = [(entry, *self._times[entry.batch_size]) for entry in plain]
        return tuple(replace(entry, mean_s=mean_s, fixed_s=fixed_s) for entry, mean_s, fixed_s in found)


def _share(x: Floats, y: Floats, before: float, sd: float) -> float:
    """Relative growth of the time with what batches ask for: least squares, drawn to the value of the size before."""
    if sd == 0:
        return before
    u, v = x / x.mean() - 1, y / y.mean() - 1
    square = float((u * u).sum())
    if square <= 0 or x.size < 3:
        return before
    share = float((u * v).sum()) / square
    left = float(((v - share * u) ** 2).sum()) / (x.size - 2)
    variance = left / square
    if math.isfinite(sd):
        share = (share * sd**2 + before * variance) / (sd**2 + variance)
    return max(0.0, share)


def _repeats(singles: Sequence[TimedBatch]) -> Floats:
    """Ratios of single times to what their own events take, as far as repeats show: those are of the same mean."""
    logs: dict[int, list[float]] = {}
    for batch in singles:
        logs.setdefault(batch.events[0], []).append(math.log(batch.time_s))
    found = [
        (each - float(np.mean(times))) * math.sqrt(len(times) / (len(times) - 1))
        for times in logs.values()
        if len(times) > 1
        for each in times
    ]
    ratios: Floats = np.exp(np.array(found))
    return ratios


def _noise(ratios: Mapping[int, Floats]) -> tuple[dict[int, float], tuple[float, ...]]:
    """By batch size the spread of the logarithm of measured over expected times, and the shape that all have."""
    logs = {size: np.log(r) - float(np.log(r).mean()) for size, r in ratios.items()}
    count = sum(each.size for each in logs.values())
    together = sum(float((each**2).sum()) for each in logs.values()) / max(1, count - len(logs))
    spreads = {}
    for size, each in logs.items():
        own = float((each**2).sum()) + PRIOR_BATCHES * together
        spreads[size] = math.sqrt(own / (max(0, each.size - 1) + PRIOR_BATCHES))
        if spreads[size] < STEADY:
            spreads[size] = 0.0
    shapes = [logs[size] / spread for size, spread in spreads.items() if spread]
    if not shapes:
        return spreads, ()
    noise = np.maximum.accumulate(np.quantile(np.concatenate(shapes), NOISE_PROBABILITIES))
    return spreads, tuple(map(float, noise))


def _deviation(values: Floats) -> float:
    """Standard deviation over mean."""
    return float(values.std() / values.mean()) if values.mean() > 0 else 0.0
