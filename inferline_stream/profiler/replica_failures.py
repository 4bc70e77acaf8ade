"""Why a replica could not do what the profiler asked of it, and in whose words that is said."""

from __future__ import annotations

import re
import signal
from typing import Self

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.dataplane.replica.replica import EXIT_CANNOT_LOAD, EXIT_STAGE_FAILED, EXIT_UNAVAILABLE
from inferline_stream.errors import StageFailed
from inferline_stream.profiler.bench_messages import NO_ANSWER, Failure

_FRAME = re.compile(r".+:\d+ in \S+: ")


class ReplicaFailed(StageFailed):
    """A replica could not do what it was asked, or has ended.

    Args:
        message: why, without the stage's name.
        memory: whether memory ran out.
        unavailable: whether what the stage asks does not answer, or takes no more at once.
    """

    def __init__(self, message: str, *, memory: bool = False, unavailable: bool = False) -> None:
        super().__init__(message)
        self.memory, self.unavailable = memory, unavailable

    @classmethod
    def of(cls, failure: Failure) -> Self:
        """Return the error that a dispatcher reports."""
        return cls(failure.message, memory=failure.memory, unavailable=failure.unavailable)

    @classmethod
    def ended(cls, code: int, tail: str, reason: str, *, built: bool) -> Self:
        """Return the error of a replica that has ended.

        Args:
            code: its exit code.
            tail: the last lines that it wrote.
            reason: what is known otherwise.
            built: whether its stage was built before.
        """
        if code == EXIT_STAGE_FAILED or reason.startswith(NO_ANSWER):
            return cls(reason)
        if code == -signal.SIGKILL:  # what the kernel does when memory runs out
            return cls("its process was killed, as the system does when memory runs out", memory=True)
        if code > 0 and not tail and "exit code" not in reason:  # it never started
            return cls(reason)
        last = tail.splitlines()[-1] if tail else "it wrote nothing"
        if not built and code in (EXIT_CANNOT_LOAD, EXIT_UNAVAILABLE):
            return cls(last, unavailable=code == EXIT_UNAVAILABLE)
        return cls(f"its process {'was ' + reason if code < 0 else f'ended with exit code {code}'}: {last}")


class NoPlace(StageFailed):
    """The cluster has no place for a replica of some kind."""


def late(what: str, limit_s: float, seen: ObservedReplica | None = None, dispatcher_end: str = "") -> StageFailed:
    """Return why no replica was ready in time, with what can be done about it.

    Args:
        what: stage and kind in a cluster; empty on this host.
        limit_s: the time.
        seen: the replica as it is now, if there is one.
        dispatcher_end: why its dispatcher has ended, if it is not back.
    """
    longer = "if it needs longer, set INFERLINE_START_TIMEOUT_S, on a GPU INFERLINE_GPU_START_TIMEOUT_S"
    if not what:
        return ReplicaFailed(f"was not built within {limit_s:g} s; {longer}")
    what = f"{what}: no replica was ready there within {limit_s:g} s"
    if dispatcher_end:
        return StageFailed(f"{what}: its dispatcher ended and is not back: {dispatcher_end}; see its log")
    if seen is None:
        return NoPlace(f"{what}: the cluster made none, as where a ResourceQuota leaves no room; raise it")
    if seen.pending and not seen.node:
        return NoPlace(f"{what}: {seen.pending}; add a node that has room for it, or leave the kind out")
    remedy = "see that its node can get the image and what the pod mounts" if seen.pending else longer
    return StageFailed(f"{what}: {seen.pending or 'it is starting'}; {remedy}")


def blame(error: StageFailed, declared: str, what: str) -> str:
    """One line on a stage that failed: where the user's own code raised comes first, if it did.

    Args:
        error: what is known of it.
        declared: ``file:line`` of the stage.
        what: the stage, and perhaps what it could not do.
    """
    return f"{error}; {what}, declared at {declared}" if _FRAME.match(str(error)) else f"{declared}: {what}: {error}"
