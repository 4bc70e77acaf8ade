"""Whether the tests of tuner/ and planner/ see faults: mutants drawn by seed, each under the tests that call it.

A first run without a mutant must pass; it records which functions each test calls. A mutant is then run under the tests
that call its function, the quickest first, up to the first that fails. Every mutant runs in a copy of the package, so
that what runs meanwhile is not touched. Those in `EQUIVALENT` survive without being run: they would take the longest.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks._mutation import Mutant, mutants
from tests.benchmarks._mutation_plugin import ONLY, RECORD

Figures = dict[str, float | int | str | None]

ROOT = Path(__file__).parent.parent.parent
TESTS = {
    "tuner": ("tests/unit/tuner", "tests/laws/test_tuner_step.py"),
    "planner": ("tests/unit/planner", "tests/laws/test_plan_slo.py", "tests/laws/test_plan_optimal.py"),
}
"""Room → what tests it. A room's other tests, of whole runs, would see more; these should."""

SEED = 1
COUNT = 120

PASSED, FAILED, NOT_COLLECTED = 0, 1, 2
"""What pytest ends with where tests were run, or could not be imported."""

LEAST_LIMIT_S, LIMIT_FACTOR = 30.0, 5.0
"""A test's time under a mutant: at least so much, and so many times what it took without. Many a mutant never ends."""

EQUIVALENT: Mapping[str, str] = {
    "planner/reasons.py: fewer = (*others, replace(last, replicas=last.replicas - 1)) if last.replicas >= 1 else "
    "tuple(others)": "an allocation of no replicas serves as one that is left out does",
    "planner/paper_greedy.py: and cores[kind] + rest < free": "free has room for rounding, which no sum of cores hits",
    "planner/branch_and_bound.py: while below <= min(self.cost - others, least * _DEAREST):": "options that are dearer "
    "than all that is left end the search themselves, and no price is `_DEAREST` times the least to the last bit",
    "planner/infeasible.py: (_most(problem, s, Allocation(k, 1, 2)) for k in hardware_kinds(problem, s)),": (
        "`_most` puts in a number of replicas of its own"
    ),
    "planner/paper_greedy.py: search.together([c for c in (changed, *(entry[2] for entry in waiting[:2])) if c is not "
    "None])": "what is simulated together changes no verdict, and counts only where that is asked for",
    "planner/pareto_search.py: idle = idle + 1 if kept and best >= before * BETTER else 0": "no lateness is `BETTER` "
    "times another to the last bit",
    "planner/predicted_changes.py: best = [options[i][0] for late_s, i in ranked[:BEST_HOLDS] "
    "if late_s < self._target_s * NEAR]": "no predicted latency is `NEAR` times the target to the last bit",
    "planner/problem.py: return sum(cores_of(problem.catalogue, option) for option in candidate) < problem.cores + "
    "_ROUNDING": "the limit has room for rounding, which no sum of cores hits",
}
"""Mutants that no test can see, by `Mutant.named`, with the reason."""

KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a room's tests did without a mutant.

    Args:
        seconds: by test.
        callers: by file and first line of a function, the tests that call it, the quickest first.
    """

    seconds: Mapping[str, float]
    callers: Mapping[tuple[str, int], Sequence[str]]

    def tests_of(self, mutant: Mutant) -> Sequence[str]:
        """Tests that call the mutant's function; all where none does so in Python, as of compiled ones."""
        found = self.callers.get((str(mutant.path.relative_to(ROOT)), mutant.function_line))
        return found or sorted(self.seconds, key=lambda test: self.seconds[test])


def drawn(count: int, seed: int) -> list[Mutant]:
    """So many mutants of all rooms together, in the order of a hash: an edit of the code leaves all others drawn."""
    every = [
        m for room in TESTS for path in sorted((ROOT / "inferline_stream" / room).glob("*.py")) for m in mutants(path)
    ]
    names = {mutant: mutant.named(mutant.path.read_text()) for mutant in every}
    gone = EQUIVALENT.keys() - names.values()
    assert not gone, f"EQUIVALENT names mutants that are none any more: {', '.join(sorted(gone))}"
    every.sort(key=lambda mutant: hashlib.sha256(f"{seed} {names[mutant]}".encode()).digest())
    return every[:count]


