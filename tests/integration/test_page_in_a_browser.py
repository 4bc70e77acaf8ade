"""The live page in a real Chromium: what it shows, that it comes back, that it complains of nothing."""

import re
import statistics
import time
import urllib.request
from contextlib import closing
from dataclasses import replace

import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from prometheus_client.parser import text_string_to_metric_families

from inferline_stream.cli.options import SearchOptions
from inferline_stream.cli.what_if_process import WhatIfOrder, WhatIfProcess
from inferline_stream.observability.metrics import serve_metrics
from inferline_stream.observability.page.page_files import LIVE, WHAT_IF, page_file
from inferline_stream.observability.page.server import PageCommand, PageControl, PageServer
from inferline_stream.observability.page.what_if_server import serve_what_if
from inferline_stream.observability.pipeline_state import PipelineState
from tests.support.chromium import LONGEST_MS, launch_chromium, needs_chromium
from tests.support.known_what_if import known_what_if, moderation_what_if
from tests.unit.observability.states import a_state

pytestmark = needs_chromium

TOKEN = "a token of 24 characters"
ARROWS = [("language", "verdict", False), ("language", "toxicity", True), ("toxicity", "verdict", False)]


def a_pipeline(stages: int = 3) -> PipelineState:
    state = a_state()
    names = ["language", "toxicity", "verdict"] if stages == 3 else [f"stage-{i}" for i in range(stages)]
    return replace(state, time_s=time.time(), stages=tuple(replace(state.stages[0], name=name) for name in names))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = launch_chromium(playwright)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser):
    tab = browser.new_page()
    tab.set_default_timeout(LONGEST_MS)
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.complaints = complaints
    yield tab
    tab.close()


