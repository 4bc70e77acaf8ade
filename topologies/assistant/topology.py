"""Answer questions about this project from its guides: find passages, rank them, and have the best one put into words.

One stage computes in the replica, one asks a model server of the Open Inference Protocol, and one waits.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from msgspec import Struct

from inferline_stream import Isolation, OpenInference, Pipeline, Sample, Stage, Topic

HERE = Path(__file__).parent
CANDIDATES = 8
"""Passages that are ranked."""


class Question(Struct):
    """What arrives."""

    text: str


class Retrieved(Struct):
    """A question, and the numbers of the passages that are nearest to it as a whole."""

    text: str
    passages: list[int]


class Ranked(Struct):
    """A question, and the passage that answers it best."""

    text: str
    passage: int
    score: float


class Answer(Struct):
    """What leaves."""

    text: str
    answer: str
    score: float


class Retrieve:
    """In the replica: sentence embedding, then the dot product with each passage."""

    def __init__(self) -> None:
        import numpy as np
        from passages import sentence_encoder

        self._embed = sentence_encoder()
        self._known = np.load(HERE / "passages.npy").astype(np.float32) / 127

    def __call__(self, questions: list[Question]) -> list[Retrieved]:
        similarity = self._embed([question.text for question in questions]) @ self._known.T
        nearest = (-similarity).argsort(axis=1)[:, :CANDIDATES]
        return [Retrieved(question.text, row.tolist()) for question, row in zip(questions, nearest, strict=True)]


def asked(retrieved: Retrieved) -> dict[str, str | list[int]]:
    """What the server is asked for one event: its inputs by name."""
    return {"question": retrieved.text, "candidates": retrieved.passages}


def ranked(retrieved: Retrieved, outputs: dict[str, Any]) -> Ranked:
    """What its outputs say of the event: scores, one for each candidate."""
    scores = outputs["scores"]
    best = int(scores.argmax())
    return Ranked(retrieved.text, retrieved.passages[best], float(scores[best]))


class Compose:
    """Waits: for a language model that is elsewhere. The one here is a stand-in, which quotes the passage.

    It takes as long as a model that writes 100 words a second, and no core.
    """

    FIRST_WORD_S, WORD_S = 0.1, 0.01

    def __init__(self) -> None:
        from passages import passages

        self._passages = passages()

    async def __call__(self, best: list[Ranked]) -> list[Answer]:
        return list(await asyncio.gather(*map(self._answer, best)))

    async def _answer(self, best: Ranked) -> Answer:
        quoted = self._passages[best.passage].partition(". ")[0].rstrip(".") + "."
        await asyncio.sleep(self.FIRST_WORD_S + self.WORD_S * len(quoted.split()))
        return Answer(best.text, quoted, best.score)


# Replicas seal themselves before their first record, and read what their own stage needs. One that starts a server
# cannot: a sealed process starts no other program.
embedding = Isolation(
    "sandbox",
    reads=(
        *("passages.py", "passages.jsonl", "passages.npy"),
        *("../moderation/sentences.py", "../moderation/vocabulary.txt"),
    ),
    on_unsupported="degrade",
)
waiting = Isolation("sandbox", reads=("passages.py", "passages.jsonl"), on_unsupported="degrade")

reranker = OpenInference(
    "http://127.0.0.1:{port}",
    model="rerank",
    request=asked,
    response=ranked,
    command=f"{sys.executable} reranker.py {{port}}",
)

retrieve = Stage("retrieve", Retrieve, hardware=["cpu-0.25", "cpu-0.5", "cpu-1"], max_batch_size=4, isolation=embedding)
rerank = Stage(
    "rerank",
    server=reranker,
    after=[retrieve],
    hardware=["cpu-0.5", "cpu-1"],
    max_batch_size=4,
    concurrency=2,
)
compose = Stage(
    "compose", Compose, after=[rerank], hardware=["cpu-0.1"], max_batch_size=1, concurrency=16, isolation=waiting
)

pipeline = Pipeline(
    "assistant",
    slo="800ms",
    source=Topic("questions"),
    sink=Topic("answers"),
    stages=[retrieve, rerank, compose],
    sample=Sample(arrivals="arrivals.csv", events="questions.jsonl", replay="live.csv"),
)
