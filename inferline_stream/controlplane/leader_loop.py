"""The steps of a leading controller: each repeated until another controller leads, and the heartbeat among them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from inferline_stream.controlplane.leadership import HEARTBEAT_S, TAKE_OVER_AFTER_S, Leadership, LeadershipLost
from inferline_stream.controlplane.loop_steps import StepFailures
from inferline_stream.dataplane.dispatcher.lease import Lease
from inferline_stream.errors import Unreachable

logger = logging.getLogger(__name__)

_AGAIN_S = 10.0
"""How often the log repeats that Kafka still does not answer."""


@dataclass(slots=True)
class LeaderLoop:
    """Repeats steps for as long as a controller leads.

    Args:
        leadership: entered.
    """

    leadership: Leadership
    _failed: StepFailures = field(default_factory=StepFailures)
    _lease: Lease = field(default_factory=lambda: Lease(TAKE_OVER_AFTER_S))
    """Runs out when another controller may lead."""
    _acts: bool | None = None
    """Whether it did when last asked; None before its first heartbeat."""

    @property
    def failures(self) -> int:
        """How many steps of the loop have failed."""
        return self._failed.count

    async def every(self, period_s: float, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat a step until another controller leads. Errors are logged, and counted if something did answer.

        Raises:
            LeadershipLost: another controller leads now.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        due_s, reported_s = loop.time(), float("-inf")
        while task is None or not task.cancelling():  # a client may have swallowed that
            try:
                await step()
                reported_s = float("-inf")
                self._failed.worked(step, loop.time())
            except LeadershipLost:
                raise
            except Unreachable as error:
                if loop.time() - reported_s >= _AGAIN_S:
                    logger.warning("%s", error)
                    reported_s = loop.time()
                await asyncio.sleep(0.1)
            except Exception as error:
                self._failed.add(step, error, loop.time())
                await asyncio.sleep(0.5)
            due_s = max(due_s + period_s, loop.time() - period_s)
            await asyncio.sleep(max(0.0, due_s - loop.time()))

    async def heartbeat(self) -> None:
        """Write that this controller leads; errors as in `Leadership.write`."""
        sent_s = self._lease.now_s()
        await self.leadership.heartbeat()
        self._lease.renew(sent_s)

    def leads(self) -> bool:
        """Whether Kafka acknowledged a heartbeat recently; else another controller may lead, and nothing is done."""
        acts, leads = self._acts, self._lease.valid()
        if acts is None and not leads:
            return False
        self._acts = leads
        if acts and not leads:
            logger.warning(
                "Kafka has acknowledged no heartbeat for %g s, so another controller may lead: replicas and "
                "dispatchers are left alone until it does", TAKE_OVER_AFTER_S,
            )  # fmt: skip
        elif leads and acts is False:
            logger.warning("Kafka has acknowledged a heartbeat: this controller leads still, and goes on")
        return leads


async def leading_meanwhile(work: Coroutine[Any, Any, None], heartbeat: Callable[[], Awaitable[None]]) -> None:
    """Do what may take a while as a controller begins, and go on leading meanwhile.

    Args:
        work: may wait for what does not answer.
        heartbeat: says that this controller leads; where Kafka does not answer, the next one may.
    """
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=HEARTBEAT_S))[0]:
            try:
                await heartbeat()
            except Unreachable as error:
                logger.warning("%s", error)
        task.result()
    finally:
        task.cancel()


def raise_end(leading: asyncio.Task[None]) -> None:
    """Raise what ended a control loop, if it has ended; of a task group of one cause, that cause.

    Raises:
        LeadershipLost: it has ended without an error, or another controller leads now.
    """
    if not leading.done():
        return
    error = leading.exception()
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    raise error or LeadershipLost("the control loop has ended")
