"""The demo of the README, from `init` to the report: a pipeline that is profiled, planned, served and scaled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CLI = (sys.executable, "-c", "from inferline_stream.cli.main import app; app()")
ANSWER_WITHIN_S = 400
"""On a machine with two other busy processes, without a compiled kernel."""


def test_the_demo_scales_serves_each_event_and_reports_it(tmp_path: Path) -> None:
    environment = {**os.environ, "INFERLINE_CACHE": str(tmp_path / "cache")}  # no profile of an earlier run

    def output_of(*arguments: str) -> str:
        done = subprocess.run(
            [*CLI, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=ANSWER_WITHIN_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    output_of("init", "demo")
    ports = ("--ui-port", "0", "--metrics-port", "0")
    report = json.loads(output_of("run", "demo", "--duration", "20s", *ports, "--output", "json"))
    assert report["events_in"] > 500
    assert (report["events_out"], report["lost"], report["duplicated"]) == (report["events_in"], 0, 0)
    assert "scale_up" in {decision["action"] for decision in report["decisions"]}