def contrast(one: str, other: str) -> float:
    """Ratio of relative luminances (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
        shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def open_page(tab, page: PageServer) -> None:
    tab.goto(page.url)
    tab.wait_for_selector("#dag g.stage")


def test_it_shows_the_figures_of_the_state(tab):
    with closing(PageServer(a_pipeline, ARROWS, port=0)) as page:
        open_page(tab, page)
        assert tab.inner_text("#tile-p99 .value") == "300 ms"
        assert tab.inner_text("#tile-miss .value") == "3.00 %"
        assert tab.inner_text("#tile-rate .value") == "55.5/s"
        assert tab.inner_text("#tile-replicas .value") == "6 of 9"
        assert tab.inner_text("#tile-lag .value") == "18"
        assert "The 100 ms window exceeds the plan most: 12 arrivals against 8" in tab.inner_text("#envelope-note")
        assert tab.inner_text("#verdict") == "Partitions halted in language, toxicity, verdict"
        assert tab.locator("#envelope circle.over").count() == 1
        assert tab.locator("#heat td").count() == 12
        assert tab.complaints == []


def test_every_figure_is_the_one_that_prometheus_scrapes(tab):
    state = a_pipeline()
    with closing(PageServer(lambda: state, ARROWS, port=0)) as page:
        open_page(tab, page)
        metrics = serve_metrics(lambda: state, 0)
        with closing(metrics), urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics") as answer:
            scraped = {
                (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "pipeline"))): sample.value
                for family in text_string_to_metric_families(answer.read().decode())
                for sample in family.samples
            }
        one = {name: value for (name, labels), value in scraped.items() if not labels}
        notes = {name: tab.inner_text(f"#tile-{name}") for name in ("p99", "miss", "rate", "replicas", "lag", "cost")}
        ready = sum(
            v for (n, labels), v in scraped.items() if n == "inferline_replicas" and ("state", "ready") in labels
        )
        lag = sum(value for (name, _), value in scraped.items() if name == "inferline_stage_lag_records")
        assert f"{one['inferline_recent_p99_seconds'] * 1e3:g} ms" in notes["p99"]
        assert f"SLO {one['inferline_slo_seconds'] * 1e3:g} ms" in notes["p99"]
        assert f"plan expects {one['inferline_predicted_p99_seconds'] * 1e3:g} ms" in notes["p99"]
        missed = one["inferline_slo_missed_total"] / one["inferline_slo_events_total"]
        assert f"{missed * 100:.2f} %" in notes["miss"]
        assert f"{missed / (1 - one['inferline_slo_objective_ratio']):.3g}× spent" in notes["miss"]
        assert f"{one['inferline_arrival_rate_per_second']:g}/s" in notes["rate"]
        assert f"{one['inferline_arrivals_total']:g} events in" in notes["rate"]
        assert f"{one['inferline_events_out_total']:g} out" in notes["rate"]
        assert f"{ready:g} of" in notes["replicas"]
        assert f"\n{lag:g}\n" in notes["lag"]
        assert f"${one['inferline_cost_dollars_per_hour']:.3f}/h" in notes["cost"]
        assert f"CG-Peak ${one['inferline_coarse_peak_cost_dollars_per_hour']:.3f}/h" in notes["cost"]
        of_stage = {name: v for (name, labels), v in scraped.items() if labels == (("stage", "language"),)}
        tab.click("#dag g.stage[data-stage=language]")
        reported = dict(
            zip(tab.locator("#stage dt").all_inner_texts(), tab.locator("#stage dd").all_inner_texts(), strict=True)
        )
        assert reported["utilization"] == f"{of_stage['inferline_stage_utilization_ratio'] * 100:.0f} %"
        assert reported["wait"] == f"{of_stage['inferline_stage_wait_seconds'] * 1e3:g} ms"
        measured, predicted = reported["service time"].split(", predicted ")
        assert measured == f"{of_stage['inferline_stage_service_time_seconds'] * 1e3:g} ms"
        assert predicted == f"{a_pipeline().stages[0].predicted_service_s * 1e3:g} ms"
        assert reported["batch"] == (
            f"{of_stage['inferline_stage_batch_size']:g} of {of_stage['inferline_stage_max_batch_size']:g}, "
            f"held ≤ {of_stage['inferline_stage_hold_seconds'] * 1e3:g} ms"
        )
        assert reported["lag"] == f"{of_stage['inferline_stage_lag_records']:g} records"
        for partition, cell in enumerate(tab.locator("#heat tbody tr").first.locator("td").all_inner_texts()):
            key = ("inferline_partition_lag_records", (("partition", str(partition)), ("stage", "language")))
            assert float(cell) == scraped[key]


def test_a_plan_opens_to_what_it_changed(tab):
    with closing(PageServer(a_pipeline, ARROWS, port=0)) as page:
        open_page(tab, page)
        tab.locator("#plans summary").first.click()
        text = tab.inner_text("#plans details[open]")
        assert "plan 2" in text
        assert "1 × cpu-1, batch 8 → 2 × cpu-1, batch 8, held 12 ms" in text
        assert "$0.067/h → $0.133/h" in text


def test_a_mark_on_the_time_line_opens_its_decision(tab):
    state = a_pipeline()
    state = replace(
        state, decisions=tuple(msgspec.structs.replace(d, time_s=state.time_s - 5) for d in state.decisions)
    )
    with closing(PageServer(lambda: state, ARROWS, port=0)) as page:
        open_page(tab, page)
        assert "scale up: envelope" in tab.locator("#replicas .mark title").first.inner_html()
        tab.locator("#replicas .mark").first.dispatch_event("pointerdown")
        assert "0.1 s window" in tab.inner_text("#timeline details[open]")


def test_a_stage_opens_with_the_enter_key_and_closes_with_it(tab):
    with closing(PageServer(a_pipeline, ARROWS, port=0)) as page:
        open_page(tab, page)
        tab.locator("#dag g.stage").first.press("Enter")
        assert "2 of 3 ready" in tab.inner_text("#stage")
        assert tab.locator("#stage .controls").count() == 0  # read-only
        tab.locator("#dag g.stage").first.press("Enter")
        assert tab.locator("#stage").is_hidden()


def test_who_enters_the_token_holds_decisions_and_sets_replicas(tab):
    commands: list[PageCommand] = []
    with closing(PageServer(a_pipeline, ARROWS, port=0, control=PageControl(TOKEN, commands.append))) as page:
        open_page(tab, page)
        tab.fill("#token", TOKEN)
        tab.press("#token", "Enter")
        tab.click("#pause")
        tab.wait_for_selector("#answer:has-text('pause')")
        tab.click("#dag g.stage[data-stage=toxicity]")
        tab.fill("#stage input", "7")
        tab.wait_for_timeout(1200)  # updates must not take back what was typed
        tab.click("text=Hold at")
        tab.wait_for_selector("#answer:has-text('scale toxicity')")
    assert commands == [PageCommand("pause"), PageCommand("scale", "toxicity", 7)]
    assert tab.complaints == []


def test_a_wrong_token_is_refused_and_asked_for_again(tab):
    with closing(PageServer(a_pipeline, ARROWS, port=0, control=PageControl(TOKEN, print))) as page:
        open_page(tab, page)
        tab.fill("#token", "something else")
        tab.press("#token", "Enter")
        tab.click("#pause")
        tab.wait_for_selector("#answer:has-text('not the token')")
        assert tab.locator("#token").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(browser, scheme):
    tab = browser.new_page(color_scheme=scheme)
    with closing(PageServer(a_pipeline, ARROWS, port=0)) as page:
        open_page(tab, page)
        colours = tab.evaluate(
            """() => { const s = getComputedStyle(document.documentElement);
            return Object.fromEntries(["card", "ink", "quiet", "live", "good", "warn", "bad"].map(
              (n) => [n, s.getPropertyValue("--" + n).trim()])); }"""
        )
    tab.close()
    low = {n: contrast(c, colours["card"]) for n, c in colours.items() if n != "card"}
    assert {n: ratio for n, ratio in low.items() if ratio < 4.5} == {}


def test_a_slider_moved_with_the_keyboard_changes_plan_replay_and_curve(tab):
    with closing(serve_what_if(known_what_if().answers(), port=0)) as server:
        tab.goto(server.url)
        tab.wait_for_selector("#curve:not(.stale) svg")
        assert tab.inner_text("#tile-cost .value") == "$0.100/h"
        tab.focus("#traffic")
        for _ in range(33):  # of 100 steps from 1/8 to 8 times: four times 40 events of 10 ms a second
            tab.keyboard.press("ArrowRight")
        tab.locator("#tile-cost .value", has_text="$0.200/h").wait_for()
        tab.wait_for_selector("#curve:not(.stale) svg")
        assert tab.inner_text("#tile-late .value") == "0.00 %"
        assert "2 × whole" in tab.inner_text("#stages")
        assert "# with traffic ×" in tab.inner_text("#command")
        tab.get_by_role("button", name="As declared").press("Enter")
        tab.locator("#tile-cost .value", has_text="$0.100/h").wait_for()
        assert tab.evaluate("[...document.querySelectorAll('input, select')].every((each) => each.labels.length === 1)")
    assert tab.complaints == []


def test_each_slider_changes_the_figures_of_the_moderation_example_while_75_million_numbers_are_added(tab):
    """By CPU time of the process that answers, which this is, over that of a loop beside it: about two seconds.

    Others may have the cores meanwhile, and some machines take twice as long.
    """

    def addition_s() -> float:
        total, began_s = 0, time.process_time()
        for number in range(2_000_000):
            total += number
        return (time.process_time() - began_s) / 2_000_000

    with closing(serve_what_if(moderation_what_if().answers(), port=0)) as server:
        tab.goto(server.url)
        tab.wait_for_selector("#verdict[data-answers]")
        took_s, additions_s = {}, []
        for slider, key in {
            "slo": "PageUp", "traffic": "PageUp", "start-up": "PageUp", "reserve": "PageUp", "order": "ArrowDown",
            "price-cpu-0.1": "PageUp",
        }.items():  # fmt: skip
            answered = tab.get_attribute("#verdict", "data-answers")
            began_s = time.process_time()
            tab.press(f"[id='{slider}']", key)
            tab.wait_for_selector(f"#verdict[data-answers]:not([data-answers='{answered}'])")
            took_s[slider] = time.process_time() - began_s
            additions_s.append(addition_s())
            figures = [tab.inner_text(f"#tile-{name} .value") for name in ("cost", "p99", "late", "scaled")]
            assert all(re.search(r"\d", text) for text in figures), (slider, figures)
    assert max(took_s.values()) < 75e6 * statistics.mean(additions_s), took_s
    assert tab.inner_text("#tile-cost .value") != "$0.053/h"


def test_a_decision_opens_to_its_reason_and_stays_open_while_updates_arrive(tab):
    with closing(PageServer(a_pipeline, ARROWS, port=0)) as page:
        open_page(tab, page)
        tab.click("#timeline summary")
        tab.wait_for_timeout(1200)
        assert "0.1 s window" in tab.inner_text("#timeline details[open]")


def test_it_updates_at_least_twice_a_second(tab):
    with closing(PageServer(a_pipeline, ARROWS, port=0)) as page:
        open_page(tab, page)
        tab.evaluate("() => { window.seen = 0; new EventSource('/events').onmessage = () => { window.seen += 1; }; }")
        tab.wait_for_timeout(3000)
        assert tab.evaluate("window.seen") >= 6


def test_it_says_that_the_connection_is_lost_and_comes_back_by_itself(tab):
    page = PageServer(a_pipeline, ARROWS, port=0)
    open_page(tab, page)
    page.close()
    tab.wait_for_selector("body.stale")
    with closing(PageServer(a_pipeline, ARROWS, port=page.port)):
        tab.wait_for_selector("body:not(.stale)")
        assert tab.inner_text("#link") == "live"


def test_every_stage_can_be_reached_with_the_keyboard_and_speaks_in_words(tab):
    with closing(PageServer(a_pipeline, ARROWS, port=0)) as page:
        open_page(tab, page)
        tab.locator("#dag g.stage").first.focus()
        tab.wait_for_timeout(1200)  # updates redraw the picture meanwhile
        words = tab.evaluate("document.activeElement.getAttribute('aria-label')")
        assert re.match(
            r"language: 2 of 3 replicas ready on cpu-1, batch 2 of 8, held ≤ 12 ms, utilization 70 %", words
        )


@pytest.mark.parametrize("stages", [1, 50])
@pytest.mark.parametrize("width", [390, 1280])
def test_one_stage_and_fifty_fit_a_phone_and_a_screen_without_scrolling_sideways(tab, stages, width):
    arrows = [(f"stage-{i // 3}", f"stage-{i}", i % 4 == 0) for i in range(1, stages)]
    tab.set_viewport_size({"width": width, "height": 800})
    with closing(PageServer(lambda: a_pipeline(stages), arrows, port=0)) as page:
        open_page(tab, page)
        assert tab.locator("#dag g.stage").count() == stages
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert tab.complaints == []


KNOWN = """
from inferline_stream import Hardware, Pipeline, Stage, Topic

