"""Holds, keys and mixed kinds: the estimator against the dispatcher's own queue and pool, driven in virtual time."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.queue import FallbackTerms, StageQueue
from inferline_stream.dataplane.slot_grants import HardwarePlan, StagePlan
from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.simulation import simulate
from inferline_stream.estimator.station import station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline import fallback as fallbacks
from inferline_stream.pipeline.event_classes import CLASS_STRIDE
from inferline_stream.pipeline.keys import Keys
from inferline_stream.pipeline.live_classes import LiveClass
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Contention, PipelineProfile, ServiceTime
from inferline_stream.pipeline.trace import Trace
from tests.unit.estimator.small import ONE, measured

HOP_MS = 3

SECOND = 1024.0
"""Of the estimator, in milliseconds of the dispatcher: sums of binary fractions are exact on both clocks."""


class VirtualDispatcher:
    """A slot's loop (choose, due, take, begin, finish) on a clock of whole milliseconds."""

    def __init__(
        self,
        held: tuple[Allocation, ...],
        service_ms: dict[str, dict[int, int]],
        slo_ms: int,
        key_of: Sequence[int] = (),
        rest_ms: float | None = None,
        *,
        longer_ms: Sequence[int] = (0,),
        class_of: Sequence[int] = (),
        fallback: tuple[dict[str, dict[int, int]], float] | None = None,
    ) -> None:
        """With ``fallback``, its times and its share, of an hour that has seen nothing."""
        self.shortest_s, self.rest_ms = (slo_ms + min(longer_ms)) / 1e3, rest_ms
        self.longer_ms, self.class_of = longer_ms, class_of
        self.fallback_ms, share = fallback or ({}, 0.0)
        self.served = fallbacks.window_of((), 0.0)
        self.terms = FallbackTerms(functools.partial(fallbacks.allows, self.served, share))
        self.queue, self.pool, self.key_of = StageQueue(slo_ms * 1000, keys_in_order=bool(len(key_of))), Pool(), key_of
        limits = {a.hardware: a.max_batch_size for a in held}
        profile = {kind: {size: ms / 1e3 for size, ms in times.items()} for kind, times in service_ms.items()}
        plans = {}
        for kind, times_s, most in ((a.hardware, profile[a.hardware], a.concurrency) for a in held):
            # Each further batch in hand adds as much again to what one takes.
            slowed = {n: dict.fromkeys(times_s, float(n)) for n in range(2, most + 1)}
            faster_s = {size: ms / 1e3 for size, ms in self.fallback_ms.get(kind, {}).items()}
            plans[kind] = HardwarePlan(limits[kind], times_s, most, slowed, faster_s)
        self.pool.configure(StagePlan(plans))
        self.service_ms, self.hold_ms = service_ms, held[0].hold_s * SECOND
        for number, kind in enumerate(a.hardware for a in held for _ in range(a.replicas)):
            self.pool.attach(f"{kind}-{number}", kind, number)
            self.pool.ready(f"{kind}-{number}", 0.0)
        self.batches = itertools.count()
        self.ended_ms: dict[int, int] = {}
        self.used: set[str] = set()

    def run(self, sent_ms: list[int]) -> list[int]:
        """Return when each event leaves."""
        order = itertools.count()
        # At one instant batches end and events arrive before anything is handed out.
        coming = [(sent + HOP_MS, 0, next(order), event, None) for event, sent in enumerate(sent_ms)]
        heapq.heapify(coming)
        while coming:
            now = coming[0][0]
            while coming and coming[0][0] == now:
                _, _, _, what, batch = heapq.heappop(coming)
                if batch is not None:
                    self._finish(now, batch)
                elif what >= 0:
                    key = int(self.key_of[what]) if len(self.key_of) else 0
                    event = _event(what, sent_ms[what], b"%d" % key if key else None)
                    if len(self.class_of):  # as the intake of its class does
                        event.partition = int(self.class_of[what]) * CLASS_STRIDE
                        event.entered_us += 1000 * self.longer_ms[self.class_of[what]]
                    self.queue.add(event)
            for at, batch in self._kick(now):
                heapq.heappush(coming, (at, 1, next(order), -1, batch))
        return [self.ended_ms[event] for event in range(len(sent_ms))]

    def _kick(self, now: int) -> list[tuple[int, tuple | None]]:
        wakes: list[tuple[int, tuple | None]] = []
        while eligible := self.queue.eligible:
            replica = self.pool.choose(now / 1e3, eligible)
            if replica is None:
                break
            limit = self.pool.limit(replica.hardware)
            needs = (
                None if self.rest_ms is None else self.pool.batch_needs(replica, self.rest_ms / 1e3, self.shortest_s)
            )
            due_ms = self.queue.due_ms(limit if needs is None else needs.cap, self.hold_ms)
            if due_ms > now:
                wakes.append((round(due_ms), None))
                break
            events, _, version = self.queue.take(limit, needs, now * 1e3, self.terms)
            fallbacks.count(self.served, len(events), len(events) if version else 0)
            number = next(self.batches)
            self.pool.begin(replica, len(events), now / 1e3, number, version)
            self.used.add(replica.replica)
            times_ms = self.fallback_ms if version else self.service_ms
            takes_ms = times_ms[replica.hardware][len(events)] * len(replica.hands)
            wakes.append((now + takes_ms, (replica, events, number)))
        return wakes

    def _finish(self, now: int, batch: tuple) -> None:
        replica, events, number = batch
        self.pool.finish(replica, (), now / 1e3, number)
        self.queue.release(events)
        for event in events:
            self.ended_ms[int.from_bytes(event.event_id)] = now


