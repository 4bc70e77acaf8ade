"""What a stage's replicas may touch: declared beside the stage, enforced by the room `isolation`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from inferline_stream.pipeline.units import is_whole

LEVELS = ("none", "sandbox")
RUNTIME_CLASSES = ("container", "gvisor", "kata")
"""Names that are no level, because the cluster runs a pod in a container."""

SEALS = ("strict", "imports", "off")
UNSUPPORTED = ("fail", "degrade")

_VOLUME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?:/[^:]+")
"""Names are those of Kubernetes' objects."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """How far a stage's replicas are kept from everything that is not theirs.

    A sandboxed replica may read Python, its libraries and the topology's code, write nothing, reach Kafka's TCP
    ports and nothing else; before its first record it gives up all but the few system calls that moving records takes.

    Args:
        level: ``"none"``, or ``"sandbox"``, in which a replica seals itself.
        reads: files and folders it may read beside code, from the topology's folder where relative; ``~`` is home.
        writes: files and folders it may read and write.
        executes: programs, and folders of them, that it may run before the seal, confined as it is: compilers. None of
            them may be left when it seals itself.
        ports: TCP ports it may connect to beside Kafka's. The kernel cannot distinguish hosts.
        environment: variables it may see beside the usual ones, such as PATH and HOME.
        seal: ``"strict"``, no file is opened after the seal; ``"imports"``, files may be read still, for stages that
            import late; ``"off"``, only what is set before the first import holds.
        jit: whether it may write machine code into memory (numba, PyTorch's compiler).
        helpers: processes it may fork for itself, sealed as it is.
        memory_mb: most memory of a process, in MiB; None for half of the machine's. It may have no more together with
            its helpers and what they share, where control groups are ours to make (`sandbox check` says so).
        file_mb: longest file it may write, in MiB, its log included.
        scratch: whether it has a folder of its own for temporary files (`tempfile`), removed when it has ended.
        forked: whether replicas are forked from a parent that has imported the topology already: they start faster.
        on_unsupported: where not all of this is available: ``"fail"``, or ``"degrade"`` to what can, with a warning.
        volumes: folders with weights or other data, ``"NAME:/path"`` each, which it may read. On Kubernetes the
            PersistentVolumeClaim NAME is mounted at the path; elsewhere the path is there already.
        shm_mb: size of ``/dev/shm``, in MiB, which frameworks share tensors between their processes with; it counts as
            memory. None for what a pod has by itself, 64 MiB; on a machine that is the machine's own.

    Raises:
        ValueError: a word, port or number that cannot be.
    """

    level: str = "sandbox"
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    executes: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    environment: tuple[str, ...] = ()
    seal: str = "strict"
    jit: bool = False
    helpers: int = 0
    memory_mb: int | None = None
    file_mb: int = 256
    scratch: bool = False
    forked: bool = False
    on_unsupported: str = "fail"
    volumes: tuple[str, ...] = ()
    shm_mb: int | None = None

    def __post_init__(self) -> None:
        if self.level in RUNTIME_CLASSES:
            raise ValueError(no_level(self.level))
        for name, known in (("level", LEVELS), ("seal", SEALS), ("on_unsupported", UNSUPPORTED)):
            if getattr(self, name) not in known:
                raise ValueError(f"isolation {name} {getattr(self, name)!r} is none of {', '.join(known)}")
        for name in ("reads", "writes", "executes", "ports", "environment", "volumes"):
            given = getattr(self, name)
            if isinstance(given, str) or not hasattr(given, "__iter__"):
                raise ValueError(f"isolation {name} {given!r} must be a list, e.g. {name}=[{given!r}]")
            object.__setattr__(self, name, tuple(given))
        if self.executes and self.forked:
            raise ValueError("isolation executes and forked=True exclude each other: a fork may run no program")
        for port in self.ports:
            if not is_whole(port) or port > 65535:
                raise ValueError(f"isolation port {port!r} must be a whole number from 1 to 65535")
        for volume in self.volumes:
            if not isinstance(volume, str) or not _VOLUME.fullmatch(volume):
                raise ValueError(f"isolation volume {volume!r} is no NAME:/path, e.g. 'weights:/models'")
        for name, least in (("helpers", 0), ("file_mb", 1), ("memory_mb", 1), ("shm_mb", 1)):
            number = getattr(self, name)
            if number is not None and not is_whole(number, least):
                raise ValueError(f"isolation {name} {number!r} must be a whole number, {least} or more")

    @property
    def sandboxed(self) -> bool:
        """Whether a replica seals itself."""
        return self.level != "none"

    @property
    def mounts(self) -> Iterator[tuple[str, str]]:
        """Name and path of each volume."""
        for volume in self.volumes:
            name, _, path = volume.partition(":")
            yield name, path


def no_level(name: str) -> str:
    """Return why one of `RUNTIME_CLASSES` is refused, and what to write instead."""
    return (
        f"isolation {name!r} is no level: write isolation='sandbox', and for pods in gVisor or Kata Containers name "
        "the cluster's RuntimeClass, Hardware(..., runtime_class='gvisor')"
    )


def isolation_of(declared: str | Isolation) -> Isolation:
    """The value that a level's name stands for.

    Raises:
        ValueError: no such level.
    """
    return declared if isinstance(declared, Isolation) else Isolation(declared)
