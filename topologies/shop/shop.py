"""A Faust app as a team has it: nothing in it knows of inferline-stream."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import faust
from faust.types import StreamT


class Order(faust.Record):
    """What is bought."""

    customer: str
    cents: int


app = faust.App("shop", broker=f"kafka://{os.environ.get('SHOP_KAFKA', '127.0.0.1:9092')}", store="memory://")
orders = app.topic("orders", value_type=Order)
checked = app.topic("checked-orders", value_type=Order)


@app.agent(orders, sink=[checked])
async def check(stream: StreamT[Order]) -> AsyncIterator[Order]:
    """Pass on what costs something."""
    async for order in stream:
        if order.cents > 0:
            yield order
