"""Results by option of one stage, where a batch limit that no batch reaches changes nothing."""

from __future__ import annotations

from typing import Generic, TypeVar

from inferline_stream.planner.problem import Option

T = TypeVar("T")


class OptionCache(Generic[T]):
    """What became of each option of one stage, all given the same arrivals."""

    def __init__(self) -> None:
        self._found: dict[Option, T] = {}
        # By kind, replicas, hold and concurrency: the largest batch under a limit not reached, and what came of it.
        self._unreached: dict[tuple[str, int, float, int], tuple[int, T]] = {}

    def __contains__(self, option: Option) -> bool:
        if option not in self._found and len(option) == 1:
            largest, result = self._unreached.get(_without_limit(option), (option[0].max_batch_size, None))
            if largest < option[0].max_batch_size:
                self._found[option] = result  # type: ignore[assignment]  # None only beside a limit that is reached
        return option in self._found

    def __getitem__(self, option: Option) -> T:
        return self._found[option]

    def add(self, option: Option, result: T, largest: int) -> None:
        """Remember a result under which the largest batch had so many events."""
        self._found[option] = result
        if len(option) == 1 and largest < option[0].max_batch_size:
            self._unreached[_without_limit(option)] = (largest, result)


def _without_limit(option: Option) -> tuple[str, int, float, int]:
    return option[0].hardware, option[0].replicas, option[0].hold_s, option[0].concurrency
