"""Answer questions: read each, look up the hard ones, answer all.

There is no model here. The stages run on `emulated-*` hardware: their functions do run, each replica then
sleeps until the declared service time has passed. So a laptop can show many replicas, and everything
else (Kafka, profiles, plan, scaling, latencies) is real.
"""

from __future__ import annotations

from msgspec import Struct

from inferline_stream import Isolation, Pipeline, Sample, Stage, Topic


class Question(Struct):
    """What arrives on the source topic."""

    number: int
    text: str


class Read(Struct):
    """A question that has been read. Later stages see only this, so it carries the text on."""

    number: int
    text: str
    words: int


class Findings(Struct):
    """The join's input: one field per parent, None where the branch was not taken."""

    read: Read
    search: str | None


class Answer(Struct):
    """What leaves on the sink topic."""

    number: int
    text: str
    looked_up: bool


def read_all(questions: list[Question]) -> list[Read]:
    """A stage that is a function: it takes a batch and returns as many results."""
    return [Read(q.number, q.text, len(q.text.split())) for q in questions]


def is_hard(read: Read) -> bool:
    """A condition sees its parent's result; it runs where that result is made."""
    return read.words > 6


class Search:
    """A stage that is a class: it is constructed once per replica, which is where a model would be loaded."""

    def __init__(self) -> None:
        self._topics = {"kafka": "a log", "partition": "a part of a log", "replica": "one of several alike"}

    def __call__(self, reads: list[Read]) -> list[str]:
        return [self._look_up(read.text) for read in reads]

    def _look_up(self, text: str) -> str:
        found = [meaning for topic, meaning in self._topics.items() if topic in text.lower()]
        return ", ".join(found) or "nothing"


def answer_all(findings: list[Findings]) -> list[Answer]:
    """The last stage joins both branches of an event."""
    return [Answer(f.read.number, f.search or "yes", looked_up=f.search is not None) for f in findings]


# Each replica seals itself before its first record; where the kernel cannot do all of it, it does what it can.
sandbox = Isolation("sandbox", on_unsupported="degrade")

read = Stage(
    "read",
    read_all,
    hardware=["emulated-cpu"],
    emulated={1: "20ms", 8: "120ms"},
    max_batch_size=8,
    isolation=sandbox,
)
search = Stage(
    "search",
    Search,
    after=[read.when(is_hard)],
    hardware=["emulated-cpu", "emulated-gpu-small"],
    emulated={
        "emulated-cpu": {1: "40ms", 4: "140ms", 8: "270ms"},
        "emulated-gpu-small": {1: "25ms", 4: "34ms", 16: "70ms"},
    },
    max_batch_size=16,
    isolation=sandbox,
)
answer = Stage(
    "answer",
    answer_all,
    after=[read, search],
    hardware=["emulated-cpu"],
    emulated={1: "15ms", 8: "95ms"},
    max_batch_size=8,
    isolation=sandbox,
)

pipeline = Pipeline(
    "minimal",
    slo="500ms",
    source=Topic("questions"),
    sink=Topic("answers"),
    stages=[read, search, answer],
    sample=Sample(arrivals="arrivals.csv", events="questions.jsonl", replay="live.csv"),
)
