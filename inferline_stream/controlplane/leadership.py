"""One leading controller per pipeline: it fences the one before it and writes each second that it lives."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from inferline_stream.controlplane.record_decoder import RecordDecoder
from inferline_stream.dataplane.host_postings import host_of
from inferline_stream.dataplane.slot_grants import (
    LEADER_KEY,
    Grant,
    LeaderHeartbeat,
    decode_control,
    encode_control,
    grant_key,
)
from inferline_stream.errors import InferlineError, Unreachable
from inferline_stream.kafka.records import Fenced, Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.kafka.writer import Unsettled, Writer
from inferline_stream.observability.pipeline_state import DeviceState
from inferline_stream.pipeline.fallback import Served
from inferline_stream.pipeline.names import Names

logger = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
TAKE_OVER_AFTER_S = 3.0
"""A leader that has written nothing for this long, while Kafka answered, is taken over from."""

LOOK_EVERY_S = 0.2
"""How often a controller that waits looks whether another one still leads."""

LISTEN_S = 1.5
"""Longer than between two heartbeats: where the last one is old, or from the future, another is waited for. Kafka may
have been away, and clocks differ."""

AFTER_OUTAGE_S = 10.0
"""The same once Kafka was away: a leader that lives must settle the transaction that it was writing first."""

SLOW_S = 1.0
"""Kafka does not answer where looking for a heartbeat takes so long."""


class LeadershipLost(InferlineError):
    """Another controller leads: stop."""


@dataclass(frozen=True, slots=True)
class AssignmentLog:
    """What the assignments topic says."""

    grants: tuple[Grant, ...]
    """Newest of each slot."""
    heartbeat: LeaderHeartbeat | None
    """None where there is none, and where the newest cannot be read: a newer release's."""
    heartbeat_age_s: float
    """By the record's timestamp; infinite if there is none."""


def read_log(records: Sequence[Record], now_s: float, decoder: RecordDecoder) -> AssignmentLog:
    """The newest record of each key.

    Args:
        records: of the assignments topic, in order.
        now_s: seconds since the epoch.
        decoder: reads them.
    """
    grants: dict[str, Grant] = {}
    heartbeat = None
    own = [record for record in records if not host_of((record.key or b"").decode(errors="replace"))]
    for entry in decoder.decoded_by_key(own, decode_control):
        if isinstance(entry.value, Grant):
            grants[entry.key] = entry.value
        elif entry.key == LEADER_KEY:
            heartbeat = entry.value
        else:
            grants.pop(entry.key, None)
    last = next((record for record in reversed(records) if record.key == LEADER_KEY.encode()), None)
    # One that cannot be read shows all the same that somebody leads.
    age_s = float("inf") if last is None or last.value is None else now_s - last.time_ms / 1e3
    return AssignmentLog(tuple(grants.values()), heartbeat, age_s)


async def until_silent(follower: TopicFollower, records: list[Record], log: AssignmentLog, pipeline: str) -> None:
    """Wait until the leader has left in order, or has been silent for `TAKE_OVER_AFTER_S` in which Kafka answered.

    Args:
        follower: of the assignments topic.
        records: what was read from it; what comes meanwhile is added.
        log: what they say.
        pipeline: name, for people.
    """
    if log.heartbeat_age_s == float("inf"):
        return
    if log.heartbeat_age_s <= TAKE_OVER_AFTER_S:
        logger.warning(
            "controller %s leads %s: standing by until it falls silent (`deploy` brings newer code into its replicas)",
            log.heartbeat.controller if log.heartbeat else "of a newer release", pipeline,
        )  # fmt: skip
    loop = asyncio.get_running_loop()
    # The age of its last word is that of another host's clock: a leader may act for as long after it.
    heard_s, patience_s = loop.time(), TAKE_OVER_AFTER_S
    while loop.time() - heard_s <= patience_s:
        asked_s = loop.time()
        try:
            new = await follower.read(LOOK_EVERY_S)
            await follower.end()
        except Unreachable:
            await asyncio.sleep(LOOK_EVERY_S)
            heard_s, patience_s = loop.time(), AFTER_OUTAGE_S
            continue
        records += new
        if heartbeats := [record for record in new if record.key == LEADER_KEY.encode()]:
            heard_s, patience_s = loop.time(), TAKE_OVER_AFTER_S
            if heartbeats[-1].value is None:  # it left in order
                return
        elif loop.time() - asked_s > SLOW_S:
            heard_s, patience_s = loop.time(), AFTER_OUTAGE_S  # where Kafka is silent, so is a leader that lives


