"""What it costs to look: the live page of a pipeline with ten stages."""

from __future__ import annotations

from tests.benchmarks._page import Figures, page_figures


def measure(quick: bool) -> Figures:
    return page_figures(quick=quick)
