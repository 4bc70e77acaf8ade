"""How far predictions hold where a user runs the examples: `trust` after runs of each, from a copy without profiles.

`p99_error_median` and `cost_error_median`: over all runs, the error of what is predicted on the traffic that came, over
what was measured; by example, too. With ``--quick`` the minimal one alone, once, for half a minute of traffic.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks._figures import Figures

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("inferline-stream"))
EXAMPLES = ("minimal", "moderation", "assistant")
ROUNDS = 3
LONGEST_RUN_S = 1800.0


def measure(quick: bool) -> Figures:
    """Errors over all runs, and by example."""
    figures: Figures = {}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in EXAMPLES[: 1 if quick else None]:
            example = Path(shutil.copytree(ROOT / "topologies" / name, Path(folder) / name, ignore=_kept))
            for _ in range(1 if quick else ROUNDS):
                _call("run", str(example), "--no-ui", "--metrics-port", "0", *(("--duration", "30s") if quick else ()))
            runs = json.loads(_call("trust", str(example), "--output", "json"))["runs"]
            found += runs
            figures |= _medians(runs, f"_{name}")
    return _medians(found) | figures


def _medians(runs: list[dict[str, Any]], suffix: str = "") -> Figures:
    if not runs:
        return {f"p99_error_median{suffix}": None, f"p99_error_median{suffix}_reason": "no run says anything"}
    return {
        f"{figure}_median{suffix}": round(statistics.median(run[figure] for run in runs), 3)
        for figure in ("p99_error", "cost_error")
    } | {f"runs{suffix}": len(runs)}


def _call(*arguments: str) -> str:
    done = subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=LONGEST_RUN_S, check=False
    )  # a run that misses its SLO says so and is counted all the same
    if done.returncode not in (0, 6):
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    return done.stdout


def _kept(folder: str, names: list[str]) -> set[str]:
    return {".inferline", "__pycache__"} & set(names)