class Leadership:
    """Leads from entering to leaving. Entering waits for as long as another controller leads.

    Args:
        bootstrap_servers: host:port, comma separated.
        names: of the pipeline.
        controller: name of this controller, unique per process.
        decoder: reads what others have written.

    Raises:
        Unreachable: Kafka does not answer.
    """

    def __init__(
        self, bootstrap_servers: str, names: Names, controller: str, decoder: RecordDecoder | None = None
    ) -> None:
        self._bootstrap_servers, self._names, self.controller = bootstrap_servers, names, controller
        self._decoder = decoder or RecordDecoder()
        self._producer = self._new_producer()
        self._broken = False
        self._writing = asyncio.Lock()
        self.renewals = 0
        """How often this controller had to begin another term because a transaction was left unsettled."""
        self.term = 0
        self.devices: tuple[DeviceState, ...] = ()
        """Said with each heartbeat, so that `status` has them."""
        self.rest_s: dict[str, float] = {}
        """Said with each heartbeat, so that dispatchers have it: `LeaderHeartbeat.rest_s`."""
        self.longer_s: dict[str, float] = {}
        self.served: dict[str, list[Served]] = {}
        """The same of `LeaderHeartbeat.longer_s` and `LeaderHeartbeat.served`."""
        self.log = AssignmentLog((), None, float("inf"))
        """What the topic said when this term began."""

    def _new_producer(self) -> Writer:
        names = self._names
        transactional_id = f"{names.prefix}{names.pipeline}-controller"
        return Writer(self._bootstrap_servers, self.controller, transactional_id, request_timeout_s=5.0)

    async def __aenter__(self) -> Self:
        async with TopicFollower(self._bootstrap_servers, self._names.assignments) as follower:
            records = await follower.read_to(await follower.end())
            await until_silent(follower, records, read_log(records, time.time(), self._decoder), self._names.pipeline)
            await self._producer.__aenter__()  # from here on nobody else writes
            try:
                records += await follower.read_to(await follower.end())
                self._begin_term(records)
                await self.heartbeat()
            except BaseException:
                await self._producer.__aexit__(None, None, None)
                raise
        logger.info("controller %s leads %s in term %d", self.controller, self._names.pipeline, self.term)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.__aexit__(kind, error, trace)

    async def write(self, grants: Sequence[Grant] = (), forgotten: Sequence[str] = ()) -> None:
        """Write grants, and delete the keys of others, in one transaction.

        Raises:
            LeadershipLost: another controller leads now.
            Unreachable: nothing was written, or that is not known; try again. Grants of a term that is over are not
                written: what they were decided by may be no longer so.
        """
        topic = self._names.assignments
        records = [Record.keyed(topic, grant_key(g.stage, g.slot), encode_control(g)) for g in grants]
        records += [Record.keyed(topic, key, None) for key in forgotten]
        if records:
            await self._write(records, {grant.term for grant in grants})

    async def write_records(self, records: Sequence[Record]) -> None:
        """Write records of the leader, e.g. decisions, in one transaction; errors as in `write`."""
        await self._write(records)

    async def _write(self, records: Sequence[Record], terms: Set[int] = frozenset()) -> None:
        async with self._writing:
            if self._broken:
                await self._renew()
            if terms - {self.term}:  # `log` says by now what was granted, and has nothing of what is written later
                raise Unreachable(f"term {self.term} has begun: what is granted is decided again")
            try:
                await self._producer.write(records)
            except Unsettled:
                self._broken = True
                raise
            except Fenced:
                raise LeadershipLost("another controller leads: this one stops") from None

    async def _renew(self) -> None:
        """Begin a new term where a transaction was left unsettled, unless another controller has taken over.

        The log then says what was granted, whether that transaction was written or not.
        """
        await self._producer.__aexit__(None, None, None)
        async with TopicFollower(self._bootstrap_servers, self._names.assignments) as follower:
            records = await follower.read_to(await follower.end())
            log = read_log(records, time.time(), self._decoder)
            if log.heartbeat is None or log.heartbeat.controller != self.controller:
                raise LeadershipLost("another controller leads: this one stops")
            self._producer = self._new_producer()
            await self._producer.__aenter__()
            records += await follower.read_to(await follower.end())
        # Another one may have begun to lead since the log was read. It is fenced by now and stops: this one goes on
        # with what it granted, or nobody would lead.
        self._begin_term(records)
        self.renewals += 1
        self._broken = False
        logger.warning("controller %s goes on leading in term %d", self.controller, self.term)

    def _begin_term(self, records: Sequence[Record]) -> None:
        """Begin a term after all that the topic has, once nobody else can write."""
        self.log = read_log(records, time.time(), self._decoder)
        before = [grant.term for grant in self.log.grants]
        if self.log.heartbeat is not None:
            before.append(self.log.heartbeat.term)
        self.term = 1 + max([self.term, *before])

    async def heartbeat(self) -> None:
        """Write that this controller lives; errors as in `write`."""
        heartbeat = LeaderHeartbeat(self.term, self.controller, self.devices, self.rest_s, self.longer_s, self.served)
        await self.write_records([Record.keyed(self._names.assignments, LEADER_KEY, encode_control(heartbeat))])

    async def resign(self) -> None:
        """Leave in order: the next controller need not wait. Errors as in `write`."""
        await self.write_records([Record.keyed(self._names.assignments, LEADER_KEY, None)])


async def leads(bootstrap_servers: str, names: Names) -> bool:
    """Whether some controller leads the pipeline at present.

    Raises:
        Unreachable: Kafka does not answer, or has no such pipeline.
    """
    async with TopicFollower(bootstrap_servers, names.assignments) as follower:
        records = await follower.read_to(await follower.end())
        return await is_led(follower, read_log(records, time.time(), RecordDecoder()).heartbeat_age_s)


async def is_led(follower: TopicFollower, heartbeat_age_s: float) -> bool:
    """Whether some controller leads: its last heartbeat is new, or another one comes.

    Args:
        follower: of the assignments topic, from its end.
        heartbeat_age_s: of the last one, by two hosts' clocks; infinite if there is none.
    """
    loop = asyncio.get_running_loop()
    listen_s = loop.time() + (LISTEN_S if heartbeat_age_s < float("inf") else 0.0)
    led = 0.0 <= heartbeat_age_s <= TAKE_OVER_AFTER_S
    while not led and loop.time() < listen_s:
        led = any(r.key == LEADER_KEY.encode() and r.value is not None for r in await follower.read(LOOK_EVERY_S))
    return led
