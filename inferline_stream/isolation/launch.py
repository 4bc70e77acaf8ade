"""What it takes to start one process that runs a stage, and what must be kept for it until it has ended.

Of NVIDIA's driver: which node must be made before a confined process starts.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from inferline_stream.isolation import bootstrap, limits
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.name_service import NameService
from inferline_stream.settings import kafka_security


class Launch:
    """One process's command line, environment and files, and its keeper: answers its questions for addresses and
    tidies up after it. Must be made and closed within one event loop.

    Args:
        module: what it runs.
        confinement: what it may touch.
        cores: how many it may use; numeric libraries learn it, too.
        pinned: the only cores it may run on; empty for all.
        orphaned: what it is sent when this process has ended.
        forks: whether it is a parent that replicas are forked from.
        devices: UUIDs of the GPUs that it may use; None for those that this process may use.
        nodes: of theirs, below ``/dev``; None for all, where that is not known.
        also: further variables of its environment.
        kernels: folder of what is compiled for its GPU, see `Confinement`; empty for none.
        profiled: whether what it compiles is kept there.
    """

    def __init__(
        self,
        module: str,
        confinement: Confinement,
        *,
        cores: float,
        pinned: Collection[int] = (),
        orphaned: signal.Signals = signal.SIGKILL,
        forks: bool = False,
        devices: Sequence[str] | None = None,
        nodes: tuple[str, ...] | None = None,
        also: Mapping[str, str] = MappingProxyType({}),
        kernels: str = "",
        profiled: bool = False,
    ) -> None:
        self._names: NameService | None = None
        self._scratch = self._kept = ""
        self._cores = cores
        self._process = 0
        self.files: tuple[int, ...] = ()
        """Descriptors that it inherits."""
        within = None
        arguments = []
        if confinement.isolation.sandboxed:
            if confinement.isolation.scratch or confinement.gpu:  # for what CUDA compiles
                self._scratch = tempfile.mkdtemp(prefix="inferline-")
            within = replace(confinement, scratch=self._scratch)
        if within is not None and within.gpu and devices is not None:
            within = replace(within, nodes=nodes, kernels=kernels)
            self._kept = kernels if profiled else ""
        if within is not None and within.kafka_ports:  # a process that may connect to nothing needs no addresses
            self._names = NameService(kafka_security().sasl_oauthbearer_token_program)
            self.files = (self._names.theirs.fileno(),)
            arguments = [str(self._names.theirs.fileno())]
        self.confinement = confinement if within is None else within
        """As its environment says, its own folder included."""
        self.command = [*bootstrap.command(module, pinned, orphaned, within, forks=forks), *arguments]
        self.environment = {**bootstrap.environment(cores, within, os.environ, devices), **also}

    def started(self, process: int) -> None:
        """It runs, and holds the inherited descriptors itself."""
        self._process = process
        if self._shares:
            limits.begin_share(process)  # before it has helpers
        if self._names is not None:
            self._names.theirs.close()

    def ready(self) -> None:
        """It has built what it serves. From now on it has its share of a core and no more.

        Loading a model at a quarter of a core would take four times as long, and traffic does not wait.
        """
        if self._shares and self._process:
            limits.hold_share(self._process, self._cores)

    @property
    def stopped_s(self) -> float:
        """For how long its share of a core was used up so far."""
        return limits.stopped_s(self._process) if self._shares and self._process else 0.0

    @property
    def _shares(self) -> bool:
        """Whether it has less than a core, which is ours to hold."""
        return 0 < self._cores < 1

    @property
    def overran(self) -> str:
        """Of a killed process, before `close`: the limit that the kernel killed it for, in words; empty if unknown."""
        if self._process and limits.overran_memory(self._process):
            return f"more than its {limits.memory_bytes(self.confinement) >> 20} MiB of memory"
        return ""

    def close(self) -> None:
        """It has ended, or was never started."""
        if self._names is not None:
            self._names.close()
        if self._process:
            limits.leave_groups(self._process)
        if self._kept:
            try:
                bootstrap.keep_compiled(self._scratch, self._kept)
            except OSError as error:
                logger.warning("what was compiled for the GPU is not kept in %s: %s", self._kept, error)
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)


logger = logging.getLogger(__name__)

_UVM = Path("/dev/nvidia-uvm")
_MAKER = ("nvidia-modprobe", "-u", "-c=0")


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
