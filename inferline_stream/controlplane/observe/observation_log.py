"""What a run's policy observed, read back from its arrivals topic, and the file that a finished run leaves of it."""

from __future__ import annotations

import logging
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferline_stream.controlplane.observe.recovery import TRAFFIC_S
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.array_file import FLOAT, FLOATS, INTS, TEXTS, read_arrays
from inferline_stream.controlplane.records.control_records import ArrivalTicks, decode_ticks, highest
from inferline_stream.errors import InvalidFile
from inferline_stream.replay.live_observations import LiveObservations

logger = logging.getLogger(__name__)

FILE = "observations.npz"

_TIMES = ("asked_s", "ticks_s", "known_s", "figures_s")
"""In the file as differences in microseconds, as is the log's growth: both are nearly even, and a third of the size."""

_LIKE = {
    **dict.fromkeys((*_TIMES, "grown", "figures_key"), INTS),
    **{"figures": FLOATS, "keys": TEXTS, "watched_s": FLOAT, "staffed_s": FLOAT},
}

_SAME_S = 1e-3
"""Two times that are closer are of the same step."""


@dataclass(slots=True)
class ObservationLog:
    """Sums up records of the arrivals topic, taken in their order: some 20 bytes a tick or step. Times since the epoch.

    A deposed controller's ticks of before the newest one add nothing.
    """

    _asked_s: array[float] = field(default_factory=lambda: array("d"))
    _ticks_s: array[float] = field(default_factory=lambda: array("d"))
    _grown: array[int] = field(default_factory=lambda: array("q"))
    _gaps_s: list[tuple[float, float]] = field(default_factory=list)
    _figures_s: array[float] = field(default_factory=lambda: array("d"))
    _figures_key: array[int] = field(default_factory=lambda: array("q"))
    _figures: array[float] = field(default_factory=lambda: array("d"))
    _keys: dict[str, int] = field(default_factory=dict)
    _ends: list[int] = field(default_factory=list)

    def take(self, record: ArrivalTicks) -> None:
        """The next record."""
        self._asked_s.extend(time_ms / 1e3 for time_ms in record.asked_ms)
        for time_ms, ends in ((record.previous_ms, record.previous), *zip(record.times_ms, record.ends, strict=True)):
            if not self._ticks_s or time_ms / 1e3 > self._ticks_s[-1]:
                self._ends = highest(self._ends, ends)
                self._ticks_s.append(time_ms / 1e3)
                self._grown.append(sum(self._ends))
        self._gaps_s += [(since_ms / 1e3, known_ms / 1e3) for since_ms, known_ms in record.gaps_ms]
        for time_ms, key, figure in record.figures:
            self._figures_s.append(time_ms / 1e3)
            self._figures_key.append(self._keys.setdefault(key, len(self._keys)))
            self._figures.append(math.nan if figure is None else figure)

    def observations(
        self,
        origin_s: float,
        asked_from_s: float,
        *,
        watched_s: float = 0.0,
        staffed_s: float | None = None,
        sampled: bool = True,
    ) -> LiveObservations | None:
        """What the records sum up to; None where the first observation is not among them, or absurd ones are.

        Args:
            origin_s: time 0 of the observations.
            asked_from_s: when the policy was first asked; what was before was another controller's.
            watched_s: see `LiveObservations`.
            staffed_s: see `LiveObservations`.
            sampled: whether arrivals were seen by the log's growth, and not each with its own time.
        """
        asked_s = np.sort(np.array(self._asked_s))
        asked_s = asked_s[asked_s > asked_from_s - _SAME_S]
        if not asked_s.size or asked_s[0] > asked_from_s + _SAME_S:
            return None
        figures_s = np.array(self._figures_s)
        order = np.argsort(figures_s, kind="stable")
        order = order[figures_s[order] > asked_from_s - _SAME_S]
        ticks_s = np.array(self._ticks_s if sampled else [])
        known_s = ticks_s.copy()
        for since_s, until_s in self._gaps_s:
            known_s[(ticks_s > since_s) & (ticks_s < until_s)] = until_s
        try:
            return LiveObservations(
                asked_s=_whole(asked_s - origin_s),
                ticks_s=_whole(ticks_s - origin_s),
                known_s=_whole(np.maximum.accumulate(known_s) - origin_s),
                grown=np.array(self._grown) if sampled else np.empty(0, np.int64),
                figures_s=_whole(figures_s[order] - origin_s),
                figures_key=np.array(self._figures_key)[order],
                figures=np.array(self._figures)[order],
                keys=np.array(list(self._keys), np.str_),
                watched_s=watched_s,
                staffed_s=math.nan if staffed_s is None else staffed_s - origin_s,
            )
        except ValueError as error:
            logger.warning("what the policy observed is not kept: %s", error)
            return None


async def read_observation_log(context: PipelineContext, asked_from_s: float) -> ObservationLog:
    """All that Kafka still holds since the policy was first asked, and of the traffic just before.

    Raises:
        Unreachable: Kafka does not answer.
    """
    log = ObservationLog()
    async with context.kafka.follow(context.names.arrivals, asked_from_s - TRAFFIC_S) as follower:
        async for record in follower.until(await follower.end()):
            for entry in context.decoder.decoded([record], decode_ticks):
                if entry.value is not None:
                    log.take(entry.value)
    return log


def write_observations(folder: Path, observations: LiveObservations) -> None:
    """Beside the other files of a run."""
    arrays = {name: getattr(observations, name) for name in LiveObservations.__slots__}
    for name in _TIMES:
        arrays[name] = np.diff(np.rint(arrays[name] * 1e6).astype(np.int64), prepend=0)
    arrays["grown"] = np.diff(arrays["grown"], prepend=0)
    with (folder / FILE).open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_observations(folder: Path) -> LiveObservations | None:
    """A run's observations; None where it left none.

    Raises:
        InvalidFile: they are damaged.
    """
    file = folder / FILE
    try:
        found: dict[str, Any] = read_arrays(file, _LIKE)
        for name in _TIMES:
            found[name] = np.cumsum(found[name]) / 1e6
        found["grown"] = np.cumsum(found["grown"])
        return LiveObservations(**found | {name: float(found[name]) for name in ("watched_s", "staffed_s")})
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidFile(f"{file}: does not hold what a run's policy observed ({error}); `run` writes it") from None


def _whole(times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """In whole microseconds, as the file holds them."""
    return np.rint(times_s * 1e6) / 1e6
