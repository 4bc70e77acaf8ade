"""Arrays that a run leaves in a file of NumPy's, read back as what was written or not at all."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferline_stream.errors import UNREADABLE

FLOATS, INTS, TEXTS, FLOAT = (1, "f"), (1, "iu"), (1, "U"), (0, "f")
"""What an array is like: its dimensions and kinds of elements, by NumPy's letters."""

_DAMAGE = (*UNREADABLE, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
"""RuntimeError is of archives that are encrypted, or compressed otherwise."""


def read_arrays(file: Path, like: Mapping[str, tuple[int, str]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name.

    Args:
        file: as `numpy.savez` writes them.
        like: what each of them is like.

    Raises:
        OSError: there is no file that can be read.
        ValueError: it is damaged, or holds other arrays.
    """
    try:
        with file.open("rb") as opened, np.load(opened) as arrays:
            found = {name: arrays[name] for name in like}
    except _DAMAGE as error:
        raise ValueError(str(error) or type(error).__name__) from error
    for name, (dimensions, kinds) in like.items():
        if found[name].ndim != dimensions or found[name].dtype.kind not in kinds:
            raise ValueError(f"{name} is an array of shape {found[name].shape} of {found[name].dtype}")
    return found
