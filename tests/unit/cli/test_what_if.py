"""What other SLOs, traffic and prices come to, on one stage whose plans are known by formula."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import copy
from dataclasses import replace
from typing import Any

import pytest

from inferline_stream.cli.what_if import Question, Superseded, WhatIf
from inferline_stream.errors import UsageError
from inferline_stream.observability.page.what_if_server import serve_what_if
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.spot import Spot
from tests.support.known_what_if import PRICE, RATE, SERVICE_S, SLO_S, in_line, known_what_if
from tests.unit.runs.test_trust import written

DEADLINE_S = 60.0


def on_halves(*stages: str) -> WhatIf:
    """Stages on halves of a GPU of $1 an hour, listed as on a machine that has one."""
    gpu = Hardware("gpu", 1.0, gpus=1, gpu_model="Tesla T4")
    return in_line(*stages, kind="gpu-1of2", hardware=[gpu, gpu.shared(2)])


@pytest.fixture(scope="module")
def what_if() -> WhatIf:
    return known_what_if()


@pytest.mark.parametrize(
    ("question", "replicas", "price"),
    [
        (Question(), 1, PRICE),
        (Question(traffic=3.75), 2, PRICE),  # 150 events of 10 ms a second
        (Question(traffic=6.25, prices={"whole": 0.4}), 3, 0.4),
        (Question(slo_s=0.011), 1, PRICE),
    ],
)
def test_a_plan_has_the_replicas_that_the_traffic_needs(question, replicas, price, what_if) -> None:
    found = what_if.plan(question)
    assert found["cost_per_hour"] == pytest.approx(replicas * price)
    (stage,) = found["stages"]
    assert (stage["stage"], stage["replicas"], stage["latency_share"]) == ("a", replicas, 1.0)
    assert stage["utilization"] == pytest.approx(RATE * question.traffic * SERVICE_S / replicas, rel=0.01)
    assert found["predicted_p99_s"] <= (question.slo_s or SLO_S)


def test_the_price_of_a_device_is_that_of_its_shares_too() -> None:
    halves = on_halves("a", "b")
    assert halves.declared()["prices"] == {"gpu-1of2": 0.5}
    assert halves.plan(Question(prices={"gpu": 3.0}))["cost_per_hour"] == pytest.approx(3.0)
    assert halves.plan(Question(prices={"gpu-1of2": 0.2}))["cost_per_hour"] == pytest.approx(0.4)


def test_stages_on_shares_of_devices_cost_what_the_plan_does_all_together() -> None:
    """Three halves are two devices."""
    found = on_halves("a", "b", "c").plan(Question())
    assert found["cost_per_hour"] == pytest.approx(2.0)
    assert [stage["cost_per_hour"] for stage in found["stages"]] == pytest.approx([2 / 3] * 3)


def test_finished_runs_of_the_pipeline_say_how_far_to_trust_it(tmp_path, what_if) -> None:
    what = what_if.inputs.what
    named = copy(what.pipeline)
    named.name = "posts"
    beside = replace(what_if.inputs, what=replace(what, pipeline=named, file=tmp_path / "topology.py"))
    assert WhatIf(beside, what_if.measured, what_if.first, ()).trust() == {"runs": []}
    written(tmp_path, 1_700_000_000.0)
    (run,) = WhatIf(beside, what_if.measured, what_if.first, ()).trust()["runs"]
    assert (run["predicted_p99_s"], run["p99_s"]) == (pytest.approx(0.02), 0.025)


def test_spot_capacity_and_fallbacks_can_be_left_out() -> None:
    half = Hardware("whole", PRICE, cores=1.0, spot=Spot(price=PRICE / 4, notice="1h"))
    lent = in_line("a", kind="whole", hardware=[half], spot=True)
    assert lent.declared()["spot"]
    assert lent.plan(Question())["cost_per_hour"] < PRICE
    without = lent.plan(Question(spot=False))
    assert without["cost_per_hour"] == pytest.approx(PRICE)
    assert without["command"].endswith("# with no spot kind declared")
    own = lent.measured.profiles["a", "whole"]
    fast = replace(own, fallback=own.service_times, fallback_share=0.05)
    twice = WhatIf(lent.inputs, replace(lent.measured, profiles={("a", "whole"): fast}), lent.first, lent.command)
    assert twice._profiles(Question(fallback=False)).profiles["a", "whole"] == own


def test_a_plan_that_cannot_be_is_answered_in_words(what_if) -> None:
    found = what_if.plan(Question(slo_s=0.009))
    assert "cost_per_hour" not in found
    assert "an event needs 0.01 s when nothing waits" in found["infeasible"]
    assert what_if.replay(Question(slo_s=0.009)) == {}


def test_a_replay_scales_that_plan_with_what_is_held_always(what_if) -> None:
    steady = what_if.replay(Question())
    assert (steady["miss_rate"], steady["cost_per_hour"]) == (0.0, pytest.approx(PRICE))
    held = what_if.replay(Question(reserve=3.75, start_up_s=0.0))
    assert held["cost_per_hour"] > 1.9 * PRICE  # 150 events of 10 ms a second keep more than one busy


def test_the_reserve_that_was_asked_for_is_held_until_it_is_taken_back(what_if) -> None:
    reserved = WhatIf(what_if.inputs, what_if.measured, replace(what_if.first, reserve=3.75), what_if.command)
    assert reserved.replay(Question())["cost_per_hour"] > 1.9 * PRICE
    assert reserved.plan(Question())["command"].endswith("--reserve 3.75")
    assert reserved.replay(Question(reserve=None))["cost_per_hour"] == pytest.approx(PRICE)
    assert "--reserve" not in reserved.plan(Question(reserve=None))["command"]


def test_the_curve_never_rises(what_if) -> None:
    points = what_if.curve(Question(traffic=3.75))["points"]
    assert [point["slo_s"] / SLO_S for point in points] == pytest.approx(
        [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 3, 4]
    )
    assert all(point["cost_per_hour"] == pytest.approx(2 * PRICE) for point in points)


def test_the_command_prints_the_same_plan_or_says_what_to_declare(what_if) -> None:
    plain = what_if.plan(Question(slo_s=0.2, reserve=2))["command"]
    assert plain == "inferline-stream plan 'my folder' --slo 200ms --reserve 2"
    declared = what_if.plan(Question(traffic=2, prices={"whole": 0.2}, order="entry"))["command"]
    assert declared.endswith('--slo 100ms  # with traffic × 2, whole at $0.2/h, order="entry" declared')


def test_a_newer_question_ends_the_wait_of_older_ones(what_if) -> None:
    began = what_if._newest

    def asked_so_far(questions: int) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while what_if._newest < began + questions:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)

    with ThreadPoolExecutor(2) as pool:
        with what_if._busy:  # by somebody else's search
            older = pool.submit(what_if.plan, Question(traffic=1.1))
            asked_so_far(1)
            newer = pool.submit(what_if.plan, Question(traffic=1.2))
            asked_so_far(2)
        assert newer.result(DEADLINE_S)["cost_per_hour"] == pytest.approx(PRICE)
        with pytest.raises(Superseded):
            older.result(DEADLINE_S)


def test_a_glance_is_the_plan_or_what_the_search_had_found_in_its_time(what_if, monkeypatch) -> None:
    fresh = WhatIf(what_if.inputs, what_if.measured, what_if.first, what_if.command)
    asked = Question(traffic=3.75)
    monkeypatch.setattr("inferline_stream.cli.what_if.GLANCE_S", -1.0)
    assert fresh.glance(asked) == {"searching": True}, "no time, no plan"
    known = {
        "searching": False,
        "replay": fresh.replay(Question()),
    }  # events at equal distances: a piece is as the whole
    assert fresh.glance(Question()) == fresh.plan(Question()) | known, "this one is known"
    monkeypatch.setattr("inferline_stream.cli.what_if.GLANCE_S", DEADLINE_S)
    found = fresh.glance(asked)
    assert found == fresh.plan(asked) | {"searching": False, "replay": found["replay"]}
    assert found["replay"]["miss_rate"] == fresh.replay(asked)["miss_rate"]


def test_hardware_that_nobody_knows_is_named(what_if) -> None:
    with pytest.raises(UsageError, match=r"no hardware 'tpu'; there are .*whole"):
        what_if.plan(Question(prices={"tpu": 1.0}))


@pytest.fixture
def served(what_if: WhatIf) -> Iterator[str]:
    with closing(serve_what_if(what_if.answers(), port=0)) as server:
        yield server.url


def asked(url: str, path: str, question: Any) -> tuple[int, bytes]:
    query = urllib.parse.urlencode({"question": question if isinstance(question, str) else json.dumps(question)})
    try:
        with urllib.request.urlopen(f"{url}{path}?{query}", timeout=DEADLINE_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_page_asks_over_http(served: str) -> None:
    status, body = asked(served, "plan", {"traffic": 3.75})
    assert (status, json.loads(body)["cost_per_hour"]) == (200, pytest.approx(2 * PRICE))
    status, body = asked(served, "declared", {})
    assert json.loads(body)["prices"] == {"whole": PRICE}


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"slo_s": -1}, b"slo_s"),
        ({"slo": 1}, b"unknown field"),
        ("{", b"truncated"),
        ({"traffic": 1e9}, b"traffic"),
        ({"prices": {"tpu": 1}}, b"no hardware 'tpu'"),
    ],
)
def test_what_is_no_question_is_refused_in_words(served: str, question: Any, words: bytes) -> None:
    status, body = asked(served, "plan", question)
    assert status == 400
    assert words in body
    assert asked(served, "nothing", {})[0] == 404
