"""A Kubernetes node without a machine: it starts containers after a while, ends them in time, starts them again.

What a container does is the test's business. Whom it reports to is too: a fake API server, or a real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.kube.store import Json


@dataclass(slots=True)
class Container:
    """One life of a pod's only container."""

    pod: Json
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """SIGTERM."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Its readiness probe succeeds."""
    end: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """To be given the exit code, 128 + n for signal n."""
    log: str = ""
    """What it has written, once it has ended; a pod's status has the last of it."""


@dataclass(slots=True)
class Node:
    """What a kubelet does with the pods that have a place on its node.

    Args:
        report: takes a pod's name and its new status.
        remove: takes the name of a pod that has ended as it was asked to.
        start_up_s: from a pod's place to its container's start.
        run: what a container does until it ends; returns its exit code, and sets `Container.ready`. By default it is
            ready at once, and ends through `Container.end` or when its grace period is over.
    """

    report: Callable[[str, Json], Awaitable[None]]
    remove: Callable[[str], Awaitable[None]]
    start_up_s: float = 0.0
    run: Callable[[Container], Awaitable[int]] | None = None
    containers: dict[str, Container] = field(default_factory=dict)
    """Running containers by their pod's name."""
    _ending: set[str] = field(default_factory=set)
    _gone: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def place(self, pod: Json) -> None:
        """The pod is this node's."""
        self._spawn(self._live(pod))

    def terminate(self, pod: str, grace_s: float) -> None:
        """The pod is to end: SIGTERM now, SIGKILL after its grace period."""
        self._ending.add(pod)
        container = self.containers.get(pod)
        if container is None:
            self._spawn(self.remove(pod))
            return
        container.stop.set()

        async def kill() -> None:
            await asyncio.sleep(grace_s)
            _kill(container)

        self._spawn(kill())

    def lose(self, pod: str) -> None:
        """The pod is no more, whatever its container was doing."""
        self._gone.add(pod)
        if (container := self.containers.pop(pod, None)) is not None:
            _kill(container)

    async def aclose(self) -> None:
        """Nothing runs here any more."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Awaitable[None]) -> None:
        async def done() -> None:
            await work

        task = asyncio.create_task(done())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, pod: Json) -> None:
        await asyncio.sleep(self.start_up_s)
        name, restarts, last = pod["metadata"]["name"], 0, None
        while name not in self._gone and name not in self._ending:
            container = self.containers[name] = Container(pod)
            if self.run is None:
                container.ready.set()
            await self.report(name, _status("Running", {"running": {}}, restarts, last, ready=container.ready.is_set()))
            probing = asyncio.create_task(self._probe(container, restarts, last))
            try:
                code = await (self.run(container) if self.run is not None else container.end)
            finally:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)
            self.containers.pop(name, None)
            if name in self._gone:
                return
            last = {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "message": _words(code) or container.log[-2048:],
            }
            if name in self._ending:
                await self.report(name, _status("Running", {"terminated": last}, restarts, None))
                break
            restarts += 1
            waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
            await self.report(name, _status("Running", waiting, restarts, last))
            await asyncio.sleep(0.05 * 2**restarts)
        if name not in self._gone:
            await self.remove(name)

    async def _probe(self, container: Container, restarts: int, last: Json | None) -> None:
        if not container.ready.is_set():
            await container.ready.wait()
            status = _status("Running", {"running": {}}, restarts, last, ready=True)
            await self.report(container.pod["metadata"]["name"], status)


def _status(phase: str, state: Json, restarts: int, last: Json | None, *, ready: bool = False) -> Json:
    return {
        "phase": phase,
        "containerStatuses": [
            {
                "name": "replica",
                "image": "",
                "imageID": "",
                "ready": ready,
                "restartCount": restarts,
                "state": state,
                "lastState": {"terminated": last} if last else {},
            }
        ],
    }


def _kill(container: Container) -> None:
    if not container.end.done():
        container.end.set_result(137)


def _words(code: int) -> str:
    return f"killed by {'SIGKILL' if code == 137 else f'signal {code - 128}'}" if code > 128 else ""
