"""What one queue per stage is worth on Apache Kafka: replicas saved, and what scaling, stragglers and deaths cost.

Emulated hardware, S(1) = 30 ms, batch 1, 100 events/s with Poisson arrivals, unless it says otherwise. Latency runs
from the source record's timestamp to the sink's append. The producer is open loop (`sent_late_ms_p99`). Both sides run
the same dispatcher, by turns, on the same arrivals; `_bound_dispatcher` gives each replica a queue of its own.

- `bound_over_pooled_2x`, `_4x`: least replicas for a measured P99 within 2 (4) × S(1), a queue each over one queue. A
  queue each is tried up to 4 × the pool: 4 says that it was not enough even then.
- `p99_error_*`: the Estimator's one queue on the same arrivals, against what was measured. Kafka in and out is measured
  at rest (`hop_ms`).
- `scaling_p99_ratio`: 1 → 4 → 1 at 500 events/s with 10,000 keys, P99 from each change to half a second after it is
  done over P99 at rest with one replica. `first_batch_ms`: a new replica's READY to its first result while a backlog
  waits, less its service time.
- `straggler_p99_ratio`: five replicas at 80 events/s, one 3 × slower (so is its successor), over the same without.
  `hang_late_events`: later than 1 s while one holds the interpreter's lock for 10 s, batch deadline 0.3 s.
- `replica_kill_stall_ms_max`: latency of the latest event around a SIGKILL; `dispatcher_kill_recovery_s_p95`: from a
  SIGKILL to the result that ends the silence. Both by when a consumer can read the result, committed.
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from inferline_stream.actuators.actuator import SETTLED_S
from inferline_stream.dataplane.process_specs import Delivery
from inferline_stream.estimator.quantile import quantile_s
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.testing.kafka import find_apache_kafka
from tests.benchmarks._figures import Figures
from tests.benchmarks._live import Passed
from tests.benchmarks._machine import Elsewhere
from tests.benchmarks._pools import PoolBench, Watch, pool

S_S, RATE = 0.030, 100.0
SINGLE = {1: "30ms"}
BATCHED = {1: "30ms", 16: "120ms"}
"""S(b) = 24 + 6 b ms."""

FAST = {1: "2ms", 32: "10ms"}
FAST_RATE, FAST_KEYS = 500.0, 10_000
POOLED, BOUND = (4, 5, 6, 7), (6, 7, 8, 10, 12, 16, 20, 24, 28)
BATCHED_PLANS = ((2, 100.0, 1.0), (3, 150.0, 1.0), (4, 150.0, 2.0))
"""(replicas, rate, CV) with batches to 16."""

ONLY_FULL = "measured without --quick only"


@dataclass(frozen=True, slots=True)
class Work:
    """How much is measured."""

    pooled: tuple[int, ...] = POOLED
    bound: tuple[int, ...] = BOUND
    batched: tuple[tuple[int, float, float], ...] = BATCHED_PLANS
    seconds: float = 25.0
    turns: int = 3
    modes: tuple[Delivery, ...] = ("at_least_once", "exactly_once")
    replica_kills: int = 40
    dispatcher_kills: int = 20
    rest_s: float = 30.0
    quick: bool = False


QUICK = Work((7, 5), (28,), ((3, 150.0, 1.0),), 5.0, 1, ("at_least_once",), 4, 2, 3.0, quick=True)


@dataclass(slots=True)
class Cells:
    """P99 of every run: by side and replicas; and the Estimator's errors by plan."""

    p99_s: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    late_s: list[float] = field(default_factory=list)
    hop_s: float = 0.0

    def median_s(self, side: str, replicas: int) -> float:
        """Median of the turns."""
        return statistics.median(self.p99_s[side, replicas])

    def least(self, side: str, tried: Sequence[int], within_s: float) -> int | None:
        """Fewest replicas whose P99 is within a bound."""
        return next((n for n in sorted(tried) if self.median_s(side, n) <= within_s), None)


def measure(quick: bool) -> Figures:
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        return uvloop.run(_measure(kafka.bootstrap_servers, Path(folder), QUICK if quick else Work()))


async def _measure(servers: str, folder: Path, work: Work) -> Figures:
    elsewhere = Elsewhere()
    cells = Cells()
    await _queues(servers, folder, work, cells)
    figures = _ratios(cells, work)
    if work.quick:
        names = (
            "scaling_p99_ratio",
            "first_batch_ms",
            "straggler_p99_ratio",
            "hang_late_events",
            "duplicated_exactly_once",
        )
        figures |= dict.fromkeys(names) | {f"{name}_reason": ONLY_FULL for name in names}
    else:
        figures |= await _scaling(servers, folder)
        figures |= await _first_batches(servers, folder, 10)
        figures |= await _straggler(servers, folder, 30.0)
    struck = [await _kills(servers, folder, work, mode) for mode in work.modes]
    figures |= _kill_figures(struck)
    return {**figures, "cores_elsewhere": elsewhere.cores()}


