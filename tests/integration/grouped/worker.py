"""A worker of a consumer group, with emulated service times: ``KIND SERVERS TOPIC GROUP [FOLDER]``.

``plain`` and ``eager`` are aiokafka consumers and ``kip848`` a confluent-kafka one of the new protocol, all with a
commit after each batch; ``timer`` is aiokafka with its commits each five seconds. Of each batch it writes a line into
FOLDER: its size, its seconds, when it was done, and when each of its records was made. ``plain`` takes 100 ms and 50 ms
an event, is soon missed when it dies, and soon sees another partition.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIXED_S, PER_EVENT_S, MOST, SPREAD = 0.03, 0.03, 4, 0.3
"""As the first stage of `peers` takes: 60 to 150 ms a batch, lognormal."""

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"heartbeat_interval_ms": 500, "session_timeout_ms": 6000, "metadata_max_age_ms": 2000},
    "timer": {"enable_auto_commit": True, "auto_commit_interval_ms": 5000},
}
"""Of aiokafka's consumer."""


class Written:
    """What a worker has done, line by line, and how long it takes."""

    def __init__(self, file: Path, kind: str) -> None:
        self._rng = random.Random(os.getpid())
        self._file = file.open("a", buffering=1)
        self._times = (0.1, 0.05, 0.0) if kind == "plain" else (FIXED_S, PER_EVENT_S, SPREAD)

    def time_s(self, size: int) -> float:
        fixed_s, per_event_s, spread = self._times
        sigma = math.sqrt(math.log1p(spread**2))
        return (fixed_s + per_event_s * size) * self._rng.lognormvariate(-(sigma**2) / 2, sigma)

    def done(self, began_s: float, made_s: Sequence[float]) -> None:
        now_s = time.time()
        self._file.write(" ".join(f"{value:.4f}" for value in (len(made_s), now_s - began_s, now_s, *made_s)) + "\n")


async def eager(servers: str, topic: str, group: str, written: Written, **options: Any) -> None:
    from aiokafka import AIOKafkaConsumer
    from aiokafka.errors import KafkaError

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=servers, group_id=group, auto_offset_reset="earliest", fetch_max_wait_ms=20,
        **{"enable_auto_commit": False, **options},
    )  # fmt: skip
    with contextlib.suppress(asyncio.CancelledError):
        async with consumer:
            while True:
                found = await consumer.getmany(timeout_ms=100, max_records=MOST)
                made_s = [record.timestamp / 1e3 for records in found.values() for record in records]
                if not made_s:
                    continue
                began_s = time.time()
                await asyncio.sleep(written.time_s(len(made_s)))
                with contextlib.suppress(KafkaError):  # its partitions are another's now, which does them again
                    if not options.get("enable_auto_commit"):
                        await consumer.commit({tp: records[-1].offset + 1 for tp, records in found.items()})
                    written.done(began_s, made_s)


def kip848(servers: str, topic: str, group: str, written: Written) -> None:
    from confluent_kafka import Consumer, KafkaException

    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    consumer = Consumer({
        "bootstrap.servers": servers, "group.id": group, "group.protocol": "consumer", "enable.auto.commit": False,
        "auto.offset.reset": "earliest", "fetch.wait.max.ms": 20,
    })  # fmt: skip
    consumer.subscribe([topic])
    while not stop:
        found = [record for record in consumer.consume(MOST, 0.01) if record.error() is None]
        if not found:
            continue
        began_s = time.time()
        time.sleep(written.time_s(len(found)))
        with contextlib.suppress(KafkaException):  # its partitions are another's now, which does them again
            consumer.commit(asynchronous=False)
            written.done(began_s, [record.timestamp()[1] / 1e3 for record in found])
    consumer.close()


if __name__ == "__main__":
    kind, servers, topic, group, *folder = sys.argv[1:]
    written = Written(Path(*folder, f"{os.getpid()}.txt") if folder else Path(os.devnull), kind)
    if kind == "kip848":
        kip848(servers, topic, group, written)
    else:
        asyncio.run(eager(servers, topic, group, written, **OPTIONS.get(kind, {})))
