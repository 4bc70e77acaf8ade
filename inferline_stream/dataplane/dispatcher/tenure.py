"""Whether a slot is a dispatcher's now: what its grants say, and how long its lease lets it send."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.dispatcher.lease import Lease
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.dataplane.slot_grants import LEADER_KEY, Grant, LeaderHeartbeat, decode_control, grant_key
from inferline_stream.errors import UNREADABLE
from inferline_stream.kafka.records import TRANSACTION_TIMEOUT_MS, Record
from inferline_stream.kafka.topic_reader import TopicReader

logger = logging.getLogger(__name__)

LAPSE_S, TRANSACTION_LAPSE_S = 20.0, TRANSACTION_TIMEOUT_MS / 2000
"""Longest time without a lease after which a session goes on: half of what requests and transactions may take. Kafka
ends a transaction that takes longer as if a successor had fenced it."""


class Tenure:
    """A dispatcher's time with its slot.

    Args:
        spec: of the dispatcher.
        live: reads grants.
        lease: without it nothing is sent.
        report: says which grant was read last.
        feed: has the slot learn of grants and lapses.
        transactional: whether results are exactly once.
    """

    def __init__(
        self,
        spec: DispatcherSpec,
        live: TopicReader,
        lease: Lease,
        report: PoolReport,
        feed: Callable[[on.SlotEvent], None],
        *,
        transactional: bool,
    ) -> None:
        self._name, self._live, self._lease, self._report, self._feed = spec.dispatcher, live, lease, report, feed
        self._key = grant_key(spec.routes.stage, spec.slot).encode()
        self._lapse_s = TRANSACTION_LAPSE_S if transactional else LAPSE_S
        self.grant: Grant | None = None
        """The newest one."""
        self.changed = asyncio.Event()
        """Something did that says whether the slot is ours."""
        self.leaving = ""
        """Why the dispatcher leaves, if it does."""
        self._slots = 0
        """Of the stage, in the session."""
        self._has_served = False
        self._kept = False
        """Whether no grant gave the slot away since the session began."""
        self.lapsed = False
        """Whether there was no lease when something was to be sent, and nobody has looked since."""

    def leave(self, why: str) -> None:
        """Serve no more."""
        if not self.leaving:
            logger.info("dispatcher %s leaves: %s", self._name, why)
            self.leaving = why
            self.changed.set()

    # Grants

    def follow(self, record: Record) -> bool:
        """Follow a record of the assignments topic; return whether it is of this slot.

        Their order is that of the one leader, so the last one counts.
        """
        key, value = record.key, record.value
        if key not in (self._key, LEADER_KEY.encode()):
            return False
        try:
            grant = None if value is None else decode_control(key.decode(), value)
        except UNREADABLE as error:
            logger.error("a record of the leader cannot be read and is skipped: %.200s", repr(str(error)))
            return False
        if key != self._key:
            if isinstance(grant, LeaderHeartbeat):
                self._feed(grant)
            return False
        self.grant = grant if isinstance(grant, Grant) else None  # deleted: the slot is nobody's
        self._kept = self._kept and self._names_us() and self.grant is not None and self.grant.slots == self._slots
        if self.grant is not None:
            self._report.term, self._report.number = self.grant.term, self.grant.number
            self._feed(self.grant)
        self.changed.set()
        return True

    def _names_us(self) -> bool:
        return self.grant is not None and self.grant.dispatcher == self._name and self.grant.begins

    def _is_granted(self) -> bool:
        return not self.leaving and self._names_us() and self._live.caught_up()

    def _is_superseded(self) -> bool:
        return self._live.caught_up() and (self.grant is None or self.grant.dispatcher != self._name)

    def holds(self) -> bool:
        """Return whether the slot is still ours, and its partitions those of the session."""
        return self._is_granted() and self.grant is not None and self.grant.slots == self._slots

    # A session

    async def until_granted(self) -> bool:
        """Wait until the slot is ours and the lease valid; False once it is another's, or this one leaves."""
        while not (self._is_granted() and self._lease.valid()):
            if self.leaving or (self._is_superseded() and self._has_served):
                return False
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self.changed.wait()
        return True

    def begin(self) -> int:
        """Begin a session with the slot as it is granted now; return how many the stage has."""
        assert self.grant is not None, "it is granted"
        self._slots, self._has_served, self._kept, self.lapsed = self.grant.slots, True, True, False
        return self._slots

    async def watch(self) -> bool:
        """Wait until the slot is another's (True), or may have been while there was no lease (False)."""
        while True:
            if self.lapsed or not self._lease.valid():
                logger.warning("dispatcher %s: its lease has expired, nothing is sent", self._name)
                self.lapsed = False
                self._feed(on.LeaseLost())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._lapse_s + min(0.0, self._lease.left_s)):
                        await self.regain()
                if not (self._kept and self._lease.valid() and self._live.caught_up()):
                    return False
                self._feed(on.LeaseRegained())
            if not self.holds():
                return True
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.05, self._lease.left_s)):
                    await self.changed.wait()

    def lapse(self) -> None:
        """Take note that there was no lease when something was to be sent."""
        self.lapsed = True
        self.changed.set()

    async def regain(self) -> None:
        """After a lapse: wait for the lease, then read every grant that was written until then."""
        while not self._lease.valid():
            if self.leaving:
                return
            await asyncio.sleep(0.05)
        await self._live.look_for_grants()
        while not self._live.caught_up():  # noqa: ASYNC110  the fetching task brings it about
            await asyncio.sleep(0.01)
