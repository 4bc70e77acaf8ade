"""A Faust app of agents: what `look` has taken goes on to `pack`, and both write down how long each takes.

`note` takes the same records as `look`.
"""

import os
import time
from pathlib import Path

import faust

app = faust.App(
    os.environ["SHOP_GROUP"], broker=f"kafka://{os.environ['SHOP_KAFKA']}", store="memory://",
    topic_disable_leader=True, topic_allow_declare=False, consumer_auto_offset_reset="earliest",
    broker_heartbeat_interval=0.5,
)  # fmt: skip
TIMES = Path(os.environ["SHOP_TIMES"])
entered = app.topic(os.environ["SHOP_TOPIC"], value_serializer="raw")
looked = app.topic(f"{os.environ['SHOP_TOPIC']}-looked", value_serializer="raw")


def work(agent: str, each_s: float) -> None:
    began_s = time.perf_counter()
    time.sleep(each_s)
    with (TIMES / f"{agent}.txt").open("a") as times:
        times.write(f"{time.perf_counter() - began_s}\n")


@app.agent(entered)
async def look(records):
    async for record in records:
        work("look", 0.01)
        await looked.send(value=record)


@app.agent(entered)
async def note(records):
    async for _ in records:
        pass


@app.agent(looked)
async def pack(records):
    async for _ in records:
        work("pack", 0.02)
