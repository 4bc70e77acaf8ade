"""Arrivals of the paper's experiments: a sample to plan on, and another trace to judge by."""

from __future__ import annotations

import csv
import functools
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inferline_stream.pipeline.trace import Trace, gamma_trace, levels_trace, trace_from_csv

TRACES = Path(__file__).parent / "traces"
BASE_RATE, PEAK_RATE = 150.0, 250.0
SAMPLE_S = 600.0
LEAP_AT_S, LEAP_RISE_S = 300.0, 60.0
BIG_SPIKE_LEVEL_S = 30.0

Seeded = np.random.Generator


def warped(rate: Callable[[np.ndarray], np.ndarray], cv: float, duration_s: float, rng: Seeded) -> Trace:
    """Gamma arrivals of a rate that changes: a process of rate 1 on the clock ∫ rate dt (steps of 10 ms)."""
    clock_s = np.arange(0.0, duration_s + 0.01, 0.01)
    passed = np.concatenate([[0.0], np.cumsum(rate((clock_s[1:] + clock_s[:-1]) / 2) * 0.01)])
    unit = gamma_trace(1.0, cv, float(passed[-1]), rng)
    return Trace(np.interp(unit.arrivals_s, passed, clock_s))


def ramp(over_s: float, rng: Seeded, calm_s: float = 60.0) -> tuple[Trace, Trace]:
    """150 → 250 → 150 events per second, each way within ``over_s``, CV 1, after ``calm_s`` at 150."""
    corners_s = np.cumsum([0.0, calm_s, over_s, 60.0, over_s, 60.0])
    rates = [BASE_RATE, BASE_RATE, PEAK_RATE, PEAK_RATE, BASE_RATE, BASE_RATE]
    sample = gamma_trace(BASE_RATE, 1.0, SAMPLE_S, rng)
    return sample, warped(lambda t: np.interp(t, corners_s, rates), 1.0, float(corners_s[-1]), rng)


def leap(top: float, rng: Seeded) -> Trace:
    """150 events per second, and so many times as much after five minutes, for a minute and a minute each way; CV 1."""
    corners_s = np.cumsum([0.0, LEAP_AT_S, LEAP_RISE_S, 60.0, LEAP_RISE_S, 120.0])
    rates = BASE_RATE * np.array([1.0, 1.0, top, top, 1.0, 1.0])
    return warped(lambda t: np.interp(t, corners_s, rates), 1.0, float(corners_s[-1]), rng)


def burst(rng: Seeded) -> tuple[Trace, Trace]:
    """150 events per second whose CV rises from 1 to 4 within a minute and stays there."""
    parts = [gamma_trace(BASE_RATE, 1.0, 60.0, rng).arrivals_s]
    for k, cv in enumerate([1.5, 2.0, 2.5, 3.0, 3.5, *[4.0] * 13]):
        parts.append(gamma_trace(BASE_RATE, cv, 10.0, rng).arrivals_s + 60.0 + 10.0 * k)
    return gamma_trace(BASE_RATE, 1.0, SAMPLE_S, rng), Trace(np.concatenate(parts))


def big_spike(rng: Seeded) -> tuple[Trace, Trace]:
    """InferLine's Big Spike: its levels, digitised, with arrivals of CV 1; the first quarter is for planning."""
    levels = [(rate, BIG_SPIKE_LEVEL_S) for rate in big_spike_rates().tolist()]
    whole, end_s = levels_trace(levels, 1.0, rng), BIG_SPIKE_LEVEL_S * len(levels)
    return whole.window(0.0, end_s / 4), whole.window(end_s / 4, end_s)


@functools.cache
def big_spike_rates() -> np.ndarray:
    """Events per second of its levels, each of which lasts `BIG_SPIKE_LEVEL_S`."""
    with (TRACES / "inferline_big_spike_levels.csv").open() as file:
        return np.array([float(row["mean_rate"]) for row in csv.DictReader(file)])


def azure() -> Trace:
    """Requests to Azure's conversation service in 2023: 58 minutes at 5.5 a second, as they came."""
    with gzip.open(TRACES / "azure_llm_2023_conv.csv.gz", "rt") as file:
        return trace_from_csv(file.read(), "azure_llm_2023_conv.csv")


def world_cup(first_minute: str | int, minutes: int, rng: Seeded, *, share: float = 1.0) -> Trace:
    """The 1998 World Cup's site from a minute (``1998-06-30 18:00:00``, or its number) on.

    Counted per minute: the rate between the middles of minutes is drawn straight, the arrivals are Poisson.
    ``share`` thins them to that share of the requests.
    """
    counts = world_cup_per_minute(first_minute, minutes) * share
    middles_s = 60.0 * (np.arange(counts.size) + 0.5)
    return warped(lambda t: np.interp(t, middles_s, counts / 60.0), 1.0, 60.0 * counts.size, rng)


def world_cup_requests(first_minute: str | int, minutes: int) -> float:
    """Requests to the site within so many minutes."""
    return float(world_cup_per_minute(first_minute, minutes).sum())


def world_cup_busiest(day: str, minutes: int) -> str:
    """The minute of a day (``1998-06-04``) with which its busiest so many minutes begin."""
    counts = world_cup_per_minute(f"{day} 00:00:00", 24 * 60)
    first = int(np.convolve(counts, np.ones(minutes), "valid").argmax())
    return f"{day} {first // 60:02}:{first % 60:02}:00"


def world_cup_minutes() -> int:
    """How many minutes of the site are known."""
    return len(_world_cup()[0])


def world_cup_per_minute(first_minute: str | int, minutes: int) -> np.ndarray:
    """Requests to the site in each of so many minutes."""
    periods, counts = _world_cup()
    start = first_minute if isinstance(first_minute, int) else periods.index(first_minute)
    return counts[start : start + minutes]


@functools.cache
def _world_cup() -> tuple[list[str], np.ndarray]:
    with gzip.open(TRACES / "worldcup98_per_minute.csv.gz", "rt") as file:
        rows = [line.strip().split(",") for line in file][1:]
    return [period for period, _ in rows], np.array([int(count) for _, count in rows], dtype=float)
