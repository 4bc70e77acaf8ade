"""A Faust app for `test_kafka_processes.py`: counts records by key in a table, and ticks. Ends with its input."""

import asyncio
import sys
import tempfile

import faust


class Number(faust.Record, serializer="json"):
    n: int


async def main(bootstrap_servers: str, name: str, source: str, sink: str, ticks: str) -> None:
    app = faust.App(
        name,
        broker=f"kafka://{bootstrap_servers}",
        store="memory://",
        datadir=tempfile.mkdtemp(prefix="faust-"),  # else a folder where it is started
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        topic_partitions=2,
    )
    incoming = app.topic(source, key_type=bytes, value_type=Number)
    outgoing = app.topic(sink, key_type=bytes, value_serializer="json")
    ticking = app.topic(ticks, value_serializer="json")
    counts = app.Table("counts", default=int, partitions=2)

    @app.agent(incoming)
    async def count(stream):
        async for key, number in stream.items():
            text = key.decode()
            counts[text] += 1
            await outgoing.send(key=key, value={"n": number.n, "count": counts[text]})

    @app.timer(interval=0.1)
    async def tick():
        await ticking.send(value={"tick": True})

    await app.start()
    await asyncio.to_thread(sys.stdin.read)
    await app.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
