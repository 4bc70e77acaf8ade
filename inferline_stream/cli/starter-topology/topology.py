"""A pipeline to start from: read reviews, look closer at the long ones, and rate all of them.

    inferline-stream check topology.py     every mistake of this file at once
    inferline-stream plan topology.py      profiles the stages, then finds the cheapest plan within the SLO
    inferline-stream run topology.py       plans, starts replicas and scales them while a trace is replayed

Its stages run on emulated hardware: the functions below do run, and each replica then sleeps until the
declared service time has passed. Put a model in, name real hardware instead (`cpu-1`, `t4`, …), and the
profiler measures service times rather than believing them.
"""

from __future__ import annotations

from msgspec import Struct

from inferline_stream import Isolation, Pipeline, Sample, Stage, Topic


class Review(Struct):
    """An event of the source topic, as JSON: {"number": 1, "text": "…"}."""

    number: int
    text: str


class Parsed(Struct):
    """A result of the first stage. The next stages see only this: pass forward what they need."""

    number: int
    words: list[str]


class Findings(Struct):
    """A join's input: one field per parent, named after it. None where the branch was not taken."""

    parse: Parsed
    study: float | None


class Rating(Struct):
    """What leaves on the sink topic."""

    number: int
    score: float
    studied: bool


def parse(reviews: list[Review]) -> list[Parsed]:
    """A stage takes a batch and returns one result per event. A function is enough where nothing is loaded."""
    return [Parsed(review.number, review.text.lower().split()) for review in reviews]


def is_long(parsed: Parsed) -> bool:
    """A condition: which results take an edge. It judges the result of the parent it is written on."""
    return len(parsed.words) > 8


class Study:
    """A stage with a model is a class: constructed once per replica, then called with each batch."""

    def __init__(self) -> None:
        # Heavy imports and the model's loading go here, so that only this stage's replicas pay for them.
        self._kind = {"good", "great", "fast", "love", "clear"}

    def __call__(self, reviews: list[Parsed]) -> list[float]:
        """Called with each batch; one result per event, in the same order."""
        return [sum(word in self._kind for word in review.words) / len(review.words) for review in reviews]


def rate(findings: list[Findings]) -> list[Rating]:
    """The final stage: exactly one stage has no child, and its results go to the sink."""
    return [Rating(f.parse.number, 0.5 if f.study is None else f.study, f.study is not None) for f in findings]


# Which hardware a stage may run on. The Planner chooses kind, batch size and replicas for each stage.
# `emulated` declares service times by batch size: here, batches of 8 take three times as long as single events.
#
# Replicas seal themselves before their first record: a stage reads its code and nothing else, writes nothing, reaches
# Kafka alone. What else it needs is granted here, e.g. reads=["model.onnx"] or ports=[6379]; the error of a stage that
# was refused something says what to write. Without on_unsupported="degrade" an older kernel is an error.
sandbox = Isolation("sandbox", on_unsupported="degrade")

parse_stage = Stage(
    "parse",
    parse,
    hardware=["emulated-cpu"],
    emulated={1: "3ms", 8: "9ms"},
    max_batch_size=8,
    isolation=sandbox,
)
study_stage = Stage(
    "study",
    Study,
    after=[parse_stage.when(is_long)],
    hardware=["emulated-cpu", "emulated-gpu-small"],
    emulated={
        "emulated-cpu": {1: "30ms", 8: "200ms"},
        "emulated-gpu-small": {1: "20ms", 8: "32ms", 16: "48ms"},
    },
    max_batch_size=16,
    isolation=sandbox,
)
rate_stage = Stage(
    "rate",
    rate,
    after=[parse_stage, study_stage],
    hardware=["emulated-cpu"],
    emulated={1: "2ms", 8: "6ms"},
    max_batch_size=8,
    isolation=sandbox,
)

pipeline = Pipeline(
    "reviews",
    slo="250ms",  # for the P99, from the source record's timestamp to the sink record's acknowledgement
    source=Topic("reviews-in"),
    sink=Topic("ratings"),
    stages=[parse_stage, study_stage, rate_stage],
    sample=Sample(arrivals="arrivals.csv", events="events.jsonl", replay="live.csv"),
)
