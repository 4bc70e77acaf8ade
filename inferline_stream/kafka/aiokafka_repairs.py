"""Three methods of aiokafka's that are wrong where a broker goes away, replaced for every client of this process."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import KafkaConnectionError, KafkaError

AGAIN_S = 0.1
"""Between two attempts to learn where partitions are."""

_send = AIOKafkaConnection.send
_update = AIOKafkaClient._metadata_update
_close = Fetcher.close


def repair_aiokafka() -> None:
    """Replace them; more than once does no harm."""
    AIOKafkaConnection.send = _send_or_lose
    AIOKafkaClient._metadata_update = _update_or_wait
    Fetcher.close = _close_whole


def _send_or_lose(self: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
    """aiokafka takes an OSError for the loss of the connection; uvloop raises RuntimeError once it is closed."""
    try:
        return _send(self, request, expect_response)
    except KafkaError:  # a RuntimeError, too
        raise
    except RuntimeError as error:
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"Connection at {self.host}:{self.port} broken: {error}") from error


async def _update_or_wait(self: AIOKafkaClient, cluster: Any, topics: Any) -> bool:
    """aiokafka's producer asks without end, and without a pause, where a partition had no leader and Kafka is away."""
    updated: bool = await _update(self, cluster, topics)
    if not updated:
        await asyncio.sleep(AGAIN_S)
    return updated


async def _close_whole(self: Fetcher) -> None:
    """aiokafka's raises CancelledError where a fetch waits for its next try, and the stop leaves connections open."""
    self._fetch_task.cancel()
    await asyncio.gather(self._fetch_task, return_exceptions=True)
    for task in self._pending_tasks:
        task.cancel()
    await asyncio.gather(*self._pending_tasks, return_exceptions=True)
    self._pending_tasks.clear()
    await _close(self)
