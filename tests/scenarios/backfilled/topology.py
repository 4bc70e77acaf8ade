"""Emulated: a branch and a join, two live classes, an archive beside them, and orders that no stage can parse."""

from msgspec import Struct

from inferline_stream import Pipeline, Sample, Stage, Topic


class Order(Struct):
    number: int


class Both(Struct):
    parse: Order
    check: Order | None


def parse(orders: list[Order]) -> list[Order]:
    if any(order.number > 1_000_000 and order.number % 100 == 13 for order in orders):
        raise ValueError("thirteen")
    return orders


def check(orders: list[Order]) -> list[Order]:
    return orders


def decide(inputs: list[Both]) -> list[Order]:
    return [both.parse for both in inputs]


def every_third(order: Order) -> bool:
    return order.number % 3 == 0


EMULATED = ["emulated-cpu"]

parsing = Stage("parse", parse, hardware=EMULATED, emulated={1: "10ms", 4: "16ms"}, max_batch_size=4)
checking = Stage(
    "check",
    check,
    after=[parsing.when(every_third)],
    hardware=EMULATED,
    emulated={1: "20ms", 2: "24ms"},
    max_batch_size=2,
)
deciding = Stage(
    "decide", decide, after=[parsing, checking], hardware=EMULATED, emulated={1: "3ms", 8: "16ms"}, max_batch_size=8
)

pipeline = Pipeline(
    "backfilled",
    slo="500ms",
    source=[
        Topic("orders", partitions=4),
        Topic("orders-premium", partitions=2, slo="300ms", share=0.1),
        Topic("orders-archive", partitions=3, background=True),
    ],
    sink=Topic("decisions", partitions=4),
    stages=[parsing, checking, deciding],
    sample=Sample(arrivals="../swing/arrivals.csv", events="../swing/orders.jsonl"),
)
