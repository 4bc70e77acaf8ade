"""A stage, two branches, one of them conditional, and a join."""

from msgspec import Struct

from inferline_stream import Pipeline, Stage, Topic


class Post(Struct):
    number: int


class Gathered(Struct):
    parity: int
    odd: int | None
    twice: int


def parity_of(posts: list[Post]) -> list[int]:
    return [post.number for post in posts]


def odd_of(numbers: list[int]) -> list[int]:
    if any(number % 10 == 7 for number in numbers):
        raise ValueError("sevens are not for me")
    return [-number for number in numbers]


def twice_of(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


def gather(parts: list[Gathered]) -> list[Gathered]:
    return parts


def is_odd(number: int) -> bool:
    return number % 2 == 1


parity = Stage("parity", parity_of, hardware=["cpu-1"])
odd = Stage("odd", odd_of, hardware=["cpu-1"], after=[parity.when(is_odd)])
twice = Stage("twice", twice_of, hardware=["cpu-1"], after=[parity])
final = Stage("final", gather, hardware=["cpu-1"], after=[parity, odd, twice])
pipeline = Pipeline(
    "diamond",
    slo="250ms",
    source=Topic("posts"),
    sink=Topic("verdicts"),
    stages=[parity, odd, twice, final],
)
