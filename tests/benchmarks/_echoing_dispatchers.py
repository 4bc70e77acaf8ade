"""Dispatchers that do nothing but report: what a controller reads of a pipeline of many stages, without its work.

``python -m tests.benchmarks._echoing_dispatchers SERVERS PREFIX PIPELINE``; each line of standard input names a replica
and its stage, which its stage's dispatcher reports as ready from then on.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus, encode_report
from inferline_stream.dataplane.slot_grants import Grant, decode_control
from inferline_stream.pipeline.names import Names
from inferline_stream.settings import Settings

HARDWARE = "emulated-cpu"


async def report(servers: str, names: Names) -> None:
    """Report every heartbeat, and at once what a grant or a new replica has changed."""
    reports: dict[str, PoolReport] = {}
    replicas: defaultdict[str, list[ReplicaStatus]] = defaultdict(list)
    partition = TopicPartition(names.assignments, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer, consumer:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)

        async def say(stage: str) -> None:
            if (own := reports.get(stage)) is not None:
                own.report += 1
                own.replicas = replicas[stage]
                await producer.send(names.stage_stats, encode_report(own), key=own.dispatcher.encode())

        async def beat() -> None:
            while True:
                for stage in reports:
                    await say(stage)
                await asyncio.sleep(Settings().heartbeat_s)

        async def listen() -> None:
            lines = asyncio.StreamReader()
            await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
            while line := await lines.readline():
                name, stage = line.decode().split()
                replicas[stage].append(ReplicaStatus(name, HARDWARE, "ready"))
                await say(stage)

        async def follow() -> None:
            async for record in consumer:
                grant = decode_control(record.value) if record.value else None
                if isinstance(grant, Grant) and grant.dispatcher:
                    own = PoolReport(grant.dispatcher, 1, grant.stage, grant.slot, "serving", 0)
                    own.term, own.number = grant.term, grant.number
                    reports[grant.stage] = own
                    await say(grant.stage)

        async with asyncio.TaskGroup() as tasks:
            for work in (beat, listen, follow):
                tasks.create_task(work())


if __name__ == "__main__":
    where, prefix, pipeline = sys.argv[1:]
    asyncio.run(report(where, Names(pipeline, prefix)))
