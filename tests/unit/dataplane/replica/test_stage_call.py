"""A stage's calls: culprits are found by halving, and a stage that breaks its contract is found out."""

import gc
import sys
import time
import weakref
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.dataplane.frames import Done, Failed
from inferline_stream.dataplane.replica import stage_call
from inferline_stream.dataplane.replica.emulated_hardware import emulated_service_s
from inferline_stream.dataplane.replica.stage_call import (
    DeviceOutOfMemory,
    OutOfMemory,
    StageCall,
    attempt,
    run_batch,
)
from inferline_stream.errors import StageFailed
from inferline_stream.pipeline.emulation import Emulated
from inferline_stream.pipeline.hardware import Hardware

CORE = Hardware("cpu-1", 0.1)


def settle(result: object) -> Done:
    if result == "odd one out":
        raise ValueError("no encoding")
    return Done(str(result).encode(), 0)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_only_the_culprits_of_a_batch_fail_and_order_is_kept(bad: list[bool]) -> None:
    batches = []

    def stage(values: list[int]) -> list[int]:
        batches.append(len(values))
        if any(bad[value] for value in values):
            raise RuntimeError(f"cannot do {values}")
        return values

    outcomes, calls, _ = run_batch(stage, settle, range(len(bad)))
    for number, (outcome, culprit) in enumerate(zip(outcomes, bad, strict=True)):
        if culprit:
            assert isinstance(outcome, Failed)
            assert (outcome.type, outcome.message) == ("RuntimeError", f"cannot do [{number}]")
        else:
            assert outcome == Done(b"%d" % number, 0)
    assert sum(call.batch_size for call in calls) == bad.count(False)
    assert len(batches) <= 1 + 2 * sum(bad) * (len(bad)).bit_length()


def test_a_result_that_cannot_be_encoded_fails_alone() -> None:
    outcomes, *_ = run_batch(lambda values: values, settle, ["a", "odd one out", "c"])
    assert isinstance(outcomes[1], Failed)
    assert outcomes[1].message == "no encoding"
    assert [outcomes[0], outcomes[2]] == [Done(b"a", 0), Done(b"c", 0)]


@pytest.mark.parametrize(
    ("results", "message"),
    [([1], "returned 1 result for a batch of 2"), (None, "returned NoneType"), ([1, 2, 3], "returned 3 results")],
)
def test_another_number_of_results_fails_the_stage(results: object, message: str) -> None:
    with pytest.raises(StageFailed, match=message):
        run_batch(lambda values: results, settle, [1, 2])


@pytest.mark.parametrize("results", ["ab", b"ab", {"label": "a", "score": 1}, {1, 2}])
def test_one_thing_that_has_as_many_parts_as_the_batch_has_events_is_no_list_of_results(results: object) -> None:
    with pytest.raises(StageFailed, match=r"returned (str|bytes|dict|set); return a list, one result per event"):
        run_batch(lambda values: results, settle, [1, 2])


def test_memory_that_runs_out_is_no_events_fault() -> None:
    def stage(values: list[int]) -> list[int]:
        raise MemoryError

    with pytest.raises(OutOfMemory, match="out of memory on a batch of 2"):
        run_batch(stage, settle, [1, 2])
    with pytest.raises(OutOfMemory):
        attempt(stage, 1)


def test_a_failure_names_the_users_own_line() -> None:
    def stage(values: list[int]) -> list[int]:
        raise KeyError("missing")

    (failed,), *_ = run_batch(stage, settle, [1])
    assert isinstance(failed, Failed)
    assert failed.where.startswith(f"{__file__}:")
    assert failed.summary.endswith("in stage: KeyError: 'missing'")
    assert "Traceback" in failed.traceback


def test_a_class_is_built_once_and_its_failure_says_why() -> None:
    class Model:
        def __init__(self) -> None:
            raise FileNotFoundError("model.onnx")

    with pytest.raises(StageFailed, match=r"in __init__: .*Model cannot be built: FileNotFoundError: model.onnx"):
        StageCall(Model, CORE)


