"""What being watched costs: a scrape of `/metrics`, its share of a core, and the live page of ten stages in a browser.

`run` carries 1,000 events/s on the embedded broker while it is scraped. The share is the CPU time that the controller's
process takes more while it is scraped than while it is not, in windows by turns, for one scrape a second: it is scraped
more often than that, so that the difference is above the clock's resolution.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from inferline_stream.actuators.core_times import cpu_s
from inferline_stream.pipeline.trace import levels_trace
from inferline_stream.testing.local_kafka import free_ports
from tests.benchmarks._machine import Elsewhere
from tests.benchmarks._page import page_figures

RATE = 1000.0
SCRAPES_PER_S = 10

_TOPOLOGY = """
from inferline_stream import Pipeline, Sample, Stage, Topic


def same(values: list[bytes]) -> list[bytes]:
    return values


first = Stage("first", same, hardware=["emulated-cpu"], emulated={1: "1ms", 64: "10ms"}, max_batch_size=64)
second = Stage("second", same, after=[first], hardware=["emulated-cpu"], emulated={1: "1ms", 64: "10ms"},
               max_batch_size=64)
pipeline = Pipeline("watched", slo="1s", source=Topic("in", partitions=8, codec="raw"),
                    sink=Topic("out", partitions=8, codec="raw"), stages=[first, second],
                    sample=Sample(arrivals="arrivals.csv", events="events.jsonl", replay="live.csv"))
"""


def measure(quick: bool) -> dict[str, Any]:
    rounds, window_s = (4, 3.0) if quick else (10, 6.0)
    with tempfile.TemporaryDirectory() as folder, _running(Path(folder), 30 + 2 * rounds * window_s) as under_way:
        elsewhere = Elsewhere()
        figures = {**_scrapes(*under_way, rounds, window_s), "cores_elsewhere": elsewhere.cores()}
    return {**figures, **page_figures(quick=quick)}


@contextmanager
def _running(folder: Path, seconds: float) -> Iterator[tuple[str, int]]:
    """A run under load: where its metrics are, and the controller's process."""
    rng = np.random.default_rng(0)
    (folder / "topology.py").write_text(_TOPOLOGY)
    (folder / "events.jsonl").write_text("".join(f'{{"n":{n},"text":"{"x" * 180}"}}\n' for n in range(100)))
    for name, length_s in (("arrivals.csv", 20.0), ("live.csv", seconds)):
        times_s = levels_trace([(RATE, length_s)], 1.0, rng).arrivals_s
        (folder / name).write_text("arrival_s\n" + "".join(f"{at:.6f}\n" for at in times_s))
    (port,) = free_ports(1)
    command = [
        sys.executable, "-c", "from inferline_stream.cli.main import app; app()", "run", str(folder),
        "--metrics-port", str(port), "--no-ui",
    ]  # fmt: skip
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    metrics = f"http://127.0.0.1:{port}/metrics"
    try:
        deadline_s = time.monotonic() + 120
        while _value(metrics, "inferline_arrival_rate_per_second") < RATE / 2:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the run carries no load:\n{(folder / 'run.log').read_text()[-3000:]}")
            time.sleep(0.5)
        yield metrics, process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _scrapes(metrics: str, pid: int, rounds: int, window_s: float) -> dict[str, Any]:
    took_s: list[float] = []
    share: dict[bool, list[float]] = {True: [], False: []}
    size = 0
    before = _value(metrics, "inferline_events_out_total"), time.monotonic()
    for _ in range(rounds):
        for scraped in (True, False):
            began_s, before_s = time.monotonic(), cpu_s(pid)
            while (now_s := time.monotonic()) < began_s + window_s:
                if scraped:
                    start_s = time.perf_counter()
                    size = len(_read(metrics))
                    took_s.append(time.perf_counter() - start_s)
                time.sleep(max(0.0, 1 / SCRAPES_PER_S - (time.monotonic() - now_s)))
            share[scraped].append((cpu_s(pid) - before_s) / (time.monotonic() - began_s))
    events = _value(metrics, "inferline_events_out_total") - before[0]
    scrapes_per_s = len(took_s) / (rounds * window_s)
    extra = [on - off for on, off in zip(share[True], share[False], strict=True)]
    return {
        "scrape_ms": float(np.quantile(took_s, 0.5)) * 1e3,
        "scrape_p99_ms": float(np.quantile(took_s, 0.99)) * 1e3,
        "scrape_kb": size / 1024,
        "core_share": max(0.0, statistics.median(extra)) / scrapes_per_s,
        "controller_core_share": statistics.median(share[False]),
        "events_per_s": events / (time.monotonic() - before[1]),
    }


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def _value(metrics: str, name: str) -> float:
    """A pipeline's figure; 0 where there is none yet."""
    try:
        found = re.search(rf"^{name}\{{.*?\}} (\S+)$", _read(metrics), re.MULTILINE)
    except OSError:
        return 0.0
    return float(found[1]) if found else 0.0
