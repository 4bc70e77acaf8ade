"""A Faust app of a team: its agent takes 10 ms for each record, or SHOP_EACH_S, and writes down how long that was."""

import asyncio
import os
import time
from pathlib import Path

import faust

app = faust.App(
    os.environ["SHOP_GROUP"], broker=f"kafka://{os.environ['SHOP_KAFKA']}", store="memory://",
    topic_disable_leader=True, topic_allow_declare=False, consumer_auto_offset_reset="earliest",
    broker_heartbeat_interval=0.5,
)  # fmt: skip
TIMES = Path(os.environ["SHOP_TIMES"]) / f"{os.getpid()}.txt"


@app.agent(app.topic(os.environ["SHOP_TOPIC"], value_serializer="raw"))
async def look(records):
    async for _ in records:
        began_s = time.perf_counter()
        await asyncio.sleep(float(os.environ.get("SHOP_EACH_S", "0.01")))
        with TIMES.open("a") as times:
            times.write(f"{time.perf_counter() - began_s}\n")
