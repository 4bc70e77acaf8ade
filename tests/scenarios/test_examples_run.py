"""The examples as a newcomer runs them, each from a folder of their own, with the installed command; both at once."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from inferline_stream.dataplane.sample_files import read_arrivals

EXAMPLES = Path(__file__).parents[2] / "topologies"
COMMAND = str(Path(sys.executable).with_name("inferline-stream"))
Told = tuple[dict, str]
"""The report, and what else was said."""


@contextmanager
def inferline(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command, for four minutes at most."""
    with subprocess.Popen(
        [COMMAND, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = threading.Timer(240.0, process.kill)
        deadline.start()
        try:
            yield process
        finally:
            deadline.cancel()
            process.kill()


def until_it_has_scaled_down(folder: Path) -> Told:
    said = ""
    with inferline(folder, "run", "minimal", "--output", "json", "--no-ui", "--metrics-port", "0") as process:
        # One more line of figures: what was decided has been done.
        while "λ" not in said.partition("scale_down")[2] and (line := process.stderr.readline()):
            said += line
        process.send_signal(signal.SIGINT)  # the rest of the trace shows nothing more
        out, rest = process.communicate()
    assert process.returncode == 0, said + rest
    return json.loads(out), said + rest


def for_a_short_time(folder: Path) -> Told:
    for arguments in (
        ["profile", "moderation", "--time", "500ms"],  # a plan for so short a run may be a rough one
        ["run", "moderation", "--duration", "12s", "--output", "json", "--no-ui", "--metrics-port", "0"],
    ):
        with inferline(folder, *arguments) as process:
            out, said = process.communicate()
        assert process.returncode == 0, said
    return json.loads(out), said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    for name in ("minimal", "moderation"):
        shutil.copytree(EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Told]:
    with ThreadPoolExecutor(2) as pool:
        minimal, moderation = pool.submit(until_it_has_scaled_down, folder), pool.submit(for_a_short_time, folder)
    return {"minimal": minimal.result(), "moderation": moderation.result()}


@pytest.mark.parametrize(("name", "at_least"), [("minimal", 500), ("moderation", 300)])
def test_a_run_accounts_for_every_event(name: str, at_least: int, folder: Path, runs: dict[str, Told]) -> None:
    report, _ = runs[name]
    assert at_least < report["events_in"] == report["events_out"] <= len(read_arrivals(folder / name / "live.csv"))
    assert (report["lost"], report["duplicated"]) == (0, 0)
    assert set(report["lag"].values()) == {0}
    assert (folder / name / ".inferline").is_dir(), "profiles are kept beside the topology"


def test_the_minimal_one_scales_up_and_down_again(runs: dict[str, Told]) -> None:
    report, said = runs["minimal"]
    told = {decision["action"]: decision for decision in report["decisions"]}
    assert {"scale_up", "scale_down"} <= told.keys(), said
    assert all(decision["reason"] for decision in report["decisions"])
    assert "emulated hardware" in said, "emulated hardware has to be told"
