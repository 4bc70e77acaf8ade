"""Machine code of the kernels. numba is imported when first asked for, never before.

The code is cached beside the package (or in numba's cache folder, if that is not writeable), keyed by the source and
the processor: compiling takes some seconds once per installation, loading about half a second per process.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
from types import FunctionType, SimpleNamespace
from typing import Any

from inferline_stream.estimator import general_queue, kernels, rank_heap, shared_queue
from inferline_stream.pipeline import deadline_order, fallback

_SOURCES = (fallback, kernels, rank_heap, shared_queue, general_queue)
_INLINED = (
    "drawn_s",
    "bring_forward",
    "put_back",
    "place_at_several",
    "place_of_kind",
    "is_current",
    "note_fate",
    "push",
    "drop_first",
    "move_events",
    "emit",
    "waiting",
)
"""Where they are called, each is part of its caller."""
_CALLED = (
    "version_for",
    "roll",
    "allows",
    "count",
    "choose_version",
    "note_version",
    "draw",
    "put_in_order",
    "known_in_order",
    "held_until",
    "emit_rest",
    "oldest_sent_s",
    "note_ages",
    "serve_general",
    "write_caps",
    "set_caps",
)
_ENTERED = (
    "draw_masks",
    "draw_keys",
    "draw_partitions",
    "draw_lots",
    "merge",
    "delay",
    "serve_shared",
    "serve_triaged",
    "serve_in_turn",
    "note_stays",
    "look",
    "count_late",
    "count_missing",
    "record_latencies",
)

interpreted = SimpleNamespace(**{k: v for source in reversed(_SOURCES) for k, v in vars(source).items()})
"""The same namespace as plain Python: slow, and bit for bit the same."""

_lock = threading.Lock()


def compiled() -> Any:
    """A namespace that holds the kernels as machine code, by name. Each is compiled, or loaded, at its first call."""
    with _lock:
        return _compiled()


def sources_version() -> str:
    """Changes whenever the source of any kernel does, or one of the constants that it has from elsewhere."""
    sources = "".join(inspect.getsource(source) for source in (*_SOURCES, deadline_order))
    return hashlib.sha256(sources.encode()).hexdigest()[:12]


@functools.cache
def _compiled() -> SimpleNamespace:
    from numba import njit

    # numba notices changes of the file that a function is in, not of those it calls: the name covers them all.
    version = sources_version()
    scope = dict(vars(interpreted))
    for name in (*_INLINED, *_CALLED, *_ENTERED):  # in this order: each finds those before it
        plain = scope[name]
        copy = FunctionType(plain.__code__, scope, name, plain.__defaults__)
        copy.__module__ = plain.__module__
        copy.__qualname__ = f"{name}_{version}"
        copy.__doc__ = plain.__doc__
        options: dict[str, Any] = {
            "nogil": True,
            "error_model": "numpy",
            "inline": "always" if name in _INLINED else "never",
            "_nrt": False,  # no kernel makes an array, so none has to count references: that took a tenth of its time
        }
        try:
            scope[name] = njit(cache=True, **options)(copy)
        except RuntimeError:  # no folder to cache in, as in a read-only container: compiled in every process
            scope[name] = njit(**options)(copy)
    return SimpleNamespace(**{name: scope[name] for name in _ENTERED})
