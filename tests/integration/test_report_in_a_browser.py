"""The report of a run in a real Chromium: complete, from one file, without a request or a complaint."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Contention
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.planner.plan_document import PlanDocument
from inferline_stream.runs.archive import EventTimes
from inferline_stream.runs.html_report import html_report, live_outcome
from tests.support.chromium import LONGEST_MS, launch_chromium, needs_chromium
from tests.unit.runs.test_archive import PLAN, RECORD

BEGAN_S = RECORD.started_s + 0.5


def events(count: int = 400) -> EventTimes:
    rng = np.random.default_rng(3)
    arrivals_s = gamma_trace(15.0, 1.0, 60.0, rng).arrivals_s[:count]
    entries_s = arrivals_s[::2]
    latency_s = rng.uniform(0.05, 0.2, entries_s.size)
    latency_s[-4:] = 0.4
    return EventTimes(
        arrivals_s - arrivals_s[0], entries_s - arrivals_s[0], latency_s, arrivals_s[: count // 4], BEGAN_S
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(html_report(RECORD, events()))
    return file


def test_decisions_count_from_the_first_arrival() -> None:
    outcome = live_outcome(RECORD, events())
    assert [(step.time_s, step.action) for step in outcome.steps] == [(9.5, "scale_up")]
    assert outcome.miss_rate == pytest.approx(4 / 200)


def test_a_run_without_events_has_a_page_too() -> None:
    silent = replace(RECORD.report, slo_miss_rate=None, p99_s=None, events_in=0)
    nothing = EventTimes(*(np.empty(0) for _ in range(4)), began_s=0.0)
    page = html_report(replace(RECORD, report=silent), nothing)
    assert "No event came." in page
    assert "<figure" not in page
    assert "<script" not in page


def test_what_came_from_users_cannot_become_markup() -> None:
    decision = replace(RECORD.decisions[0], detail="<script>alert(1)</script>")
    page = html_report(replace(RECORD, decisions=[decision]), events())
    assert "<script>" not in page
    assert page.count("</script>") == 2, "the data and the script that draws it"


def test_a_run_with_several_batches_at_once_is_compared_on_our_pools_and_the_page_says_why() -> None:
    held = {**PLAN.allocations, "judge": (Allocation("cpu", 1, 2, concurrency=4),)}
    stored = replace(RECORD.plans[0], document=PlanDocument(plan=dataclasses.replace(PLAN, allocations=held)))
    read, judge = RECORD.profiles
    waits = dataclasses.replace(judge, contention=(Contention(4, (1.2,)),))
    page = html_report(replace(RECORD, plans=[stored], profiles=[read, waits]), events())
    assert "Rules of others scale our pools: stage judge runs several batches at once" in page
    assert "keda on our pool" in page
    assert "<td>keda</td>" not in page
    assert page.count("<figure") == 6


@needs_chromium
def test_it_shows_everything_from_one_file_without_a_request_or_a_complaint(page: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = launch_chromium(playwright)
        tab = chromium.new_page()
        complaints: list[str] = []
        requests: list[str] = []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        text = tab.inner_text("main")
        drawn = tab.locator("figure svg").count()
        fits = "document.documentElement.scrollWidth <= window.innerWidth"
        wide = tab.evaluate(fits)
        tab.set_viewport_size({"width": 390, "height": 800})
        tab.wait_for_function(fits, timeout=LONGEST_MS)  # the charts are drawn again
        narrow = tab.locator("figure svg").count()
        chromium.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert (drawn, wide, narrow) == (6, True, 6)
    assert "The SLO was not kept: 50.00% of the events were done within 250ms, 99 % were asked for." in text
    assert "more arrivals came in some window than the plan was made for: a burst" in text
    assert re.search(r"cg-peak\s+\$0\.\d+", text)
    assert page.stat().st_size <= 300_000
