"""Emulated: parse, check every third, join. Every stage and the condition raise on what they cannot take."""

from msgspec import Struct

from inferline_stream import Pipeline, Sample, ServerUnavailable, Stage, Topic


class Order(Struct):
    number: int
    mark: str = ""
    """Of the events that must reach the sink: nobody can guess it."""
    fail: str = ""
    """Where the user's code cannot take the event."""


class Both(Struct):
    parse: Order
    check: int | None


def refuse(orders: list[Order], place: str) -> None:
    for order in orders:
        if order.fail == place:
            raise ValueError(f"{place} cannot take order {order.number}")
        if order.fail == f"{place} at length":
            raise type("Long" * 500_000, (ValueError,), {})("text" * 500_000)
        if order.fail == f"{place} unserved":
            raise ServerUnavailable("text" * 300_000)


def parse(orders: list[Order]) -> list[Order]:
    refuse(orders, "parse")
    return orders


def every_third(order: Order) -> bool:
    refuse([order], "condition")
    return order.number % 3 == 0


def check(orders: list[Order]) -> list[int]:
    refuse(orders, "check")
    return [order.number * 2 for order in orders]


def decide(inputs: list[Both]) -> list[dict[str, int | str]]:
    refuse([both.parse for both in inputs], "decide")
    return [{"number": both.parse.number, "mark": both.parse.mark, "checked": both.check or 0} for both in inputs]


EMULATED = {"hardware": ["emulated-cpu"], "emulated": {1: "500us", 16: "2ms"}, "max_batch_size": 16}

parsing = Stage("parse", parse, **EMULATED)
checking = Stage("check", check, after=[parsing.when(every_third)], **EMULATED)
deciding = Stage("decide", decide, after=[parsing, checking], **EMULATED)

pipeline = Pipeline(
    "fuzzed",
    slo="2s",
    source=Topic("orders", partitions=4, timestamp_header="ts"),
    sink=Topic("decisions", partitions=4),
    stages=[parsing, checking, deciding],
    sample=Sample(arrivals="../swing/arrivals.csv", events="../swing/orders.jsonl"),
)
