"""Stages of many results as they run: two plans beside their estimates, and events that would give ten million results.

`fan_out` is a plan by hand on emulated hardware, where an event has none to eight results that are gathered; `ocr` is
the Planner's for the example with real models. Both run on Apache Kafka and are measured as `fidelity` has it.

Then a stage with `most=` 12 is sent events that would give ten million results, as an iterator and as a list that is
there at once. `hostile_good_lost` are good events without a record in the sink or with another one than they should
have, `hostile_dead_letters` of `hostile_events`; `hostile_dispatcher_mb`, `hostile_iterator_mb` and `hostile_list_mb`
what dispatchers and replicas had more at any moment than before. The list is the stage's own: eight bytes a result.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import uvloop

from inferline_stream.actuators.local import LocalActuator
from inferline_stream.dataplane.dead_letters import dead_letters
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.shape import FanOut, Paths
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.testing.kafka import EmbeddedKafka, find_apache_kafka
from tests.benchmarks.fidelity import CASES, REAL, REAL_S, of_plans, real, tried
from tests.support.emulated_runs import emulated_run, on_this_host, records_in

HOSTILE = """
from inferline_stream import Pipeline, Sample, Stage, Topic

MANY = 10_000_000
QUICK = {"hardware": ["emulated-cpu"], "emulated": {1: "1ms", 16: "2ms"}, "max_batch_size": 16}


def split(events: list[str]) -> list[list[int]]:
    return [iter(range(MANY)) if event == "iterator" else [0] * MANY if event == "list" else range(int(event))
            for event in events]


def text(lists: list[list[int]]) -> list[list[int]]:
    return lists


many = Stage("split", split, many=True, most=12, **QUICK)
pipeline = Pipeline("hostile", slo="500ms", source=Topic("in", partitions=2), sink=Topic("out", partitions=1),
                    stages=[many, Stage("text", text, after=[many.gathered()], **QUICK)],
                    sample=Sample(arrivals="arrivals.csv", events="events.jsonl"))
"""

GOOD = 50
"""Good events before each kind of hostile one, and after the last."""

Figures = dict[str, float | int | str | None]


def measure(quick: bool) -> Figures:
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka() as kafka:
        found = uvloop.run(hostile(kafka.bootstrap_servers, Path(folder), 3 if quick else 10))
    with tempfile.TemporaryDirectory() as folder, find_apache_kafka() as kafka:
        return found | uvloop.run(_fidelity(kafka.bootstrap_servers, Path(folder), quick))


async def _fidelity(bootstrap_servers: str, folder: Path, quick: bool) -> Figures:
    plans = {"fan_out": await tried(CASES["fan_out"], "fan_out", bootstrap_servers, folder, quick)}
    plans |= await real(bootstrap_servers, folder, {"ocr": REAL["ocr"]}, REAL_S / 2 if quick else REAL_S)
    return of_plans(plans)


async def hostile(bootstrap_servers: str, folder: Path, times: int) -> Figures:
    """Send good events, and between them so many of each hostile kind."""
    (folder / "topology.py").write_text(HOSTILE)
    (folder / "arrivals.csv").write_text("arrival_s\n0.0\n0.5\n")
    (folder / "events.jsonl").write_text('"1"\n')
    run = emulated_run(folder, bootstrap_servers, folder, levels=[(20, 1)])
    fan_out = FanOut(0, (0, 12), (0.5, 0.5), (1,), (1.0,))
    run = replace(run, feed=None, measured=replace(run.measured, paths=Paths((0,), (1.0,), (fan_out,))))
    source = Names(run.pipeline.name, run.records.prefix).topic("in")
    sent: Counter[str] = Counter()
    grown: dict[str, tuple[float, float]] = {}
    async with on_this_host(run, 300) as (under_way, actuator):

        async def put(events: Iterable[str]) -> None:
            for number, event in enumerate(events):
                value = json.dumps(event).encode()
                await write_once(bootstrap_servers, Record.keyed(source, f"{event} {number}", value, number % 2))
                sent[event] += 1
            while await _finished(under_way) < sent.total():
                await asyncio.sleep(0.1)

        for kind in ("iterator", "list"):
            await put(str(count % 13) for count in range(GOOD))
            before = await _peaks(under_way, actuator)
            await put([kind] * times)
            after = await _peaks(under_way, actuator)
            grown[kind] = tuple(  # type: ignore[assignment]
                max(after[name] - before[name] for name in after.keys() & before.keys() if name[0] == role)
                for role in ("dispatcher", "replica")
            )
        await put(str(count % 13) for count in range(GOOD))
        report = await under_way.report(await under_way.drain())
    expected = Counter(str(list(range(int(event)))) for event in sent.elements() if event.isdigit())
    found = Counter(str(json.loads(record.value or b"")) for record in await records_in(run, "out"))
    letters = await dead_letters(bootstrap_servers, run.pipeline, run.records.prefix)
    return {
        "hostile_events": sent["iterator"] + sent["list"],
        "hostile_dead_letters": sum(letter.says("type") == "TooManyResults" for letter in letters),
        "hostile_good_lost": (expected - found).total() + (found - expected).total() + report.lost,
        "hostile_dispatcher_mb": round(max(dispatcher for dispatcher, _ in grown.values()), 1),
        "hostile_iterator_mb": round(grown["iterator"][1], 1),
        "hostile_list_mb": round(grown["list"][1], 1),
    }


async def _finished(under_way: LiveRun) -> int:
    """Events that the first stage is through with."""
    return under_way.controller.view.reports.total("split").events


async def _peaks(under_way: LiveRun, actuator: LocalActuator) -> dict[tuple[str, str], float]:
    """Most memory that each process ever had, in MiB, by its role and name."""
    await asyncio.sleep(1.0)
    living = [("replica", each.replica, each.pid) for each in await actuator.observe() if each.state == "running"]
    living += [("dispatcher", each.dispatcher, each.pid) for each in await actuator.dispatchers()]
    found = {}
    for role, name, pid in living:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        found[role, name] = int(lines["VmHWM"].split()[0]) / 1024
    return found
