"""Random trees of stages that give many results, filter, gather and join, as whole runs on a broker.

The trees, and what has to come out of them, are those of the law on the same (`test_shape_laws`), which has no
processes. Here each stage has its own dispatcher and replica; one of each is killed, and dead letters are sent again.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.dead_letters import send_again
from inferline_stream.dataplane.process_specs import Delivery
from inferline_stream.pipeline.shape import FanOut, Paths, independent_paths, shape_of
from inferline_stream.runs.report import RunReport
from tests.support.emulated_runs import on_this_host, put_before, records_in, unfed_run
from tests.unit.dataplane.dispatcher.test_shape_laws import SEVERAL, Tree, expected_of

EVENTS = 6
"""Of each source."""

_CODE = """
import os
import random
from typing import Any

from msgspec import defstruct

from inferline_stream import Pipeline, Sample, Stage, Topic

QUICK = {"hardware": ["emulated-cpu"], "emulated": {1: "1ms", 16: "2ms"}, "max_batch_size": 16}
Value = list[Any]
EDGES = {}  # by parent: whether each of its edges has a condition


def luck(stage, value, purpose):
    return random.Random(f"{SEED} {stage} {value} {purpose}")


def answer(stage, many, value):
    lot = luck(stage, value, "answer")
    count = lot.randint(0, SEVERAL) if many else int(lot.random() < 0.85)
    return [([stage, value, at], [not edge or lot.random() < 0.7 for edge in EDGES[stage]]) for at in range(count)]


def as_value(event):
    fields = getattr(event, "__struct_fields__", None)
    if fields is None:
        return event
    return {name: getattr(event, name) for name in fields if getattr(event, name) is not None}


def runs(stage, many, takes):
    def run(events):
        values = [as_value(event) for event in events]
        if not os.path.exists(HEALED) and any(luck(stage, value, "dies").random() < 0.08 for value in values):
            raise ValueError("dies")
        results = [[result for result, _ in answer(stage, many, value)] for value in values]
        return results if many else [given[0] if given else None for given in results]

    run.__annotations__ = {"events": list[takes], "return": list[list[Value]] if many else list[Value | None]}
    return run


def taken(stage, many, place):
    def condition(result: Value) -> bool:
        return answer(stage, many, result[1])[result[2]][1][place]

    return condition


stages = {}
for name, parents, many, gathers, fills, source, sink in STAGES:
    after = []
    for parent, conditional in parents:
        EDGES[parent].append(conditional)
        edge = stages[parent]
        if conditional:
            edge = edge.when(taken(parent, edge.many, len(EDGES[parent]) - 1))
        elif gathers:
            edge = edge.gathered(missing=None) if fills else edge.gathered()
        after.append(edge)
    takes = int if not parents else Value if len(parents) == 1 else defstruct(
        "Of_" + name, [(parent, Value | None, None) for parent, _ in parents])
    if gathers:
        takes = list[Value | None] if fills else list[Value]
    EDGES[name] = []
    own = {"source": Topic(source, sample=Sample(arrivals="arrivals.csv", events="events.jsonl"))} if source else {}
    own |= {"sink": Topic(sink)} if sink else {}
    stages[name] = Stage(name, runs(name, many, takes), after=after, **({"many": True} if many else {}), **own, **QUICK)
pipeline = Pipeline("tree", slo="2s", source=Topic("in"), sink=Topic("out"), stages=list(stages.values()),
                    sample=Sample(arrivals="arrivals.csv", events="events.jsonl"))
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one tree: records that a sink lacks or has beyond what it should, and events unaccounted for."""

    missing: int
    surplus: int
    lost: int


async def outcome_of(bootstrap_servers: str, folder: Path, seed: int, delivery: Delivery) -> Outcome:
    """Run one tree; in at-least-once, a record beyond the first counts as no surplus."""
    tree = Tree(seed)
    run = _run(tree, bootstrap_servers, folder, delivery)
    for topic in tree.pipeline.sources:
        await put_before(run, topic.name, [b"%d" % number for number in range(EVENTS)])
    report = await _ran(run, "earliest", random.Random(seed))
    lost = report.lost
    if not any(stage.gathers is not None and stage.gathers.fills for stage in tree.pipeline.stages):
        (folder / "healed").touch()
        tree.heals = True
        await send_again(bootstrap_servers, run.pipeline, run.records.prefix)
        lost += (await _ran(run, "committed", None)).lost
    expected = expected_of(tree, EVENTS)
    found = [
        f"{stage} {(record.value or b'').decode()}"
        for stage, topic in tree.pipeline.sinks.items()
        for record in await records_in(run, topic.name)
    ]
    missing, surplus = expected.copy(), 0
    for value in found if delivery == "exactly_once" else set(found):
        surplus += missing[value] <= 0
        missing[value] -= 1
    return Outcome(sum(count > 0 for count in missing.values()), surplus, lost)


def _run(tree: Tree, bootstrap_servers: str, folder: Path, delivery: Delivery) -> Run:
    stages = [
        (
            stage.name,
            [(edge.parent.name, edge.condition is not None) for edge in stage.after],
            stage.many,
            stage.gathers is not None,
            stage.gathers is not None and stage.gathers.fills,
            None if stage.source is None else stage.source.name,
            None if stage.sink is None else stage.sink.name,
        )
        for stage in tree.pipeline.stages
    ]
    values = {"SEED": tree.seed, "SEVERAL": SEVERAL, "HEALED": str(folder / "healed"), "STAGES": stages}
    code = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + _CODE
    run = unfed_run(code, bootstrap_servers, folder, delivery=delivery)
    shape = shape_of(run.pipeline)
    counts = tuple(range(SEVERAL + 1))
    fan_outs = []
    for stage in shape.many:
        of = independent_paths(shape, {}, shape.scope_after(stage))
        fan_outs.append(FanOut(stage, counts, (1 / len(counts),) * len(counts), of.masks, of.weights))
    own = independent_paths(shape, {})
    paths = Paths(own.masks, own.weights, tuple(fan_outs))
    return replace(run, measured=replace(run.measured, paths=paths))


async def _ran(run: Run, start: str, kills: random.Random | None) -> RunReport:
    """Run until everything that came is done, with a dispatcher and a replica killed on the way."""
    run = replace(run, records=replace(run.records, start=start))
    async with on_this_host(run, 600) as (under_way, actuator):
        if kills is not None:
            dispatchers = [each.pid for each in await actuator.dispatchers()]
            replicas = [each.pid for each in await actuator.observe() if each.state == "running"]
            for pid in (kills.choice(replicas), kills.choice(dispatchers)):
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.2)
        return await under_way.report(await under_way.drain())
