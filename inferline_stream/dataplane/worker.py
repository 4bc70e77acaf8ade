"""Calls a stage: batches in, an outcome per event out; paced to a share of a core or emulated where the hardware is."""

from __future__ import annotations

import bisect
import inspect
import sysconfig
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferline_stream.errors import StageFailed
from inferline_stream.pipeline.hardware import Hardware

_TRACEBACK_FRAMES = 5
_NOT_THE_USERS = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), "<frozen")


class StageCall:
    """A stage as it runs on one kind of hardware.

    On kinds with less than one core it is paced: after using c seconds of CPU in w seconds it sleeps until c/cores
    have passed, so that a quarter-core replica really is one, without cgroups and whatever else the machine does. On
    emulated kinds it sleeps until the service time of the batch has passed, and uses no core.

    Args:
        run: the stage's function, or the class to build once.
        hardware: where it runs.
        emulated_s: service time in seconds by batch size, on emulated hardware.

    Raises:
        StageFailed: building the class raised.
    """

    def __init__(
        self, run: Callable[..., Any], hardware: Hardware, emulated_s: Mapping[int, float] | None = None
    ) -> None:
        try:
            self._call: Any = run() if inspect.isclass(run) else run
        except Exception as error:
            what = f"{getattr(run, '__qualname__', run)} cannot be built: {_last_line(error)}"
            where = where_raised(error)
            raise StageFailed(f"{where}: {what}" if where else what) from error
        self._cores = hardware.cores if not hardware.emulated and 0 < hardware.cores < 1 else None
        self._emulated_s = dict(sorted((emulated_s or {}).items())) if hardware.emulated else {}

    def __call__(self, values: list[Any]) -> Any:
        """The stage's results for one batch. Whatever the stage raises is passed on."""
        if self._emulated_s:
            began_s = time.perf_counter()
            results = self._call(values)
            _sleep_until(began_s + emulated_service_s(self._emulated_s, len(values)))
            return results
        if self._cores is None:
            return self._call(values)
        began_s, began_cpu_s = time.perf_counter(), time.thread_time()
        results = self._call(values)
        _sleep_until(began_s + (time.thread_time() - began_cpu_s) / self._cores)
        return results


def emulated_service_s(service_s: Mapping[int, float], batch_size: int) -> float:
    """S(b): linear between the batch sizes given, of constant throughput beyond the largest.

    Args:
        service_s: seconds by batch size, ascending, starting at 1.
        batch_size: b.
    """
    sizes = list(service_s)
    at = bisect.bisect_left(sizes, batch_size)
    if at == len(sizes):
        return service_s[sizes[-1]] * batch_size / sizes[-1]
    if sizes[at] == batch_size or at == 0:
        return service_s[sizes[at]]
    share = (batch_size - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
    return service_s[sizes[at - 1]] + share * (service_s[sizes[at]] - service_s[sizes[at - 1]])


@dataclass(frozen=True, slots=True)
class Done:
    """An event's result, encoded, and the children that it goes to."""

    value: bytes
    taken: frozenset[str]


@dataclass(frozen=True, slots=True)
class Failed:
    """An event that the stage, one of its conditions or the encoder raised on."""

    type: str
    message: str
    traceback: str
    where: str = ""
    """``file:line in function`` of the user's own innermost frame."""

    @property
    def summary(self) -> str:
        """The user's frame, then what was raised there."""
        raised = f"{self.type}: {self.message}"
        return f"{self.where}: {raised}" if self.where else raised

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        """What is told of an error."""
        lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-_TRACEBACK_FRAMES)
        return cls(type(error).__qualname__, str(error), "".join(lines), where_raised(error))


def where_raised(error: BaseException) -> str:
    """The innermost frame that is neither ours nor a library's, as ``file:line in function``; empty if none is."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_NOT_THE_USERS) and "site-packages" not in f.filename]
    return f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""


@dataclass(slots=True)
class Calls:
    """Outcomes of one batch in its order, and the calls that it took: (batch size, seconds), and whether it held."""

    outcomes: list[Done | Failed] = field(default_factory=list)
    calls: list[tuple[int, float]] = field(default_factory=list)
    busy_s: float = 0.0


def run_batch(call: Callable[[list[Any]], Any], settle: Callable[[Any], Done], values: Sequence[Any]) -> Calls:
    """Call the stage; where it raises, halve the batch until the culprits are alone.

    Args:
        call: the stage.
        settle: encodes a result and judges its conditions.
        values: the batch.

    Raises:
        StageFailed: another number of results than events, or no memory: no single event is to blame, and the
            replica cannot be trusted any more.
    """
    calls = Calls()
    _run(call, settle, list(values), calls)
    return calls


def _run(call: Callable[[list[Any]], Any], settle: Callable[[Any], Done], values: list[Any], calls: Calls) -> None:
    began_s = time.perf_counter()
    try:
        results = call(values)
    except MemoryError as error:
        raise StageFailed(f"out of memory on a batch of {len(values)}; use smaller batches") from error
    except Exception as error:
        calls.busy_s += time.perf_counter() - began_s
        if len(values) == 1:
            calls.outcomes.append(Failed.of(error))
            return
        half = len(values) // 2
        _run(call, settle, values[:half], calls)
        _run(call, settle, values[half:], calls)
        return
    took_s = time.perf_counter() - began_s
    calls.busy_s += took_s
    calls.calls.append((len(values), took_s))
    try:
        count = len(results)
    except TypeError:
        raise StageFailed(f"returned {type(results).__qualname__}; return a list, one result per event") from None
    if count != len(values):
        raise StageFailed(f"returned {count} results for a batch of {len(values)}; return one per event")
    for result in results:
        try:
            calls.outcomes.append(settle(result))
        except Exception as error:
            calls.outcomes.append(Failed.of(error))


def _sleep_until(moment_s: float) -> None:
    left_s = moment_s - time.perf_counter()
    if left_s > 0:
        time.sleep(left_s)


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()
