"""A plugin of pytest for `mutants`: runs every test once, then each mutant under the tests that call its function.

`MUTANTS` names a pickle of the mutants, `FATES` the file to write what becomes of each, a line as soon as it is known.
A mutant is put into the functions of a child of this process, which has imported everything: no source is edited, and
what runs meanwhile is not touched. What a test module computed when it was imported has not seen the mutant: one that
only shows there counts as survived.
"""

from __future__ import annotations

import functools
import gc
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import NoReturn

import pytest
from _pytest.runner import runtestprotocol
from _pytest.warnings import catch_warnings_for_item

from tests.benchmarks._mutation import Mutant

MUTANTS, FATES = "MUTATION_MUTANTS", "MUTATION_FATES"

_NOT_PUT_IN = 2
"""Exit code."""

KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"

LEAST_LIMIT_S, LIMIT_FACTOR = 10.0, 5.0
"""A test's time under a mutant: at least so much, and so many times what it took without. Many a mutant never ends."""

PACKAGE = f"{Path.cwd() / 'inferline_stream'}{os.sep}"

COMPILED = ("inferline_stream.estimator", "inferline_stream.calculus")
"""Whose caches hold machine code, which no mutant is in."""


class Judge:
    """Runs the tests without a mutant, which must pass, or no survivor means anything; then the mutants."""

    def __init__(self, mutants: Sequence[Mutant], into: Path) -> None:
        self._mutants, self._into = mutants, into
        self._seconds: dict[pytest.Item, float] = {}
        self._called: dict[pytest.Item, set[tuple[str, int]]] = {}
        self._caches: list[Callable[[], None]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        gc.unfreeze()  # so that functions and caches are found
        self._caches = [
            known.cache_clear
            for known in gc.get_objects()
            if isinstance(known, functools._lru_cache_wrapper) and not str(known.__module__).startswith(COMPILED)
        ]
        for item in session.items:
            self._record(item)
        callers: dict[tuple[str, int], list[pytest.Item]] = {}
        quickest_first = sorted(session.items, key=self._seconds.__getitem__)
        for item in quickest_first:
            for called in self._called[item]:
                callers.setdefault(called, []).append(item)
        with self._into.open("w") as file:
            for mutant in self._mutants:
                tests = callers.get((str(mutant.path), mutant.function_line)) or quickest_first
                file.write(f"{self._fate(mutant, tests)}\n")
                file.flush()
        return True

    def _record(self, item: pytest.Item) -> None:
        """Run a test, and write down what it calls in this process."""
        self._forget()
        called: set[tuple[str, int]] = set()
        self._called[item] = called

        def trace(frame: FrameType, event: str, argument: object) -> None:
            code = frame.f_code
            if code.co_filename.startswith(PACKAGE):
                called.add((code.co_filename, code.co_firstlineno))

        began_s = time.perf_counter()
        threading.settrace(trace)
        sys.settrace(trace)
        try:
            assert _passes(item), f"{item.nodeid} fails without a mutant"
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self._seconds[item] = time.perf_counter() - began_s

    def _forget(self) -> None:
        """What one test finds in a cache, another has called."""
        for clear in self._caches:
            clear()

    def _fate(self, mutant: Mutant, tests: Sequence[pytest.Item]) -> str:
        """What becomes of a mutant under these tests, in their order."""
        child = os.fork()
        if not child:
            self._die(mutant, tests)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
            return TIMED_OUT
        assert status != _NOT_PUT_IN << 8, f"{mutant} cannot be put in; has its file changed since it was imported?"
        return SURVIVED if status == 0 else KILLED

    def _die(self, mutant: Mutant, tests: Sequence[pytest.Item]) -> NoReturn:
        """End this process: well if all tests pass."""
        self._forget()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        passed = False
        try:
            put_in(mutant)
        except Exception:
            traceback.print_exc()
            os._exit(_NOT_PUT_IN)
        try:
            for item in tests:
                signal.setitimer(signal.ITIMER_REAL, max(LEAST_LIMIT_S, LIMIT_FACTOR * self._seconds[item]))
                if not (passed := _passes(item)):
                    break
        finally:
            os._exit(0 if passed else 1)


def put_in(mutant: Mutant) -> None:
    """Have the functions of this process run the mutant's code."""
    path = str(mutant.path)
    code = compile(mutant.applied(mutant.path.read_text()), path, "exec", dont_inherit=True)
    changed = {(each.co_qualname, each.co_firstlineno): each for each in _codes(code)}
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename == path:  # a dead proxy has no class
            own = function.__code__
            new = changed[own.co_qualname, own.co_firstlineno]
            if new != own:
                function.__code__ = new


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


def _passes(item: pytest.Item) -> bool:
    with catch_warnings_for_item(item.config, item.ihook, "runtest", item=item):
        return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))


def pytest_configure(config: pytest.Config) -> None:
    """Do what the environment asks for."""
    if path := os.environ.get(MUTANTS):
        config.pluginmanager.register(Judge(pickle.loads(Path(path).read_bytes()), Path(os.environ[FATES])))
