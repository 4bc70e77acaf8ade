"""Whether the tests of tuner/ and planner/ see faults: mutants drawn by seed, each under the tests that call it.

One process of pytest runs the tests once, records which functions each calls, and then has a child for each mutant run
the tests that call its function, the quickest first, up to the first that fails (`_mutation_plugin`). Those in
`EQUIVALENT` survive without being run: they would take the longest.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks._figures import Figures
from tests.benchmarks._mutation import Mutant, mutants
from tests.benchmarks._mutation_plugin import FATES, MUTANTS, SURVIVED, TIMED_OUT

ROOT = Path(__file__).parent.parent.parent
ROOMS = ("tuner", "planner")
TESTS = (
    *("tests/unit/tuner", "tests/laws/test_tuner_step.py"),
    *("tests/unit/planner", "tests/laws/test_plan_slo.py", "tests/laws/test_plan_optimal.py"),
)
"""What tests these rooms. Other tests, of whole runs, would see more; these should."""

SEED = 1
COUNT = 120

EQUIVALENT: Mapping[str, str] = {
    "tuner/calendar.py: self._minute, self._count, self._watched_s = 0, 1, 0.0": "the first call begins a minute, "
    "with no count",
    "planner/predicted_changes.py: if quantile < best * NEAR:": "no quantile is `NEAR` times another to the last bit",
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
    "planner/infeasible.py: unit = Decimal(2).scaleb(Decimal(seconds).adjusted() - 3)": "only the exponent of the unit "
    "counts",
    "tuner/calendar.py: level, most = float(weeks.busiest(bin_ - 1, 2)[0]), "
    "float(weeks.busiest(bin_, TRIED_BINS)[-1])": "the first of maxima so far is that of the bin itself",
    "planner/bounds.py: count = int(min(math.floor(left / rate) + 2, most))": "a unit more than cover what is left "
    "only costs more, and those that cover it are tried next",
    "planner/bounds.py: if kernel(opens, closes, 1 / low, allowed) < allowed:": "where just as many are missed as may "
    "be, the bisection ends at the same rate",
    "planner/local_search.py: if limit >= part.max_batch_size": "the limit that there is comes last, and changes "
    "nothing",
    "planner/predicted_changes.py: most = self.allowed + 2  # fewer than are sampled, and no weight is below 1": (
        "the quantile is among the slowest of one more than are allowed"
    ),
    "planner/problem.py: return sum(cores_of(problem.catalogue, option) for option in candidate) < problem.cores + "
    "_ROUNDING": "the limit has room for rounding, which no sum of cores hits",
}
"""Mutants that no test can see, by `Mutant.named`, with the reason."""


def drawn(count: int, seed: int) -> list[Mutant]:
    """So many mutants of all rooms together, in the order of a hash: an edit of the code leaves all others drawn."""
    every = [
        m for room in ROOMS for path in sorted((ROOT / "inferline_stream" / room).glob("*.py")) for m in mutants(path)
    ]
    names = {mutant: mutant.named(mutant.path.read_text()) for mutant in every}
    gone = EQUIVALENT.keys() - names.values()
    assert not gone, f"EQUIVALENT names mutants that are none any more: {', '.join(sorted(gone))}"
    every.sort(key=lambda mutant: hashlib.sha256(f"{seed} {names[mutant]}".encode()).digest())
    return every[:count]


def fates(chosen: Sequence[Mutant]) -> list[str]:
    """What becomes of each mutant.

    Raises:
        AssertionError: pytest did not get to the last one; with its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, into = Path(folder) / "mutants", Path(folder) / "fates"
        asked.write_bytes(pickle.dumps(list(chosen)))
        options = ("-q", "-n", "0", "-p", "no:cacheprovider", "-p", "tests.benchmarks._mutation_plugin")
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *TESTS],
            cwd=ROOT,
            env={**os.environ, MUTANTS: str(asked), FATES: str(into)},
            capture_output=True,
            check=False,
        )
        found = into.read_text().split("\n")[:-1] if into.exists() else []
    assert len(found) == len(chosen), ended.stdout.decode() + ended.stderr.decode()
    return found


def measure(quick: bool) -> Figures:
    """Share of mutants that survive, and which they are."""
    chosen = drawn(12 if quick else COUNT, SEED)
    run = [mutant for mutant in chosen if mutant.named(mutant.path.read_text()) not in EQUIVALENT]
    ends = fates(run)
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
