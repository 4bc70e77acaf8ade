"""Emulated: a branch and a join, as long as you like. Results tell how many asyncio tasks their replicas had."""

import asyncio
import gc
import os
import time

from msgspec import Struct

from inferline_stream import Pipeline, Sample, Stage, Topic


class Order(Struct):
    number: int


class Seen(Struct):
    """A replica, and how many tasks its event loop had."""

    number: int
    replicas: dict[str, int]


class Both(Struct):
    parse: Seen
    check: Seen | None


class Counting:
    """Counts tasks now and then: it takes milliseconds."""

    def __init__(self) -> None:
        self.name, self.tasks, self.looked_s = str(os.getpid()), 0, 0.0

    def __call__(self) -> dict[str, int]:
        now_s = time.monotonic()
        if now_s - self.looked_s > 2.0:
            self.tasks, self.looked_s = sum(isinstance(found, asyncio.Task) for found in gc.get_objects()), now_s
        return {self.name: self.tasks}


class Parse:
    def __init__(self) -> None:
        self.count = Counting()

    def __call__(self, orders: list[Order]) -> list[Seen]:
        own = self.count()
        return [Seen(order.number, own) for order in orders]


class Check:
    def __init__(self) -> None:
        self.count = Counting()

    def __call__(self, parsed: list[Seen]) -> list[Seen]:
        own = self.count()
        return [Seen(seen.number, own) for seen in parsed]


class Decide:
    def __init__(self) -> None:
        self.count = Counting()

    def __call__(self, inputs: list[Both]) -> list[Seen]:
        own = self.count()
        checked = [{} if both.check is None else both.check.replicas for both in inputs]
        return [
            Seen(both.parse.number, {**both.parse.replicas, **check, **own})
            for both, check in zip(inputs, checked, strict=True)
        ]


def every_third(seen: Seen) -> bool:
    return seen.number % 3 == 0


EMULATED = ["emulated-cpu"]

parsing = Stage("parse", Parse, hardware=EMULATED, emulated={1: "20ms", 4: "32ms"}, max_batch_size=4)
checking = Stage(
    "check",
    Check,
    after=[parsing.when(every_third)],
    hardware=EMULATED,
    emulated={1: "20ms", 2: "24ms"},
    max_batch_size=2,
)
deciding = Stage(
    "decide", Decide, after=[parsing, checking], hardware=EMULATED, emulated={1: "3ms", 8: "32ms"}, max_batch_size=8
)

pipeline = Pipeline(
    "soaked",
    slo="500ms",
    source=Topic("orders", partitions=8),
    sink=Topic("decisions", partitions=4),
    stages=[parsing, checking, deciding],
    sample=Sample(arrivals="../swing/arrivals.csv", events="../swing/orders.jsonl"),
)
