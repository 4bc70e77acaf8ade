"""A plugin of pytest for `mutants`: records what each test calls, or runs the tests that it is given, in their order.

`RECORD` names the file to write: for each test its seconds, and file and first line of every function of the package
that it calls in its own process. `ONLY` names a file that holds tests with their seconds: one that takes longer ends
the process by SIGALRM.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

RECORD, ONLY = "MUTATION_RECORD", "MUTATION_ONLY"

PACKAGE = f"{Path.cwd() / 'inferline_stream'}{os.sep}"


class Recorder:
    """Writes down what tests call."""

    def __init__(self, into: Path) -> None:
        self._into = into
        self._tests: dict[str, tuple[float, list[tuple[str, int]]]] = {}
        self._called: set[tuple[str, int]] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        for known in gc.get_objects():  # what one test finds in a cache, another has called
            if isinstance(known, functools._lru_cache_wrapper) and str(known.__module__).startswith("tests."):
                known.cache_clear()
        self._called.clear()
        began_s = time.perf_counter()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self._tests[item.nodeid] = time.perf_counter() - began_s, sorted(self._called)

    def pytest_sessionfinish(self) -> None:
        self._into.write_text(json.dumps(self._tests))

    def _trace(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            self._called.add((code.co_filename, code.co_firstlineno))


class Selection:
    """Runs these tests and no others, in this order, each for so many seconds at most."""

    def __init__(self, limits_s: dict[str, float]) -> None:
        self._limits_s = limits_s
        self._at = {test: at for at, test in enumerate(limits_s)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self._at])
        items[:] = sorted((item for item in items if item.nodeid in self._at), key=lambda item: self._at[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, self._limits_s[item.nodeid])
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)


def pytest_configure(config: pytest.Config) -> None:
    """Do what the environment asks for."""
    if into := os.environ.get(RECORD):
        config.pluginmanager.register(Recorder(Path(into)))
    if tests := os.environ.get(ONLY):
        config.pluginmanager.register(Selection(json.loads(Path(tests).read_text())))
