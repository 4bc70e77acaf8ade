"""What replicas run beside the queue: suspects, each alone on one replica, and samples on replicas that are doubted."""

from __future__ import annotations

from collections.abc import Callable

from inferline_stream.dataplane.dispatcher.doubtful_batches import DoubtfulBatches
from inferline_stream.dataplane.dispatcher.poison_suspects import Probe
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.replica_trust import Happening
from inferline_stream.dataplane.dispatcher.session import SlotSession
from inferline_stream.dataplane.dispatcher.wake_timer import WakeTimer


class Trials:
    """Hands out suspects and samples, before the queue has its turn.

    Args:
        pool: has the replicas.
        doubtful: says which of them are tested.
        timer: has `run` called again in time.
        hand: gives a replica a batch.
    """

    def __init__(self, pool: Pool, doubtful: DoubtfulBatches, timer: WakeTimer, hand: Callable[..., None]) -> None:
        self._pool = pool
        self._doubtful = doubtful
        self._timer = timer
        self._hand = hand
        self._quarantine = False
        """Whether a replica may be kept for suspects."""

    def run(self, session: SlotSession, now_s: float) -> None:
        """Hand out what can be handed out now."""
        self._test_doubted(session, now_s)
        self._pool.fresh_after_s = session.suspects.suspicion.blocked_until_s
        if self._quarantine or len(session.suspects):
            self._feed_quarantine(session, now_s)

    def _feed_quarantine(self, session: SlotSession, now_s: float) -> None:
        """Run the next suspect alone, on the one replica that runs suspects; free it once there are none."""
        pool, suspects = self._pool, session.suspects
        self._quarantine = len(suspects) > 0
        if not self._quarantine:
            pool.lift_quarantine()
            return
        replica = pool.quarantine(passed_first=bool(suspects.suspicion.reason))
        if replica is None:
            return
        if replica.held_until_s > now_s:
            self._timer.wake_at(replica.held_until_s)
            return
        task = suspects.next(replica.passed, now_s, yields=pool.single and session.queue.eligible > 0)
        if isinstance(task, Probe):
            self._hand(replica, (), now_s, sample=task)
        elif task is not None:
            self._hand(replica, (task,), now_s, alone=True)
        else:
            # Back-off, the queue's turn, or nothing left to run: it serves like the others meanwhile.
            pool.lift_quarantine()
            again_s = suspects.again_s(replica.passed, now_s)
            if again_s > now_s:
                self._timer.wake_at(again_s)

    def _test_doubted(self, session: SlotSession, now_s: float) -> None:
        """Run a sample on replicas whose last batches had no success."""
        sample = session.suspects.sample
        for replica in self._doubtful.to_test(sample=sample is not None):
            if replica.held_until_s > now_s:
                self._timer.wake_at(replica.held_until_s)
            elif sample is not None and self._pool.has_room(replica):
                self._doubtful.happens(replica, Happening.SAMPLE_HANDED)
                self._hand(replica, (), now_s, sample=Probe(sample), test=True)
