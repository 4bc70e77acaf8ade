"""Machine code of `estimator.kernels`. numba is imported when first asked for, never before.

The code is cached beside the package (or in numba's cache folder, if that is not writeable), keyed by the source and
the processor: compiling takes some seconds once per installation, loading about half a second per process.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

from inferline_stream.estimator import kernels

NAMES = (
    "draw_masks",
    "merge",
    "serve_by_arrival",
    "serve_by_entry",
    "serve_partitions",
    "count_late",
    "record_latencies",
)
_CALLED = ("draw", "service_time")
_lock = threading.Lock()


def compiled() -> Any:
    """A namespace that holds the kernels as machine code, by name. Each is compiled, or loaded, at its first call."""
    with _lock:
        return _compiled()


@functools.cache
def _compiled() -> SimpleNamespace:
    from numba import njit

    jit: Callable[[Any], Any] = njit(nogil=True, cache=True, error_model="numpy")
    scope = dict(vars(kernels))
    for name in _CALLED:
        scope[name] = jit(_within(scope, getattr(kernels, name)))
    return SimpleNamespace(**{name: jit(_within(scope, getattr(kernels, name))) for name in NAMES})


def _within(scope: dict[str, Any], function: Any) -> FunctionType:
    """The same code, which finds what it calls in the scope given."""
    copy = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__module__ = function.__module__
    copy.__qualname__ = function.__qualname__
    copy.__doc__ = function.__doc__
    return copy
