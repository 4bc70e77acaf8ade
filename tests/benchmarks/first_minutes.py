"""What a newcomer waits for: the install, the live page, the first replica that is added. And whether the SLO holds.

The wheel is built first. An environment is made and the wheel installed into it with the locks' versions, from the
package cache as it is: `install_s`. Then `init demo && run demo` there, with nothing cached by earlier runs:
`first_page_s` until the live page answers and `first_scale_up_s` until a replica is added, both from the start of
`init`. `first_event_s` is when the replay begins. Medians of the rounds.

Then each example runs once, from a copy without profiles, as its README says, and once with ``--oversubscribe``
(``_oversubscribed``): `late_share_NAME`, the share of events above the SLO or lost, from the first one on, and
`p99_over_slo_NAME`. With ``--quick`` the minimal one alone, for fifteen seconds of traffic. `python -m
tests.benchmarks.first_minutes 10` runs the examples so often, about 25 minutes each time on a machine that does nothing
else, prints each run as it ends, and then the worst of each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks._figures import Figures

ROOT = Path(__file__).parents[2]
LONGEST_S = 300.0
LONGEST_RUN_S = 1800.0
EXAMPLES = ("minimal", "moderation", "assistant")
MARKS = {
    "first_page_s": re.compile(r"live page: (http\S+)"),
    "first_event_s": re.compile(r"^replaying "),
    "first_scale_up_s": re.compile(r"^ *[\d.]+ s  scale_up"),
}
"""By figure, the line of `run` at which it ends."""


def measure(quick: bool) -> Figures:
    """Figures of one round, or the medians of three."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = _wheel(Path(folder))
        rounds = [_round(Path(folder) / str(n), wheel) for n in range(1 if quick else 3)]
    figures: Figures = {name: round(statistics.median(each[name] for each in rounds), 2) for name in rounds[0]}
    chosen, options = (EXAMPLES[:1], ("--duration", "15s")) if quick else (EXAMPLES, ())
    for found in _examples(chosen, *options):
        figures |= found
    for name in EXAMPLES[len(chosen) :]:
        figures |= {f"late_share_{name}": None, f"late_share_{name}_reason": "left out by --quick"}
    return figures


def _wheel(folder: Path) -> Path:
    building = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(building, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _round(folder: Path, wheel: Path) -> dict[str, float]:
    folder.mkdir()
    pins = re.findall(
        r"^([a-z0-9.-]+)(?:\[.*?\])?(==\S+(?: ; .+?)?) \\$", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
    (folder / "versions.txt").write_text("\n".join(name + version for name, version in pins))
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip: list[str | Path] = [folder / "venv/bin/python", "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "-c", folder / "versions.txt", wheel], check=True)
    return {"install_s": time.monotonic() - began_s, **_demo(folder)}


def _demo(folder: Path) -> dict[str, float]:
    command = folder / "venv/bin/inferline-stream"
    environment = {**os.environ, "INFERLINE_CACHE": str(folder / "cache"), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    found: dict[str, float] = {}
    began_s = time.monotonic()
    subprocess.run([command, "init", "demo"], cwd=folder, env=environment, check=True, capture_output=True)
    run: list[str | Path] = [command, "run", "demo", "--ui-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(run, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                for name, mark in MARKS.items():
                    if name == "first_scale_up_s" and "first_event_s" not in found:
                        continue  # what is decided before traffic is no reaction to it
                    if name not in found and (matched := mark.search(line)):
                        if name == "first_page_s":
                            urllib.request.urlopen(matched[1], timeout=LONGEST_S).close()
                        found[name] = time.monotonic() - began_s
                if len(found) == len(MARKS) or time.monotonic() - began_s > LONGEST_S:
                    break
        finally:
            process.send_signal(signal.SIGINT)
            process.stdout.read()  # until it has drained
    missing = MARKS.keys() - found.keys()
    assert not missing, f"{', '.join(sorted(missing))}: not within {LONGEST_S:g} s"
    return found


def _examples(names: tuple[str, ...], *options: str) -> Iterator[Figures]:
    """Figures of each run as it ends: of each example without and with ``--oversubscribe``."""
    for name in names:
        for suffix, given in (("", options), ("_oversubscribed", (*options, "--oversubscribe"))):
            with tempfile.TemporaryDirectory() as folder:
                copy = shutil.copytree(
                    ROOT / "topologies", Path(folder) / "topologies", ignore=shutil.ignore_patterns(".*", "__pycache__")
                )
                yield _late(copy / name, f"{name}{suffix}", given)


def _late(topology: Path, name: str, options: tuple[str, ...]) -> Figures:
    run = [sys.executable, "-c", "from inferline_stream.cli.main import app; app()", "run", str(topology), *options]
    ports = ("--ui-port", "0", "--metrics-port", "0", "--output", "json")
    ended = subprocess.run([*run, *ports], capture_output=True, text=True, timeout=LONGEST_RUN_S)
    if ended.returncode:
        said = " ".join(ended.stderr.split("Error:")[-1].split())
        return {f"late_share_{name}": None, f"late_share_{name}_reason": said, f"p99_over_slo_{name}": None}
    report = json.loads(ended.stdout)
    assert report["p99_s"] is not None, f"{name}: no event came through"
    p99_over_slo = round(report["p99_s"] / report["slo_s"], 3)
    return {f"late_share_{name}": round(report["slo_miss_rate"], 5), f"p99_over_slo_{name}": p99_over_slo}


def _rounds(count: int) -> None:
    """Run the examples so often, and print each run and the worst of each."""
    worst: dict[str, float] = {}
    for number in range(1, count + 1):
        for found in _examples(EXAMPLES):
            sys.stdout.write(f"round {number}: " + ", ".join(f"{k} {v}" for k, v in found.items()) + "\n")
            sys.stdout.flush()
            for figure, value in found.items():
                if isinstance(value, float):
                    worst[figure] = max(value, worst.get(figure, 0.0))
    sys.stdout.write("worst: " + ", ".join(f"{figure} {value:g}" for figure, value in worst.items()) + "\n")


if __name__ == "__main__":
    _rounds(int(sys.argv[1]))
