"""The Grafana dashboard against a real Prometheus that scrapes the real metrics: every expression has an answer."""

import json
import re
import shutil
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from inferline_stream.observability.metrics import serve_metrics
from tests.integration._monitoring import monitoring
from tests.unit.observability.states import a_state
from tests.unit.observability.test_metrics import scrape

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/inferline.json").read_text())
EXPRESSIONS = [query["expr"] for panel in DASHBOARD["panels"] for query in panel.get("targets", ())]
VARIABLES = {"$pipeline": ".*", "$stage": ".*", "$__rate_interval": "10s", "$__range": "1m"}

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus-alertmanager") is None, reason="apt-get install prometheus prometheus-alertmanager"
)


def filled_in(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"a variable that Grafana does not know: {expression}"
    return expression


def test_every_metric_that_it_names_is_in_a_scrape() -> None:
    named = {name for expression in EXPRESSIONS for name in re.findall(r"inferline_\w+", expression)}
    with closing(serve_metrics(a_state, 0)) as metrics:
        text = scrape(metrics.port)
    scraped = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    assert named - scraped == set()
    assert len(named) > 30


@needs_prometheus
def test_every_expression_has_an_answer(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text('{"groups": []}')
    metrics = serve_metrics(lambda: replace(a_state(), time_s=time.time()), 0)
    with closing(metrics), monitoring(tmp_path, rules, metrics.port) as heard:
        deadline_s = time.monotonic() + 60
        unanswered = [filled_in(expression) for expression in EXPRESSIONS]
        while unanswered:  # rates need two scrapes
            unanswered = [expression for expression in unanswered if not heard.query(expression)]
            assert time.monotonic() < deadline_s, f"no answer within 60 s to {unanswered}"
            time.sleep(0.5)


def test_panels_lie_side_by_side_and_have_numbers_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_compose_gives_grafana_every_folder_that_provisioning_names() -> None:
    grafana = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert all((DOCKER / source).is_dir() for source in mounts)
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/inferline.yml").read_text())["providers"][0]
    assert provider["options"]["path"] in mounts.values()
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://127.0.0.1:9090"
