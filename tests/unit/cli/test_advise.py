"""`advise`, as far as it needs no Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferline_stream.cli import advise
from inferline_stream.cli.main import app
from inferline_stream.cli.output import Bar
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.runs.group_seen import Seen

DECLARED = """from inferline_stream import ConsumerGroup, Pipeline
rank = ConsumerGroup("rank", group="rank-v1", topic="posts")
pipeline = Pipeline("adopted", slo="5s", stages=[rank])
"""


def test_advice_is_printed_where_its_page_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "topology.py").write_text(DECLARED)

    async def watched(pipeline: Pipeline, bootstrap_servers: str, watched_s: float, bar: Bar) -> Seen:
        return Seen(pipeline)

    monkeypatch.setattr(advise, "_watched", watched)
    page = str(tmp_path / "no" / "advice.html")
    arguments = ["advise", str(tmp_path), "--bootstrap-servers", "127.0.0.1:1", "--html", page]

    done = CliRunner().invoke(app, arguments)

    assert done.exit_code == 2
    assert "choose another --html" in done.stderr
    assert "Nothing is advised yet" in done.stdout