def test_emulated_hardware_takes_the_time_of_its_batch_size() -> None:
    call = StageCall(lambda values: values, Hardware("emulated-gpu", 0.1), {1: 0.02, 2: 0.05})
    began_s = time.perf_counter()
    assert call([1, 2]) == [1, 2]
    assert time.perf_counter() - began_s >= 0.05


def test_emulated_times_follow_the_events_of_a_batch_and_a_factor_of_mean_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    slept: list[float] = []
    monkeypatch.setattr(stage_call.time, "sleep", slept.append)
    monkeypatch.setattr(stage_call.time, "perf_counter", lambda: now_s[0])
    hardware, table = Hardware("emulated-gpu", 0.1), {1: 0.02, 2: 0.05}
    weighed = StageCall(lambda values: values, hardware, table, Emulated(table, weight=lambda value: value))
    weighed([1.0])
    weighed([1.0, 4.0])
    assert slept == pytest.approx([0.02, 2.5 * 0.05])
    slept.clear()
    drawn = StageCall(lambda values: values, hardware, table, Emulated(table, cv=0.5))
    for _ in range(20_000):
        drawn([1])
    mean_s = sum(slept) / len(slept)
    assert mean_s == pytest.approx(0.02, rel=0.03)
    assert sum((s / mean_s - 1) ** 2 for s in slept) / len(slept) == pytest.approx(0.5, rel=0.15)


@given(st.integers(1, 200))
def test_emulated_service_time_never_falls(batch_size: int) -> None:
    table = {1: 0.02, 8: 0.06, 32: 0.1}
    assert emulated_service_s(table, batch_size) <= emulated_service_s(table, batch_size + 1)
    assert [emulated_service_s(table, size) for size in table] == list(table.values())
    assert emulated_service_s(table, 64) == pytest.approx(0.2)


class FakeCuda:
    """PyTorch's view of some devices, each with the bytes that a stage has allocated on it."""

    def __init__(self, allocated: list[int], *, lost: bool = False) -> None:
        self.allocated = allocated
        self.done: list[str] = []
        self._lost = lost

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return len(self.allocated)

    def memory_allocated(self, device: int) -> int:
        return self.allocated[device]

    def synchronize(self, device: int | None = None) -> None:
        if self._lost:
            raise RuntimeError("whatever it says")
        self.done.append("the current device rests" if device is None else f"device {device} rests")

    def empty_cache(self) -> None:
        self.done.append("given back")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    cuda = FakeCuda([1 << 20, 0, 1 << 20])
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return cuda


def test_a_call_ends_when_what_the_stage_began_on_its_gpus_has_ended(cuda: FakeCuda) -> None:
    def run(values: list[int]) -> list[int]:
        cuda.done.append("the stage returns")
        return values

    assert StageCall(run, Hardware("t4", 0.5, gpus=3))([1]) == [1]
    assert cuda.done == ["the stage returns", "device 0 rests", "device 2 rests"]


async def test_so_does_one_of_an_asynchronous_stage(cuda: FakeCuda) -> None:
    async def run(values: list[int]) -> list[int]:
        cuda.done.append("the stage returns")
        return values

    assert await StageCall(run, Hardware("t4", 0.5, gpus=3)).awaited([1]) == [1]
    assert cuda.done == ["the stage returns", "device 0 rests", "device 2 rests"]


WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "[ONNXRuntimeError] : 6 : bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 8",
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; expr=cudaMalloc((void**)&p, size)",
    "cudaErrorMemoryAllocation: out of memory",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1024 bytes.",
    "HIP out of memory. Tried to allocate 20.00 MiB",
)
"""What PyTorch, cuBLAS, onnxruntime and its CUDA provider, CUDA, XLA and ROCm raise."""


