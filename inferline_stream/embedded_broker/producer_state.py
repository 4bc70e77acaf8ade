"""Idempotence: which batches of each producer a partition already holds, and which epochs are fenced."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from aiokafka.errors import InvalidProducerEpoch, OutOfOrderSequenceNumber

from inferline_stream.embedded_broker.record_batch import RecordBatch

_SEQUENCES = 2**31  # sequence numbers wrap around to 0
_UNDER_WAY = 5  # batches that a producer may have under way in one partition


@dataclass(frozen=True, slots=True)
class Appended:
    """Where a batch went. `timestamp_ms` is -1 where the records' own timestamps count."""

    base_offset: int
    timestamp_ms: int


@dataclass(slots=True)
class _ProducerState:
    epoch: int
    next_sequence: int | None = None  # None: any will do, as after a marker or for a producer never seen
    recent: deque[tuple[int, int, Appended]] = field(default_factory=lambda: deque(maxlen=_UNDER_WAY))


class ProducerStates:
    """What one partition remembers of the producers that wrote to it."""

    def __init__(self) -> None:
        self._states: dict[int, _ProducerState] = {}

    def check(self, batch: RecordBatch) -> Appended | None:
        """Where this very batch was appended before, or None if it may be appended now."""
        state = self._states.get(batch.producer_id)
        if batch.producer_id < 0 or state is None:
            return None
        if batch.producer_epoch < state.epoch:
            raise InvalidProducerEpoch
        if batch.producer_epoch > state.epoch:
            if batch.base_sequence != 0:
                raise OutOfOrderSequenceNumber
            return None
        for first, count, place in state.recent:
            if (first, count) == (batch.base_sequence, batch.record_count):
                return place
        if state.next_sequence is not None and batch.base_sequence != state.next_sequence:
            raise OutOfOrderSequenceNumber
        return None

    def remember(self, batch: RecordBatch, place: Appended) -> None:
        """Note that a batch was appended."""
        if batch.producer_id < 0:
            return
        state = self._states.get(batch.producer_id)
        if state is None or state.epoch != batch.producer_epoch:
            state = self._states[batch.producer_id] = _ProducerState(batch.producer_epoch)
        state.next_sequence = (batch.base_sequence + batch.last_offset - batch.base_offset + 1) % _SEQUENCES
        state.recent.append((batch.base_sequence, batch.record_count, place))

    def fence(self, producer_id: int, epoch: int) -> None:
        """Refuse epochs before this one; its own sequence goes on."""
        state = self._states.get(producer_id)
        if state is None or state.epoch < epoch:
            self._states[producer_id] = _ProducerState(epoch)
