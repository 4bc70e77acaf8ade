"""Makes every check on the first GPU of this machine and prints a table.

Exit codes: 0 all hold, or there is no device; 1 one fails; 2 usage.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

from inferline_stream.actuators.devices import Device
from inferline_stream.actuators.gpu_needs import gpu_needs
from inferline_stream.actuators.nvml import devices
from tests.gpu.checks import CHECKS, Machine, ask, made


def main(arguments: list[str], found: tuple[Device, ...]) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("check", nargs="*", metavar="CHECK", help=f"only these, of: {', '.join(CHECKS)}")
    chosen = parser.parse_args(arguments).check or list(CHECKS)
    if unknown := [name for name in chosen if name not in CHECKS]:
        parser.error(f"there is no check {unknown[0]!r}")
    if not found:
        say("No NVIDIA GPU answers on this machine, so nothing was checked. What it lacks:")
        lacks = [need for need in gpu_needs() if need.remedy]
        for need in lacks:
            say(need.in_words(max(len(each.name) for each in lacks)))
        return 0
    device = found[0]
    say(f"{device.model} {device.slice}".rstrip() + f", {device.memory_bytes >> 20} MiB")
    with tempfile.TemporaryDirectory(prefix="inferline-gpu-") as folder:
        machine = Machine(device, Path(folder), ask, lambda name: importlib.util.find_spec(name) is not None)
        rows = made(machine, chosen)
    width = max(len(name) for name in chosen)
    for name, how, what, seconds in rows:
        say(f"{name:<{width}}  {how:<8}  {seconds:4.0f} s  {what}")
    return 1 if any(how == "fails" for _, how, _, _ in rows) else 0


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], devices()))
