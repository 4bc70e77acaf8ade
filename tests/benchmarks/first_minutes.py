"""What a newcomer waits for: the install, the live page, the first replica that is added.

The wheel is built first. An environment is made and the wheel installed into it with the locks' versions, from the
package cache as it is: `install_s`. Then `init demo && run demo` there, with nothing cached by earlier runs:
`first_page_s` until the live page answers and `first_scale_up_s` until a replica is added, both from the start of
`init`. `first_event_s` is when the replay begins. Medians of the rounds.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

Figures = dict[str, float | int | str | None]

ROOT = Path(__file__).parents[2]
LONGEST_S = 300.0
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
    return {name: round(statistics.median(each[name] for each in rounds), 2) for name in rounds[0]}


def _wheel(folder: Path) -> Path:
    building = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(building, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _round(folder: Path, wheel: Path) -> dict[str, float]:
    folder.mkdir()
    pins = re.findall(r"^([a-z0-9.-]+==\S+(?: ; .+?)?) \\$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    (folder / "versions.txt").write_text("\n".join(pins))
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
