"""A sealed process within a container: the command line for podman or docker, nothing more."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

from inferline_stream.errors import InvalidInput
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.limits import share_us

ENGINES = ("podman", "docker")
RUNTIMES: Mapping[str, str] = {"container": "", "gvisor": "runsc", "kata": "kata"}
"""The engine's runtime for each level that is a container; empty for its default."""

_CDI = ("/etc/cdi", "/var/run/cdi")
_ASK_S = 5.0

_OPEN_FILES, _PROCESSES = 1024, 1024
_THE_IMAGES = ("PATH", "HOME", "USER", "LOGNAME", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
"""Variables whose values mean something on the host alone."""
_DEVICES = "CUDA_VISIBLE_DEVICES"
"""Set by the starter of the process, once it knows which are free; handed on where it is."""
_TOOLKITS = frozenset(("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"))
"""What NVIDIA's toolkit gives a container; see `_toolkit`."""
_THE_ENGINES = ("DOCKER_HOST", "CONTAINER_HOST", "CONTAINERS_CONF", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")


class Container:
    """One process's container.

    Args:
        module: what it runs.
        confinement: what it may touch; the same seal holds within.
        cores: how many it may use.
        pinned: the only cores it may run on; empty for all.
        environment: what it may see. Values stay out of command lines.
        devices: UUIDs of the GPUs that it is given.

    Raises:
        InvalidInput: this machine has no container engine, or none that can give it its GPUs.
    """

    def __init__(
        self,
        module: str,
        confinement: Confinement,
        *,
        cores: float,
        pinned: Collection[int],
        environment: Mapping[str, str],
        devices: Sequence[str] = (),
    ) -> None:
        self._engine = engine(confinement.isolation.level)
        specified = _specified(self._engine, confinement.isolation.level, devices)
        self._name = f"inferline-{secrets.token_hex(8)}"
        declared = confinement.isolation.environment
        own = {name for name in environment if name not in _THE_IMAGES or name in declared} | {_DEVICES}
        self.command = [
            self._engine,
            *_run(self._engine, self._name, confinement, cores, pinned),
            *_gpus(self._engine, confinement, devices, specified=specified),
            *(f"--env={name}" for name in sorted(own - _TOOLKITS)),
            *_toolkit(() if specified else devices),
            confinement.isolation.image,
            *("-P", "-m", "inferline_stream.isolation.bootstrap", "--confinement", confinement.encoded(), module),
        ]
        """Started as it stands; its standard streams are the process's."""
        engines = {name: os.environ[name] for name in _THE_ENGINES if name in os.environ}
        self.environment = {**engines, **environment}
        """Of the engine's command, which hands on what `command` names."""
        self.remove = [self._engine, "rm", "--force", self._name]
        """Ends whatever is left of it."""


def engine(level: str) -> str:
    """The container engine of this machine.

    Raises:
        InvalidInput: there is none.
    """
    found = next((path for name in ENGINES if (path := shutil.which(name))), None)
    if found is None:
        raise InvalidInput(
            f"isolation {level!r} needs podman or docker on this machine, and there is neither. Install one, or write "
            'isolation="sandbox"'
        )
    return found


def _gpus(engine: str, confinement: Confinement, devices: Sequence[str], *, specified: bool) -> list[str]:
    """Options that give a container its GPUs, with the driver's own files.

    They come by a specification of the Container Device Interface, which NVIDIA's toolkit writes. A Docker that reads
    none, or finds none for these devices, asks the toolkit.
    """
    level, podman = confinement.isolation.level, os.path.basename(engine) == "podman"
    if confinement.gpu and level == "kata":
        raise InvalidInput(
            'isolation "kata" has no way to a GPU of this machine: write isolation="container", "gvisor" or "sandbox", '
            "or name kinds without one"
        )
    if level == "gvisor" and (slices := [uuid for uuid in devices if uuid.startswith("MIG-")]):
        raise InvalidInput(
            f'isolation "gvisor" takes whole GPUs alone, and {slices[0]} is a slice: write isolation="container" or '
            '"sandbox", or name a kind with a whole GPU'
        )
    if not devices:
        return []
    # gVisor hands a driver's calls through only if it is asked to; Docker's daemon is configured so, see the guide.
    asked = ["--runtime-flag=nvproxy"] if level == "gvisor" and podman else []
    if not specified:
        return ["--gpus", f'"device={",".join(devices)}"']
    unknown = _unspecified(devices)
    if unknown:
        raise InvalidInput(
            f"podman knows no device nvidia.com/gpu={unknown[0]}: run `nvidia-ctk cdi generate "
            f"--device-name-strategy=uuid --output={_CDI[0]}/nvidia.yaml`, and again after each change of the driver"
        )
    # SELinux labels no device for containers.
    return [*asked, "--security-opt=label=disable", *(f"--device=nvidia.com/gpu={uuid}" for uuid in devices)]


def _unspecified(devices: Sequence[str]) -> list[str]:
    """Devices that no specification on this machine names."""
    specified = "".join(_text(file) for folder in _CDI for file in sorted(Path(folder).glob("*")))
    return [uuid for uuid in devices if uuid not in specified]


def _specified(engine: str, level: str, devices: Sequence[str]) -> bool:
    """Whether an engine gives these devices by specification: podman always, Docker where it can, but for gVisor."""
    if os.path.basename(engine) == "podman":
        return True
    return level != "gvisor" and bool(devices) and not _unspecified(devices) and _reads_specifications(engine)


@cache
def _reads_specifications(docker: str) -> bool:
    """Ask Docker's daemon whether it reads specifications: from version 28 on it does by default."""
    asking = [docker, "info", "--format", "{{json .CDISpecDirs}}"]
    try:
        answer = subprocess.run(asking, capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and answer.stdout.strip() not in ("", "null", "[]")


def _toolkit(devices: Sequence[str]) -> list[str]:
    """Options that keep NVIDIA's toolkit to these devices: none where they come by specification.

    Where its runtime is the engine's default, it would give a container what the image asks for, and images of CUDA ask
    for every GPU. Without ``compute`` there is no CUDA.
    """
    seen = ",".join(devices) or "void"
    return [f"--env=NVIDIA_VISIBLE_DEVICES={seen}", "--env=NVIDIA_DRIVER_CAPABILITIES=compute,utility"]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _run(engine: str, name: str, confinement: Confinement, cores: float, pinned: Collection[int]) -> list[str]:
    isolation = confinement.isolation
    podman = os.path.basename(engine) == "podman"
    options = [
        *("run", "--rm", "--interactive", f"--name={name}", "--pull=never", "--entrypoint=python3"),
        # What a declared port leads to may be on this machine; which ports is for the seal to judge.
        f"--network={'host' if confinement.ports else 'none'}",
        *("--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--tmpfs=/tmp", "--ipc=private"),
        *(f"--ulimit=nofile={_OPEN_FILES}:{_OPEN_FILES}", f"--ulimit=nproc={_PROCESSES}:{_PROCESSES}"),
        # Without root's capabilities it is nobody in particular; podman without root maps its root to the caller.
        "--user=0:0" if podman else f"--user={os.getuid()}:{os.getgid()}",
    ]
    if runtime := RUNTIMES[isolation.level]:
        options.append(f"--runtime={runtime}")
    if isolation.memory_mb is not None:
        options.append(f"--memory={isolation.memory_mb}m")
    if pinned:
        options.append(f"--cpuset-cpus={','.join(map(str, sorted(pinned)))}")
    elif cores >= 1:
        options.append(f"--cpus={cores:g}")
    if 0 < cores < 1:
        period_us, quota_us = share_us(cores)
        options += [f"--cpu-period={period_us}", f"--cpu-quota={quota_us}"]
    if isolation.shm_mb is not None:
        options.append(f"--shm-size={isolation.shm_mb}m")
    folder = os.path.dirname(confinement.topology)
    readable = {folder, *isolation.reads, *confinement.kafka_files, *(path for _, path in isolation.mounts)}
    writable = {*isolation.writes, *filter(None, [confinement.scratch])}
    options += [f"--volume={path}:{path}:ro" for path in sorted(readable - writable) if os.path.exists(path)]
    options += [f"--volume={path}:{path}" for path in sorted(writable) if os.path.exists(path)]
    return options
