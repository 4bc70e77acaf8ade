"""Stages that behave in ways a profiler must cope with."""

import os
import sys
import time

from msgspec import Struct

from inferline_stream import Pipeline, Stage, Topic


class Number(Struct):
    value: int


class Surroundings(Struct):
    threads: str
    cores: list[int]
    thread: int


def keep_busy(numbers: list[Number]) -> list[Number]:
    """Five milliseconds of CPU per batch, and one per event."""
    end_s = time.thread_time() + 0.005 + 0.001 * len(numbers)
    while time.thread_time() < end_s:
        pass
    return numbers


def less_than_nothing(number: Number) -> int:
    return -number.value


def tell(numbers: list[Number]) -> list[Surroundings]:
    import threading

    ident = threading.get_ident()
    sys.stdout.write("this is not an answer\n")
    sys.stdout.flush()
    return [Surroundings(os.environ["OMP_NUM_THREADS"], sorted(os.sched_getaffinity(0)), ident) for _ in numbers]


def at_most_four(numbers: list[Number]) -> list[Number]:
    time.sleep(0.01)  # as long for many as for one: larger batches pay
    if len(numbers) > 4:
        raise MemoryError
    return numbers


def device_at_most_two(numbers: list[Number]) -> list[Number]:
    time.sleep(0.01)
    if len(numbers) > 2:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")
    return numbers


def forgetful(numbers: list[Number]) -> list[Number]:
    return numbers[:-1]


def forges(numbers: list[Number]) -> list[Number]:
    """Writes to every pipe of its process what is no answer, or says that four gigabytes follow."""
    for file in range(3, 20):
        try:
            os.write(file, b"\xff\xff\xff\xff" if numbers[0].value else b"\x01\x00\x00\x00\xc1")
        except OSError:
            continue
    return numbers


class NeedsModel:
    def __init__(self) -> None:
        import a_model_that_nobody_has  # noqa: F401

    def __call__(self, numbers: list[Number]) -> list[Number]:
        return numbers


class Exits:
    def __init__(self) -> None:
        sys.stderr.write("the licence has expired\n")
        os._exit(3)

    def __call__(self, numbers: list[Number]) -> list[Number]:
        return numbers


class Sleepy:
    def __init__(self) -> None:
        time.sleep(60)

    def __call__(self, numbers: list[Number]) -> list[Number]:
        return numbers


def stage(name: str, run: object, **arguments: object) -> Stage:
    return Stage(name, run, **{"hardware": ["cpu-1"], **arguments})


runs = {
    "busy": keep_busy,
    "tell": tell,
    "memory": at_most_four,
    "device": device_at_most_two,
    "forgetful": forgetful,
    "forges": forges,
    "needs-model": NeedsModel,
    "exits": Exits,
    "sleepy": Sleepy,
}

pipeline = Pipeline(
    "odd",
    slo="1s",
    source=Topic("numbers"),
    sink=Topic("results"),
    stages=[
        *(stage(name, run) for name, run in runs.items()),
        stage("priceless", keep_busy, cost=less_than_nothing),
    ],
)
