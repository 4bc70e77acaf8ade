"""Calls a stage with batches, or emulates hardware that asks for that."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, cast

import uvloop

from inferline_stream.dataplane.frames import Answer, Call, Failed
from inferline_stream.dataplane.replica.emulated_hardware import EmulatedHardware
from inferline_stream.errors import ServerUnavailable, StageFailed
from inferline_stream.pipeline.emulation import Emulated
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.units import count_of

Result = TypeVar("Result")


class Settled(NamedTuple):
    """What became of a batch."""

    outcomes: list[Answer]
    """One per event, in their order."""
    calls: list[Call]
    """Those of the stage that succeeded."""
    too_large: int = 0
    """Smallest part of the batch for which the device had no memory; 0 if it had for all."""


_BEGUN_S = 2.0
_TRACEBACK_FRAMES = 5
_NOT_THE_USERS = (str(Path(__file__).parents[2]), sysconfig.get_path("stdlib"), "<frozen")


class OutOfMemory(StageFailed):
    """Memory ran out on a batch: a smaller one may pass."""


class DeviceOutOfMemory(OutOfMemory):
    """A replica's device has no memory for a batch."""


class DeviceBroken(StageFailed):
    """A replica's device takes no call of this process any more."""


_OUT_OF_MEMORY = (
    "out of memory",  # PyTorch, CUDA, ROCm, CuPy, XLA, TensorRT
    "out_of_memory",
    "outofmemory",
    "memoryallocation",  # cudaErrorMemoryAllocation
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, and those of cuDNN and cuSOLVER
    "failed to allocate memory for requested buffer",  # onnxruntime
    "oom when allocating",  # TensorFlow
)


_BROKEN = (
    "device-side assert",
    "illegal memory access",
    "misaligned address",
    "illegal instruction",
    "invalid program counter",
    "launch failure",  # "unspecified launch failure"
    "launch_failed",
    "uncorrectable ecc",
    "ecc_uncorrectable",
    "cuda error: unspecified",
    "cublas_status_execution_failed",
)
"""After these every later call of the process fails, too: its CUDA context is lost."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, on the host or on a device, in the words of any framework."""
    if error is None or isinstance(error, MemoryError):
        return error is not None
    said = f"{type(error).__name__}: {error}".lower()
    return any(words in said for words in _OUT_OF_MEMORY)


def is_device_broken(error: BaseException) -> bool:
    """Whether a GPU takes no more calls of this process after an error: by asking it, else by the error's words."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except Exception:
            return True
        return False
    said = str(error).lower()
    return any(words in said for words in _BROKEN)


class StageCall:
    """A stage as it runs on one kind of hardware.

    On emulated kinds it sleeps until the service time of the batch has passed, and uses no core.

    Args:
        run: the stage's function, or the class to build once.
        hardware: where it runs.
        emulated_s: service time in seconds by batch size, on emulated hardware.
        varies: how these vary, if they do.

    Raises:
        StageFailed: building the class raised.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        hardware: Hardware,
        emulated_s: Mapping[int, float] | None = None,
        varies: Emulated | None = None,
    ) -> None:
        try:
            self._call: Any = run() if inspect.isclass(run) else run
        except Exception as error:
            last = traceback.format_exception_only(error)[-1].strip()
            what = f"{getattr(run, '__qualname__', run)} cannot be built: {last}"
            where = where_raised(error)
            raise StageFailed(f"{where}: {what}" if where else what) from error
        self._emulated = EmulatedHardware(emulated_s, varies) if hardware.emulated and emulated_s else None
        self._on_gpu = hardware.gpus > 0
        self._release = False

    async def sleep(self) -> None:
        """Have the server of a served stage sleep until the next batch."""
        await self._call.sleep()

    def __call__(self, values: list[Any]) -> Any:
        """Return the stage's results for one batch. An error that the stage raises is passed on.

        Raises:
            DeviceOutOfMemory: in place of what a framework raises where its device has no memory.
            DeviceBroken: likewise, where no later call would succeed.
        """
        if self._emulated is not None:
            began_s = time.perf_counter()
            results = self._call(values)
            time.sleep(max(0.0, began_s + self._emulated.service_s(values) - time.perf_counter()))
            return results
        with self._on_device(len(values)):
            results = self._call(values)
            _await_devices()
        return results

    @contextlib.contextmanager
    def _on_device(self, batch_size: int) -> Iterator[None]:
        """Release what an earlier batch has left of a full device; say where it lacks memory for this one, or broke."""
        if self._release:
            self._release = False
            _release_devices()
        try:
            yield
        except Exception as error:
            if not self._on_gpu or isinstance(error, MemoryError):
                raise
            last = traceback.format_exception_only(error)[-1].strip().partition("\n")[0]
            if is_device_broken(error):
                raise DeviceBroken(f"the device takes no more calls: {last}") from error
            if not is_out_of_memory(error):
                raise
            self._release = True
            raise DeviceOutOfMemory(f"a batch of {batch_size} is too large for this device: {last}") from error

    async def awaited(self, values: list[Any]) -> Any:
        """Return the results of a stage that is asynchronous. An error that it raises is passed on."""
        began_s = time.perf_counter()
        with self._on_device(len(values)):
            results = await self._call(values)
            _await_devices()
        if self._emulated is not None:
            await asyncio.sleep(max(0.0, began_s + self._emulated.service_s(values) - time.perf_counter()))
        return results

    def lasting(self, service_s: float) -> Self:
        """Return the same stage on emulated hardware on which a single event takes so long."""
        other = copy.copy(self)
        other._emulated = EmulatedHardware({1: service_s})
        return other


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop that an asynchronous stage runs on."""
    return uvloop.new_event_loop()


async def built(build: Callable[[], StageCall]) -> StageCall:
    """Build an asynchronous stage on its event loop, to which the clients that it makes belong.

    Tasks that it begins as it is built may end before the process is sealed: what they import has to be there by then.
    """
    call = build()
    begun = asyncio.all_tasks() - {asyncio.current_task()}
    if begun:
        await asyncio.wait(begun, timeout=_BEGUN_S)
    return call


def _release_devices() -> None:
    """Give back what a framework keeps of its device for later: pieces of it were too small for a whole batch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _await_devices() -> None:
    """Wait for what the stage has begun on its GPUs: it occupies them before the next batch all the same.

    Not for a GPU on which nothing has been allocated: to wait for one takes its memory.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            if torch.cuda.memory_allocated(device):
                torch.cuda.synchronize(device)


def failed(error: BaseException) -> Failed:
    """Return what is reported of an error that one event caused."""
    lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-_TRACEBACK_FRAMES)
    return Failed(type(error).__qualname__, str(error), "".join(lines), where_raised(error))


def where_raised(error: BaseException) -> str:
    """Return the innermost frame of the user's own code as ``file:line in function``; empty if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_NOT_THE_USERS) and "site-packages" not in f.filename]
    return f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""


