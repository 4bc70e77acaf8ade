"""Offsets of topics and of consumer groups, read and set from outside, where Kafka's first answer may be wrong."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupIdNotFound,
    GroupLoadInProgressError,
    IncompatibleBrokerVersion,
    KafkaError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.api import Request
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest_v3

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.connection import answered, client_options, closed, closed_on_failure, in_time
from inferline_stream.kafka.offset_metadata import Committed, Entry, decode_metadata
from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC, TopicState, created_topic, topic_states
from inferline_stream.kafka.wire.coordinator_records import assigned_partitions
from inferline_stream.kafka.wire.later_requests import LATER_OFFSET_FETCH, OFFSET_FETCH, UNSTABLE
from inferline_stream.kafka.wire.share_groups import describe_request, offsets_request

T = TypeVar("T")
_Ask = Callable[[list[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]]

_REQUEST_TIMEOUT_MS = 5_000

_COORDINATOR_S = 30.0
"""Longest wait for a coordinator that is not there yet, loads what its groups have committed, or has moved."""

_AGAIN_S = 0.02

_STABLE = 7
"""First version that can ask for stable offsets."""

_AWAY = (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)

COORDINATOR_AWAY = frozenset(error.errno for error in _AWAY)
"""Codes of a coordinator, of groups or of transactions, that is not there, is loading, or is elsewhere."""

_PASSING = COORDINATOR_AWAY | {0, UNSTABLE}


class Offsets:
    """Offsets of topics and of groups without members; on connections where nothing else waits.

    Args:
        bootstrap_servers: host:port, comma separated.
        start_timeout_s: longest wait for Kafka's first answer.

    Raises:
        Unreachable: on entering, Kafka does not answer; by each method, there is no answer in time.
    """

    def __init__(self, bootstrap_servers: str, start_timeout_s: float = 10.0) -> None:
        self._where, self._start_timeout_s = bootstrap_servers, start_timeout_s
        options = {
            **client_options(bootstrap_servers),
            "request_timeout_ms": _REQUEST_TIMEOUT_MS,
            "retry_backoff_ms": 50,
        }
        self._consumer = AIOKafkaConsumer(**options, enable_auto_commit=False)
        self._admin = AIOKafkaAdminClient(**options)
        self._coordinators: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        async with closed_on_failure(self._admin):
            await in_time(self._where, self._consumer.start(), self._start_timeout_s, self._consumer)
        async with closed_on_failure(self._consumer):
            await in_time(self._where, self._admin.start(), self._start_timeout_s, self._admin)
        return self

    async def __aexit__(self, *_: object) -> None:
        await closed(self._consumer, self._admin, within_s=1.0)

    async def states(self, topics: Iterable[str]) -> dict[str, TopicState]:
        """Return the state of those of the topics that exist."""
        with answered(self._where):
            return await topic_states(self._consumer._client, topics)

    async def existing(self, topics: Iterable[str]) -> dict[str, int]:
        """Partitions of those of the topics that exist."""
        return {topic: state.partitions for topic, state in (await self.states(topics)).items()}

    async def state(self, topic: str) -> TopicState:
        """Return the state of a topic, which may just have been created.

        Raises:
            Unreachable: there is no such topic, or no answer.
        """
        with answered(self._where):
            found = await created_topic(self._consumer._client, topic, _REQUEST_TIMEOUT_MS / 1e3)
        if found is None:
            raise Unreachable(f"Kafka at {self._where} has no topic {topic}")
        return found

    async def partitions(self, topic: str) -> int:
        """Partitions of a topic; raises as `state`."""
        return (await self.state(topic)).partitions

    async def topic_id(self, topic: str) -> str:
        """Return the id of this incarnation of a topic; empty where there is none."""
        return (await self.states([topic])).get(topic, UNKNOWN_TOPIC).id

    async def ends(self, partitions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """End offset of each partition, by topic: one request for all of them.

        Args:
            partitions: topic → number of its partitions.
        """
        return await self._of_each(self._consumer.end_offsets, partitions)

    async def begins(self, partitions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Lowest offset that Kafka still has of each partition, by topic."""
        return await self._of_each(self._consumer.beginning_offsets, partitions)

    async def _of_each(self, ask: _Ask, partitions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        wanted = {topic: [TopicPartition(topic, p) for p in range(n)] for topic, n in partitions.items()}
        with answered(self._where):
            found = await ask([tp for tps in wanted.values() for tp in tps])
        return {topic: tuple(found[tp] for tp in tps) for topic, tps in wanted.items()}

    async def first_since(self, partitions: Mapping[str, int], time_ms: int) -> dict[TopicPartition, Any]:
        """Offset and timestamp of each partition's first record at or after a time; those without one are left out."""
        wanted = {TopicPartition(topic, p): time_ms for topic, n in partitions.items() for p in range(n)}
        with answered(self._where):
            found = await self._consumer.offsets_for_times(wanted)
        return {tp: at for tp, at in found.items() if at is not None}

    async def oldest_s(self, partitions: Mapping[str, int]) -> dict[str, float]:
        """Timestamp of the first record that each topic still has, seconds since the epoch; none of empty topics."""
        times = [(tp.topic, at.timestamp / 1e3) for tp, at in (await self.first_since(partitions, 0)).items()]
        return {topic: min(s for of, s in times if of == topic) for topic, _ in times}

    async def entries(self, group: str, topic: str, partitions: Iterable[int]) -> dict[int, Entry]:
        """What a group has committed, of those partitions of which it has committed something."""
        request = _OffsetFetch(group, topic, partitions, stable=False)

        async def ask(coordinator: int) -> dict[int, Entry]:
            entries, codes = _fetched(await self._admin._send_request(request, coordinator))
            for code in codes - {0}:
                raise for_code(code)(f"group {group}, topic {topic}")
            return entries

        return await self._at_coordinator(group, ask)

    async def committed(self, group: str, topic: str, partitions: int) -> tuple[Committed, ...]:
        """What the group has committed of each partition; offset -1 where it has nothing."""
        found = await self.entries(group, topic, range(partitions))
        return tuple(decode_metadata(*found[p]) if p in found else Committed(-1) for p in range(partitions))

    async def commit(self, group: str, topic: str, entries: Mapping[int, Entry]) -> None:
        """Commit for a group: without members, Kafka takes that from anybody."""
        of_topic = [(p, offset, metadata) for p, (offset, metadata) in entries.items()]
        request = OffsetCommitRequest(group, -1, "", -1, [(topic, of_topic)])  # of no generation, member and time

        async def ask(coordinator: int) -> None:
            answer = await self._admin._send_request(request, coordinator)
            for code in (code for _, found in answer.topics for _, code in found if code):
                raise for_code(code)(f"group {group}, topic {topic}")

        await self._at_coordinator(group, ask)

    async def _at_coordinator(self, group: str, ask: Callable[[int], Awaitable[T]]) -> T:
        began_s = time.monotonic()
        with answered(self._where):
            while True:
                try:
                    if group not in self._coordinators:
                        self._coordinators[group] = await self._admin.find_coordinator(group)
                    return await ask(self._coordinators[group])
                except KafkaError as error:  # a new cluster's first coordinator takes a moment; they also move
                    self._coordinators.pop(group, None)
                    patience_s = _COORDINATOR_S if isinstance(error, _AWAY) else _REQUEST_TIMEOUT_MS / 1e3
                    if not error.retriable or time.monotonic() > began_s + patience_s:
                        raise
                    await asyncio.sleep(0.1)

    async def members(self, group: str) -> tuple[str, dict[str, dict[str, frozenset[int]]]]:
        """Return the assignor's name, and what each member of a group has: partitions by topic, by the member's id.

        Groups of KIP-848 have none here: their members are only in the coordinator's log.
        """

        async def ask(coordinator: int) -> Any:
            answer = await self._admin._send_request(DescribeGroupsRequest([group]), coordinator)
            (found,) = answer.to_object()["groups"]
            if found["error_code"] and found["error_code"] != GroupIdNotFound.errno:
                raise for_code(found["error_code"])(f"group {group}")
            return found

        found = await self._at_coordinator(group, ask)
        members = {each["member_id"]: assigned_partitions(each["member_assignment"]) for each in found["members"]}
        return found["protocol"] or "", members

    async def share_members(self, group: str) -> dict[str, dict[str, frozenset[int]]] | None:
        """Return partitions by topic that each member of a share group takes from; None where it is no share group."""

        async def ask(coordinator: int) -> Any:
            try:
                answer = await self._admin._send_request(describe_request(group), coordinator)
            except IncompatibleBrokerVersion:
                return None
            (found,) = answer.to_object()["groups"]
            if found["error_code"] == GroupIdNotFound.errno:
                return None
            if found["error_code"]:
                raise for_code(found["error_code"])(f"group {group}: {found['error_message']}")
            return {
                each["member_id"]: {of["topic"]: frozenset(of["partitions"]) for of in each["assignment"]["topics"]}
                for each in found["members"]
            }

        members: dict[str, dict[str, frozenset[int]]] | None = await self._at_coordinator(group, ask)
        return members

    async def share_lags(self, group: str, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return how many records of each partition a share group has not finished; those in its members' hands count.

        Partitions that it has not begun with are left out.
        """

        async def ask(coordinator: int) -> dict[int, int]:
            answer = await self._admin._send_request(offsets_request(group, topic, partitions), coordinator)
            (found,) = answer.to_object()["groups"]
            known = [each for of_topic in found["topics"] for each in of_topic["partitions"]]
            for code in {found["error_code"], *(each["error_code"] for each in known)} - {0}:
                raise for_code(code)(f"share group {group}, topic {topic}")
            return {each["partition"]: each["lag"] for each in known if each["lag"] >= 0}

        return await self._at_coordinator(group, ask)

    async def committed_topics(self, group: str) -> list[str]:
        """Return the topics of which a group has committed offsets."""

        async def ask(coordinator: int) -> list[str]:
            offsets = await self._admin.list_consumer_group_offsets(group, coordinator)
            return sorted({tp.topic for tp, at in offsets.items() if at.offset >= 0})

        return await self._at_coordinator(group, ask)


class UndecidedOffsets(Exception):
    """A transaction may still change a group's offsets, and has not ended in the time that it was given."""


class _OffsetFetch(Request[OffsetFetchRequest_v3]):  # type: ignore[misc]  # aiokafka has no types
    """Asks for a group's offsets of one topic.

    aiokafka's own methods overlook the error of a whole answer. That of a coordinator which loads the group then looks
    as if nothing had been committed.
    """

    API_KEY = OFFSET_FETCH

    def __init__(self, group: str, topic: str, partitions: Iterable[int], *, stable: bool) -> None:
        self._group, self._topic, self._partitions, self._stable = group, topic, list(partitions), stable

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class is OffsetFetchRequest_v3:
            return OffsetFetchRequest_v3(self._group, [(self._topic, self._partitions)])
        tags: dict[int, bytes] = {}
        return request_struct_class(self._group, [(self._topic, self._partitions, tags)], self._stable, tags)

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Any:
        oldest, newest = versions[OFFSET_FETCH]
        if oldest <= _STABLE <= newest:
            return self.build(LATER_OFFSET_FETCH[_STABLE])
        if self._stable:
            raise IncompatibleBrokerVersion(
                f"the broker speaks OffsetFetch {oldest} to {newest}, stable offsets need {_STABLE}: "
                "use Apache Kafka 4.1 or later"
            )
        return self.build(OffsetFetchRequest_v3)


def _fetched(answer: Any) -> tuple[dict[int, Entry], set[int]]:
    """Return offset and metadata of the partitions that have them, and the error codes of an answer."""
    answer = answer.to_object()
    found = [each for of_topic in answer["topics"] for each in of_topic["partitions"]]
    entries = {each["partition"]: (each["offset"], each["metadata"] or "") for each in found if each["offset"] >= 0}
    return entries, {answer["error_code"], *(each["error_code"] for each in found)}


async def group_offsets(
    coordinator: Any, topic: str, partitions: Sequence[int], stable_within_s: float | None
) -> dict[int, Entry]:
    """Return offset and metadata that a group has committed; partitions without are missing.

    Args:
        coordinator: aiokafka's, of a consumer of the group.
        topic: which the group reads.
        partitions: of the topic.
        stable_within_s: longest wait for a transaction that may still change them, from Kafka's first answer that
            there is one; None for what is committed now, which brokers older than transactions say, too.

    Raises:
        KafkaError: Kafka refuses.
        UndecidedOffsets: a transaction has not ended in that time.
    """
    if not partitions:
        return {}
    request = _OffsetFetch(coordinator.group_id, topic, partitions, stable=stable_within_s is not None)
    give_up_s = math.inf
    while True:
        await coordinator.ensure_coordinator_known()
        try:
            entries, codes = _fetched(await coordinator._send_req(request))
        except KafkaError as error:
            if not error.retriable:
                raise
            await asyncio.sleep(_AGAIN_S)
            continue
        if refused := codes - _PASSING:
            raise for_code(refused.pop())(f"group {coordinator.group_id}, topic {topic}")
        if codes == {0}:
            return entries
        if NotCoordinatorForGroupError.errno in codes:
            coordinator.coordinator_dead()
        elif UNSTABLE in codes:
            give_up_s = min(give_up_s, time.monotonic() + (stable_within_s or 0.0))
            if time.monotonic() >= give_up_s:
                raise UndecidedOffsets
        await asyncio.sleep(_AGAIN_S)
