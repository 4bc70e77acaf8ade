"""The newcomer's demo on a machine that can seal no replica and has no control groups for emulated hardware to need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.quiet_profile import quieten

COMMAND = str(Path(sys.executable).with_name("inferline-stream"))
DEADLINE_S = 300.0


def elsewhere(*words: object) -> str:
    """Run our command where the system names a processor that seals are not written for."""
    command = ["setarch", "i386", COMMAND, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_runs_without_seals_by_the_same_processes(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    elsewhere("init", demo)
    elsewhere("profile", demo)
    quieten(demo)
    said = elsewhere("run", demo, "--duration", "3s", "--no-ui", "--metrics-port", 0, "--output", "json")
    report = json.loads(said)
    assert report["events_in"] == report["events_out"] > 0
    assert (report["lost"], report["duplicated"]) == (0, 0)
    logs = [file.read_text() for file in demo.glob(".inferline/logs/reviews/*-emulated-*.log")]
    assert logs
    assert all("this is Linux i686" in log for log in logs), "nothing was sealed"
