import math
import re
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from inferline_stream.errors import UsageError
from inferline_stream.observability import metrics
from inferline_stream.observability.latency_histogram import bucket_label
from inferline_stream.observability.metrics import serve_metrics
from tests.unit.observability.states import BOUNDS_S, SLO_S, a_state


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


@pytest.fixture
def served():
    states = [a_state()]
    server = serve_metrics(lambda: states[0], port=0)
    yield states, server.port
    server.close()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_slo_is_a_bucket_and_buckets_are_cumulative(served):
    _, port = served
    found = samples(scrape(port))
    key = ("inferline_latency_seconds_bucket", (("le", bucket_label(SLO_S)), ("pipeline", "moderation")))
    assert found[key] == 970
    assert found["inferline_latency_seconds_count", (("pipeline", "moderation"),)] == 1000
    counts = [
        found["inferline_latency_seconds_bucket", (("le", bucket_label(b)), ("pipeline", "moderation"))]
        for b in (*BOUNDS_S, math.inf)
    ]
    assert counts == sorted(counts)


def test_envelope_excess_is_live_over_planned(served):
    _, port = served
    found = samples(scrape(port))
    excess = {labels: v for (name, labels), v in found.items() if name == "inferline_envelope_excess_ratio"}
    assert sorted(excess.values()) == [0.5, 1.5]


def test_series_of_a_gone_partition_and_stage_vanish(served):
    states, port = served
    assert 'partition="3"' in scrape(port)
    states[0] = a_state(partitions=2)
    assert 'partition="3"' not in scrape(port)
    states[0] = replace(a_state(), stages=(), replica_seconds={}, classes=(), backgrounds=())
    assert 'stage="language"' not in scrape(port)


def test_an_unmeasured_value_has_no_series_rather_than_a_zero(served):
    states, port = served
    states[0] = replace(a_state(), recent_p99_s=None)
    text = scrape(port)
    assert "inferline_recent_p99_seconds{" not in text
    assert "inferline_model_drift_ratio{" not in text


def test_before_the_first_state_only_the_build_is_known():
    server = serve_metrics(lambda: None, port=0)
    try:
        text = scrape(server.port)
    finally:
        server.close()
    assert "inferline_build_info" in text
    assert "inferline_slo_seconds" not in text


def test_a_taken_port_is_a_usage_error_that_names_the_option(served):
    _, port = served
    with pytest.raises(UsageError, match=f"{port}.*--metrics-port"):
        serve_metrics(lambda: None, port=port)


def documented() -> dict[str, tuple[str, list[str], str]]:
    """Metric → (type, labels, series), as docs/reference/metrics.md says."""
    text = (Path(metrics.__file__).parents[2] / "docs/reference/metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) \| ([\w +]+) \| .+ \|$", text, re.MULTILINE)
    return {name: (kind, sorted(filter(None, labels.split(", "))), count) for name, kind, labels, count in rows}


def test_every_metric_is_documented_with_its_type_its_labels_and_its_number_of_series(served):
    _, port = served
    found: dict[str, tuple[str, set[str], int]] = {}
    for family in text_string_to_metric_families(scrape(port)):
        ending = {"counter": "_total"}.get(family.type, "")
        labels = {label for sample in family.samples for label in sample.labels} - {"pipeline"}
        found[family.name + ending] = (family.type, labels, len(family.samples))
    sizes = {"S": 1, "H": 1, "K": 1, "P": 4, "W": 2, "D": 1, "G": 1, "B": 1, "L": 1}  # of the state served
    reported = documented()
    assert found.keys() == reported.keys()
    for name, (kind, labels, count) in found.items():
        expected_kind, expected_labels, formula = reported[name]
        expected = sum(math.prod(sizes.get(f) or int(f) for f in term.split()) for term in formula.split(" + "))
        assert (sorted(labels), count) == (expected_labels, expected), name
        assert kind == {"info": "gauge"}.get(expected_kind, expected_kind), name


def test_no_figure_of_a_full_state_is_left_out(served):
    _, port = served
    empty = [family.name for family in text_string_to_metric_families(scrape(port)) if not family.samples]
    assert empty == []
