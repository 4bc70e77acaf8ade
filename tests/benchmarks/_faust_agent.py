"""What a replica is measured against: a Faust agent that passes records on."""

from __future__ import annotations

import sys
import tempfile

import faust


def main(bootstrap_servers: str, source: str, sink: str, group: str) -> None:
    app = faust.App(
        group,
        broker=f"aiokafka://{bootstrap_servers}",
        value_serializer="raw",
        key_serializer="raw",
        producer_acks=-1,
        web_enabled=False,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        datadir=tempfile.mkdtemp(prefix="faust-"),
        topic_partitions=8,
    )
    passed = app.topic(sink)

    @app.agent(app.topic(source))
    async def passing(stream: faust.StreamT[bytes]) -> None:
        async for event in stream.events():
            await passed.send(key=event.key, value=event.value, headers=event.headers)

    app.finalize()
    worker = faust.Worker(app, loglevel="error", redirect_stdouts=False)
    worker.execute_from_commandline()


if __name__ == "__main__":
    main(*sys.argv[1:5])
