"""Emulated: one stage, and orders that can wait, and some that can wait less, among the others, with a header."""

from msgspec import Struct

from inferline_stream import Pipeline, Sample, Stage, Topic


class Order(Struct):
    number: int


def decide(orders: list[Order]) -> list[Order]:
    return orders


pipeline = Pipeline(
    "mixed",
    slo="500ms",
    source=[
        Topic("orders", partitions=4),
        Topic("orders-batch", partitions=3, background=True, header=("priority", "batch")),
        Topic("orders-urgent", partitions=2, slo="300ms", share=0.1, header=("priority", "urgent")),
    ],
    sink=Topic("decisions", partitions=4),
    stages=[Stage("decide", decide, hardware="emulated-cpu", emulated={1: "3ms", 8: "16ms"}, max_batch_size=8)],
    sample=Sample(arrivals="../swing/arrivals.csv", events="../swing/orders.jsonl"),
)
