"""Replicas that do nothing but report: what a controller hears of a pipeline of many stages, without its work.

``python -m tests.benchmarks._echoing_replicas SERVERS PREFIX PIPELINE STAGE…``; one replica per stage, named as
`FakeActuator` names them.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from inferline_stream.dataplane.protocol import Assignment, ReplicaReport, decode_control, encode
from inferline_stream.pipeline.names import Names
from inferline_stream.settings import Settings

HARDWARE = "emulated-cpu"


async def report(servers: str, names: Names, stages: list[str]) -> None:
    """Report every heartbeat, and at once what an assignment has changed."""
    told = {
        (replica := f"{stage}-{HARDWARE}-{number}"): ReplicaReport(replica, stage, HARDWARE, "ready", 0)
        for number, stage in enumerate(stages, start=1)
    }
    partition = TopicPartition(names.assignments, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer, consumer:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)

        async def tell(replica: str) -> None:
            told[replica].report += 1
            await producer.send(names.stage_stats, encode(told[replica]), key=replica.encode())

        async def beat() -> None:
            while True:
                for replica in told:
                    await tell(replica)
                await asyncio.sleep(Settings().heartbeat_s)

        beating = asyncio.create_task(beat())
        async for record in consumer:
            control = decode_control(record.value) if record.value else None
            if isinstance(control, Assignment) and control.replica in told:
                held = dict.fromkeys(control.partitions, 0)
                told[control.replica] = msgspec.structs.replace(
                    told[control.replica], sequence=control.sequence, held=held
                )
                await tell(control.replica)
        await beating


if __name__ == "__main__":
    where, prefix, pipeline, *every = sys.argv[1:]
    asyncio.run(report(where, Names(pipeline, prefix), every))
