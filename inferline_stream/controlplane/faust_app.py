"""The Faust app of a controller's term: agents on what dispatchers and controllers report, and the Tuner's timer.

The only module that knows Faust. Nothing waits for its consumer group: until its agents have caught up, and
whenever they fall silent, the control loop's own readers and timers do the same work (`Collector` takes each
record once, whichever controller brings it).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import faust

from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.errors import InferlineError
from inferline_stream.kafka.access_tokens import ClientCredentials
from inferline_stream.kafka.connection import hosts, security_of, tls_context

logger = logging.getLogger(__name__)

TakeRecord = Callable[[str, int, int, "bytes | None"], None]
"""(topic, partition, offset, value)"""


class _App(faust.App):
    def _on_rebalance_when_stopped(self) -> None:
        """Leave the consumer to its own thread: marked as closed here, as Faust does, it would keep its connections."""


class ControlApp:
    """Runs from entering to leaving. Each term has an app id, and so a consumer group, of its own.

    Args:
        context: the pipeline, whose topics must exist, on its Kafka.
        term: of the controller.
        folder: where Faust may keep files; it has no tables, so it keeps none.
        take: takes a record of the stage-stats or the arrivals topic.
        tune: one step of the Tuner.
    """

    def __init__(
        self, context: PipelineContext, term: int, *, folder: str, take: TakeRecord, tune: Callable[[], Awaitable[None]]
    ) -> None:
        names, servers = context.names, context.kafka.bootstrap_servers
        self._context, self._group = context, f"{names.control_groups}{term}"
        self._app = app = _App(
            self._group,
            broker=[f"kafka://{server.strip()}" for server in hosts(servers).split(",")],
            broker_credentials=_credentials(servers),
            store="memory://",
            web_enabled=False,
            datadir=folder,
            topic_disable_leader=True,
            topic_allow_declare=False,
            consumer_auto_offset_reset="latest",
            broker_heartbeat_interval=0.5,
            broker_session_timeout=10.0,
        )
        for topic in (names.stage_stats, names.arrivals):
            self._agent(topic, take)

        async def step() -> None:
            await tune()

        app.timer(interval=context.settings.tuner_step_s)(step)

    def _agent(self, topic: str, take: TakeRecord) -> None:
        records = self._app.topic(topic, key_serializer="raw", value_serializer="raw")

        async def follow(stream: Any) -> None:
            async for event in stream.events():
                take(topic, event.message.partition, event.message.offset, event.value)

        self._app.agent(records, name=f"follow-{topic}")(follow)

    async def __aenter__(self) -> Self:
        try:
            await self._app.start()
        except BaseException:  # cancelled in the middle of it: its threads and tasks would stay for ever
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(5.0):
                await self._app.stop()
        except TimeoutError:
            logger.warning("the Faust app did not stop in time; its group ends with its session")
        with contextlib.suppress(InferlineError, TimeoutError):  # else the next term does it
            async with asyncio.timeout(2.0):
                await self._context.kafka.delete_groups(lambda group: group == self._group)


def _credentials(bootstrap_servers: str) -> Any:
    """What every other client is given, as Faust wants it."""
    security = security_of(bootstrap_servers)
    context = tls_context(security) if security.tls else None
    if not security.sasl:
        return None if context is None else faust.SSLCredentials(context)
    if security.sasl_mechanism == "OAUTHBEARER":
        return faust.OAuthCredentials(oauth_cb=ClientCredentials(security), ssl_context=context)
    return faust.SASLCredentials(
        username=security.sasl_username,
        password=security.sasl_password,
        ssl_context=context,
        mechanism=security.sasl_mechanism,
    )