def attempt(apply: Callable[[Any], Result], value: Any) -> Result | Failed:
    """Return what a function makes of one event, or why it fails on it.

    Raises:
        OutOfMemory: memory ran out, which no single event is to blame for.
        ServerUnavailable: what a codec asks does not answer.
    """
    try:
        return apply(value)
    except ServerUnavailable:
        raise
    except MemoryError as error:
        raise OutOfMemory("out of memory while decoding or encoding an event") from error
    except Exception as error:
        return failed(error)


def run_batch(call: Callable[[list[Any]], Any], settle: Callable[[Any], Answer], values: Sequence[Any]) -> Settled:
    """As `run_batch_awaited`, for a stage that is a plain function."""
    return finished(run_batch_awaited(call, settle, values, waits=False))


def finished(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of work that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as ended:
        return cast("Result", ended.value)
    raise AssertionError("it waits")


async def run_batch_awaited(
    call: Callable[[list[Any]], Any], settle: Callable[[Any], Answer], values: Sequence[Any], *, waits: bool = True
) -> Settled:
    """Call the stage; where it raises, halve the batch until the culprits are alone.

    A batch that is too large for a device is halved, too. A single event that is may pass later, or elsewhere.

    Args:
        call: the stage.
        settle: encodes an event's result, or results, and judges their conditions.
        values: the batch.
        waits: whether what the stage returns has to be awaited.

    Returns:
        An outcome per value, in order, and the calls that succeeded.

    Raises:
        StageFailed: the stage returned another number of results than it was given events.
        OutOfMemory: memory ran out.
        ServerUnavailable: the stage says that the batch is to run again later.
    """
    outcomes: list[Answer] = []
    calls: list[Call] = []
    too_large = 0
    waiting = [list(values)]
    while waiting:
        batch = waiting.pop()
        began_s = time.perf_counter()
        try:
            results = await call(batch) if waits else call(batch)
        except ServerUnavailable:
            raise
        except MemoryError as error:
            raise OutOfMemory(f"out of memory on a batch of {len(batch)}; use smaller batches") from error
        except Exception as error:  # gone before the next call: its frames hold what its batch has on a device
            half = len(batch) // 2
            if isinstance(error, StageFailed) and not (half and isinstance(error, DeviceOutOfMemory)):
                raise  # no part of the batch would fare better
            if isinstance(error, DeviceOutOfMemory):
                too_large = min(too_large or len(batch), len(batch))
            if half:
                waiting += [batch[half:], batch[:half]]
            else:
                outcomes.append(failed(error))
            continue
        calls.append(Call(len(batch), time.perf_counter() - began_s))
        try:
            # Of these the parts, or the keys, would pass for results.
            count = -1 if isinstance(results, str | bytes | Mapping | Set) else len(results)
        except TypeError:
            count = -1
        if count < 0:
            name = type(results).__qualname__
            raise StageFailed(f"returned {name}; return a list, one result per event")
        if count != len(batch):
            raise StageFailed(f"returned {count_of(count, 'result')} for a batch of {len(batch)}; return one per event")
        outcomes += [attempt(settle, result) for result in results]
    return Settled(outcomes, calls, too_large)
