"""The examples as a newcomer runs them, each from a folder of their own, with the installed command; both at once.

The one with real models has another SLO: as slow as they are beside other tests, no plan may meet half a second. Each
of its stages has one kind of hardware and batches of up to four, so that half as much is measured.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inferline_stream.dataplane.sample_files import read_arrivals

EXAMPLES = Path(__file__).parents[2] / "topologies"
COMMAND = str(Path(sys.executable).with_name("inferline-stream"))
Printed = tuple[dict, str]
"""The report, and what else was said."""


def run(folder: Path, name: str, *arguments: str) -> Printed:
    """The command, for seven minutes at most: real models are profiled and rehearsed beside other tests."""
    line = [COMMAND, "run", name, *arguments, "--output", "json", "--no-ui", "--metrics-port", "0"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=420, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    for name in ("minimal", "moderation"):
        shutil.copytree(EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    # Quiet traffic for longer than in the example: each second in which other tests keep arrivals from being seen puts
    # off when replicas are given back.
    live = folder / "minimal/live.csv"
    last_s = float(live.read_text().split()[-1])
    with live.open("a") as file:
        file.writelines(f"{last_s + n / 10:.4f}\n" for n in range(1, 601))
    topology = folder / "moderation" / "topology.py"
    example = topology.read_text()
    for written, here, count in (
        ('slo="500ms"', 'slo="30s"', 1),
        ('hardware=["cpu-0.1", "cpu-0.25"]', 'hardware=["cpu-0.25"], max_batch_size=4', 2),
        ('hardware=["cpu-0.25", "cpu-0.5", "cpu-1"]', 'hardware=["cpu-0.5"]', 1),
        ("    max_batch_size=32,\n", "", 1),
        ("max_batch_size=8", "max_batch_size=4", 1),
    ):
        assert example.count(written) == count, written
        example = example.replace(written, here)
    topology.write_text(example)
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Printed]:
    with ThreadPoolExecutor(2) as pool:
        minimal = pool.submit(run, folder, "minimal")
        # Other tests take cores meanwhile: models that seem slow would make a plan that does not fit.
        moderation = pool.submit(run, folder, "moderation", "--duration", "12s", "--oversubscribe")
    return {"minimal": minimal.result(), "moderation": moderation.result()}


@pytest.mark.parametrize("name", ["minimal", "moderation"])
def test_a_run_accounts_for_every_event(name: str, folder: Path, runs: dict[str, Printed]) -> None:
    report, _ = runs[name]
    assert report["events_in"] == report["events_out"] > 300
    assert (report["lost"], report["duplicated"]) == (0, 0)
    assert set(report["lag"].values()) == {0}
    assert (folder / name / ".inferline").is_dir(), "profiles are kept beside the topology"


def test_the_minimal_one_takes_every_arrival_and_scales_up_and_down_again(
    folder: Path, runs: dict[str, Printed]
) -> None:
    report, said = runs["minimal"]
    assert report["events_in"] == len(read_arrivals(folder / "minimal/live.csv"))
    reported = {decision["action"]: decision for decision in report["decisions"]}
    assert {"scale_up", "scale_down"} <= reported.keys(), said
    assert all(decision["reason"] for decision in report["decisions"])
    assert "emulated hardware" in said, "emulated hardware has to be said"
