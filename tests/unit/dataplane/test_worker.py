import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.dataplane.worker import Done, Failed, StageCall, emulated_service_s, run_batch
from inferline_stream.errors import StageFailed
from inferline_stream.pipeline.hardware import Hardware

CORE = Hardware("cpu-1", 0.1)


def settle(result: object) -> Done:
    if result == "odd one out":
        raise ValueError("no encoding")
    return Done(str(result).encode(), frozenset())


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_only_the_culprits_of_a_batch_fail_and_order_is_kept(bad):
    batches = []

    def stage(values):
        batches.append(len(values))
        if any(bad[value] for value in values):
            raise RuntimeError(f"cannot do {values}")
        return values

    calls = run_batch(stage, settle, range(len(bad)))
    for number, (outcome, culprit) in enumerate(zip(calls.outcomes, bad, strict=True)):
        if culprit:
            assert isinstance(outcome, Failed)
            assert outcome.type == "RuntimeError"
            assert outcome.message == f"cannot do [{number}]"
        else:
            assert outcome == Done(b"%d" % number, frozenset())
    assert sum(size for size, _ in calls.calls) == bad.count(False)
    assert len(batches) <= 1 + 2 * sum(bad) * (len(bad)).bit_length()


def test_a_result_that_cannot_be_encoded_fails_alone_without_another_call():
    calls = run_batch(lambda values: values, settle, ["a", "odd one out", "b"])
    assert [type(outcome) for outcome in calls.outcomes] == [Done, Failed, Done]
    assert len(calls.calls) == 1


@pytest.mark.parametrize("wrong", [lambda v: v[:-1], lambda v: [*v, 1], lambda v: None, lambda v: 7])
def test_another_number_of_results_than_events_is_the_replicas_end(wrong):
    with pytest.raises(StageFailed, match="returned"):
        run_batch(wrong, settle, [1, 2])


def test_out_of_memory_is_the_replicas_end():
    def hungry(values):
        raise MemoryError

    with pytest.raises(StageFailed, match="out of memory"):
        run_batch(hungry, settle, [1, 2])


def test_a_class_is_built_once_and_called_many_times():
    class Stage:
        built = 0

        def __init__(self):
            Stage.built += 1

        def __call__(self, values):
            return [Stage.built for _ in values]

    call = StageCall(Stage, CORE)
    assert call([1, 2]) == [1, 1]
    assert call([1]) == [1]


def test_a_class_that_cannot_be_built_says_so():
    class Broken:
        def __init__(self):
            raise OSError("no model here")

        def __call__(self, values):
            return values

    with pytest.raises(StageFailed, match=r"Broken cannot be built: OSError: no model here"):
        StageCall(Broken, CORE)


def test_a_quarter_core_takes_four_times_the_cpu_time_used():
    used = []

    def burn(values):
        began = time.thread_time()
        while time.thread_time() - began < 0.02:
            pass
        used.append(time.thread_time() - began)
        return values

    call = StageCall(burn, Hardware("cpu-0.25", 0.1, cores=0.25))
    began = time.perf_counter()
    call([1])
    took = time.perf_counter() - began
    assert took >= 4 * used[0]
    assert took < 4 * used[0] + 0.05


def test_emulated_hardware_takes_the_service_time_of_the_batch_and_no_more_than_the_sleeps_error():
    call = StageCall(lambda values: values, Hardware("emulated-cpu", 0.1, cores=0), {1: 0.02, 4: 0.05})
    for size, expected in ((1, 0.02), (4, 0.05), (2, 0.03)):
        began = time.perf_counter()
        assert call(list(range(size))) == list(range(size))
        assert expected <= time.perf_counter() - began < expected + 0.03


def test_emulated_service_time_is_linear_between_and_of_constant_throughput_beyond():
    table = {1: 0.01, 5: 0.03}
    assert emulated_service_s(table, 1) == 0.01
    assert emulated_service_s(table, 3) == pytest.approx(0.02)
    assert emulated_service_s(table, 5) == 0.03
    assert emulated_service_s(table, 10) == pytest.approx(0.06)
