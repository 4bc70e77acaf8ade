"""`inferline-stream run` as users call it: a process, the embedded broker, emulated hardware."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from inferline_stream.cli.main import app; app()", "run"]


def test_page_and_metrics_show_a_run_from_before_its_profiles_until_ctrl_c_drains_and_reports(tmp_path: Path) -> None:
    """Of a copy of the example: profiles and logs do not land in the checkout.

    Its SLO is one that a machine can meet which other tests keep busy while the hops are measured.
    """
    example = shutil.copytree(ROOT / "topologies/minimal", tmp_path / "minimal", ignore=shutil.ignore_patterns(".*"))
    topology = (example / "topology.py").read_text()
    assert topology.count('slo="500ms"') == 1
    (example / "topology.py").write_text(topology.replace('slo="500ms"', 'slo="2s"'))
    process = subprocess.Popen(
        [*COMMAND, str(example), "--ui-port", "0", "--metrics-port", "0", "--output", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        heard, page = "", ""
        for line in process.stderr:  # ends with the process, whatever happens
            heard += line
            if not page and (found := re.search(r"live page: (\S+)", line)):
                assert "looking at profiles" not in heard
                page = found[1]
                with urllib.request.urlopen(page, timeout=30) as answer:
                    assert b"waiting for the run" in answer.read()
            if "replaying" in line:
                break
        assert page, heard
        assert "replaying" in heard, heard
        with urllib.request.urlopen(f"{page}events", timeout=60) as stream:
            assert any(b'"stages"' in line for line in stream)
        (address,) = re.findall(r"http://\S+/metrics", heard)
        series = ("inferline_arrivals_total{", 'inferline_latency_seconds_bucket{le="2.0",')
        arrived = finished = 0.0
        deadline_s = time.monotonic() + 30
        while not (arrived and finished) and time.monotonic() < deadline_s:
            time.sleep(0.5)
            with urllib.request.urlopen(address, timeout=20) as response:
                lines = response.read().decode().splitlines()
            arrived, finished = (next(float(line.split()[-1]) for line in lines if line.startswith(s)) for s in series)
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 0, rest
    report = json.loads(out)
    assert report["lost"] == 0
    assert 0 < report["events_in"] == report["events_out"]
    assert 0 < finished <= report["events_out"]
    assert 0 < arrived <= report["events_in"]
