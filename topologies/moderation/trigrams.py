"""Texts by the letters that they are written with: how often each three of them follow one another, hashed."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

PLACES = 2048
"""Places that trigrams are hashed to. A post has some hundred."""


def trigram_vectors(texts: list[str]) -> NDArray[np.float32]:
    """Return unit vectors, float32, shape (texts, `PLACES`); the more trigrams two texts share, the larger their dot
    product.
    """
    rows = np.zeros((len(texts), PLACES), np.float32)
    for row, text in zip(rows, texts, strict=True):
        letters = " ".join(text.lower().split()).encode()
        for start in range(len(letters) - 2):
            row[zlib.crc32(letters[start : start + 3]) % PLACES] += 1
    rows = np.log1p(rows)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / np.maximum(lengths, 1e-12)
    return unit
