"""The posts that dispatchers fill: which are wanted, which stop, and when a dead one is started again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from inferline_stream.actuators.actuator import DispatcherExit, ObservedDispatcher, ReplicaExit
from inferline_stream.actuators.restart_delay import SETTLED_S, restart_in_s
from inferline_stream.dataplane.process_specs import EXIT_FENCED, DispatcherSpec

logger = logging.getLogger(__name__)

_LEFT = (0, EXIT_FENCED)


@dataclass(slots=True, eq=False)
class Post:
    """A dispatcher that was asked for: its process, or the wait for the next one.

    Args:
        spec: of the dispatcher; the incarnation is that of the last start.
        pid: of its process; None while it is started again, or not known yet.
        node: the host that it runs on, where that is another one.
        pending: why it has no place yet; empty if it runs.
        running: whether it was started and has not ended.
        failures: deaths in a row, none of which came long after its start.
        started_s: when it was last started, on the event loop's clock.
        stopping: whether it was asked to stop.
        silent: whether it was killed because it was silent.
    """

    spec: DispatcherSpec
    pid: int | None = None
    node: str = ""
    pending: str = ""
    running: bool = False
    failures: int = 0
    started_s: float = 0.0
    stopping: bool = False
    silent: bool = False
    _timer: asyncio.TimerHandle | None = None
    """The restart, or the end of one that should have ended."""

    @property
    def stage(self) -> str:
        """The stage that it serves."""
        return self.spec.routes.stage


class Posts:
    """Keeps the posts of an actuator; see `Actuator` for the promises.

    Args:
        exits: takes the exits.
        start: called with a post to fill: sets its ``pid`` where it is known, and later calls `ended`, perhaps at once.
        stop: asks a running dispatcher to drain and end.
        kill: ends one at once, which must lead to `ended`.
        dealt: called with a stage whose slots may have changed.
        drain_timeout_s: time a stopping dispatcher has to end by itself.
    """

    def __init__(
        self,
        exits: asyncio.Queue[ReplicaExit | DispatcherExit],
        start: Callable[[Post], None],
        stop: Callable[[Post], None],
        kill: Callable[[Post], None],
        dealt: Callable[[str], None] = lambda stage: None,
        *,
        drain_timeout_s: float,
    ) -> None:
        self._exits = exits
        self._begin = start
        self._ask_to_stop = stop
        self._kill = kill
        self._dealt = dealt
        self._drain_timeout_s = drain_timeout_s
        self._posts: dict[str, Post] = {}
        self._left: set[str] = set()
        """Names of those that are gone for good; no name is used twice."""
        self._changed = asyncio.Event()

    def dispatch(self, stage: str, dispatchers: Sequence[DispatcherSpec]) -> None:
        """As `Actuator.dispatch`."""
        wanted = {spec.dispatcher: spec for spec in dispatchers}
        before = list(self._posts.items())
        for name, spec in wanted.items():
            if name not in self._posts and name not in self._left:
                post = self._posts[name] = Post(msgspec.structs.replace(spec, incarnation=spec.incarnation - 1))
                self._start(post)
        # Only then: one that is forgotten at once would have its replicas dealt to other slots, and back from there.
        for name, post in before:
            if post.stage == stage and name not in wanted:
                self._stop(post, self._drain_timeout_s)
        self._dealt(stage)

    def adopt(self, post: Post) -> None:
        """Go on with a dispatcher that an earlier controller has started."""
        self._posts[post.spec.dispatcher] = post
        self._dealt(post.stage)

    def replace(self, dispatcher: str) -> None:
        """As `Actuator.replace_dispatcher`."""
        post = self._posts.get(dispatcher)
        if post is not None and post.running:
            post.silent = True
            self._kill(post)

    def observe(self) -> tuple[ObservedDispatcher, ...]:
        """As `Actuator.dispatchers`."""
        return tuple(
            ObservedDispatcher(
                name,
                post.stage,
                post.spec.slot,
                post.spec.incarnation,
                post.pid,
                "stopping" if post.stopping else "running",
                post.started_s,
                post.node,
                post.pending,
            )
            for name, post in self._posts.items()
        )

    def of(self, dispatcher: str) -> Post | None:
        """Return the post of a dispatcher, if it is not gone."""
        return self._posts.get(dispatcher)

    def slots(self, stage: str) -> set[int]:
        """Return the slots of a stage whose dispatchers are not about to stop."""
        return {post.spec.slot for post in self._posts.values() if post.stage == stage and not post.stopping}

    async def drain(self, deadline_s: float) -> None:
        """Stop every dispatcher and wait until all are gone."""
        for post in list(self._posts.values()):
            self._stop(post, deadline_s)
        while self._posts:
            self._changed.clear()
            await self._changed.wait()

    def ended(self, post: Post, code: int, reason: str, tail: str = "") -> None:
        """Report that a dispatcher has ended, and start it again if it neither left nor was fenced."""
        loop = asyncio.get_running_loop()
        if post._timer is not None:
            post._timer.cancel()
            post._timer = None
        spec, post.pid, post.node, post.running = post.spec, None, "", False
        restarted = not post.stopping and code not in _LEFT
        if post.silent and restarted:
            reason = f"replaced, because it was silent ({reason})"
        self._report(post, code, reason, tail, restarted=restarted)
        if not restarted:
            logger.info("dispatcher %s ended: %s", spec.dispatcher, reason)
            self._forget(post)
            return
        post.failures = 1 if loop.time() - post.started_s >= SETTLED_S else post.failures + 1
        delay_s = restart_in_s(post.failures - 1) if post.failures > 1 else 0.0
        logger.warning("dispatcher %s ended: %s; restarted in %.1f s", spec.dispatcher, reason, delay_s)
        post._timer = loop.call_later(delay_s, self._start, post)

    def restarted(self, post: Post, code: int, reason: str, tail: str) -> None:
        """Report that a dispatcher has ended, and that its host has started it again."""
        logger.warning("dispatcher %s ended: %s; its host has started it again", post.spec.dispatcher, reason)
        self._report(post, code, reason, tail, restarted=True)
        post.spec = msgspec.structs.replace(post.spec, incarnation=post.spec.incarnation + 1)
        post.started_s = asyncio.get_running_loop().time()

    def _report(self, post: Post, code: int, reason: str, tail: str, *, restarted: bool) -> None:
        spec, expected = post.spec, post.stopping or code == 0
        self._exits.put_nowait(
            DispatcherExit(
                spec.dispatcher, post.stage, spec.slot, spec.incarnation, code, expected, reason, restarted, tail
            )
        )

    def _start(self, post: Post) -> None:
        post._timer, post.silent, post.running = None, False, True
        post.started_s = asyncio.get_running_loop().time()
        post.spec = msgspec.structs.replace(post.spec, incarnation=post.spec.incarnation + 1)
        self._begin(post)

    def _stop(self, post: Post, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        if post.stopping and post._timer is not None and post._timer.when() <= loop.time() + deadline_s:
            return  # it has to be gone sooner than that
        if post._timer is not None:
            post._timer.cancel()
        if not post.running:
            self._forget(post)
            return
        already, post.stopping = post.stopping, True
        post._timer = loop.call_later(deadline_s, self._kill, post)
        if not already:
            self._ask_to_stop(post)

    def _forget(self, post: Post) -> None:
        self._posts.pop(post.spec.dispatcher, None)
        self._left.add(post.spec.dispatcher)
        self._dealt(post.stage)
        self._changed.set()