def _event(number: int, sent_ms: int, key: bytes | None = None) -> Event:
    return Event(0, (number,), number.to_bytes(4), 0, sent_ms * 1000, sent_ms, sent_ms, key, [], b"", 1, ())


def with_fallback(profile: PipelineProfile, times_s: dict[str, dict[int, float]], share: float) -> PipelineProfile:
    faster = {
        (stage, kind): replace(
            own, fallback=tuple(ServiceTime(b, s) for b, s in times_s[kind].items()), fallback_share=share
        )
        for (stage, kind), own in profile.profiles.items()
    }
    return replace(profile, profiles=faster)


def arrivals_ms(seed: int, events: int = 400) -> list[int]:
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.gamma(0.25, 4 * float(rng.choice([1.0, 4.0, 20.0])), events)).astype(int).tolist()


@pytest.mark.parametrize("seed", range(24))
def test_the_dispatchers_queue_and_pool_hold_as_the_estimator_says(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    limit, replicas = int(rng.choice([2, 4, 8])), int(rng.integers(1, 6))
    service_ms = {"h": {size: 20 + 3 * size for size in range(1, limit + 1)}}
    held = (Allocation("h", limit, replicas, int(rng.choice([0, 5, 20, 100])) / SECOND),)
    sent_ms = arrivals_ms(seed)
    left_ms = VirtualDispatcher(held, service_ms, slo_ms=100).run(sent_ms)
    sent_s = np.array(sent_ms) / SECOND
    profile = measured(ONE, {"a": {b: ms / SECOND for b, ms in service_ms["h"].items()}}, hop_s=HOP_MS / SECOND)
    found = simulate(ONE, {"a": held}, profile, Trace(sent_s), order_slo_s=100 / SECOND, order="entry")
    assert any(found.stages["a"].batches[2:])
    assert left_ms == ((found.latency_s + sent_s) * SECOND - HOP_MS).tolist()


@pytest.mark.parametrize("seed", range(24))
def test_the_dispatchers_queue_and_pool_keep_the_order_of_keys_as_the_estimator_says(seed: int) -> None:
    rng = np.random.default_rng(3000 + seed)
    limit, replicas = int(rng.choice([1, 4, 8])), int(rng.integers(2, 6))
    service_ms = {"h": {size: 20 + 3 * size for size in range(1, limit + 1)}}
    held = (Allocation("h", limit, replicas, int(rng.choice([0, 5, 20])) / SECOND),)
    sent_ms = arrivals_ms(seed)
    shares = rng.dirichlet(np.full(6, 0.7)) * 0.9
    keys = Keys(tuple((f"k{i}", float(share)) for i, share in enumerate(shares)), ("a",))
    sent_s = np.array(sent_ms) / SECOND
    profile = measured(ONE, {"a": {b: ms / SECOND for b, ms in service_ms["h"].items()}}, hop_s=HOP_MS / SECOND)
    keyed = replace(profile, keys=keys)
    key_of = prepare(ONE, keyed, Trace(sent_s)).keys
    left_ms = VirtualDispatcher(held, service_ms, slo_ms=100, key_of=key_of).run(sent_ms)
    found = simulate(ONE, {"a": held}, keyed, Trace(sent_s), order_slo_s=100 / SECOND, order="entry")
    assert left_ms == ((found.latency_s + sent_s) * SECOND - HOP_MS).tolist()
    unordered = simulate(ONE, {"a": held}, profile, Trace(sent_s), order_slo_s=100 / SECOND, order="entry")
    assert not np.array_equal(found.latency_s, unordered.latency_s)


@pytest.mark.parametrize("seed", range(24))
def test_the_dispatchers_pool_chooses_among_kinds_with_limits_of_their_own_as_the_estimator_says(seed: int) -> None:
    rng = np.random.default_rng(5000 + seed)
    kinds = {"a": (40, 9, 4), "b": (18, 4, 8), "c": (7, 2, 1)}
    service_ms = {k: {b: fixed + each * b for b in range(1, limit + 1)} for k, (fixed, each, limit) in kinds.items()}
    hold_s = int(rng.choice([0, 0, 20])) / SECOND
    chosen = list(kinds)[: int(rng.integers(2, 4))]
    held = tuple(Allocation(k, kinds[k][2], int(rng.integers(1, 4)), hold_s) for k in chosen)
    sent_ms = arrivals_ms(seed)
    left_ms = VirtualDispatcher(held, service_ms, slo_ms=100).run(sent_ms)
    sent_s = np.array(sent_ms) / SECOND
    times = {f"a.{k}": {b: ms / SECOND for b, ms in service_ms[k].items()} for k in chosen}
    profile = measured(ONE, times, hop_s=HOP_MS / SECOND)
    found = simulate(ONE, {"a": held}, profile, Trace(sent_s), order_slo_s=100 / SECOND, order="entry")
    assert left_ms == ((found.latency_s + sent_s) * SECOND - HOP_MS).tolist()


@pytest.mark.parametrize("seed", range(40))
def test_the_dispatchers_queue_puts_the_same_events_last_as_the_estimator(seed: int) -> None:
    """In both kernels: of one kind, and of several, of busy keys or of more than few, held or not, several at once, and
    with a fallback, whose share is spent or is not."""
    rng = np.random.default_rng(7000 + seed)
    kinds = {"a": (40, 9, 4), "b": (18, 4, 8), "c": (7, 2, 1)}
    service_ms = {k: {b: fixed + each * b for b in range(1, limit + 1)} for k, (fixed, each, limit) in kinds.items()}
    keyed, hold_s = bool(seed % 2), int(rng.choice([0, 0, 20])) / SECOND
    at_once = int(rng.integers(1, 4)) if seed % 4 == 3 else 1
    chosen = ["b"] if seed % 4 == 3 else [str(k) for k in rng.permutation(list(kinds))[: int(rng.integers(1, 4))]]
    held = tuple(Allocation(k, kinds[k][2], int(rng.integers(1, 3)), hold_s, at_once) for k in chosen)
    most_per_ms = sum(a.replicas * a.max_batch_size / service_ms[a.hardware][a.max_batch_size] for a in held)
    sent_ms = np.cumsum(rng.gamma(0.5, 2 / (1.1 * most_per_ms), 1200)).astype(int).tolist()
    sent_s, slo_ms, rest_ms = np.array(sent_ms) / SECOND, int(rng.choice([120, 240])), float(rng.choice([0.5, 40.5]))
    times = {f"a.{k}": {b: ms / SECOND for b, ms in service_ms[k].items()} for k in chosen}
    profile = measured(ONE, times, hop_s=HOP_MS / SECOND)
    if at_once > 1:
        contention = tuple(Contention(n, (float(n),) * len(service_ms["b"])) for n in range(2, at_once + 1))
        slowed = {key: replace(own, contention=contention) for key, own in profile.profiles.items()}
        profile = replace(profile, profiles=slowed)
    if keyed:
        many = int(rng.choice([5, 400]))
        profile = replace(profile, keys=Keys(tuple((f"k{i}", 0.9 / many) for i in range(many)), ("a",)))
    longer_ms = (0, -64, 96) if seed % 3 == 0 else (0,)
    classes = tuple(LiveClass(f"c{ms}", 0.3, ms / SECOND) for ms in longer_ms[1:])
    fallback = None
    if seed % 5 < 3:
        faster_ms = {k: {b: -(-ms // int(rng.choice([2, 4]))) for b, ms in service_ms[k].items()} for k in chosen}
        fallback = faster_ms, float(rng.choice([0.125, 1.0]))
        profile = with_fallback(
            profile, {k: {b: ms / SECOND for b, ms in faster_ms[k].items()} for k in chosen}, fallback[1]
        )
    workload = prepare(ONE, replace(profile, classes=classes), Trace(sent_s))
    key_of = workload.keys if keyed else ()
    dispatcher = VirtualDispatcher(
        held, service_ms, slo_ms, key_of, rest_ms, longer_ms=longer_ms, class_of=workload.class_of, fallback=fallback
    )
    left_ms = dispatcher.run(sent_ms)
    serving = station(profile, "a", held, order_slo_s=slo_ms / SECOND, rest_s=rest_ms / SECOND)
    evaluation = evaluate(workload, [serving])
    found = evaluation.latency_s
    assert found is not None
    assert evaluation.statistics[0].degraded == dispatcher.served[fallbacks.DEGRADED]
    assert (evaluation.statistics[0].degraded > 0) == (fallback is not None)
    assert left_ms == ((found + sent_s) * SECOND - HOP_MS).tolist()
    in_order = evaluate(workload, [replace(serving, rest_s=-np.inf)]).latency_s
    assert not np.array_equal(found, in_order)


def test_a_held_pool_leaves_the_replicas_with_the_highest_numbers_idle() -> None:
    service_ms = {"h": {size: 20 + size for size in range(1, 9)}}
    sent_ms = list(range(0, 4000, 4))
    eager = VirtualDispatcher((Allocation("h", 8, 12),), service_ms, slo_ms=100)
    holding = VirtualDispatcher((Allocation("h", 8, 12, 28 / SECOND),), service_ms, slo_ms=100)
    eager.run(sent_ms)
    holding.run(sent_ms)
    assert len(eager.used) > len(holding.used)
    assert holding.used == {f"h-{number}" for number in range(len(holding.used))}


@pytest.mark.parametrize("seed", range(24))
def test_the_dispatchers_pool_gives_replicas_several_batches_at_once_as_the_estimator_says(seed: int) -> None:
    rng = np.random.default_rng(7000 + seed)
    kinds = {"a": (40, 9, 4, 3), "b": (18, 4, 8, 1), "c": (7, 2, 1, 4)}
    chosen = list(kinds)[:: int(rng.choice([1, 2]))] if rng.random() < 0.7 else ["a"]
    service_ms = {k: {b: kinds[k][0] + kinds[k][1] * b for b in range(1, kinds[k][2] + 1)} for k in chosen}
    hold_s = int(rng.choice([0, 0, 20])) / SECOND
    held = tuple(Allocation(k, kinds[k][2], int(rng.integers(1, 4)), hold_s, kinds[k][3]) for k in chosen)
    sent_ms = arrivals_ms(seed)
    left_ms = VirtualDispatcher(held, service_ms, slo_ms=100).run(sent_ms)
    sent_s = np.array(sent_ms) / SECOND
    times = {f"a.{k}": {b: ms / SECOND for b, ms in service_ms[k].items()} for k in chosen}
    profile = measured(ONE, times, hop_s=HOP_MS / SECOND)
    slowed = {
        (stage, k): replace(
            own, contention=tuple(Contention(n, (float(n),) * len(own.batch_sizes)) for n in range(2, kinds[k][3] + 1))
        )
        for (stage, k), own in profile.profiles.items()
    }
    found = simulate(
        ONE, {"a": held}, replace(profile, profiles=slowed), Trace(sent_s), order_slo_s=100 / SECOND, order="entry"
    )
    assert left_ms == ((found.latency_s + sent_s) * SECOND - HOP_MS).tolist()
