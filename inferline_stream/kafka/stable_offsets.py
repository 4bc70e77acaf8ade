"""Reads what a group has committed for good: waits for a transaction that may still change it (KIP-447)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    IncompatibleBrokerVersion,
    KafkaError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.api import Request
from aiokafka.protocol.commit import OffsetFetchRequest_v3

from inferline_stream.kafka.wire.offset_fetch import LATER_OFFSET_FETCH, OFFSET_FETCH, UNSTABLE

_STABLE = 7
"""First version that can ask for stable offsets."""

_AGAIN_S = 0.02

COORDINATOR_AWAY = frozenset(
    error.errno for error in (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)
)
"""Codes of a coordinator, of groups or of transactions, that is not there, is loading, or is elsewhere."""

_PASSING = COORDINATOR_AWAY | {0, UNSTABLE}


class UndecidedOffsets(Exception):
    """A transaction may still change a group's offsets, and has not ended in the time that it was given."""


class _StableOffsetFetch(Request[OffsetFetchRequest_v3]):  # type: ignore[misc]  # aiokafka has no types
    """Asks for a group's stable offsets of one topic."""

    API_KEY = OFFSET_FETCH

    def __init__(self, group: str, topic: str, partitions: Sequence[int]) -> None:
        self._group, self._topic, self._partitions = group, topic, list(partitions)

    def build(self, request_struct_class: Any) -> Any:
        tags: dict[int, bytes] = {}
        return request_struct_class(self._group, [(self._topic, self._partitions, tags)], True, tags)

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Any:
        oldest, newest = versions[OFFSET_FETCH]
        if not oldest <= _STABLE <= newest:
            raise IncompatibleBrokerVersion(
                f"the broker speaks OffsetFetch {oldest} to {newest}, stable offsets need {_STABLE}: "
                "use Apache Kafka 4.1 or later"
            )
        return self.build(LATER_OFFSET_FETCH[_STABLE])


async def stable_offsets(
    coordinator: Any, topic: str, partitions: Sequence[int], patience_s: float
) -> dict[int, tuple[int, str]]:
    """Return offset and metadata that a group has committed; partitions without are missing.

    Args:
        coordinator: aiokafka's, of a consumer of the group.
        topic: which the group reads.
        partitions: of the topic.
        patience_s: longest wait for a transaction, from Kafka's first answer that there is one.

    Raises:
        KafkaError: Kafka refuses.
        UndecidedOffsets: a transaction has not ended in that time.
    """
    if not partitions:
        return {}
    give_up_s = math.inf
    while True:
        await coordinator.ensure_coordinator_known()
        try:
            answer = await coordinator._send_req(_StableOffsetFetch(coordinator.group_id, topic, partitions))
        except KafkaError as error:
            if not error.retriable:
                raise
            await asyncio.sleep(_AGAIN_S)
            continue
        answer = answer.to_object()
        found = [each for of_topic in answer["topics"] for each in of_topic["partitions"]]
        codes = {answer["error_code"], *(each["error_code"] for each in found)}
        if refused := codes - _PASSING:
            raise for_code(refused.pop())(f"group {coordinator.group_id}, topic {topic}")
        if codes == {0}:
            return {each["partition"]: (each["offset"], each["metadata"]) for each in found if each["offset"] >= 0}
        if NotCoordinatorForGroupError.errno in codes:
            coordinator.coordinator_dead()
        elif UNSTABLE in codes:
            give_up_s = min(give_up_s, time.monotonic() + patience_s)
            if time.monotonic() >= give_up_s:
                raise UndecidedOffsets
        await asyncio.sleep(_AGAIN_S)