print("a topology may print")
a = Stage("a", lambda values: values, hardware=["whole"], max_batch_size=1)
kinds = [Hardware("whole", 0.1, cores=1.0)]
pipeline = Pipeline("p", slo="100ms", source=Topic("in"), sink=Topic("out"), stages=[a], hardware=kinds)
"""


@pytest.fixture(scope="module")
def with_what_if(tmp_path_factory):
    """The live page of a run that has a plan, with its what-if tab."""
    folder = tmp_path_factory.mktemp("known")
    (folder / "topology.py").write_text(KNOWN)
    known = known_what_if()
    with (
        closing(WhatIfProcess()) as process,
        closing(PageServer(a_pipeline, ARROWS, port=0, what_if=process.answers())) as page,
    ):
        process.order = WhatIfOrder(
            topology=folder,
            trace=known.inputs.all_traces[0],
            platform=known.inputs.platform,
            search=SearchOptions(),
            stock=("whole=2",),
            measured=known.measured,
            plan=known.first,
        )
        yield page, process


def test_what_if_asks_again_where_another_question_came_between_its_own_and_the_answer(tab, with_what_if):
    """An older one that was late, or one of another page: nobody else answers the newest of this page."""
    for path in ("glance", "replay", "curve"):
        tab.route(f"**/{path}?*", lambda route: route.fulfill(body="null", content_type="application/json"), times=1)
    tab.goto(with_what_if[0].url + "what-if")
    tab.locator("#verdict.good", has_text="The cheapest plan that keeps").wait_for()
    tab.locator("#tile-late.good").wait_for()
    tab.locator("#curve:not(.stale) svg").wait_for()


def test_what_if_is_a_tab_of_the_live_page_and_knows_the_runs_plan_and_stock(tab, with_what_if):
    page, process = with_what_if
    order, process.order = process.order, None
    tab.goto(page.url + "what-if")
    tab.locator("#verdict", has_text="the run has no plan yet").wait_for()
    process.order = order
    tab.complaints.clear()
    open_page(tab, page)
    tab.get_by_role("link", name="What if").press("Enter")
    tab.locator("#tile-cost .value", has_text="$0.100/h").wait_for()
    tab.focus("#traffic")
    for _ in range(33):
        tab.keyboard.press("ArrowRight")
    tab.locator("#tile-cost .value", has_text="$0.200/h").wait_for()
    for _ in range(30):  # more than the run's share of that hardware serves
        tab.keyboard.press("ArrowRight")
    tab.wait_for_selector("#verdict.bad")
    tab.get_by_role("link", name="Live").press("Enter")
    tab.wait_for_selector("#dag g.stage")
    assert tab.complaints == []


def test_axe_finds_no_serious_fault_on_either_page(tab, with_what_if):
    page, _ = with_what_if
    for address, there in (("", "#dag g.stage"), ("what-if", "#curve:not(.stale) svg")):
        tab.goto(page.url + address)
        tab.wait_for_selector(there)
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            faults = [f for f in Axe().run(tab).response["violations"] if f["impact"] in ("serious", "critical")]
            assert [(f["id"], n["html"]) for f in faults for n in f["nodes"]] == [], f"/{address} in {scheme}"


def test_all_files_of_the_page_are_less_than_300_kilobytes():
    assert sum(len(page_file(name)) for name, _ in {**LIVE, **WHAT_IF}.values()) < 300_000
