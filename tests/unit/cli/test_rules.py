import json
from pathlib import Path

from typer.testing import CliRunner

from inferline_stream.cli.main import app
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.observability.alert_rules import Target, rules_document, rules_yaml

MINIMAL = Path(__file__).parents[3] / "topologies" / "minimal" / "topology.py"


def test_rules_are_made_for_the_slo_and_objective_of_the_topology(tmp_path):
    pipeline = load_topology(MINIMAL)
    target = Target(pipeline.name, pipeline.slo_s, pipeline.objective)
    expected = rules_yaml(target)
    assert f"SLO of {pipeline.slo_s:g} s" in expected
    shown = CliRunner().invoke(app, ["rules", str(MINIMAL)])
    assert (shown.exit_code, shown.stdout) == (0, expected)
    listed = CliRunner().invoke(app, ["rules", str(MINIMAL), "--output", "json"])
    assert json.loads(listed.stdout) == rules_document(target)
    written = CliRunner().invoke(app, ["rules", str(MINIMAL), "--save", str(tmp_path / "rules.yml")])
    assert (written.exit_code, (tmp_path / "rules.yml").read_text()) == (0, expected)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    result = CliRunner().invoke(app, ["rules", str(MINIMAL), "--save", str(tmp_path / "missing" / "rules.yml")])
    assert result.exit_code == 2
    assert "missing/rules.yml" in result.output
    assert "--save" in result.output