# Queues


async def _queues(servers: str, folder: Path, work: Work, cells: Cells) -> None:
    rng = np.random.default_rng(11)
    async with (
        pool(servers, folder, SINGLE) as one,
        pool(servers, folder, SINGLE, queue_each=True) as each,
        pool(servers, folder, BATCHED) as batched,
    ):
        await one.run(gamma_trace(20.0, 1.0, 3.0, rng))  # a broker that has just begun compiles itself
        rest = await one.run(gamma_trace(10.0, 1.0, 4.0 if work.quick else 20.0, rng))
        cells.hop_s = (float(np.median(rest.latency_s)) - S_S) / 2  # into the stage, and out of it
        for _ in range(work.turns):
            trace = gamma_trace(RATE, 1.0, work.seconds, rng)
            sides = [(one, "pooled", n) for n in work.pooled] + [(each, "bound", n) for n in work.bound]
            random.Random(len(cells.late_s)).shuffle(sides)
            for bench, side, replicas in sides:
                sent = await _with_replicas(bench, replicas, trace)
                cells.p99_s[side, replicas].append(quantile_s(sent.latency_s, 0.99))
                if side == "pooled":
                    cells.errors[f"single_{replicas}"].append(_error(one, sent, replicas, cells.hop_s))
            for replicas, rate, cv in work.batched:
                sent = await _with_replicas(batched, replicas, gamma_trace(rate, cv, work.seconds, rng))
                cells.errors[f"batched_{replicas}"].append(_error(batched, sent, replicas, cells.hop_s))
        for bench in (one, each, batched):
            cells.late_s += bench.late_s


async def _with_replicas(bench: PoolBench, replicas: int, trace: Trace) -> Passed:
    await bench.director.scale("work", replicas)
    return await bench.run(trace)


def _error(bench: PoolBench, sent: Passed, replicas: int, hop_s: float) -> float:
    return quantile_s(bench.predicted_s(sent.entry_s, replicas, hop_s), 0.99) / quantile_s(sent.latency_s, 0.99) - 1


def _ratios(cells: Cells, work: Work) -> Figures:
    figures: Figures = {}
    for times in (2, 4):
        name, pooled = f"bound_over_pooled_{times}x", cells.least("pooled", work.pooled, times * S_S)
        if pooled is None:
            figures |= {name: None, f"{name}_reason": f"no pool kept {times} x S(1): the machine was too busy"}
            continue
        tried = [n for n in work.bound if n <= 4 * pooled]
        needed = cells.least("bound", tried, times * S_S)
        if needed is None and not any(n >= 4 * pooled and cells.median_s("bound", n) > times * S_S for n in work.bound):
            figures |= {name: None, f"{name}_reason": f"{work.bound} replicas do not tell, against {pooled}"}
            continue
        figures |= {name: (needed or 4 * pooled) / pooled, f"pooled_replicas_{times}x": pooled}
        if work.quick:
            figures |= {f"{name}_reason": f"of {work.pooled} and {work.bound} replicas only"}
    errors = {plan: statistics.median(map(abs, found)) for plan, found in cells.errors.items()}
    return figures | {
        "p99_error_max": max(errors.values()),
        "p99_error_median": statistics.median(errors.values()),
        "plans": len(errors),
        **{f"p99_error_{plan}": statistics.median(found) for plan, found in cells.errors.items()},
        **{f"{side}_{n}_p99_ms": cells.median_s(side, n) * 1e3 for side, n in sorted(cells.p99_s)},
        "hop_ms": cells.hop_s * 1e3,
        "sent_late_ms_p99": float(np.quantile(cells.late_s, 0.99)) * 1e3,
    }


# Scaling


