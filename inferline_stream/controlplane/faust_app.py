"""The Faust app of a controller's term: an agent on what dispatchers report, and the Tuner's timer.

The only module that knows Faust. Nothing waits for its consumer group: until its agent has caught up, and whenever it
falls silent, the control loop's own reader and timer do the same work (`Collector` takes each record once).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import faust

from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.errors import InferlineError
from inferline_stream.kafka.access_tokens import AccessTokens
from inferline_stream.kafka.connection import hosts, security_of, tls_context

logger = logging.getLogger(__name__)

TakeRecord = Callable[[int, int, "bytes | None"], None]
"""(partition, offset, value)"""


class _App(faust.App):
    def _on_rebalance_when_stopped(self) -> None:
        """Leave the consumer to its own thread: marked as closed here, as Faust does, it would keep its connections."""


@asynccontextmanager
async def control_app(
    context: PipelineContext, term: int, *, folder: str, take: TakeRecord, tune: Callable[[], Awaitable[None]]
) -> AsyncIterator[faust.App]:
    """Run from entering to leaving. Each term has an app id, and so a consumer group, of its own.

    Args:
        context: the pipeline, whose topics must exist, on its Kafka.
        term: of the controller.
        folder: where Faust may keep files; it has no tables, so it keeps none.
        take: takes a record of the stage-stats topic.
        tune: one step of the Tuner.
    """
    names, servers = context.names, context.kafka.bootstrap_servers
    group = f"{names.control_groups}{term}"
    app = _App(
        group,
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

    async def follow(stream: Any) -> None:
        async for event in stream.events():
            take(event.message.partition, event.message.offset, event.value)

    async def step() -> None:
        await tune()

    reports = app.topic(names.stage_stats, key_serializer="raw", value_serializer="raw")
    app.agent(reports, name=f"follow-{names.stage_stats}")(follow)
    app.timer(interval=context.settings.tuner_step_s)(step)
    try:
        await app.start()
        yield app
    finally:  # also where its start is cancelled in the middle: its threads and tasks would stay for ever
        await _stop(app, context, group)


async def _stop(app: faust.App, context: PipelineContext, group: str) -> None:
    try:
        async with asyncio.timeout(5.0):
            await app.stop()
    except TimeoutError:
        logger.warning("the Faust app did not stop in time; its group ends with its session")
    with contextlib.suppress(InferlineError, TimeoutError):  # else the next term does it
        async with asyncio.timeout(2.0):
            await context.kafka.delete_groups(lambda known: known == group)


def _credentials(bootstrap_servers: str) -> Any:
    """What every other client is given, as Faust wants it."""
    security = security_of(bootstrap_servers)
    context = tls_context(security) if security.tls else None
    if not security.sasl:
        return None if context is None else faust.SSLCredentials(context)
    if security.sasl_mechanism == "OAUTHBEARER":
        return faust.OAuthCredentials(oauth_cb=AccessTokens(security), ssl_context=context)
    return faust.SASLCredentials(
        username=security.sasl_username,
        password=security.sasl_password,
        ssl_context=context,
        mechanism=security.sasl_mechanism,
    )
