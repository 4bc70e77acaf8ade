"""A transactional producer that ends what Kafka has left hanging, and commits offsets of several groups at once.

A transaction ends by a marker in each of its partitions. Apache Kafka 4.4 forgets the marker of a partition that has
no leader just then (`KRaftMetadataCache.getPartitionLeaderEndpoint` gives none, which its transaction coordinator takes
for a deleted topic), as while a cluster of one broker starts after a crash. The transaction counts as ended, and its
records and offsets stay undecided for ever: readers of committed records stop there. The next transaction of the same
producer id writes markers again, for all that is undecided of that id.

That is also the danger: where the next transaction is aborted, what had been committed is lost. It happens to a session
that outlives the crash, and where this repair is itself interrupted in its few milliseconds. Only Kafka can close that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import CoordinationType
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.producer.sender import AddOffsetsToTxnHandler, BaseHandler, InitPIDHandler
from aiokafka.protocol.api import Request
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields

from inferline_stream.kafka.offsets import COORDINATOR_AWAY
from inferline_stream.kafka.wire.later_requests import request_struct

_DESCRIBE_TRANSACTIONS = 65
_OUTCOMES = {
    "PrepareCommit": True, "CompleteCommit": True,
    "PrepareAbort": False, "CompleteAbort": False, "PrepareEpochFence": False,
    "Ongoing": None,
}  # fmt: skip
"""Whether a transaction in this state was committed; None where that is open. `Empty`, the state of an id with a new
epoch, says nothing of its last transaction."""
_AGAIN_S = 0.02
_POLL_S = 0.001

_TAGS = ("tags", TaggedFields)
_DescribeTransactionsRequest = request_struct(
    "DescribeTransactions",
    _DESCRIBE_TRANSACTIONS,
    0,
    Schema(("transactional_ids", CompactArray(CompactString("utf-8"))), _TAGS),
    Schema(
        ("throttle_time_ms", Int32),
        (
            "transaction_states",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", CompactString("utf-8")),
                ("state", CompactString("utf-8")),
                ("timeout_ms", Int32),
                ("start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                ("topics", CompactArray(("topic", CompactString("utf-8")), ("partitions", CompactArray(Int32)), _TAGS)),
                _TAGS,
            ),
        ),
        _TAGS,
    ),
    flexible=True,
)
"""Format: https://kafka.apache.org/protocol.html#The_Messages_DescribeTransactions."""


class _Describe(Request[_DescribeTransactionsRequest]):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = _DESCRIBE_TRANSACTIONS

    def __init__(self, transactional_id: str) -> None:
        self._transactional_id = transactional_id

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([self._transactional_id], {})

    def prepare(self, versions: dict[int, tuple[int, int]]) -> Any:
        if _DESCRIBE_TRANSACTIONS not in versions:
            raise IncompatibleBrokerVersion("the broker describes no transactions")
        return self.build(_DescribeTransactionsRequest)


class _OutcomeHandler(BaseHandler):  # type: ignore[misc]  # aiokafka has no types
    """Asks how the last transaction of the producer's id ended: `committed` is None where that is not known."""

    committed: bool | None = None

    def create_request(self) -> Any:
        return _Describe(self._sender._txn_manager.transactional_id)

    def handle_response(self, response: Any) -> float | None:
        (state,) = response.to_object()["transaction_states"]
        if state["error_code"] in COORDINATOR_AWAY:
            return self.handle_error()
        self.committed = _OUTCOMES.get(state["state"], self.committed)
        return None

    def handle_error(self) -> float:
        self._sender._coordinator_dead(CoordinationType.TRANSACTION)
        return _AGAIN_S


class TransactionalProducer(AIOKafkaProducer):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka's producer; needs a transactional id."""

    _last_committed: bool | None = None
    """Whether the last transaction of this id was committed, as of the start; None where that is not known."""
    _last_group = ""
    """Whose coordinator aiokafka knows."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._coordinators: dict[str, int] = {}
        """Of the other groups, as last found."""

    async def start(self) -> None:
        """Connect, fence the producer that held the id, and learn how the last transaction ended.

        Kafka refuses a new epoch while a transaction is under way, and aborts that. It knows the outcome until it gives
        the epoch, so it is asked again after each refusal.
        """
        await self.client.bootstrap()
        outcome = _OutcomeHandler(self._sender)
        while not self._txn_manager.has_pid():
            with contextlib.suppress(IncompatibleBrokerVersion):  # e.g. the embedded broker, where nothing hangs
                await self._done(outcome)
            await InitPIDHandler(self._sender).do(await self._coordinator())
        self._last_committed = outcome.committed
        await self._sender.start()

    async def add_offsets(self, offsets: Mapping[str, Mapping[TopicPartition, tuple[int, str]]]) -> None:
        """Make offsets part of the transaction, by group: aiokafka knows one group of each, and one coordinator.

        Raises:
            KafkaError: a successor has taken the id, or Kafka refuses.
        """
        for group, of_group in offsets.items():
            if group != self._last_group:
                self._txn_manager._txn_consumer_group = None
                known = self._sender._coordinators
                if (coordinator := known.pop(CoordinationType.GROUP, None)) is None:  # it was found dead
                    self._coordinators.pop(self._last_group, None)
                else:
                    self._coordinators[self._last_group] = coordinator
                if group in self._coordinators:
                    known[CoordinationType.GROUP] = self._coordinators[group]
                self._last_group = group
            await self.send_offsets_to_transaction(of_group, group)

    async def end_hanging(self, partitions: Iterable[TopicPartition], groups: Iterable[str]) -> None:
        """End for good, as it was ended, what the last transaction before the start may have left undecided.

        Args:
            partitions: of every topic that transactions of this id write.
            groups: whose offsets they hold.

        Raises:
            KafkaError: a successor has taken the id, or Kafka refuses.
        """
        if self._last_committed is None:
            return
        await self.begin_transaction()
        for partition in partitions:
            self._txn_manager.maybe_add_partition_to_txn(partition)
        while self._txn_manager.partitions_to_add():  # noqa: ASYNC110  aiokafka's task brings it about
            await asyncio.sleep(_POLL_S)
        for group in groups:
            await self._done(AddOffsetsToTxnHandler(self._sender, group))
        await (self.commit_transaction() if self._last_committed else self.abort_transaction())

    async def _done(self, handler: BaseHandler) -> None:
        """Ask the transaction coordinator, wherever it is, until it has answered."""
        while not await handler.do(await self._coordinator()):
            pass

    async def _coordinator(self) -> int:
        name = self._txn_manager.transactional_id
        return await self._sender._find_coordinator(CoordinationType.TRANSACTION, name)  # type: ignore[no-any-return]
