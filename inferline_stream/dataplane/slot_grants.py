"""Who may serve a slot: written by the leading controller to the compacted assignments topic, followed by dispatchers.

A slot is one of a stage's dispatcher positions: it owns every partition whose number is its own modulo the number of
slots. Its partitions move only when a dispatcher is replaced or the number of slots changes, never when replicas do.
"""

from __future__ import annotations

import msgspec

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.observability.pipeline_state import DeviceState
from inferline_stream.pipeline.fallback import Served
from inferline_stream.pipeline.names import WIRE_VERSION, check_version

_MOST = 2**53

LEADER_KEY = "leader"


class LeaderHeartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """The leading controller lives. Key: `LEADER_KEY`."""

    term: int
    controller: str
    devices: tuple[DeviceState, ...] = ()
    """`PipelineState.devices`."""
    rest_s: dict[str, float] = {}
    """By stage, R: what events take from there on, by what later stages lately took (`pipeline.deadline_order`)."""
    longer_s: dict[str, float] = {}
    """By stage, how much longer that usually is: R' - R of `pipeline.fallback`."""
    served: dict[str, list[Served]] = {}
    """Of stages with a fallback, by slot, what it is known to have served in the last hour, or what a new run begins
    with. A dispatcher begins with that, and then knows better."""
    version: int = WIRE_VERSION

    def __post_init__(self) -> None:
        served = [number for slots in self.served.values() for bins in slots for pair in bins for number in pair]
        _check(self.version, self.term, *self.rest_s.values(), *self.longer_s.values(), *served)


class HardwarePlan(msgspec.Struct, frozen=True):
    """What the plan says of a stage's replicas on one kind of hardware."""

    max_batch_size: int = 1
    service_s: dict[int, float] = {}
    """Profiled service time by batch size: for deadlines, and for who is likely to finish first."""
    concurrency: int = 1
    """Most batches that a replica has in hand."""
    contention: dict[int, dict[int, float]] = {}
    """By batches in hand and batch size, how many times as long as alone a batch takes."""
    fallback_s: dict[int, float] = {}
    """As `service_s`, of the stage's fallback."""

    def __post_init__(self) -> None:
        if self.max_batch_size < 1 or self.concurrency < 1:
            raise ValueError(f"{self.concurrency} batches of {self.max_batch_size}")


class StagePlan(msgspec.Struct, frozen=True):
    """What the plan says of a stage, on its way from the plan to the pool that serves by it."""

    hardware: dict[str, HardwarePlan] = {}
    hold_s: float = 0.0
    """How long after the oldest eligible event reached the stage a free replica waits for a fuller batch."""
    sample: StageInput | None = None
    """An event that the stage is known to process: a fresh replica must pass it before another event is blamed."""
    rest_s: float = 0.0
    """R where no later stage is known to have taken longer than an event alone does."""
    fallback_share: float = 0.0
    """Of the events that the stage's fallback may make."""
    sleep_after_s: float = 0.0
    """How long no replica had a batch after which the servers that they ask sleep; 0 where these cannot."""

    def __post_init__(self) -> None:
        if not 0 <= self.rest_s < _MOST:
            raise ValueError(f"{self.rest_s} s for the stages that follow")
        if not 0 <= self.sleep_after_s < _MOST:
            raise ValueError(f"servers sleep after {self.sleep_after_s} s")


class Grant(msgspec.Struct, frozen=True, tag="grant"):
    """Which dispatcher serves a slot from now on; replaces the one before. Key: `grant_key`.

    A dispatcher serves while the newest grant of its slot names it and says that it may begin. Once that names another
    one, or none, it finishes the batches that replicas have in hand, produces, commits, reports ``gone`` and exits.
    The controller lets the next one begin once the last one has reported that, has ended, or has been silent for
    longer than its lease.
    """

    stage: str
    slot: int
    slots: int
    """D, the number of slots that the stage's partitions are dealt to."""
    dispatcher: str
    """Name of the dispatcher; empty for none."""
    term: int
    number: int
    """Grows with every grant of a term; (term, number) orders grants."""
    begins: bool = True
    """False: connect and wait, another one may still serve."""
    plan: StagePlan = StagePlan()
    settled: dict[int, tuple[int, int]] = {}
    """Of a join's input, by partition: an event with its first part below the first offset gets no other part at or
    above the second, because every stage before the join has finished what it could come from."""
    background_waits: bool = False
    """Whether background events are left where they are: a stage after this one has enough of them."""
    version: int = WIRE_VERSION

    def __post_init__(self) -> None:
        _check(self.version, self.term, self.number)
        # A slot that is given up lies beyond those that are left.
        within = self.slot < self.slots or not self.dispatcher
        if not (0 <= self.slot < _MOST and 0 <= self.slots < _MOST and within):
            raise ValueError(f"slot {self.slot} of {self.slots}")


def grant_key(stage: str, slot: int) -> str:
    """Key of a slot's grants in the compacted topic."""
    return f"{stage}/{slot}"


def _check(version: int, *numbers: float) -> None:
    check_version(version)
    if any(not 0 <= number < _MOST for number in numbers):
        raise ValueError(f"a number of {numbers} is out of range")


def partitions_of(slot: int, slots: int, partitions: int) -> range:
    """Partitions that a slot owns, of a topic with so many."""
    return range(slot, partitions, slots)


ControlRecord = LeaderHeartbeat | Grant


def encode_control(record: ControlRecord) -> bytes:
    """One record as JSON."""
    return msgspec.json.encode(record)


_decode = msgspec.json.Decoder(ControlRecord).decode


def decode_control(key: str, value: bytes) -> ControlRecord:
    """Read a record of the assignments topic.

    Raises:
        ValueError: it is none, or that of another key; see also `errors.UNREADABLE`.
    """
    control: ControlRecord = _decode(value)
    own = LEADER_KEY if isinstance(control, LeaderHeartbeat) else grant_key(control.stage, control.slot)
    if key != own:
        raise ValueError(f"the key {key!r} is not its own, {own!r}")
    return control
