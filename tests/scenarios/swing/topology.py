"""Emulated: parse every order, check every third one, decide on both. For tests that scale and hurt it."""

import os

from msgspec import Struct

from inferline_stream import Pipeline, Sample, Stage, Topic


class Order(Struct):
    number: int


class Decision(Struct):
    parse: int
    check: int | None


def parse(orders: list[Order]) -> list[int]:
    if any(order.number < 0 for order in orders):
        os._exit(1)  # poison: nobody can parse it and live
    return [order.number for order in orders]


def every_third(number: int) -> bool:
    return number % 3 == 0


def check(numbers: list[int]) -> list[int]:
    return [number * 2 for number in numbers]


def decide(inputs: list[Decision]) -> list[dict[str, int]]:
    return [{"number": found.parse, "checked": found.check or 0} for found in inputs]


EMULATED = ["emulated-cpu"]

parsing = Stage("parse", parse, hardware=EMULATED, emulated={1: "20ms", 2: "24ms", 4: "32ms"}, max_batch_size=4)
checking = Stage(
    "check",
    check,
    after=[parsing.when(every_third)],
    hardware=[*EMULATED, "emulated-gpu-small"],  # dearer: only another price makes it worth having
    emulated={"emulated-cpu": {1: "20ms", 2: "30ms"}, "emulated-gpu-small": {1: "5ms", 2: "7ms"}},
    max_batch_size=2,
)
deciding = Stage(
    "decide", decide, after=[parsing, checking], hardware=EMULATED, emulated={1: "2ms", 8: "6ms"}, max_batch_size=8
)

pipeline = Pipeline(
    "swing",
    slo="400ms",
    source=Topic("orders", partitions=8),
    sink=Topic("decisions", partitions=4),
    stages=[parsing, checking, deciding],
    sample=Sample(arrivals="arrivals.csv", events="orders.jsonl"),
)
