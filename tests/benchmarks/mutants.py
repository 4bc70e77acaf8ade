"""Whether the tests of tuner/ and planner/ see faults: mutants drawn by seed, each under the tests of its room.

Every mutant runs in a copy of the package, so that what runs meanwhile is not touched. Survivors that no test
can see, since they compute the same, count as survivors.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks._mutation import Mutant, mutants

Figures = dict[str, float | int | str | None]

ROOT = Path(__file__).parent.parent.parent
TESTS = {
    "tuner": ("tests/unit/tuner", "tests/laws/test_tuner_step.py"),
    "planner": ("tests/unit/planner", "tests/laws/test_plan_slo.py", "tests/laws/test_plan_optimal.py"),
}
"""Room → what tests it. A room's other tests, of whole runs, would see more; these should."""

SEED = 1
COUNT = 120
USAGE_ERROR = 4
"""What pytest ends with where it was called wrongly."""

LIMIT_S = 300.0
"""For the tests of a room under one mutant: many a mutant never ends, which is seen."""


def drawn(count: int, seed: int) -> list[Mutant]:
    """So many mutants, as many of each room as it has lines to be wrong in."""
    every = [
        m for room in TESTS for path in sorted((ROOT / "inferline_stream" / room).glob("*.py")) for m in mutants(path)
    ]
    chosen = np.random.default_rng(seed).choice(len(every), size=min(count, len(every)), replace=False)
    return [every[i] for i in sorted(chosen.tolist())]


def survives(mutant: Mutant, copy: Path) -> bool:
    """Whether the tests of its room pass on the mutant."""
    file = copy / mutant.path.relative_to(ROOT)
    source = mutant.path.read_text()
    file.write_text(mutant.applied(source))
    shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)
    options = ("-q", "-x", "-n", "0", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *options, *_nearest_first(mutant.path, copy)]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    finally:
        file.write_text(source)
    assert ended.returncode != USAGE_ERROR, ended.stdout.decode()
    return ended.returncode == 0


def _nearest_first(path: Path, copy: Path) -> list[str]:
    """Files of tests of a module's room, those of its own name first: most mutants end there."""
    found: list[Path] = []
    for place in (copy / name for name in TESTS[path.parent.name]):
        found += sorted(place.glob("test_*.py")) if place.is_dir() else [place]
    return [str(file.relative_to(copy)) for file in sorted(found, key=lambda file: path.stem not in file.stem)]


def copied(into: Path) -> Path:
    """A copy of what is tested and of its tests."""
    for name in ("inferline_stream", "tests", "topologies"):
        shutil.copytree(ROOT / name, into / name)
    shutil.copy(ROOT / "pyproject.toml", into)
    return into


def measure(quick: bool) -> Figures:
    """Share of mutants that survive, and which they are."""
    chosen = drawn(12 if quick else COUNT, SEED)
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        survivors = [mutant for mutant in chosen if survives(mutant, copy)]
    figures: Figures = {"mutants": len(chosen), "survivor_share": round(len(survivors) / len(chosen), 3)}
    figures.update({f"survivor_{i}": str(mutant) for i, mutant in enumerate(survivors)})
    return figures
