"""The live page in a real Chromium: what it shows, that it comes back, that it complains of nothing."""

import re
import shutil
import time
from dataclasses import replace

import pytest

from inferline_stream.observability.page.server import PageServer
from inferline_stream.observability.state import PipelineState
from tests.unit.observability.states import a_state

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
ARROWS = [("language", "verdict", False), ("language", "toxicity", True), ("toxicity", "verdict", False)]


def a_pipeline(stages: int = 3) -> PipelineState:
    state = a_state()
    names = ["language", "toxicity", "verdict"] if stages == 3 else [f"stage-{i}" for i in range(stages)]
    return replace(state, time_s=time.time(), stages=tuple(replace(state.stages[0], name=name) for name in names))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser):
    tab = browser.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.complaints = complaints
    yield tab
    tab.close()


def open_page(tab, page: PageServer) -> None:
    tab.goto(page.url)
    tab.wait_for_selector("#dag g.stage", timeout=10_000)


def test_it_shows_the_figures_of_the_state(tab):
    with PageServer(a_pipeline, ARROWS, port=0) as page:
        open_page(tab, page)
        assert tab.inner_text("#tile-p99 .value") == "300 ms"
        assert tab.inner_text("#tile-miss .value") == "3.00 %"
        assert tab.inner_text("#tile-rate .value") == "55.5/s"
        assert tab.inner_text("#tile-replicas .value") == "6 of 9"
        assert tab.inner_text("#tile-lag .value") == "18"
        assert "The 100 ms window exceeds the plan: 12 arrivals against 8" in tab.inner_text("#envelope-note")
        assert tab.inner_text("#verdict") == "P99 above the SLO"
        assert tab.locator("#envelope circle.over").count() == 1
        assert tab.locator("#heat td").count() == 12
        assert tab.complaints == []


def test_a_decision_opens_to_its_reason_and_stays_open_while_updates_arrive(tab):
    with PageServer(a_pipeline, ARROWS, port=0) as page:
        open_page(tab, page)
        tab.click("#timeline summary")
        tab.wait_for_timeout(1200)
        assert "0.1 s window" in tab.inner_text("#timeline details[open]")


def test_it_updates_at_least_twice_a_second(tab):
    with PageServer(a_pipeline, ARROWS, port=0) as page:
        open_page(tab, page)
        tab.evaluate("() => { window.seen = 0; new EventSource('/events').onmessage = () => { window.seen += 1; }; }")
        tab.wait_for_timeout(3000)
        assert tab.evaluate("window.seen") >= 6


def test_it_says_that_the_connection_is_lost_and_comes_back_by_itself(tab):
    page = PageServer(a_pipeline, ARROWS, port=0)
    open_page(tab, page)
    page.close()
    tab.wait_for_selector("body.stale", timeout=10_000)
    with PageServer(a_pipeline, ARROWS, port=page.port):
        tab.wait_for_selector("body:not(.stale)", timeout=20_000)
        assert tab.inner_text("#link") == "live"


def test_every_stage_can_be_reached_with_the_keyboard_and_speaks_in_words(tab):
    with PageServer(a_pipeline, ARROWS, port=0) as page:
        open_page(tab, page)
        tab.locator("#dag g.stage").first.focus()
        tab.wait_for_timeout(1200)  # updates redraw the picture meanwhile
        words = tab.evaluate("document.activeElement.getAttribute('aria-label')")
        assert re.match(r"language: 2 of 3 replicas ready on cpu-1, batch 2 of 8, utilization 70 %", words)


@pytest.mark.parametrize("stages", [1, 50])
@pytest.mark.parametrize("width", [390, 1280])
def test_one_stage_and_fifty_fit_a_phone_and_a_screen_without_scrolling_sideways(tab, stages, width):
    arrows = [(f"stage-{i // 3}", f"stage-{i}", i % 4 == 0) for i in range(1, stages)]
    tab.set_viewport_size({"width": width, "height": 800})
    with PageServer(lambda: a_pipeline(stages), arrows, port=0) as page:
        open_page(tab, page)
        assert tab.locator("#dag g.stage").count() == stages
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert tab.complaints == []
