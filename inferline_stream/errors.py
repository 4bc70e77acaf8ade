"""One class per way of reacting. The CLI maps each to its exit code.

InferlineError
├── UsageError             2  the command line asks for something that cannot be
├── InvalidInput           3  what a command was given, or this machine, must be corrected
│   ├── InvalidTopology       the topology
│   └── InvalidFile           another file: sample, trace, profile, plan, record of a run
├── Infeasible             4  no plan meets the SLO; carries the smallest that would be met
├── Unreachable            5  Kafka, a pipeline's controller, a metrics source or a model server does not answer
│   └── Unsettled             a transaction could not be ended (kafka.writer)
├── GateFailed             6  a gate did not hold: a run's SLO, or a plan's budget
├── StageFailed            1  a stage raised or broke its contract on a batch
│   └── ReplicaFailed         on the profiler's bench (profiler.replica_failures)
├── ServerUnavailable      1  what a stage asks takes no batch now; raised by stages, too
├── LeadershipLost         1  another controller leads (controlplane.leadership)
├── KafkaFailed            1  Kafka refuses a record or a commit (kafka.records)
└── FrameError             1  what came over a socket is no frame (dataplane.frames)
"""

from __future__ import annotations

UNREADABLE = (ValueError, OverflowError, RecursionError)
"""What decoders raise on what is no document, or on absurd nesting or numbers; msgspec's errors are ValueErrors."""


class InferlineError(Exception):
    """An error whose message gives the value and the remedy; shown without a traceback."""

    exit_code = 1


class UsageError(InferlineError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class InvalidInput(InferlineError):
    """What a command was given must be corrected; every problem found is listed at once."""

    exit_code = 3

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class InvalidTopology(InvalidInput):
    """A topology, or the code of one of its stages, is wrong."""


class InvalidFile(InvalidInput):
    """Another file is wrong: a sample, trace, profile or plan, or what a connector reads."""


class Infeasible(InferlineError):
    """No plan meets the SLO.

    Args:
        message: which stage makes it so, and the remedy.
        smallest_slo_s: the smallest SLO, in seconds, that some plan would meet; None if unknown.
    """

    exit_code = 4

    def __init__(self, message: str, smallest_slo_s: float | None = None) -> None:
        super().__init__(message)
        self.smallest_slo_s = smallest_slo_s


class Unreachable(InferlineError):
    """Kafka, a pipeline's controller, a metrics source or, to the profiler, a model server does not answer."""

    exit_code = 5


class GateFailed(InferlineError):
    """A run ended and its SLO gate did not hold, or a plan is dearer than its budget."""

    exit_code = 6


class ServerUnavailable(InferlineError):
    """What a stage asks does not answer, or is busy: its batch goes back into the queue and runs again later.

    A stage may raise it, and is held meanwhile. An event that is not taken alone is blamed after several times, if the
    same replica processes a sample each time.

    Args:
        message: what is unavailable, and why.
        wait_s: how long to wait before the next batch; the pauses grow of themselves up to a second.
        busy: whether what is asked is away or busy, whatever the event: none is blamed then.
    """

    def __init__(self, message: str, wait_s: float = 0.0, *, busy: bool = False) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.busy = busy


class StageFailed(InferlineError):
    """A stage raised, or returned another number of results than it was given events."""
