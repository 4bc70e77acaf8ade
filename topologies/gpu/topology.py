"""Find what was posted before on a GPU: embed each post, look its nearest known posts up, then rank these word by word.

No GPU has run this yet; see README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from inferline_stream import Isolation, Pipeline, Sample, Stage, Topic

if TYPE_CHECKING:
    from numpy.typing import NDArray

POSTS = Path(__file__).parents[1] / "moderation" / "posts.jsonl"
DRIVER = Path("/proc/driver/nvidia/version")
"""There once NVIDIA's driver is loaded."""
KNOWN_EVERY = 5
"""Every so many posts of the sample are taken for known."""
CANDIDATES = 16
"""Known posts that a post is compared with word by word."""
SAME = 0.8
"""Mean similarity of words above which two posts say the same."""


class Post(Struct):
    """What arrives."""

    text: str


class Retrieved(Struct):
    """A post, and the numbers of the known posts that are nearest to it as a whole."""

    text: str
    known: list[int]


class Ranked(Struct):
    """What leaves: the known post that says the most of what a post says."""

    text: str
    nearest: str
    score: float
    repeated: bool


def known_posts() -> list[str]:
    """The posts that new ones are compared with."""
    lines = POSTS.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[::KNOWN_EVERY]]


class Encoder:
    """all-MiniLM-L6-v2 in half precision, on the device that the replica was given; on a CPU where there is none."""

    def __init__(self) -> None:
        import tempfile

        import torch
        from all_minilm_l6_v2 import extract_model
        from sentence_transformers import SentenceTransformer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = SentenceTransformer(str(extract_model(tempfile.mkdtemp())), device=device)
        if device == "cuda":
            self._model.half()

    def texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (texts, 384)."""
        options = {"batch_size": len(texts), "normalize_embeddings": True, "show_progress_bar": False}
        return np.asarray(self._model.encode(texts, **options), dtype=np.float32)

    def words(self, texts: list[str]) -> list[NDArray[np.float32]]:
        """Of each text a unit vector for each of its tokens, shape (tokens, 384)."""
        options = {"batch_size": len(texts), "output_value": "token_embeddings", "show_progress_bar": False}
        found = [np.asarray(each.float().cpu(), dtype=np.float32) for each in self._model.encode(texts, **options)]
        return [each / np.linalg.norm(each, axis=1, keepdims=True) for each in found]


class Embed:
    """Sentence embedding, then the dot product with each known post."""

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._known = np.concatenate([self._encoder.texts(part) for part in _parts(known_posts(), 64)])

    def __call__(self, posts: list[Post]) -> list[Retrieved]:
        similarity = self._encoder.texts([post.text for post in posts]) @ self._known.T
        nearest = np.argsort(-similarity, axis=1)[:, :CANDIDATES]
        return [Retrieved(post.text, [int(n) for n in row]) for post, row in zip(posts, nearest, strict=True)]


class Rank:
    """Late interaction (ColBERT, Khattab and Zaharia, SIGIR 2020): of each word of a post the most similar word of a
    candidate, in the mean. Every candidate is encoded again, as a cross-encoder would have to."""

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._known = known_posts()
        self._encoder.words(["compiles and warms up"])

    def __call__(self, retrieved: list[Retrieved]) -> list[Ranked]:
        candidates = [self._known[number] for each in retrieved for number in each.known]
        words = self._encoder.words([*(each.text for each in retrieved), *candidates])
        own, theirs = words[: len(retrieved)], iter(words[len(retrieved) :])
        return [
            self._ranked(each, mine, [next(theirs) for _ in each.known])
            for each, mine in zip(retrieved, own, strict=True)
        ]

    def _ranked(self, post: Retrieved, words: NDArray[np.float32], candidates: list[NDArray[np.float32]]) -> Ranked:
        scores = [float((words @ candidate.T).max(axis=1).mean()) for candidate in candidates]
        best = max(range(len(scores)), key=scores.__getitem__)
        return Ranked(post.text, self._known[post.known[best]], scores[best], scores[best] > SAME)


def _parts(texts: list[str], size: int) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


# What a driver needs of the kernel is not known: replicas on a GPU keep to files and ports, and say so. On cores,
# PyTorch compiles what it computes with (oneDNN).
sandbox = Isolation("sandbox", reads=(str(POSTS),), scratch=True, file_mb=512, jit=True, on_unsupported="degrade")
DEVICES = ["t4", "l4", "a10g", "l40s", "a100", "h100", "h200"]
DEVICE_KINDS = [*DEVICES, *(f"{device}-1of2" for device in DEVICES)]  # both stages may share a device


def stages(kinds: list[str], embedded: int, ranked: int) -> list[Stage]:
    """Both stages on these kinds, with their batch limits."""
    embed = Stage("embed", Embed, hardware=kinds, max_batch_size=embedded, isolation=sandbox)
    return [embed, Stage("rank", Rank, after=[embed], hardware=kinds, max_batch_size=ranked, isolation=sandbox)]


on_devices = Pipeline(
    "repeats",
    slo="250ms",
    source=Topic("posts"),
    sink=Topic("ranked"),
    stages=stages(DEVICE_KINDS, 64, 32),
    sample=Sample(
        arrivals="../moderation/arrivals.csv", events="../moderation/posts.jsonl", replay="../moderation/live.csv"
    ),
)

# The same code for a machine without a device, at a post a second.
on_cores = Pipeline(
    "repeats-on-cores",
    slo="3s",
    source=Topic("posts"),
    sink=Topic("ranked"),
    stages=stages([*DEVICE_KINDS, "cpu-0.5", "cpu-1"], 2, 2),
    sample=Sample(arrivals="arrivals-on-cores.csv", events="../moderation/posts.jsonl"),
)

# By what this machine has. Where a cluster's nodes have the devices, name `topology.py:on_devices`.
pipeline = on_devices if DRIVER.exists() else on_cores