async def _scaling(servers: str, folder: Path, cycles: int = 5) -> Figures:
    rng = np.random.default_rng(12)
    keys = [b"%d" % n for n in rng.integers(0, FAST_KEYS, 50_000)]
    windows: list[tuple[float, float]] = []
    rests: list[tuple[float, float]] = []
    async with pool(servers, folder, FAST) as bench:
        before = await bench.ends()
        trace = gamma_trace(FAST_RATE, 1.0, cycles * 8.0 + 4.0, rng)
        sending = asyncio.create_task(bench.send(trace, keys))
        await asyncio.sleep(2.0)
        for _ in range(cycles):
            rests.append((time.time(), time.time() + 3.0))
            await asyncio.sleep(3.0)
            for replicas in (4, 1):
                began_s = time.time()
                await bench.director.scale("work", replicas)
                await asyncio.sleep(0.5)
                windows.append((began_s, time.time()))
                await asyncio.sleep(1.0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await bench.all_out(before, len(bench.late_s), timeout_s=2.0)
        sent = await bench.passed(before)
    rest_s = float(np.quantile(sent.latency_s[sent.within(rests)], 0.99))
    changes_s = [float(np.quantile(sent.latency_s[sent.within([window])], 0.99)) for window in windows]
    changing_s = statistics.median(changes_s)
    return {
        "scaling_p99_ratio": changing_s / rest_s,
        "scaling_p99_added_ms": (changing_s - rest_s) * 1e3,
        "scaling_p99_at_rest_ms": rest_s * 1e3,
        "scaling_changes": len(windows),
    }


async def _first_batches(servers: str, folder: Path, times: int) -> Figures:
    took_s = []
    async with pool(servers, folder, SINGLE) as bench:
        before, known = await bench.ends(), {r.replica for r in bench.director.ready("work")}
        sending = asyncio.create_task(bench.send(gamma_trace(RATE, 1.0, times * 4.0, np.random.default_rng(13))))
        ready_s: dict[bytes, float] = {}
        for _ in range(times):
            await asyncio.sleep(0.5)  # the queue is never empty: two replicas pass 67 of 100 a second
            await bench.director.scale("work", 2)
            (new,) = {r.replica for r in bench.director.ready("work")} - known
            ready_s[b"%d" % await bench.director.pid(new)] = bench.director.ready_s(new)
            await asyncio.sleep(0.5)
            await bench.director.scale("work", 1)
            known = {r.replica for r in bench.director.ready("work")}
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        sent = await bench.passed(before)
    for pid, at_s in ready_s.items():
        outs = [o for o, value in zip(sent.out_s, sent.values, strict=True) if value.partition(b"/")[0] == pid]
        if outs:
            took_s.append(min(outs) - at_s - S_S)
    return {
        "first_batch_ms": statistics.median(took_s) * 1e3,
        "first_batch_ms_max": max(took_s) * 1e3,
        "first_batches": len(took_s),
    }


# Stragglers


async def _straggler(servers: str, folder: Path, seconds: float) -> Figures:
    rng = np.random.default_rng(14)
    p99_s: dict[bool, list[float]] = {False: [], True: []}
    settings = {"batch_deadline_s": 0.3}
    async with pool(servers, folder, SINGLE, stage="Lame", forked=False, settings=settings) as bench:
        home = bench.director.topology.parent
        await bench.director.scale("work", 5)
        await bench.run(gamma_trace(80.0, 1.0, 3.0, rng))
        for _ in range(3):
            trace = gamma_trace(80.0, 1.0, seconds, rng)
            for slow in (False, True):
                (home / "slow").touch() if slow else (home / "slow").unlink(missing_ok=True)
                p99_s[slow].append(quantile_s((await bench.run(trace)).latency_s, 0.99))
        (home / "slow").unlink()
        replaced = sum("slower" in gone.reason for gone in bench.director.exits)
        (home / "hang").touch()
        hung = await bench.run(gamma_trace(80.0, 1.0, 14.0, rng))
        dead = len(await bench.director.letters("work"))
    return {
        "straggler_p99_ratio": statistics.median(b / a for a, b in zip(p99_s[False], p99_s[True], strict=True)),
        "straggler_p99_ms": statistics.median(p99_s[True]) * 1e3,
        "straggler_replacements": replaced,
        "hang_late_events": int((hung.latency_s > 1.0).sum()),
        "hang_worst_ms": float(hung.latency_s.max()) * 1e3,
        "hang_dead_lettered": dead,
    }


# Kills


@dataclass(slots=True)
class Struck:
    """What kills did to one pool."""

    mode: str
    stalls_s: list[float]
    recoveries_s: list[float]
    rest_p99_s: float
    lost: int
    duplicated: int
    reloaded: int


async def _kills(servers: str, folder: Path, work: Work, mode: Delivery) -> Struck:
    rng, choose = np.random.default_rng(15), random.Random(15)
    each_s, recover_s = 1.0, SETTLED_S + 0.2  # one that dies sooner is not started again at once
    async with pool(servers, folder, SINGLE, delivery=mode) as bench, Watch(bench) as watch:
        director = bench.director
        await director.scale("work", 5)
        await bench.run(gamma_trace(50.0, 1.0, 1.5, rng))
        already = len(watch.events)
        most_s = work.rest_s + 3 * (work.replica_kills * each_s + work.dispatcher_kills * recover_s)
        sending = asyncio.create_task(bench.send(gamma_trace(RATE, 1.0, most_s, rng)))
        resting = [(time.time(), time.time() + work.rest_s)]
        await asyncio.sleep(work.rest_s)
        replica_kills = []
        for _ in range(work.replica_kills):
            replica_kills.append(time.time())
            await director.kill(choose.choice(director.ready("work")).replica)
            await asyncio.sleep(each_s * choose.uniform(0.9, 1.1))
            await director.until(lambda: len(director.ready("work")) == 5, "five replicas are ready", 30.0)
        pids = {pid for name, pid in (await director.pids()).items() if name != director.dispatcher("work")}
        dispatcher_kills = []
        for number in range(work.dispatcher_kills):
            dispatcher_kills.append(time.time())
            await director.kill(director.dispatcher("work"))
            await director.until(functools.partial(_is_back, bench, number + 2), "the dispatcher is back", 30.0)
            await asyncio.sleep(recover_s * choose.uniform(1.0, 1.1) if number + 1 < work.dispatcher_kills else 1.0)
        after = {pid for name, pid in (await director.pids()).items() if name != director.dispatcher("work")}
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await director.producer.flush()
        (sent,) = [await _records(bench)]
        await _until_seen(watch, sent)
        letters = len(await director.letters("work"))
    entry_s, out_s = np.array(watch.entry_s), np.array(watch.out_s)
    latency_s = out_s - entry_s
    first = {name: at for at, name in reversed(list(enumerate(watch.events)))}
    once = np.array(sorted(first.values()))
    at_rest = once[(once >= already) & _within(entry_s[once], resting)]
    stalls_s = [
        float(latency_s[once][_within(entry_s[once], [(at - 0.3, at + 0.5)])].max(initial=0.0)) for at in replica_kills
    ]
    return Struck(
        mode,
        stalls_s,
        [_silence_s(np.sort(out_s), at) for at in dispatcher_kills],
        float(np.quantile(latency_s[at_rest], 0.99)),
        sent - len(first) + letters,
        len(watch.events) - len(first),
        len(after - pids),
    )


def _is_back(bench: PoolBench, incarnation: int) -> bool:
    report = bench.director.reports[bench.director.dispatcher("work")]
    return report.incarnation == incarnation and report.phase == "serving" and len(bench.director.ready("work")) == 5


async def _records(bench: PoolBench) -> int:
    topic = bench.director.names.topic("in")
    return sum((await bench._offsets.ends({topic: len(await bench.director.producer.partitions_for(topic))}))[topic])


async def _until_seen(watch: Watch, events: int, timeout_s: float = 15.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while len(set(watch.events)) < events and time.monotonic() < deadline_s:
        await asyncio.sleep(0.1)


def _within(times_s: np.ndarray, windows: list[tuple[float, float]]) -> np.ndarray:
    inside: np.ndarray = np.any([(times_s >= start) & (times_s < end) for start, end in windows], axis=0)
    return inside


def _silence_s(out_s: np.ndarray, killed_s: float) -> float:
    """From the kill to the end of the longest silence around it."""
    near_s = out_s[(out_s > killed_s - 0.2) & (out_s < killed_s + SETTLED_S - 1.0)]
    if near_s.size < 2:
        return math.inf
    longest = int(np.argmax(np.diff(near_s)))
    return float(near_s[longest + 1] - killed_s)


def _kill_figures(struck: Sequence[Struck]) -> Figures:
    found: Figures = {
        "replica_kill_stall_ms_max": max(max(s.stalls_s) for s in struck) * 1e3,
        "dispatcher_kill_recovery_s_p95": float(
            np.quantile([r for s in struck for r in s.recoveries_s], 0.95, method="higher")
        ),
        "lost": sum(s.lost for s in struck),
        "models_reloaded": sum(s.reloaded for s in struck),
    }
    for s in struck:
        found |= {
            f"replica_kill_stall_ms_max_{s.mode}": max(s.stalls_s) * 1e3,
            f"replica_kill_stall_ms_allowed_{s.mode}": (s.rest_p99_s + S_S + 0.05) * 1e3,
            f"p99_at_rest_ms_{s.mode}": s.rest_p99_s * 1e3,
            f"dispatcher_kill_recovery_s_p95_{s.mode}": float(np.quantile(s.recoveries_s, 0.95, method="higher")),
            f"dispatcher_kill_recovery_s_median_{s.mode}": statistics.median(s.recoveries_s),
            f"duplicated_{s.mode}": s.duplicated,
        }
    return found
