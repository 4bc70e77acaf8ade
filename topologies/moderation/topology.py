"""Moderate posts: language, then toxicity (English only) and near-duplicates, joined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from msgspec import Struct
from msgspec.json import decode

from inferline_stream import Isolation, Pipeline, Sample, Stage, Topic

HERE = Path(__file__).parent


class Post(Struct):
    """What arrives."""

    text: str


class Tagged(Struct):
    """A post and its language; later stages see only this."""

    text: str
    language: str


class Findings(Struct):
    """What `decide` joins; no toxicity where the post is not English."""

    language: Tagged
    toxicity: float | None
    duplicate: bool


class Verdict(Struct):
    """What leaves."""

    text: str
    language: str
    allowed: bool
    reason: str


class Language:
    """Which of 97 languages a text is in: naive Bayes over byte n-grams. No gain from batching."""

    def __init__(self) -> None:
        import py3langid

        self._classify = py3langid.classify
        self._classify("unpacks the model")

    def __call__(self, posts: list[Post]) -> list[Tagged]:
        return [Tagged(post.text, self._classify(post.text)[0]) for post in posts]


class Toxicity:
    """How likely an English text is offensive: a linear SVM over word counts.

    Nearly all of its time is spent once per call, so batching pays: 32 posts cost little more than one.
    """

    def __init__(self) -> None:
        import profanity_check

        self._probability = profanity_check.predict_prob

    def __call__(self, tagged: list[Tagged]) -> list[float]:
        return [float(p) for p in self._probability([post.text for post in tagged])]


class DuplicateSearch:
    """Whether a post says what a known post says: sentence embedding, then search of the nearest known one."""

    def __init__(self) -> None:
        import numpy as np
        from sentences import SentenceEncoder

        self._embed = SentenceEncoder()
        self._known = np.load(HERE / "known.npy").astype(np.float32) / 127

    def __call__(self, tagged: list[Tagged]) -> list[bool]:
        similarity = self._embed([post.text for post in tagged]) @ self._known.T
        return [bool(nearest > SAME) for nearest in similarity.max(axis=1)]


class TrigramSearch:
    """The fallback of `DuplicateSearch`: whether a post is written with nearly the same letters as a known post.

    `prepare.py` measures how often the two agree.
    """

    def __init__(self) -> None:
        from trigrams import trigram_vectors

        self._vectors = trigram_vectors
        posts = (HERE / "posts.jsonl").read_bytes().splitlines()[::KNOWN_EVERY]
        self._known = trigram_vectors([decode(post, type=Post).text for post in posts])

    def __call__(self, tagged: list[Tagged]) -> list[bool]:
        similarity = self._vectors([post.text for post in tagged]) @ self._known.T
        return [bool(nearest > SAME_LETTERS) for nearest in similarity.max(axis=1)]


KNOWN_EVERY = 5
"""Every fifth post of the sample is known."""

SAME = 0.9
"""Cosine similarity of embeddings above which two posts say the same."""

SAME_LETTERS = 0.8
"""The same of trigrams, so that both searches agree on most posts of the sample."""

TOXIC = 0.7


def is_english(tagged: Tagged) -> bool:
    """The toxicity model knows English only."""
    return tagged.language == "en"


def decide(findings: list[Findings]) -> list[Verdict]:
    """Join what was found about each post."""
    return [_verdict(found) for found in findings]


def _verdict(found: Findings) -> Verdict:
    if found.toxicity is not None and found.toxicity > TOXIC:
        reason = f"offensive ({found.toxicity:.0%})"
    elif found.duplicate:
        reason = "posted before"
    else:
        reason = ""
    return Verdict(found.language.text, found.language.language, not reason, reason)


# Replicas seal themselves before their first record: each reads the model of its own stage and no other's. Where the
# kernel cannot do all of it, they do what it can and say so.
sandbox = Isolation("sandbox", on_unsupported="degrade")

language = Stage(
    "language",
    Language,
    hardware=["cpu-0.1", "cpu-0.25"],
    isolation=replace(sandbox, scratch=True),  # py3langid unpacks its model into a temporary file
)
toxicity = Stage(
    "toxicity",
    Toxicity,
    after=[language.when(is_english)],
    hardware=["cpu-0.1", "cpu-0.25"],
    max_batch_size=32,
    isolation=sandbox,  # its model lies among Python's packages
)
duplicate = Stage(
    "duplicate",
    DuplicateSearch,
    after=[language],
    fallback=TrigramSearch,
    hardware=["cpu-0.25", "cpu-0.5", "cpu-1"],
    max_batch_size=8,
    isolation=replace(sandbox, reads=("known.npy", "vocabulary.txt", "posts.jsonl")),
)
verdict = Stage("verdict", decide, after=[language, toxicity, duplicate], hardware=["cpu-0.1"], isolation=sandbox)

pipeline = Pipeline(
    "moderation",
    slo="500ms",
    source=Topic("posts"),
    sink=Topic("verdicts"),
    stages=[language, toxicity, duplicate, verdict],
    sample=Sample(arrivals="arrivals.csv", events="posts.jsonl", replay="live.csv"),
)
