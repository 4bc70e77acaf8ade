"""Emulated: a model that takes two seconds to load, and an answer. Files beside this one make it go wrong.

``broken``: the model cannot be loaded. ``hung``: what the model asks does not answer.
"""

import time
from pathlib import Path

from msgspec import Struct

from inferline_stream import Pipeline, Sample, Stage, Topic

HERE = Path(__file__).parent


class Question(Struct):
    number: int


class Model:
    def __init__(self) -> None:
        if (HERE / "broken").exists():
            raise FileNotFoundError("weights.bin is not where it was")
        time.sleep(2.0)

    def __call__(self, questions: list[Question]) -> list[int]:
        while (HERE / "hung").exists():
            time.sleep(0.05)
        return [question.number for question in questions]


def answer(numbers: list[int]) -> list[dict[str, int]]:
    return [{"number": number} for number in numbers]


asking = Stage("ask", Model, hardware=["emulated-cpu"], emulated={1: "60ms", 4: "120ms"}, max_batch_size=4)
answering = Stage(
    "answer", answer, after=[asking], hardware=["emulated-cpu"], emulated={1: "10ms", 8: "40ms"}, max_batch_size=8
)

pipeline = Pipeline(
    "watched",
    slo="3s",
    source=Topic("questions", partitions=8),
    sink=Topic("answers", partitions=4),
    stages=[asking, answering],
    sample=Sample(arrivals="arrivals.csv", events="questions.jsonl"),
)
