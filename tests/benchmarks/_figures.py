"""What benchmarks give."""

from __future__ import annotations

Figures = dict[str, float | int | str | None]
"""By name; one that is not available on this machine is None."""
