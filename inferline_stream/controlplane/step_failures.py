"""What steps of the control loop raise: logged when it is new, and counted from then on, so that it fills no log."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from inferline_stream.errors import InferlineError

logger = logging.getLogger(__name__)

AGAIN_S = 60.0
"""How often an error that lasts is logged, with how often it has come since."""

_KNOWN = 50
"""Different errors that are remembered. Where texts differ every time, those not raised for longest are forgotten."""


@dataclass(slots=True)
class _Repeated:
    logged_s: float
    since: int = 0


class StepFailures:
    """Counts errors, and logs each once and then now and then."""

    def __init__(self) -> None:
        self.count = 0
        """All that were raised."""
        self._known: dict[str, _Repeated] = {}

    def add(self, error: Exception, now_s: float) -> None:
        """Count an error. A new one is logged, with its traceback unless it is of a kind that says what to do.

        Args:
            error: what a step raised.
            now_s: on any clock.
        """
        self.count += 1
        what = f"{type(error).__name__}: {error}"
        known = self._known.get(what)
        if known is None:
            traceback = None if isinstance(error, InferlineError) else error
            logger.error("a step of the control loop failed: %s", what, exc_info=traceback)
            self._known[what] = _Repeated(now_s)
            if len(self._known) > _KNOWN:
                del self._known[next(iter(self._known))]
            return
        self._known[what] = self._known.pop(what)
        known.since += 1
        if now_s - known.logged_s >= AGAIN_S:
            logger.error(
                "a step of the control loop failed %d more times in %.0f s: %s",
                known.since,
                now_s - known.logged_s,
                what,
            )
            self._known[what] = _Repeated(now_s)