@pytest.mark.parametrize("words", WORDS)
def test_a_batch_that_is_too_large_for_its_device_is_halved_and_no_event_fails(words: str) -> None:
    def stage(values: list[int]) -> list[int]:
        if len(values) > 3:
            raise RuntimeError(words)
        return values

    call = StageCall(stage, Hardware("t4", 0.5, gpus=1))
    outcomes, calls, too_large = run_batch(call, settle, range(20))
    assert outcomes == [Done(b"%d" % number, 0) for number in range(20)]
    assert max(each.batch_size for each in calls) <= 3
    assert 4 <= too_large <= 5
    assert run_batch(call, settle, range(2)).too_large == 0, "it says so of that batch alone"


def test_an_event_that_is_too_large_for_its_device_alone_is_not_one_that_the_stage_raises_on() -> None:
    def stage(values: list[int]) -> list[int]:
        raise RuntimeError(WORDS[0])

    with pytest.raises(DeviceOutOfMemory, match=r"a batch of 1 is too large for this device: RuntimeError: CUDA out"):
        run_batch(StageCall(stage, Hardware("t4", 0.5, gpus=1)), settle, [1, 2, 3])
    (failed,), *_ = run_batch(StageCall(stage, CORE), settle, [1])
    assert isinstance(failed, Failed), "without a device there is none to be too small"


BROKEN = (
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: misaligned address",
    "CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=h ; expr=cudaStreamSynchronize(stream)",
    "cudaErrorECCUncorrectable: uncorrectable ECC error encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
)
"""What PyTorch, onnxruntime's CUDA provider, CuPy and cuBLAS raise."""


@pytest.mark.parametrize("words", BROKEN)
def test_a_replica_whose_device_takes_no_more_calls_ends_and_blames_no_event(words: str) -> None:
    calls = 0

    def stage(values: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        raise RuntimeError(words)

    with pytest.raises(StageFailed, match=r"the device takes no more calls: RuntimeError: CUDA|cudaError"):
        run_batch(StageCall(stage, Hardware("t4", 0.5, gpus=1)), settle, range(16))
    assert calls == 1
    outcomes, *_ = run_batch(StageCall(stage, CORE), settle, [1])
    assert isinstance(outcomes[0], Failed), "words of an event end no replica without a device"


@pytest.mark.parametrize("lost", [True, False])
def test_where_torch_has_a_device_that_is_asked_whether_it_takes_calls(
    monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=FakeCuda([1 << 20], lost=lost)))

    def stage(values: list[int]) -> list[int]:
        raise ValueError("an event says: device-side assert triggered")

    call = StageCall(stage, Hardware("t4", 0.5, gpus=1))
    if lost:
        with pytest.raises(StageFailed, match="takes no more calls"):
            run_batch(call, settle, [1])
    else:
        (outcome,), *_ = run_batch(call, settle, [1])
        assert isinstance(outcome, Failed)


def test_what_a_framework_keeps_of_a_device_is_given_back_before_a_smaller_batch(cuda: FakeCuda) -> None:
    cuda.allocated = [0]
    done = cuda.done

    def stage(values: list[int]) -> list[int]:
        done.append(f"a batch of {len(values)}")
        if len(values) > 1:
            raise RuntimeError(WORDS[0])
        return values

    run_batch(StageCall(stage, Hardware("t4", 0.5, gpus=1)), settle, [1, 2])
    assert [what for what in done if what != "the current device rests"] == [
        "a batch of 2", "given back", "a batch of 1", "a batch of 1",
    ]  # fmt: skip


def test_what_a_failed_call_held_is_gone_before_its_halves_are_called():
    class Tensor:
        """Held by the frame of the call that fails."""

    held: list[weakref.ref[Tensor]] = []

    def stage(values: list[int]) -> list[int]:
        assert not any(ref() for ref in held), "memory of an earlier call is still held"
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        if len(values) > 1:
            raise RuntimeError("CUDA out of memory")
        return values

    gc.disable()
    try:
        outcomes, *_ = run_batch(stage, settle, [1, 2, 3, 4])
    finally:
        gc.enable()
    assert len(outcomes) == 4
    assert len(held) == 7
