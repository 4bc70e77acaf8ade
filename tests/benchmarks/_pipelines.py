"""Pipelines of 1 to 4 stages on emulated hardware, for measurements of plans as they run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

from inferline_stream.pipeline.shape import Shape, visited

PARTITIONS = 24
EVENTS = 1200
"""Distinct events, each with a key of its own."""

LIGHT = {1: "6ms", 2: "8ms", 4: "12ms", 8: "20ms", 16: "36ms"}
"""At most 444 events per second and replica."""
MIDDLE = {1: "12ms", 2: "16ms", 4: "24ms", 8: "40ms", 16: "70ms"}
"""At most 229 events per second and replica."""
HEAVY = {1: "25ms", 2: "32ms", 4: "45ms", 8: "70ms", 16: "120ms"}
"""At most 133 events per second and replica."""

LONG = {1: "100ms", 4: "220ms", 8: "400ms"}
"""At most 20 events per second and replica: for many replicas at rates that no core notices."""
LONGER = {1: "200ms", 4: "440ms", 8: "800ms"}
"""At most 10 events per second and replica."""

START_UP_S = 10.0
"""Of replicas of `slow`."""

_HEAD = """
from __future__ import annotations

import time
from zlib import crc32

from msgspec import Struct

from inferline_stream import Emulated, Isolation, Pipeline, Sample, Stage, Topic

ISOLATION = Isolation(forked=FORKED)


class Event(Struct):
    n: int
    key: str
    pad: str = ""


def same(events: list[Event]) -> list[Event]:
    return events


def hard(event: Event) -> bool:
    return event.n % 5 < 2


def rare(event: Event) -> bool:
    return event.n % 7 < 2


def asks(event: Event) -> float:
    # A fifth of the events, in no order.
    return 5.0 if crc32(event.key.encode()) % 5 == 0 else 1.0


def stage(name, table, after=(), run=same, cost=None, **varies):
    return Stage(name, run, hardware=["emulated-cpu"], emulated=Emulated(table, **varies) if varies else table,
                 max_batch_size=max(table), after=after, isolation=ISOLATION, cost=cost)


def mixed(name, tables):
    return Stage(name, same, hardware=list(tables), emulated=tables, max_batch_size=16, isolation=ISOLATION)

"""

_TAIL = """
pipeline = Pipeline({name!r}, slo={slo!r}, source=Topic("in", partitions={partitions}),
                    sink=Topic("out", partitions={partitions}), stages=stages,
                    sample=Sample(arrivals="arrivals.csv", events="events.jsonl"))
"""

_STAGES = {
    "single": f"""
stages = [stage("classify", {MIDDLE})]
""",
    "mixed": f"""
stages = [mixed("classify", {{"emulated-cpu": {HEAVY}, "emulated-gpu-small": {LIGHT}}})]
""",
    "lognormal": f"""
stages = [stage("classify", {MIDDLE}, cv=0.5)]
""",
    "classes": f"""
stages = [stage("classify", {MIDDLE}, weight=asks)]
""",
    "declared": f"""
parse = stage("parse", {LIGHT}, cv=0.5)
classify = stage("classify", {MIDDLE}, [parse], weight=asks, cost=asks)
stages = [parse, classify]
""",
    "chain": f"""
parse = stage("parse", {LIGHT})
classify = stage("classify", {HEAVY}, [parse])
stages = [parse, classify]
""",
    "slow": f"""
class Same:
    def __init__(self):
        time.sleep({START_UP_S})

    def __call__(self, events: list[Event]) -> list[Event]:
        return events


parse = stage("parse", {LONG}, run=Same)
classify = stage("classify", {LONGER}, [parse], Same)
stages = [parse, classify, stage("translate", {LONGER}, [classify.when(hard)], Same)]
""",
    "conditional": f"""
parse = stage("parse", {LIGHT})
classify = stage("classify", {MIDDLE}, [parse])
translate = stage("translate", {HEAVY}, [classify.when(hard)])
stages = [parse, classify, translate]
""",
    "fan_out": f"""
def apart(events: list[Event]) -> list[list[Event]]:
    return [[event] * (crc32(event.key.encode()) % 9) for event in events]


def together(lists: list[list[Event]]) -> list[Event]:
    return [events[0] if events else Event(0, "") for events in lists]


split = Stage("split", apart, many=True, hardware=["emulated-cpu"], emulated={LIGHT}, max_batch_size=16,
              isolation=ISOLATION)
read = stage("read", {MIDDLE}, [split])
stages = [split, read, stage("join", {LIGHT}, [read.gathered()], together)]
""",
    "diamond": f"""
class Found(Struct):
    parse: Event
    classify: Event
    search: Event | None


def answer(found: list[Found]) -> list[Event]:
    return [f.parse for f in found]


parse = stage("parse", {LIGHT})
classify = stage("classify", {MIDDLE}, [parse])
search = stage("search", {HEAVY}, [parse.when(rare)])
answered = stage("answer", {LIGHT}, [parse, classify, search], answer)
stages = [parse, classify, search, answered]
""",
}


def write(kind: str, folder: Path, slo: str, name: str, *, forked: bool = False) -> Path:
    """Write one of the pipelines; return its topology's file.

    Args:
        kind: ``single``, ``chain``, ``conditional``, ``slow`` or ``diamond``; ``fan_out``, in which an event has none
            to eight results, gathered in the end; ``mixed``, of two hardware kinds; ``lognormal``,
            ``classes`` or ``declared``, whose service times vary by chance, by event, and by both, with what an event
            costs declared.
        folder: a new one is made inside.
        slo: e.g. ``"200ms"``.
        name: of the pipeline.
        forked: whether replicas are forked from a parent that has imported everything.
    """
    home = folder / name
    home.mkdir()
    topology = home / "topology.py"
    head = _HEAD.replace("FORKED", repr(forked))
    topology.write_text(head + _STAGES[kind] + _TAIL.format(name=name, slo=slo, partitions=PARTITIONS))
    (home / "arrivals.csv").write_text("arrival_s\n0\n0.01\n0.02\n")
    events = [json.dumps({"n": n, "key": f"k{n}", "pad": "x" * 200}) + "\n" for n in range(EVENTS)]
    (home / "events.jsonl").write_text("".join(events))
    return topology


def taken(n: int) -> Mapping[str, bool]:
    """Whether event ``n`` goes to the stages that not all go to, by the conditions written above."""
    return {"translate": n % 5 < 2, "search": n % 7 < 2}


def results_of(key: str) -> Mapping[str, int]:
    """How many results an event has, by its key and the stage that gives many."""
    return {"split": crc32(key.encode()) % 9}


def mask_of(shape: Shape, goes_to: Mapping[str, bool]) -> int:
    """The arrows that an event takes, given which of the stages behind a condition it goes to; not those of results."""
    mask = 0
    for bit, arrow in enumerate(shape.arrows):
        own = not shape.scope_after(arrow.parent)
        if own and visited(shape, mask)[arrow.parent] and (not arrow.conditional or goes_to[shape.stages[arrow.child]]):
            mask |= 1 << bit
    return mask
