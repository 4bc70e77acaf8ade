"""What is advised for groups that were seen in simulated time."""

import json
from html import unescape

import numpy as np
import pytest

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import InvalidInput
from inferline_stream.pipeline.consumer_group import ConsumerGroup, KedaScaler
from inferline_stream.pipeline.group_profile import Learned
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.units import format_duration
from inferline_stream.pipeline.validation import validated
from inferline_stream.runs.advice_page import advice_page
from inferline_stream.runs.group_advice import WAYS, advice_document, advise, verdict, way_rows, way_title
from inferline_stream.runs.group_seen import Seen, declaration
from tests.scenarios.test_cli_documents import assert_documented
from tests.support.simulated_group import Worker, arrivals, looks


def _seen(worker, rate, duration_s=60.0):
    rank = ConsumerGroup("rank", group="rank-v1", topic="posts", workers=KedaScaler())
    pipeline = Pipeline("adopted", slo="2s", stages=[rank])
    rng, seen = np.random.default_rng(1), Seen(pipeline)
    times = arrivals(lambda t: rate, duration_s, rng)
    for look in looks(worker, times, duration_s, rng):
        seen.take({"rank": look})
    return pipeline, seen, times


def test_the_advice_has_every_way_what_is_now_and_what_to_do_on_the_page_and_as_json():
    pipeline, seen, times = _seen(Worker(0.02, 0.01, 0.3, 8), 60.0)
    seen.close({"rank": {"other"}}, {}, exact=True)

    advice = advise(pipeline, seen.learners, seen.arrivals(), watched_s=seen.watched_s, notes=seen.notes)

    assert advice.events == seen.events == pytest.approx(times.size, abs=5)
    assert np.abs(seen.arrivals().arrivals_s - times[-advice.events :] + 0.02).max() < 0.021
    assert advice.p99_s == pytest.approx(advice.profiles["rank"].latency_p99_s.value, rel=0.1)
    assert {row.way for row in advice.contest.rows} == WAYS.keys()
    document = json.loads(json.dumps(advice_document(advice)))
    assert_documented("advise", document)
    assert [row["way"] for row in document["ways"]] == [row.way for row in advice.contest.rows]
    # Steady traffic that two members serve: three cost more, and scaling can save nothing over two.
    assert advice.contest.row("fixed").cost_per_hour < advice.contest.row("now").cost_per_hour
    assert document["verdict"][0].startswith("Scaling is no better on this traffic than holding rank")
    page = unescape(advice_page(advice))
    assert all(text in page for text in (*WAYS.values(), "also reads 'other'", document["verdict"][0]))
    assert "http" not in page  # it needs nothing else
    # A minute is too short to keep some of it apart: page, table and JSON say so.
    assert "planned_from_s" not in {name for name, value in document.items() if value is not None}
    assert any(note.startswith("ours was planned for the arrivals that it is judged on") for note in document["notes"])
    assert "planned for these same arrivals" in page
    assert "which ours was planned for" in way_title(advice.contest)


def test_a_reported_throughput_goes_before_what_kafka_shows():
    pipeline, seen, _ = _seen(Worker(0.02, 0.01, 0.3, 8, commit_every_s=5.0), 60.0)

    silent = advise(pipeline, seen.learners, seen.arrivals(), watched_s=seen.watched_s)
    advice = advise(
        pipeline,
        seen.learners,
        seen.arrivals(),
        watched_s=seen.watched_s,
        reported={"rank": Learned(40.0, 0.1, 9)},
    )

    assert silent.contest is None
    known = advice.profiles["rank"]
    assert (known.throughput.value, known.per_event_s, known.source) == (40.0, 1 / 40, "metric")
    assert advice.contest.row("fixed").members["rank"] >= 2


def test_what_was_planned_for_traffic_before_says_so_with_its_errors():
    pipeline, seen, _ = _seen(Worker(0.02, 0.01, 0.3, 8), 60.0)
    rng = np.random.default_rng(5)
    hour = Trace(np.cumsum(rng.exponential(0.2, 10_000)))

    advice = advise(pipeline, seen.learners, seen.arrivals(), watched_s=seen.watched_s, judged_on=hour)

    document = advice_document(advice)
    assert_documented("advise", json.loads(json.dumps(document)))
    assert document["planned_from_s"] == pytest.approx(hour.arrivals_s[-1] * 2 / 3, abs=2.0)
    assert not any("judged on, and will be worse" in note for note in document["notes"])
    assert all({"cost_error", "miss_error"} <= row.keys() for row in document["ways"])
    words = format_duration(document["planned_from_s"])
    assert f"planned for what came before, {words} at most" in unescape(advice_page(advice))
    assert f"planned for what came before, {words} at most" in way_title(advice.contest)
    assert all("±" in row[1] and "±" in row[2] for row in way_rows(advice.contest))


def test_nothing_is_advised_while_a_throughput_is_not_known():
    pipeline, seen, _ = _seen(Worker(0.02, 0.01, 0.3, 8, commit_every_s=5.0), 60.0)

    advice = advise(pipeline, seen.learners, seen.arrivals(), watched_s=seen.watched_s)

    assert advice.contest is None
    assert "Nothing is advised yet" in next(verdict(advice))
    assert any("not known yet" in note for note in advice.notes)
    assert "not known yet" in advice_page(advice)
    assert advice_document(advice)["ways"] == []


def test_found_groups_become_a_topology_that_is_valid(tmp_path):
    text = declaration({"enrich.v2": {"posts": 24, "config": 1}, "3rd": {"enriched": 12}})
    (tmp_path / "topology.py").write_text(text)

    pipeline = load_topology(tmp_path / "topology.py")

    assert [(g.name, g.group, g.topic) for g in pipeline.groups] == [
        ("enrich-v2", "enrich.v2", "posts"),
        ("3rd", "3rd", "enriched"),
    ]
    with pytest.raises(Exception, match="first groups read 2 topics"):  # which only a person knows how to put in order
        validated(pipeline)
    with pytest.raises(InvalidInput, match="is that its id"):
        declaration({"gone": {}})
