"""Random trees of stages that give many results, filter, gather and join, under deaths, repeats and replays.

Each stage has its own intake, join and emitter, as a dispatcher has them; records lie in one dictionary of topics. What
has to come out is worked out by recursion over the results of one event, which knows of no markers, ids or counts.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.controlplane.observe.event_ledger import EventLedger
from inferline_stream.dataplane.dead_letters import noted
from inferline_stream.dataplane.dispatcher.completion import Partition
from inferline_stream.dataplane.dispatcher.emitter import Emitter
from inferline_stream.dataplane.dispatcher.event import Event, Requeued
from inferline_stream.dataplane.dispatcher.intake import Intake
from inferline_stream.dataplane.dispatcher.join import Join
from inferline_stream.dataplane.dispatcher.report_counts import new_report
from inferline_stream.dataplane.frames import Done, Failed, Many
from inferline_stream.dataplane.headers import ENDED_AT, REPLAY, read_headers
from inferline_stream.dataplane.lineage import root, share
from inferline_stream.dataplane.routes import Routes, routes_of
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.event_classes import CLASS_STRIDE
from inferline_stream.pipeline.names import ERRORS_PREFIX
from inferline_stream.pipeline.shape import innermost, shape_of
from inferline_stream.pipeline.topology import Edge, Pipeline, Stage, Topic
from tests.support.hypothesis_profiles import examples

OTHER = "beside"
"""The source topic of a first stage of its own."""

SEVERAL = 3
"""Results of one event at most."""


def nothing(events: list[Any]) -> list[Any]:
    """What the stages are is decided by `Tree`."""
    return events


def always(_: Any) -> bool:
    return True


@dataclass
class Tree:
    """A pipeline, and what its stages make of an event: a value is the tuple of choices that led to it."""

    seed: int
    heals: bool = False

    @cached_property
    def pipeline(self) -> Pipeline:
        rng = random.Random(self.seed)
        several = rng.random() < 0.4
        stages = [Stage("s0", nothing, hardware="cpu-1", many=rng.random() < 0.5 and not several)]
        depth, last = int(stages[0].many), stages[0]

        def add(after: list[Stage | Edge], many: bool = False) -> Stage:
            stages.append(Stage(f"s{len(stages)}", nothing, hardware="cpu-1", after=after, many=many))
            return stages[-1]

        if several:  # events of either source pass the stage where their ways meet
            other = Stage("other", nothing, hardware="cpu-1", source=Topic(OTHER))
            stages.append(other)
            beside = [add([last.when(always)])] if rng.random() < 0.5 else []
            last = add([last.when(always) if rng.random() < 0.5 else last, other, *beside])
        for _ in range(rng.randint(1, 4)):
            what = rng.random()
            if depth and what < 0.45:
                last, depth = add([last.gathered(missing=None) if rng.random() < 0.3 else last.gathered()]), depth - 1
            elif what < 0.65:
                left, right = add([last.when(always)]), add([last])
                last = add([left, right])
            else:
                last = add([last.when(always) if rng.random() < 0.5 else last], many=rng.random() < 0.4 and depth < 2)
                depth += last.many
        self._add_sinks(stages, rng)
        return Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=stages)

    @staticmethod
    def _add_sinks(stages: list[Stage], rng: random.Random) -> None:
        """Give some stages a sink of their own, or a child with one."""
        for at in range(len(stages) - 1):
            stage, name = stages[at], f"x{at}"
            if (what := rng.random()) < 0.3:
                if what < 0.2:
                    stage.sink = Topic(name)
                else:
                    edge = stage.when(always) if what < 0.3 else stage
                    stages.insert(-1, Stage(name, nothing, hardware="cpu-1", after=[edge], sink=Topic(name)))

    def reached(self, topic: str) -> dict[str, Topic]:
        """The sinks that events of a source may reach."""
        found = {
            s.name for s in self.pipeline.stages if not s.after and (s.source or self.pipeline.source).name == topic
        }
        for stage in self.pipeline.stages * 2:
            found |= {stage.name} if any(edge.parent.name in found for edge in stage.after) else set()
        return {stage: sink for stage, sink in self.pipeline.sinks.items() if stage in found}

    def luck(self, stage: str, value: Any, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {stage} {value} {purpose}")

    def dies(self, stage: str, value: Any) -> bool:
        return not self.heals and self.luck(stage, value, "dies").random() < 0.08

    def answer(self, stage: Stage, value: Any) -> list[tuple[Any, list[bool]]] | None:
        """Results, each with whether it takes each edge; None of a stage that filters its event."""
        luck = self.luck(stage.name, value, "answer")
        edges = [edge for child in self.pipeline.stages for edge in child.after if edge.parent is stage]
        count = luck.randint(0, SEVERAL) if stage.many else int(luck.random() < 0.85)
        return [
            ([stage.name, value, at], [edge.condition is None or luck.random() < 0.7 for edge in edges])
            for at in range(count)
        ]

    def children(self, stage: Stage) -> list[str]:
        return [child.name for child in self.pipeline.stages if any(edge.parent is stage for edge in child.after)]

    # What has to come out, by recursion

    def expected(self, source: Any, topic: str = "in") -> tuple[dict[str, list[Any]], bool]:
        """Values in each sink for one event of a source, and whether something died without a substitute."""
        self._from = topic
        self._done: dict[Any, Any] = {}
        out, dead = defaultdict[str, list[Any]](list), False
        for name in self.pipeline.sinks:
            final = self.pipeline.stage(name)
            for path in self._paths(final):
                given_ = self._result_at(final, path, source)
                dead |= given_ == "dead"
                if isinstance(given_, list):
                    out[name] += [value for value, _ in given_]
        return out, dead

    def _paths(self, final: Stage) -> list[tuple[int, ...]]:
        shape = shape_of(self.pipeline)
        depth = len(shape.scopes()[shape.stages.index(final.name)])
        return list(itertools.product(range(SEVERAL), repeat=depth))

    def _result_at(self, stage: Stage, path: tuple[int, ...], source: Any) -> Any:
        """What a stage gives the event at these places: its results, "dead", or None where it is not visited."""
        key = stage.name, path
        if key not in self._done:
            value = self._input(stage, path, source)
            if value is None or value == "dead":
                self._done[key] = value
            else:
                (given_,) = value
                self._done[key] = "dead" if self.dies(stage.name, given_) else self.answer(stage, given_)
        return self._done[key]

    def _input(self, stage: Stage, path: tuple[int, ...], source: Any) -> Any:
        """A tuple of what it gets; None or "dead" where it gets nothing."""
        if not stage.after:
            return (source,) if (stage.source or self.pipeline.source).name == self._from else None
        if (edge := stage.gathers) is not None:
            return self._gathered(edge, path, source)
        found: dict[str, Any] = {}
        for edge in stage.after:
            taken = self._along(edge, stage, path, source)
            if taken == "dead":
                return "dead"
            if taken is not None:
                found[edge.parent.name] = taken[0]
        if not found:
            return None
        return (found,) if len(stage.after) > 1 else (next(iter(found.values())),)

    def _along(self, edge: Edge, child: Stage, path: tuple[int, ...], source: Any) -> Any:
        parent = edge.parent
        above = path[:-1] if parent.many else path
        results = self._result_at(parent, above, source)
        if results is None or results == "dead":
            return results
        at = path[-1] if parent.many else 0
        if at >= len(results):
            return None
        value, takes = results[at]
        return (value,) if takes[self.children(parent).index(child.name)] else None

    def _gathered(self, edge: Edge, path: tuple[int, ...], source: Any) -> Any:
        child = next(stage for stage in self.pipeline.stages if edge in stage.after)
        many = self._origin(edge)
        results = self._result_at(many, path, source)
        if results is None or results == "dead":
            return results
        parts: list[Any] = []
        for at in range(len(results)):
            part = self._along(edge, child, (*path, at), source)
            if part == "dead":
                if not edge.fills:
                    return "dead"
                parts.append(None)
            elif part is not None:
                parts.append(part[0])
        return (parts,)

    def _origin(self, edge: Edge) -> Stage:
        shape = shape_of(self.pipeline)
        return self.pipeline.stage(shape.stages[shape.scope_after(shape.stages.index(edge.parent.name))[-1]])


@dataclass
class World:
    """All stages of a tree on one broker of one partition a topic."""

    tree: Tree
    rng: random.Random
    topics: defaultdict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    read: Counter[tuple[str, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        pipeline = self.tree.pipeline
        self.routes: dict[str, Routes] = {stage.name: routes_of(pipeline, stage.name) for stage in pipeline.stages}
        self.ready: dict[str, list[Event]] = {name: [] for name in self.routes}
        self.partitions, self.intakes, self.emitters = {}, {}, {}
        for name, routes in self.routes.items():
            topics = defaultdict[str, int](lambda: 1)
            self.emitters[name] = Emitter(routes, topics, self.rng, new_report("d", 1, name, 0, 1))
            for number, of in enumerate(routes.classes):
                join = Join(of.heard) if of.is_join else None
                self.partitions[name, number] = Partition(number * CLASS_STRIDE, Committed(0), "me", join)
                self.intakes[name, number] = Intake(of, self.ready[name].append, self._ends(name))

    def _ends(self, name: str) -> Any:
        def ended(event: Event, outcome: Any) -> None:
            assert not isinstance(outcome, Requeued)
            self._emit(name, event, outcome)

        return ended

    def _emit(self, name: str, event: Event, outcome: Any) -> None:
        self.emitters[name].add(event, outcome)
        for (topic, _), records in self.emitters[name].take().items():
            for record in records:
                self.put(topic, record)

    def put(self, topic: str, record: Record) -> None:
        log = self.topics[topic]
        log.append(Record(record.key, record.value, record.headers, record.timestamp_ms or 1_000, topic, 0, len(log)))

    def run(self, *, again: float) -> None:
        """Let stages read and answer in any order; with this share, a batch is answered twice: its commit was lost."""
        inputs = {
            (name, number): of.input_topic
            for name, routes in self.routes.items()
            for number, of in enumerate(routes.classes)
        }
        while moves := [
            (name, number)
            for (name, number), topic in inputs.items()
            if (self.ready[name] and not number) or self.read[name, number] < len(self.topics[topic])
        ]:
            name, number = self.rng.choice(moves)
            topic = inputs[name, number]
            if self.ready[name] and (self.rng.random() < 0.5 or self.read[name, number] >= len(self.topics[topic])):
                event = self.ready[name].pop(self.rng.randrange(len(self.ready[name])))
                for _ in range(1 + (self.rng.random() < again)):
                    self._emit(name, event, self._outcome(name, event))
            else:
                self.intakes[name, number].at(2.0, 2.0)
                at = self.read[name, number]
                self.intakes[name, number].take_in(self.partitions[name, number], self.topics[topic][at])
                self.read[name, number] += 1

    def _outcome(self, name: str, event: Event) -> Any:
        stage, payload = self.tree.pipeline.stage(name), event.payload
        decode = msgspec.json.decode
        if isinstance(payload, bytes):
            value = decode(payload)
        elif isinstance(payload, dict):
            value = {parent: decode(payload[parent]) for parent in self.routes[name].parents if parent in payload}
        else:
            value = [None if part is None else decode(part) for part in payload]
        if self.tree.dies(name, value):
            return Failed("ValueError", "dies", "")
        results = self.tree.answer(stage, value) or []
        done = []
        for result, takes in results:
            by_name = dict(zip(self.tree.children(stage), takes, strict=True))
            edges = sum(1 << bit for bit, child in enumerate(self.routes[name].children) if by_name[child])
            done.append(Done(msgspec.json.encode(result), edges))
        return Many(tuple(done)) if stage.many or not done else done[0]

    def send_letters_again(self) -> None:
        for routes in (of for each in self.routes.values() for of in each.classes):
            dlq = routes.names.dead_letters(routes.input_topic)
            letters = list(noted(dlq, routes.input_topic, self.topics[dlq]))
            for letter in {letter.place: letter for letter in letters}.values():
                headers = [h for h in letter.headers if not h[0].startswith(ERRORS_PREFIX) and h[0] != REPLAY]
                self.put(routes.input_topic, Record(letter.key, letter.value, [*headers, (REPLAY, b"1")], 1_000))

    def ledger(self, topic: str, events: int) -> EventLedger:
        sinks = self.tree.reached(topic)
        ledger = EventLedger(topic, [0], [events])
        shape = shape_of(self.tree.pipeline)
        ledger.reaches(tuple(sinks), len(innermost(shape.scope_after(shape.stages.index(at)) for at in sinks)))
        for record in self.topics[topic][:events]:
            ledger.entered(record)
        for stage, sink in sinks.items():
            for record in self.topics[sink.name]:
                ledger.out(record, stage)
        for record in self.topics[self.routes["s0"].names.completed]:
            ledger.ended(record)
        return ledger


def shares(world: World, sink: str) -> dict[bytes, Fraction]:
    """By event of the source, the parts of it that have reached a sink or ended: together they are the whole."""
    found: dict[bytes, Fraction] = defaultdict(Fraction)
    completed = world.topics[world.routes["s0"].names.completed]
    ended = [each for each in completed if sink in (each.header(ENDED_AT) or sink.encode()).decode().split(",")]
    ends = [*world.topics[world.tree.pipeline.sinks[sink].name], *ended]
    for event_id, of in {(read.event_id or b"", read.of) for read in (read_headers(end.headers) for end in ends)}:
        found[root(event_id, len(of))] += share(of)
    return found


def sunk(world: World) -> Counter[str]:
    """Values with the stage that has sent them to its sink."""
    sinks = world.tree.pipeline.sinks.items()
    records = ((at, record.value or b"") for at, topic in sinks for record in world.topics[topic.name])
    return Counter(f"{at} {value.decode()}" for at, value in records)


def expected_of(tree: Tree, events: int) -> Counter[str]:
    outs = (tree.expected(number, topic.name)[0] for topic in tree.pipeline.sources for number in range(events))
    values = ((at, value) for out in outs for at, found in out.items() for value in found)
    return Counter(f"{at} {msgspec.json.encode(value).decode()}" for at, value in values)


@settings(max_examples=examples(120), deadline=None)
@given(seed=st.integers(0, 2**32), events=st.integers(1, 4), again=st.sampled_from([0.0, 0.0, 0.3]))
def test_whatever_the_shape_each_event_is_whole_once_and_accounted_for(seed: int, events: int, again: float) -> None:
    tree = Tree(seed)
    world = World(tree, random.Random(seed))
    topics = [topic.name for topic in tree.pipeline.sources]
    for topic, number in itertools.product(topics, range(events)):
        world.put(topic, Record(b"k", b"%d" % number, (), 1_000))
    world.run(again=again)
    expected, found = expected_of(tree, events), sunk(world)
    assert found.keys() == expected.keys()
    assert again or found == expected
    for topic in topics:
        ledger = world.ledger(topic, events)
        assert ledger.lost() == (0, [])
        assert again or ledger.duplicated == 0
        for sink in tree.reached(topic):
            whole = {
                name: found for name, found in shares(world, sink).items() if name.startswith(b"%b/" % topic.encode())
            }
            assert whole == {b"%b/0/%d" % (topic.encode(), number): 1 for number in range(events)}

    if any(stage.gathers is not None and stage.gathers.fills for stage in tree.pipeline.stages):
        return  # what died has a substitute in the sink
    tree.heals = True
    world.send_letters_again()
    world.run(again=0.0)
    healed = expected_of(tree, events)
    assert sunk(world).keys() == healed.keys()
    assert again or sunk(world) == healed


def test_the_trees_contain_what_they_are_meant_to() -> None:
    pipelines = [Tree(seed).pipeline for seed in range(200)]
    gathers = sum(any(stage.gathers for stage in pipeline.stages) for pipeline in pipelines)
    joins = sum(any(len(stage.after) > 1 for stage in pipeline.stages) for pipeline in pipelines)
    apart = sum(len(shape_of(p).scopes()[-1]) > 0 for p in pipelines)
    deaths = sum(Tree(seed).expected(0)[1] for seed in range(200))
    sinks = sum(len(pipeline.sinks) > 1 for pipeline in pipelines)
    several = sum(len(pipeline.sources) > 1 for pipeline in pipelines)
    shapes = [shape_of(pipeline) for pipeline in pipelines]
    levels = sum(len({shape.scope_after(final) for final in shape.finals()}) > 1 for shape in shapes)
    found = (gathers, joins, apart, deaths, sinks, several, levels)
    assert min(found) > 15, found
