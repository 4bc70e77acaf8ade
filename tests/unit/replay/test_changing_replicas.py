"""Replicas that come and go at a stage that keeps the order of keys, or runs several batches at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from inferline_stream.errors import UsageError
from inferline_stream.estimator.kernels import TIE
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.group_profile import Sharing
from inferline_stream.pipeline.keys import Keys
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Contention, PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.policy_view import Glimpse, View
from inferline_stream.replay.scalers import Scheduled, Wish
from tests.unit.replay.test_loop import ONE, run

BUSY_KEYS = Keys((("a", 0.3), ("b", 0.2), ("c", 0.1)), ("a",))


def waiting(service_s: float, *, keys: Keys | None = None, kinds: str = "x", start_up_s: float = 0.0):
    """A stage whose replicas of the first kind take this long for one event, of the next ten times as long each."""
    profiles = {}
    for i, kind in enumerate(kinds):
        times = tuple(ServiceTime(b, 10**i * service_s * (1 + b / 4)) for b in (1, 2, 4))
        slower = (Contention(2, (1.125, 1.25, 1.25)), Contention(4, (1.5, 1.75, 2.0)))
        profiles["a", kind] = Profile("a", kind, times, start_up_s, contention=slower)
    return PipelineProfile(profiles, Paths((0,), (1.0,)), keys=keys or Keys())


@dataclass
class ByHand:
    """One stage, instant by instant, with lists of everything."""

    profile: Profile
    limit: int
    at_once: int
    keys: list[int]
    waits: list[int] = field(default_factory=list)
    ends_s: dict[int, list[tuple[float, list[int]]]] = field(default_factory=dict)
    """By replica, the batches in hand."""
    leaving: set[int] = field(default_factory=set)
    came: int = 0
    left_s: dict[int, float] = field(default_factory=dict)
    gone_s: dict[int, float] = field(default_factory=dict)
    """By event, when its batch ended."""

    def run(self, times_s: list[float], changes: list[tuple[float, int]]) -> None:
        """``changes``: from then on so many replicas."""
        coming, events = list(changes), list(enumerate(times_s))
        while coming or events or any(self.ends_s.values()):
            ends_s = [end_s for batches in self.ends_s.values() for end_s, _ in batches]
            now_s = min([*ends_s, *(t for _, t in events[:1]), *(t for t, _ in coming[:1])])
            if coming and coming[0][0] == now_s:
                self.scale(coming.pop(0)[1], now_s)
            for replica, batches in self.ends_s.items():
                for end_s, batch in batches:
                    self.gone_s |= dict.fromkeys(batch, end_s) if end_s == now_s else {}
                self.ends_s[replica] = [entry for entry in batches if entry[0] > now_s]
            while events and events[0][1] == now_s:
                self.waits.append(events.pop(0)[0])
            self.dispatch(now_s)

    def scale(self, count: int, now_s: float) -> None:
        working = [replica for replica in self.ends_s if replica not in self.leaving]
        for _ in range(count - len(working)):
            self.ends_s[self.came] = []
            self.came += 1
        for _ in range(len(working) - count):
            done_s = {r: max([now_s, *(end for end, _ in self.ends_s[r])]) for r in reversed(working)}
            first = min(done_s, key=done_s.__getitem__)
            self.left_s[first] = done_s[first]
            self.leaving.add(first)
            working.remove(first)

    def dispatch(self, now_s: float) -> None:
        while True:
            in_hand = {self.keys[e] for batches in self.ends_s.values() for _, batch in batches for e in batch} - {0}
            eligible = [event for event in self.waits if self.keys[event] not in in_hand]
            free = [r for r, held in self.ends_s.items() if r not in self.leaving and len(held) < self.at_once]
            if not eligible or not free:
                return
            size = min(self.limit, len(eligible))
            best = free[0]
            for replica in free:
                if self.takes_s(replica, size) * TIE < self.takes_s(best, size):
                    best = replica
            first_of = {key: eligible.index(e) for e in reversed(eligible) if (key := self.keys[e])}
            together = sorted(eligible, key=lambda e: (first_of.get(self.keys[e], eligible.index(e)), e))
            batch = together[: self.limit]
            self.waits = [event for event in self.waits if event not in batch]
            self.ends_s[best].append((now_s + self.takes_s(best, len(batch)), batch))

    def takes_s(self, replica: int, size: int) -> float:
        return self.profile.beside(len(self.ends_s[replica]) + 1).service_time_s(size)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grid_s", [0.0, 1 / 32])
@pytest.mark.parametrize(("at_once", "keys"), [(1, BUSY_KEYS), (3, Keys()), (4, BUSY_KEYS)])
def test_replicas_come_with_all_their_places_free_and_leave_with_their_last_batch(seed, at_once, keys, grid_s):
    """On a grid of exact binary fractions, where nearly everything happens at the same instants, and off it."""
    rng = np.random.default_rng(seed)
    measured = waiting(0.1875 if grid_s else 0.2, keys=keys)
    times_s = np.cumsum(rng.exponential(0.02, 600))
    trace = Trace(np.floor(times_s / grid_s) * grid_s if grid_s else times_s)
    changes = [(float(t), int(rng.integers(1, 7))) for t in np.arange(1.0, 11.0, 0.375)]
    held = {"a": (Allocation("x", int(rng.integers(1, 5)), 2, concurrency=at_once),)}
    plan = Scheduled("by the clock", [(t, {"a": {"x": count}}) for t, count in changes])
    found = run(measured, held, trace, plan, seed=seed)
    workload = prepare(ONE, measured, trace, seed=seed)
    lanes = workload.lanes(0).tolist() or [0] * len(trace)
    expected = ByHand(measured.profiles["a", "x"], held["a"][0].max_batch_size, at_once, lanes)
    asked_s = [step.time_s for step in found.steps]
    expected.run(trace.arrivals_s.tolist(), [(-1.0, 2), *zip(asked_s, [n for _, n in changes], strict=False)])
    gone_s = np.array([expected.gone_s[event] for event in range(len(trace))])
    assert found.latency_s == pytest.approx(gone_s - trace.arrivals_s, abs=1e-9)
    end_s = float(trace.arrivals_s[-1])
    counted_s = end_s * 2  # the first ones are there from 0 on
    for (t, n), before in zip(changes[: len(asked_s)], [2, *(n for _, n in changes)], strict=False):
        counted_s += max(0, n - before) * (end_s - t)
    counted_s -= sum(max(0.0, end_s - t) for t in expected.left_s.values())
    assert found.replica_hours["a", "x"] * 3600 == pytest.approx(counted_s)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost_and_no_key_overtaken_however_replicas_of_two_kinds_come_and_go(seed):
    rng = np.random.default_rng(seed)
    measured = waiting(0.02, keys=BUSY_KEYS, kinds="xy", start_up_s=0.35)
    trace = Trace(np.cumsum(rng.exponential(0.02, 2000)))
    steps = [
        (t, {"a": {"x": int(rng.integers(0, 5)), "y": int(rng.integers(0, 9))}}) for t in np.arange(1.0, 38.0, 0.7)
    ]
    steps.append((38.5, {"a": {"x": 3, "y": 1}}))
    hold_s = float(rng.choice([0.0, 0.05]))
    held = {"a": tuple(Allocation(kind, 4, 1, hold_s, int(rng.integers(1, 5))) for kind in "xy")}
    found = run(measured, held, trace, Scheduled("by the clock", steps), seed=seed)
    assert np.isfinite(found.latency_s).all()
    assert found.latency_s.min() >= 0.02 * 1.25 - 1e-9
    lanes = prepare(ONE, measured, trace, seed=seed).lanes(0)
    for key in (1, 2, 3):
        gone_s = (trace.arrivals_s + found.latency_s)[lanes == key]
        assert (np.diff(gone_s) > -1e-9).all()


@pytest.mark.parametrize("most", [90, 700])
def test_any_number_of_places_serves_at_once(most):
    trace = Trace(np.concatenate([np.arange(0.0, 6.0, 2.0), np.full(4 * most, 8.0), [20.0]]))
    steps = [(3.0, {"a": {"x": most}}), (9.0, {"a": {"x": 1}})]
    alone = waiting(1.0).profiles["a", "x"].service_time_s
    held = {"a": (Allocation("x", 1, 1, concurrency=4),)}
    found = run(waiting(1.0), held, trace, Scheduled("many", steps))
    at_once = found.latency_s[3:-1]
    assert [int((np.abs(at_once - alone(1, n)) < 1e-9).sum()) for n in (1, 2, 3, 4)] == [most] * 4


def test_what_waits_for_a_fast_replica_goes_to_a_slow_one_once_the_fast_one_leaves():
    """A fast one (0.25 s) and a slow one (2.5 s): the second event waits for the fast one, which leaves at 0.1 s."""
    for concurrency, keys in ((1, BUSY_KEYS), (2, Keys())):
        held = {"a": (Allocation("x", 1, 1, concurrency=1), Allocation("y", 1, 1, concurrency=concurrency))}
        trace = Trace(np.array([0.0, 0.05, 9.0]))
        leaves = Scheduled("less", [(0.1, {"a": {"x": 0}})])
        quiet = Keys((("rare", 1e-9),), keys.ordered)
        found = run(waiting(0.2, keys=quiet, kinds="xy"), held, trace, leaves)
        assert found.latency_s == pytest.approx([0.25, 0.05 + 2.5, 2.5])
        stays = run(waiting(0.2, keys=quiet, kinds="xy"), held, trace)
        assert stays.latency_s == pytest.approx([0.25, 0.2 + 0.25, 0.25])


@dataclass
class Watching:
    name: str = "watching"
    period_s: float = 0.5
    seen: list[Glimpse] = field(default_factory=list)

    def decide(self, view: View) -> Wish | None:
        self.seen.append(view.now[0])
        return None


def test_a_policy_sees_the_share_of_places_that_are_busy_and_the_oldest_event_that_has_not_left():
    """Two replicas of two places: of the first three events two take 1.25 s, the third, beside another, 1.40625 s."""
    watching = Watching()
    held = {"a": (Allocation("x", 1, 2, concurrency=2),)}
    trace = Trace(np.array([0.0, 0.1, 0.2, 1.6, 1.7, 1.8, 1.85, 1.9, 6.0]))
    run(waiting(1.0), held, trace, watching)
    by_time = {glimpse.time_s: glimpse for glimpse in watching.seen}
    assert by_time[0.5].places == 4
    assert by_time[0.5].busy_share(None) == pytest.approx(min(1.0, (1.25 + 1.25 + 1.40625) / (0.5 * 4)))
    assert by_time[1.5].busy_share(None) == pytest.approx((1.25 + 1.25 + 1.40625) / (1.5 * 4))
    assert [(by_time[t].lag, by_time[t].oldest_s) for t in (0.5, 1.5, 2.0)] == [(3, 0.0), (1, 0.2), (5, 1.6)]
    assert (by_time[5.5].lag, by_time[5.5].oldest_s) == (0, None)


def test_members_of_a_consumer_group_run_one_batch_at_a_time():
    held = {"a": (Allocation("x", 1, 1, concurrency=2),)}
    with pytest.raises(UsageError, match="stage 'a' runs several batches at once"):
        run(waiting(0.1), held, Trace(np.array([0.0, 1.0])), sharing={"a": Sharing(3)})
    keyed = run(
        waiting(0.1, keys=BUSY_KEYS), {"a": (Allocation("x", 1, 1),)}, Trace(np.arange(9.0)), sharing={"a": Sharing(3)}
    )
    assert keyed.latency_s == pytest.approx(np.full(9, 0.125))
    assert math.isfinite(keyed.cost)
