"""Service times that a stage declares for hardware which only pretends to compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from inferline_stream.pipeline.hardware import divided
from inferline_stream.pipeline.spot import on_demand
from inferline_stream.pipeline.units import duration_s, is_whole


@dataclass(frozen=True, slots=True)
class Emulated:
    """Service times on emulated hardware that vary.

    Args:
        times: as `Stage.emulated` takes them: the means of batches of average events.
        cv: σ²/µ² of a lognormal factor that each batch draws.
        weight: of an event, how many times as long as declared it takes; a batch takes the mean of its events'. None
            where all take as long.
        fallback: the times of the stage's fallback, laid out likewise; they vary as the stage's do.
    """

    times: Mapping[int, str] | Mapping[str, Mapping[int, str]]
    cv: float = 0.0
    weight: Callable[[Any], float] | None = None
    fallback: Mapping[int, str] | Mapping[str, Mapping[int, str]] | None = None

    def factor(self, random: Random) -> float:
        """Draw the factor of one batch, of mean 1."""
        if self.cv == 0:
            return 1.0
        variance = math.log1p(self.cv)
        return random.lognormvariate(-variance / 2, math.sqrt(variance))


def emulated_s(emulated: Emulated | Mapping[Any, Any] | None, hardware: str) -> dict[int, float]:
    """Declared service time in seconds by batch size, ascending; starts at batch size 1.

    One of n replicas that share a device takes n times what is declared for the whole, unless it has times of its own:
    the others are always busy, and the device gives each as much of its time.

    Args:
        emulated: as `Stage.emulated` holds it: times for all emulated kinds, or by kind.
        hardware: the emulated kind.

    Raises:
        ValueError: no times for this kind, none for batch size 1, or a batch size or duration that
            is none.
    """
    found = _in_seconds(declared_times(emulated), hardware)
    if not found:
        raise ValueError(f'no service times for {hardware!r}; give emulated={{1: "20ms", 8: "60ms"}}')
    return found


def fallback_s(emulated: Emulated | Mapping[Any, Any] | None, hardware: str) -> dict[int, float]:
    """As `emulated_s`, of a stage's fallback.

    Raises:
        ValueError: likewise.
    """
    found = _in_seconds(emulated.fallback, hardware) if isinstance(emulated, Emulated) else {}
    if not found:
        raise ValueError(
            f'no service times for {hardware!r}; give emulated=Emulated({{1: "20ms"}}, fallback={{1: "5ms"}})'
        )
    return found


def _in_seconds(times: Mapping[Any, Any] | None, hardware: str) -> dict[int, float]:
    """Service times on a kind by ascending batch size; none where there are none."""
    hardware = on_demand(hardware)
    whole, parts = divided(hardware)
    shared = parts if not (by_kind(times) and hardware in (times or ())) else 1
    table = _table(times, whole if shared > 1 else hardware)
    times_s: dict[int, float] = {}
    for size, time in table.items():
        if not is_whole(size):
            raise ValueError(f"emulated batch size {size!r} must be a whole number, 1 or more")
        times_s[size] = duration_s(time) * shared
        if times_s[size] <= 0:
            raise ValueError(f"emulated service time {time!r} of batch size {size} must be above 0")
    if table and 1 not in times_s:
        raise ValueError(
            f'no emulated service time for batch size 1 (has {sorted(times_s)}); give emulated={{1: "20ms"}}'
        )
    return dict(sorted(times_s.items()))


def declared_times(emulated: Emulated | Mapping[Any, Any] | None) -> Mapping[Any, Any] | None:
    """The table of emulated times, whether they vary or not."""
    return emulated.times if isinstance(emulated, Emulated) else emulated


def by_kind(emulated: Mapping[Any, Any] | None) -> bool:
    """Whether the times are declared by hardware kind rather than once for all of them."""
    return bool(emulated) and all(isinstance(key, str) for key in emulated or ())


def _table(emulated: Mapping[Any, Any] | None, hardware: str) -> Mapping[Any, Any]:
    table = (emulated or {}).get(hardware, {}) if by_kind(emulated) else emulated or {}
    if not isinstance(table, Mapping):
        raise ValueError(f'emulated service times {table!r} are no table; write {{1: "20ms", 8: "60ms"}}')
    return table