def recorded(room: str, copy: Path) -> Recorded:
    """Run a room's tests without a mutant: they pass, or no survivor means anything."""
    into = copy / f"{room}-recorded.json"
    ended = _pytest(copy, TESTS[room], {RECORD: str(into)}, None)
    assert ended.returncode == PASSED, ended.stdout.decode()
    tests = json.loads(into.read_text())
    seconds = {test: took_s for test, (took_s, _) in tests.items()}
    callers: dict[tuple[str, int], list[str]] = {}
    for test in sorted(tests, key=lambda test: seconds[test]):
        for file, line in tests[test][1]:
            callers.setdefault((str(Path(file).relative_to(copy)), line), []).append(test)
    return Recorded(seconds, callers)


def fate(mutant: Mutant, tests: Sequence[str], seconds: Mapping[str, float], copy: Path) -> str:
    """What becomes of a mutant under these tests."""
    file, source = copy / mutant.path.relative_to(ROOT), mutant.path.read_text()
    only = copy / "only.json"
    limits_s = {test: max(LEAST_LIMIT_S, LIMIT_FACTOR * seconds[test]) for test in tests}
    only.write_text(json.dumps(limits_s))
    file.write_text(mutant.applied(source))
    _forget_compiled(file)
    try:
        ended = _pytest(
            copy, sorted({test.split("::")[0] for test in tests}), {ONLY: str(only)}, sum(limits_s.values())
        )
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        file.write_text(source)
        _forget_compiled(file)
    if ended.returncode == -signal.SIGALRM:
        return TIMED_OUT
    assert ended.returncode in (PASSED, FAILED, NOT_COLLECTED), ended.stdout.decode()
    return SURVIVED if ended.returncode == PASSED else KILLED


def _pytest(
    copy: Path, places: Sequence[str], asked: Mapping[str, str], limit_s: float | None
) -> subprocess.CompletedProcess[bytes]:
    options = ("-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-p", "tests.benchmarks._mutation_plugin")
    environment = {**os.environ, **asked, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", *options, *places]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=limit_s, check=False)


def _forget_compiled(file: Path) -> None:
    """Python takes an edit of the same size within a second for no edit."""
    for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
        compiled.unlink()


def copied(into: Path) -> Path:
    """A copy of what is tested and of its tests."""
    for name in ("inferline_stream", "tests", "topologies"):
        shutil.copytree(ROOT / name, into / name)
    shutil.copy(ROOT / "pyproject.toml", into)
    return into


def fates(chosen: Sequence[Mutant], known: Mapping[str, Recorded], copies: Sequence[Path]) -> list[str]:
    """What becomes of mutants, one at a time in each copy."""
    free: queue.Queue[Path] = queue.Queue()
    for copy in copies:
        free.put(copy)

    def judged(mutant: Mutant) -> str:
        room, copy = known[mutant.path.parent.name], free.get()
        try:
            return fate(mutant, room.tests_of(mutant), room.seconds, copy)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        return list(pool.map(judged, chosen))


def measure(quick: bool) -> Figures:
    """Share of mutants that survive, and which they are."""
    chosen = drawn(12 if quick else COUNT, SEED)
    with tempfile.TemporaryDirectory() as folder:
        cores = len(os.sched_getaffinity(0))
        copies = [copied(Path(folder).resolve() / str(number)) for number in range(cores)]
        known = {room: recorded(room, copies[0]) for room in {mutant.path.parent.name for mutant in chosen}}
        run = [mutant for mutant in chosen if mutant.named(mutant.path.read_text()) not in EQUIVALENT]
        ends = fates(run, known, copies)
    unexplained = [mutant for mutant, end in zip(run, ends, strict=True) if end == SURVIVED]
    survivors = len(chosen) - len(run) + len(unexplained)
    figures: Figures = {
        "mutants": len(chosen),
        "timeouts": ends.count(TIMED_OUT),
        "survivor_share": round(survivors / len(chosen), 3),
        "survivors_unexplained": len(unexplained),
    }
    figures.update({f"survivor_{i}": str(mutant) for i, mutant in enumerate(unexplained)})
    return figures
