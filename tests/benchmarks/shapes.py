"""Stages of many results as they run: two plans beside their estimates, hostile events, and random trees of stages.

`fan_out` is a plan by hand on emulated hardware, where an event has none to eight results that are gathered; `ocr` is
the Planner's for the example with real models (not with ``--quick``). Both run on Apache Kafka and are measured as
`fidelity` has it.

Then a stage with `most=` 12 is sent events that would give ten million results, as an iterator and as a list that is
there at once. `hostile_good_lost` are good events without a record in the sink or with another one than they should
have, `hostile_dead_letters` of `hostile_events`; `hostile_dispatcher_mb`, `hostile_iterator_mb` and `hostile_list_mb`
what dispatchers and replicas had more at any moment than before. The list is the stage's own: eight bytes a result.

Last, random trees as whole runs, on the embedded broker in at-least-once and on Apache Kafka in exactly-once, in which
parts die, a replica and a dispatcher are killed, and dead letters are sent again: `trees_missing` and `trees_surplus`
are records that a sink lacks or should not have, `trees_lost` events that the reports could not account for.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import uvloop

from inferline_stream.actuators.local import LocalActuator
from inferline_stream.dataplane.dead_letters import dead_letters
from inferline_stream.dataplane.process_specs import Delivery
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.shape import FanOut, Paths
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.testing.kafka import EmbeddedKafka, find_apache_kafka
from tests.benchmarks._figures import Figures
from tests.benchmarks._shape_trees import Outcome, outcome_of
from tests.benchmarks.fidelity import CASES, REAL, of_plans, real, tried, warmed_up
from tests.support.emulated_runs import on_this_host, records_in, unfed_run

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


TREES = (46, 6, 1, 28, 26, 49, 29, 55, 25, 58)
"""Seeds of trees with gathers, joins, several sources, and sinks of whole events beside those of their results."""


def measure(quick: bool) -> Figures:
    trees = TREES[:1] if quick else TREES
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka() as kafka:
        found = uvloop.run(hostile(kafka.bootstrap_servers, Path(folder), 3 if quick else 10))
        outcomes = uvloop.run(_trees(kafka.bootstrap_servers, Path(folder), trees, "at_least_once"))
    with tempfile.TemporaryDirectory() as folder, find_apache_kafka() as kafka:
        found |= uvloop.run(_fidelity(kafka.bootstrap_servers, Path(folder), quick))
        outcomes += uvloop.run(_trees(kafka.bootstrap_servers, Path(folder), trees, "exactly_once"))
    return found | {
        "trees": len(outcomes),
        "trees_missing": sum(each.missing for each in outcomes),
        "trees_surplus": sum(each.surplus for each in outcomes),
        "trees_lost": sum(each.lost for each in outcomes),
    }


async def _trees(bootstrap_servers: str, folder: Path, seeds: Iterable[int], delivery: Delivery) -> list[Outcome]:
    outcomes = []
    for seed in seeds:
        (home := folder / f"tree{seed}").mkdir()
        outcomes.append(await outcome_of(bootstrap_servers, home, seed, delivery))
        sys.stderr.write(f"tree {seed}, {delivery}: {outcomes[-1]}\n")
    return outcomes


async def _fidelity(bootstrap_servers: str, folder: Path, quick: bool) -> Figures:
    await warmed_up(bootstrap_servers, folder)
    plans = {"fan_out": await tried(CASES["fan_out"], "fan_out", bootstrap_servers, folder, quick)}
    if not quick:
        plans |= await real(bootstrap_servers, folder, {"ocr": REAL["ocr"]})
    return of_plans(plans)


async def hostile(bootstrap_servers: str, folder: Path, times: int) -> Figures:
    """Send good events, and between them so many of each hostile kind."""
    paths = Paths((0,), (1.0,), (FanOut(0, (0, 12), (0.5, 0.5), (1,), (1.0,)),))
    run = unfed_run(HOSTILE, bootstrap_servers, folder, paths=paths, events='"1"\n')
    source = Names(run.pipeline.name, run.records.prefix).topic("in")
    sent: Counter[str] = Counter()
    grown: dict[str, dict[str, float]] = {}
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
            before = await _peaks(actuator)
            await put([kind] * times)
            after = await _peaks(actuator)
            known = after.keys() & before.keys()
            grown[kind] = {
                role: max(after[name] - before[name] for name in known if name[0] == role)
                for role in ("dispatcher", "replica")
            }
        await put(str(count % 13) for count in range(GOOD))
        report = await under_way.report(await under_way.drain())
    expected = Counter(str(list(range(int(event)))) for event in sent.elements() if event.isdigit())
    found = Counter(str(json.loads(record.value or b"")) for record in await records_in(run, "out"))
    letters = await dead_letters(bootstrap_servers, run.pipeline, run.records.prefix)
    return {
        "hostile_events": sent["iterator"] + sent["list"],
        "hostile_dead_letters": sum(letter.says("type") == "TooManyResults" for letter in letters),
        "hostile_good_lost": (expected - found).total() + (found - expected).total() + report.lost,
        "hostile_dispatcher_mb": round(max(more["dispatcher"] for more in grown.values()), 1),
        "hostile_iterator_mb": round(grown["iterator"]["replica"], 1),
        "hostile_list_mb": round(grown["list"]["replica"], 1),
    }


async def _finished(under_way: LiveRun) -> int:
    """Events that the first stage is through with."""
    return under_way.controller.view.reports.total("split").events


async def _peaks(actuator: LocalActuator) -> dict[tuple[str, str], float]:
    """Most memory that each process ever had, in MiB, by its role and name."""
    await asyncio.sleep(1.0)
    living = [("replica", each.replica, each.pid) for each in await actuator.observe() if each.state == "running"]
    living += [("dispatcher", each.dispatcher, each.pid) for each in await actuator.dispatchers()]
    found = {}
    for role, name, pid in living:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        found[role, name] = int(lines["VmHWM"].split()[0]) / 1024
    return found
