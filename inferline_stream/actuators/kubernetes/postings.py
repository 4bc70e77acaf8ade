"""What the dispatchers' pods of a pipeline run, as this controller or one before wrote to the assignments topic."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

import msgspec

from inferline_stream.dataplane.host_postings import Posting, decode_posting, encode_posting, host_of, posting_key
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.kafka.writer import write_once


class Postings:
    """Writes postings, and knows those that were written. `look` before anything else.

    Args:
        bootstrap_servers: of Kafka.
        topic: full name of the assignments topic.
    """

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._bootstrap_servers, self._topic = bootstrap_servers, topic
        self._on: dict[str, DispatcherSpec] = {}
        self._names: set[str] = set()
        self._looked = False
        self._looking = asyncio.Lock()

    @property
    def hosts(self) -> Collection[str]:
        """Hosts that have a dispatcher."""
        return self._on.keys()

    def on(self, host: str) -> DispatcherSpec | None:
        """Return what a host runs."""
        return self._on.get(host)

    def had(self, dispatcher: str) -> bool:
        """Whether a dispatcher was ever posted: no name is posted twice, its process may live."""
        return dispatcher in self._names

    def host_of(self, dispatcher: str) -> str | None:
        """Return the host of a dispatcher."""
        return next((host for host, spec in self._on.items() if spec.dispatcher == dispatcher), None)

    async def look(self) -> None:
        """Read what controllers before have written, once.

        Raises:
            Unreachable: Kafka does not answer.
        """
        async with self._looking:
            if not self._looked:
                await self._look()
                self._looked = True

    async def _look(self) -> None:
        async with TopicFollower(self._bootstrap_servers, self._topic) as topic:
            for record in await topic.read_to(await topic.end()):
                if host := host_of((record.key or b"").decode(errors="replace")):
                    self._on.pop(host, None)
                    with contextlib.suppress(msgspec.MsgspecError, ValueError):
                        if record.value:
                            self._note(host, decode_posting(record.value).dispatcher)

    async def post(self, host: str, spec: DispatcherSpec, slots: int) -> None:
        """Have a host run a dispatcher.

        Raises:
            Unreachable: Kafka does not answer.
        """
        await self._write(host, encode_posting(Posting(host, spec, slots)))
        self._note(host, spec)

    async def take_back(self, host: str) -> None:
        """Have a host run nothing.

        Raises:
            Unreachable: Kafka does not answer.
        """
        await self._write(host, None)
        self._on.pop(host, None)

    def _note(self, host: str, spec: DispatcherSpec) -> None:
        self._on[host] = spec
        self._names.add(spec.dispatcher)

    async def _write(self, host: str, value: bytes | None) -> None:
        await asyncio.shield(write_once(self._bootstrap_servers, Record.keyed(self._topic, posting_key(host), value)))
