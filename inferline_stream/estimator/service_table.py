"""Service times of a stage on one kind of hardware by batch size, as arrays that the kernels read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from inferline_stream.errors import InvalidInput
from inferline_stream.estimator.kernels import Floats
from inferline_stream.pipeline.profile import LEVELS, NOISE_PROBABILITIES, Profile, Variation

MIDDLES = (np.arange(LEVELS) + 0.5) / LEVELS
"""Probabilities in the middle of each level."""


@dataclass(frozen=True, slots=True, eq=False)
class ServiceTable:
    """One row per batch size up to a limit; row 0 is NaN. See `kernels.Varying`.

    Args:
        mean_s: float64 (limit + 1,) S(b).
        fixed_s: float64 (limit + 1,).
        per_unit_s: float64 (limit + 1,).
        factors: float64 (limit + 1, LEVELS).
        units: float64 (LEVELS,).
        largest: whether the largest event of a batch counts.
        varies: whether any batch takes anything but S(b).
    """

    mean_s: Floats
    fixed_s: Floats
    per_unit_s: Floats
    factors: Floats
    units: Floats
    largest: bool
    varies: bool

    @property
    def least_s(self) -> float:
        """The shortest time that any batch can take."""
        return float(((self.fixed_s + self.per_unit_s * self.units[0]) * self.factors[:, 0])[1:].min())


@lru_cache(maxsize=1024)
def service_table(profile: Profile, max_batch_size: int) -> ServiceTable:
    """Lay out a profile for batches up to a limit. A search asks for the same ones again and again: they are kept.

    Raises:
        InvalidInput: a batch size that was never profiled.
    """
    sizes = range(1, max_batch_size + 1)
    try:
        profile.service_time_s(max_batch_size)  # the limit asked for is what the message should name
        mean_s = np.array([math.nan, *map(profile.service_time_s, sizes)])
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    variation = profile.variation
    if variation is None:
        ones = np.ones((max_batch_size + 1, LEVELS))
        return ServiceTable(mean_s, mean_s, np.zeros_like(mean_s), ones, np.ones(LEVELS), False, False)
    units = unit_levels(variation)
    expected = np.array([expected_unit(units, b, largest=variation.largest) for b in sizes])
    fixed_s, per_unit_s = mean_s.copy(), np.zeros_like(mean_s)
    if variation.units:
        fixed_s[1:] = [profile.fixed_s(b) for b in sizes]
        per_unit_s[1:] = (mean_s[1:] - fixed_s[1:]) / expected
    factors = np.ones((max_batch_size + 1, LEVELS))
    if variation.noise:
        noise = np.interp(MIDDLES, NOISE_PROBABILITIES, variation.noise)
        factors[1:] = np.exp(np.outer([profile.spread(b) for b in sizes], noise))
        factors /= factors.mean(axis=1, keepdims=True)
    return ServiceTable(mean_s, fixed_s, per_unit_s, factors, units, variation.largest, True)


def unit_levels(variation: Variation) -> Floats:
    """What events ask for, float64 (LEVELS,) ascending, equally probable, of mean 1."""
    if not variation.units:
        return np.ones(LEVELS)
    values, counts = zip(*variation.units, strict=True)
    units: Floats = np.repeat(np.array(values), counts)
    units /= units.mean()
    return units


def expected_unit(units: Floats, batch_size: int, *, largest: bool) -> float:
    """Mean over random batches of the mean of their events' units, or of the largest."""
    if not largest:
        return float(units.mean())
    below = (np.arange(units.size + 1) / units.size) ** batch_size
    return float(units @ np.diff(below))
