"""A plain worker of `test_run_on_groups.py`: batches of 4 at most, 100 ms and 50 ms an event, a commit after each."""

import asyncio
import contextlib
import signal
import sys

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError


async def main(servers: str, topic: str, group: str) -> None:
    task = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=servers, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest",
        heartbeat_interval_ms=500, session_timeout_ms=6000, metadata_max_age_ms=2000,
    )  # fmt: skip
    async with consumer:
        while True:
            got = await consumer.getmany(timeout_ms=500, max_records=4)
            if size := sum(map(len, got.values())):
                await asyncio.sleep(0.1 + 0.05 * size)
                with contextlib.suppress(KafkaError):  # its partitions are another's now, which does them again
                    await consumer.commit()


with contextlib.suppress(asyncio.CancelledError):
    asyncio.run(main(*sys.argv[1:]))
