"""How the service times of a stage on one kind of hardware differ from batch to batch of one size."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

LEVELS = 256
"""Equally probable values by which the Estimator knows a distribution: the highest is that of the top 0.4 %."""

STEADY = 0.05
"""Standard deviation over mean below which the mean stands for a distribution."""

NOISE_PROBABILITIES = (
    *(0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    *(0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0),
)
"""Levels at which `Variation.noise` holds its distribution; between them it is linear."""


@dataclass(frozen=True, slots=True)
class Variation:
    """What makes batches of one size take different times.

    A batch of b takes ``(fixed_s(b) + (S(b) − fixed_s(b)) · x / E[x]) · factor``, where ``fixed_s`` and ``spread`` are
    those of its `ServiceTime`:

    - x is the mean, or the largest, of what its events ask for (their *units*); the largest where a model pads a batch
      to its longest event;
    - the factor has a mean of 1 and the logarithm ``spread(b) · noise`` plus a constant.

    Args:
        units: (unit, count) ascending: what events of the sample ask for, in `LEVELS` equal shares; empty where
            events do not differ. Only ratios count.
        largest: whether x is the largest unit of the batch, rather than the mean.
        noise: distribution of the standardized logarithm at `NOISE_PROBABILITIES`, ascending; empty without.

    Raises:
        ValueError: units or noise that are no distribution.
    """

    units: tuple[tuple[float, int], ...] = ()
    largest: bool = False
    noise: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        values, counts = [unit for unit, _ in self.units], [count for _, count in self.units]
        if self.units:
            if sum(counts) != LEVELS or min(counts) < 1:
                raise ValueError(f"counts {counts} of units must be 1 or more, and {LEVELS} together")
            if not all(map(math.isfinite, values)) or values[0] < 0 or values[-1] <= 0:
                raise ValueError(f"units {values} must be finite, 0 or more, and not all 0")
            if any(a >= b for a, b in itertools.pairwise(values)):
                raise ValueError(f"units {values} must ascend without repeats")
        if self.noise:
            if len(self.noise) != len(NOISE_PROBABILITIES):
                raise ValueError(f"{len(self.noise)} levels of noise, need {len(NOISE_PROBABILITIES)}")
            if not all(map(math.isfinite, self.noise)) or list(self.noise) != sorted(self.noise):
                raise ValueError(f"noise {self.noise} must be finite and ascend")
