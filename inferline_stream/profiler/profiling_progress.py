"""How far profiling has come: its steps, counted and reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far profiling has come.

    Args:
        done: steps finished; fractions for one under way.
        total: steps in all.
        doing: the step under way, in words.
        note: something worth keeping on the screen: what was skipped, or ended early.
    """

    done: float
    total: int
    doing: str
    note: str = ""


class Steps:
    """Counts steps and reports them."""

    def __init__(self, tell: Callable[[Progress], None], total: int) -> None:
        self._tell = tell
        self._total = total
        self._begun = 0
        self._done = 0.0
        self._doing = ""

    def begin(self, doing: str) -> None:
        """The next step begins; the one before is done."""
        self._begun += 1
        self._doing = doing
        self.within(0.0)

    def within(self, share: float, detail: str = "") -> None:
        """The step under way has come so far."""
        self._done = self._begun - 1 + share
        self._tell(Progress(self._done, self._total, f"{self._doing}{detail}"))

    def note(self, note: str) -> None:
        """Something to keep on the screen."""
        self._tell(Progress(self._done, self._total, self._doing, note))

    def end(self) -> None:
        """Every step is done."""
        self._tell(Progress(self._total, self._total, "done"))
