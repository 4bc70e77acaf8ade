"""Nodes of NVIDIA's driver, as one meets them who starts confined processes: whose is which, and which must be made."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

_GPUS = Path("/proc/driver/nvidia/gpus")
_UVM = Path("/dev/nvidia-uvm")
_MAKER = ("nvidia-modprobe", "-u", "-c=0")


def minors_of(devices: Sequence[str]) -> tuple[int, ...] | None:
    """Return the numbers N of the ``/dev/nvidiaN`` of GPUs, by their UUIDs; None for all, where that is not known.

    The driver lists whole GPUs there, so a slice's is not known: NVML knows it, where that is asked.
    """
    known = {}
    for file in sorted(_GPUS.glob("*/information")):
        said = dict(line.split(":", 1) for line in file.read_text(errors="replace").splitlines() if ":" in line)
        uuid, minor = (said.get(key, "").strip() for key in ("GPU UUID", "Device Minor"))
        if uuid and minor.isdigit():
            known[uuid] = int(minor)
    return tuple(sorted(known[uuid] for uuid in devices)) if known.keys() >= set(devices) else None


class UvmNode:
    """``/dev/nvidia-uvm``: the first program that starts CUDA has it made, by a setuid one that no sandbox may run."""

    def __init__(self) -> None:
        self._making: subprocess.Popen[bytes] | None = None
        self._given_up = False

    def lack(self) -> str:
        """Return what a replica has to wait for, in words; empty if for nothing. The first call has the node made."""
        if self._given_up or (self._making is None and _UVM.exists()):
            return ""
        if self._making is None and (program := shutil.which(_MAKER[0])) is not None:
            self._making = subprocess.Popen(
                [program, *_MAKER[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        if self._making is not None and self._making.poll() is None:
            return f"waits for {_MAKER[0]} to make {_UVM}"
        if _UVM.exists():
            return ""
        self._given_up = True
        logger.warning(
            "there is no %s, and a sandboxed replica cannot have it made, so CUDA may not start in one: run `%s` as "
            "root after each start of this machine",
            _UVM,
            " ".join(_MAKER),
        )
        return ""
