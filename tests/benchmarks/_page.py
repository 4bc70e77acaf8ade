"""The live page in Chromium: how much it loads, how soon it paints, how soon its first figures are there."""

from __future__ import annotations

import shutil
import statistics
import time
from contextlib import closing
from dataclasses import replace

from inferline_stream.observability.page.server import PageServer
from inferline_stream.observability.pipeline_state import PipelineState
from tests.benchmarks._figures import Figures
from tests.unit.observability.states import a_state

_STAGES = 10
_ARROWS = [(f"stage-{i // 2}", f"stage-{i}", False) for i in range(1, _STAGES)]
_PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
_LOADED = """performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))
    .filter((entry) => !entry.name.endsWith('/events')).reduce((sum, entry) => sum + entry.transferSize, 0)"""


def page_figures(*, quick: bool) -> Figures:
    """`page_kb` is everything but the stream; times are medians over fresh profiles of the browser, from navigation."""
    chromium = shutil.which("chromium")
    if chromium is None:
        reason = "Chromium is not installed"
        return {"page_kb": None, "page_kb_reason": reason, "first_paint_ms": None, "first_paint_ms_reason": reason}
    from playwright.sync_api import sync_playwright

    painted, drawn, sizes = [], [], []
    with closing(PageServer(_state, _ARROWS, port=0)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(3 if quick else 11):
            context = browser.new_context()
            tab = context.new_page()
            tab.goto(server.url)
            tab.wait_for_selector("#dag g.stage", timeout=30_000)
            drawn.append(tab.evaluate("performance.now()"))
            painted.append(tab.evaluate(_PAINTED))
            sizes.append(tab.evaluate(_LOADED) / 1e3)
            context.close()
        browser.close()
    return {
        "page_kb": round(max(sizes), 1),
        "first_paint_ms": round(statistics.median(painted), 1),
        "first_paint_ms_max": round(max(painted), 1),
        "first_figures_ms": round(statistics.median(drawn), 1),
    }


def _state() -> PipelineState:
    state = a_state(partitions=30)
    stages = tuple(replace(state.stages[0], name=f"stage-{i}") for i in range(_STAGES))
    return replace(state, time_s=time.time(), stages=stages)
