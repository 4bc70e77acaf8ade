"""The dispatcher whose replicas have a queue each, which benchmarks compare with."""

from __future__ import annotations

from unittest import mock

from inferline_stream.dataplane.dispatcher import session
from tests.benchmarks import _slot_cost
from tests.benchmarks._bound_dispatcher import BoundPool, BoundQueue
from tests.unit.dataplane.dispatcher import doubles


def test_every_event_passes_a_slot_whose_replicas_have_a_queue_each() -> None:
    with (
        mock.patch.object(doubles, "Pool", lambda deadline_s: BoundPool(deadline_s, 1.0)),
        mock.patch.object(session, "StageQueue", BoundQueue),
    ):
        played = doubles.PlayedSlot()
        played.begin()
        played.slot.fill(played.report, played.now_s)
        assert _slot_cost.slot_us(200, 4, keyed=True) > 0, "it ends once all is committed"
        assert BoundQueue.queue is not None
        assert len(BoundQueue.pool.members) == _slot_cost.REPLICAS
