"""Randomized faults under load on Apache Kafka, with an oracle that accounts for every event id.

A pipeline of three stages with a conditional branch and a join (emulated hardware) runs under a steady load while the
faults of `tests.support.faults` strike: replicas, dispatchers and the controller killed or frozen beyond
their lease, the supervisor killed with all its children, a join's partner killed, the broker restarted, killed,
unreachable and slow, the disk of the sink's file full, poison.
Each strikes once while the pipeline delivers at least once, and once exactly once; kills of replicas and dispatchers
strike `KILL_ROUNDS` times more, two at once, since some of what goes wrong does so in one kill out of a hundred. All in
random order; it takes about ten minutes, and says after each round what it has found until then.

`recovery_s_p95`: from a fault's end to the last event that was late because of it: what had queued up meanwhile is
worked off with the capacity that the plan leaves. `resumed_s_p95`: to the first result. `KIND_struck_s`: how long the
fault itself lasted; a broker's restart takes what the machine gives it. `lost`: events that neither reached the sink
nor ended for a recorded reason, and results that the sink's file lacks. `duplicated_exactly_once`: sink records beyond
the first of an event, read with read_committed, in the exactly-once half. `misbehaved`: what else went otherwise than
it should; `notes` name it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inferline_stream.controlplane.observe.event_ledger import EventLedger
from inferline_stream.dataplane.process_specs import Delivery
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.trace import levels_trace
from inferline_stream.testing.local_kafka import LocalKafka
from tests.benchmarks._figures import Figures
from tests.benchmarks._live import passed_through
from tests.support.controller_process import Controlled
from tests.support.emulated_runs import trace_feed
from tests.support.faults import FAULTS, scene

SWING = Path(__file__).parents[1] / "scenarios" / "swing"
RATE = 60.0
SLO_S = 0.4
KILLS, KILL_ROUNDS = ("kill_replica", "kill_join_partner", "kill_dispatcher"), 10
AT_ONCE = 2
"""Kills in each of these rounds."""

QUICK = (("kill_replica", "kill_dispatcher"), ("kill_dispatcher", "kill_controller"))

DELIVERIES: tuple[Delivery, ...] = ("at_least_once", "exactly_once")
"""By half of the faults."""


def measure(quick: bool) -> Figures:
    halves = []
    with LocalKafka() as kafka, tempfile.TemporaryDirectory() as folder:
        for half, delivery in enumerate(DELIVERIES):
            rounds = [(kind, 1) for kind in (QUICK[half] if quick else FAULTS)]
            rounds += [] if quick else [(kind, AT_ONCE) for kind in KILLS] * KILL_ROUNDS
            random.Random(f"faults-{half}").shuffle(rounds)
            controlled = swing(kafka.bootstrap_servers, Path(folder) / delivery, delivery)
            halves.append(asyncio.run(strike(kafka, controlled, rounds, quick=quick)))
    recoveries = [(seconds, kind) for half in halves for seconds, kind in half.recovery_s]
    return {
        "rounds": len(recoveries),
        **{f"kills_{delivery}": half.kills for delivery, half in zip(DELIVERIES, halves, strict=True)},
        "lost": sum(half.ledger.lost()[0] + sum(1 for n in half.file_differs.values() if n < 0) for half in halves),
        "duplicated_exactly_once": halves[1].ledger.duplicated,
        "recovery_s_p95": float(np.quantile([s for s, _ in recoveries], 0.95, method="higher")),
        "recovery_s_median": statistics.median(s for s, _ in recoveries),
        "recovery_s_max": max(recoveries)[0],
        "worst_fault": max(recoveries)[1],
        "resumed_s_p95": float(np.quantile([s for half in halves for s in half.resumed_s], 0.95, method="higher")),
        "duplicated_at_least_once": halves[0].ledger.duplicated,
        "duplicated_in_the_file": sum(n for half in halves for n in half.file_differs.values() if n > 0),
        "misbehaved": sum(len(half.notes) for half in halves),
        "notes": "; ".join(note for half in halves for note in half.notes),
        "events": sum(half.ledger.events_in for half in halves),
        "unknown": sum(half.ledger.unknown for half in halves),
        **{f"{kind}_s": _summary(recoveries, kind) for kind in FAULTS},
        **{f"{kind}_struck_s": _summary([s for half in halves for s in half.struck_s], kind) for kind in FAULTS},
    }


def _summary(seconds: list[tuple[float, str]], kind: str) -> str | None:
    own = [s for s, k in seconds if k == kind]
    return f"{statistics.median(own):.1f}, at most {max(own):.1f}" if own else None


@dataclass(slots=True)
class Half:
    """What one pipeline went through."""

    ledger: EventLedger
    recovery_s: list[tuple[float, str]]
    resumed_s: list[float]
    struck_s: list[tuple[float, str]]
    file_differs: Counter[str]
    kills: int
    """Of replicas, dispatchers and supervisors."""
    notes: list[str] = field(default_factory=list)


def swing(bootstrap_servers: str, folder: Path, delivery: Delivery) -> Controlled:
    """The pipeline that is struck."""
    folder.mkdir()
    return Controlled(
        topology=str(SWING / "topology.py"),
        bootstrap_servers=bootstrap_servers,
        folder=str(folder),
        prefix=f"f{secrets.token_hex(3)}.",
        replicas={"parse": 2, "check": 2, "decide": 2},
        conditional=[("parse", "check", 1 / 3)],
        planned_rate=RATE,
        delivery=delivery,
    )


async def strike(kafka: LocalKafka, controlled: Controlled, rounds: list[tuple[str, int]], *, quick: bool) -> Half:
    """Feed a pipeline, strike it with these faults in turn, each so many times, and account for everything."""
    kinds, pause_s = [kind for kind, _ in rounds], 2.0 if quick else 1.0
    topic = Names("swing", controlled.prefix).topic("decisions")
    settings = {"message.timestamp.type": "LogAppendTime"}
    await create_topics(controlled.bootstrap_servers, [WantedTopic(topic, 4, "stamped by the broker", settings)])
    trace = levels_trace([(RATE, 1500.0)], 1.0, np.random.default_rng(7))
    feeding = Path(controlled.folder) / "feed"
    feeding.mkdir()
    feed_to = trace_feed(trace, SWING / "orders.jsonl", feeding, "number")
    seed, long_s = len(rounds), 4.0 if quick else 5.0
    async with scene(kafka, controlled, seed=seed, long_s=long_s, branch="check", poison=b'{"number": -1}') as struck:
        async with feed_to(controlled.bootstrap_servers, struck.context.source) as feed:
            await feed.ready()
            feed.start()
            await asyncio.sleep(pause_s)
            spans = []
            for number, (kind, times) in enumerate(rounds, 1):
                spans.append(await struck.strike(kind, times))
                began_s, ended_s = spans[-1]
                took = f"{ended_s - began_s:.1f} s, calm after {time.time() - ended_s:.1f} s"
                where = f"{controlled.delivery} {number}/{len(rounds)}"
                sys.stderr.write(f"{where} {kind} × {times}: {took}, {struck.notes}\n")
                await asyncio.sleep(pause_s)
            feed.stop()
            await feed.finished()
        async with Offsets(controlled.bootstrap_servers) as offsets:
            if not await struck.drained(offsets):
                struck.notes.append("something is left behind")
            ledger = await struck.ledger(offsets)
            differs = await struck.file_differs(offsets)
            (sink,) = struck.context.sinks.values()
            sent = await passed_through(controlled.bootstrap_servers, sink, offsets)
        notes = [*struck.notes, *["the file was written by another process"] * struck.restarts]
    late = sent.latency_s > SLO_S
    recovery_s, resumed_s = [], []
    for kind, (_, end_s), (next_s, _) in zip(kinds, spans, [*spans[1:], (float("inf"), 0.0)], strict=True):
        own = late & (sent.out_s > end_s) & (sent.entry_s < next_s) & (sent.out_s < next_s)
        recovery_s.append((float(sent.out_s[own].max() - end_s) if own.any() else 0.0, kind))
        after_s = sent.out_s[(sent.out_s > end_s) & (sent.out_s < next_s)]
        resumed_s.append(float(after_s.min() - end_s) if after_s.size else next_s - end_s)
    struck_s = [(end_s - began_s, kind) for kind, (began_s, end_s) in zip(kinds, spans, strict=True)]
    return Half(ledger, recovery_s, resumed_s, struck_s, differs, len(struck.killed), notes)
