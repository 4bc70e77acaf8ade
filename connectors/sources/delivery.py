"""What every source does: send events into a topic, and go on only once Kafka has them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from inferline_stream.connectors import sealed_connector
from inferline_stream.connectors.sealed_connector import done_in_time
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.record_producer import RecordProducer, RecordRefused
from inferline_stream.pipeline.names import EVENT_ID
from inferline_stream.pipeline.units import count_of

logger = logging.getLogger(__name__)

_AGAIN_S = 1.0
_LEAVE_S = 5.0


class SourceCounts(msgspec.Struct):
    """What became of the events."""

    sent: int = 0
    """Events that are in Kafka, sent by this process."""
    refused: int = 0
    """Events that Kafka will never take, left out because `--skip-refused` says so."""


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """What is to become a record.

    Args:
        id: known everywhere by it: an event that is sent again is the same one.
        value: the record's value.
        key: the record's key.
        headers: of the record, the id's excepted.
        timestamp_ms: of the record; None for when it is sent.
        refusal: why it cannot be sent; empty where it can.
    """

    id: bytes
    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int | None = None
    refusal: str = ""


class Delivery:
    """Sends events into one topic, in their order.

    Args:
        producer: connected.
        topic: to send into.
        stop: once set, what Kafka has not taken is left.
        skip_refused: leave out what Kafka will never take, rather than end.
    """

    def __init__(self, producer: RecordProducer, topic: str, stop: asyncio.Event, *, skip_refused: bool) -> None:
        self.counts = SourceCounts()
        self._producer = producer
        self._topic = topic
        self._stop = stop
        self._skip_refused = skip_refused

    async def deliver(self, events: Sequence[SourceEvent]) -> None:
        """Return once Kafka has all of them, however long it is away.

        Raises:
            Unreachable: stopped before; those that Kafka has are sent again by the same ids.
            RecordRefused: Kafka will never take one of them.
        """
        waiting, said = list(events), False
        while waiting:
            sending = asyncio.gather(*map(self._send, waiting), return_exceptions=True)
            if not await done_in_time(sending, self._stop, _LEAVE_S):
                left = count_of(len(waiting), "event")
                raise Unreachable(f"topic {self._topic!r}: Kafka has not taken {left}; to be sent again")
            again = []
            for event, outcome in zip(waiting, sending.result(), strict=True):
                if isinstance(outcome, Unreachable):
                    again.append(event)
                    if not said:
                        logger.warning("%s; trying again until Kafka takes it", outcome)
                    said = True
                elif isinstance(outcome, RecordRefused):
                    self._refused(event, outcome)
                elif outcome is not None:
                    raise outcome
                else:
                    self.counts.sent += 1
            if again:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_S):
                        await self._stop.wait()
            waiting = again

    async def _send(self, event: SourceEvent) -> None:
        if event.refusal:
            raise RecordRefused(event.refusal)
        headers = ((EVENT_ID, event.id), *event.headers)
        await self._producer.deliver(
            self._topic, event.value, key=event.key, timestamp_ms=event.timestamp_ms, headers=headers
        )

    def _refused(self, event: SourceEvent, refusal: RecordRefused) -> None:
        if not self._skip_refused:
            raise RecordRefused(f"event {event.id.decode(errors='replace')!r}: {refusal}; or give --skip-refused")
        logger.warning("event %r is left out: %s", event.id.decode(errors="replace"), refusal)
        self.counts.refused += 1


def parser_of(module: str, description: str) -> argparse.ArgumentParser:
    """A parser of a source's command, with the options that every source has."""
    parser = sealed_connector.parser_of(module, description)
    parser.add_argument("--topic", required=True, help="to send into; must exist")
    parser.add_argument(
        "--skip-refused", action="store_true", help="leave out events that Kafka will never take, and count them"
    )
    return parser


def key_of(value: bytes, field: str | None) -> bytes | None:
    """The record key that an event has in a field: a text as UTF-8, anything else as JSON; None without one."""
    if field is None:
        return None
    try:
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(found, dict) or field not in found:
        return None
    return found[field].encode() if isinstance(found[field], str) else msgspec.json.encode(found[field])
