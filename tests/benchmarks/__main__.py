"""Runs one benchmark by name and prints its figures.

Each module beside this one holds ``measure(quick: bool) -> dict`` from a figure's name to its value. A figure that
is not available on this machine is None, and the key ``<figure>_reason`` says why.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import sys
import time
from pathlib import Path

from tests.benchmarks._figures import Figures


def main(arguments: list[str] | None = None) -> int:
    names = sorted(
        module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name[0] != "_"
    )
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measures one set of figures.")
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="the same measurement on less work, within a minute")
    parser.add_argument("--output", choices=("table", "json"), default="table")
    chosen = parser.parse_args(arguments)
    measure = importlib.import_module(f"tests.benchmarks.{chosen.name}").measure
    start = time.perf_counter()
    figures: Figures = measure(chosen.quick)
    seconds = round(time.perf_counter() - start, 1)
    if chosen.output == "json":
        report = {"benchmark": chosen.name, "figures": figures, "machine": machine(), "seconds": seconds}
        sys.stdout.write(json.dumps(report, allow_nan=False) + "\n")
    else:
        sys.stdout.write(table(chosen.name, figures, seconds))
    return 0


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = models[0] if models else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def table(name: str, figures: Figures, seconds: float) -> str:
    width = max(map(len, figures), default=0)
    lines = [f"{figure:<{width}}  {_readable(value)}" for figure, value in figures.items()]
    about = ", ".join(str(value) for value in machine().values())
    return "\n".join([f"{name} ({about}; {seconds} s)", *lines]) + "\n"


def _readable(value: float | int | str | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
