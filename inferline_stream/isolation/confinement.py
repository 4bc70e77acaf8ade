"""What one process is told about its isolation: the stage's declaration, and where and beside what it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation

_VISIBLE = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "CI", "COLUMNS", "TERM", "NO_COLOR"),
    )
)
_VISIBLE_PREFIXES = ("LC_", "PYTHON", "CUDA_", "NVIDIA_", "ORT_", "OMP_", "MKL_", "OPENBLAS_", "NUMBA_", "COVERAGE_")


@dataclass(frozen=True, slots=True)
class Confinement:
    """One process's isolation.

    Args:
        isolation: as the stage declares it, paths absolute.
        topology: the topology file, absolute.
        kafka_ports: TCP ports that Kafka is reached at.
        cores: of the hardware kind, for the limit where control groups are delegated; 0 for none.
        gpu: whether it needs a GPU's devices.
        scratch: folder of its own for temporary files; empty for none.
    """

    isolation: Isolation
    topology: str
    kafka_ports: tuple[int, ...] = ()
    cores: float = 0.0
    gpu: bool = False
    scratch: str = ""

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP ports that it may connect to."""
        return tuple(sorted({*self.kafka_ports, *self.isolation.ports}))

    def encoded(self) -> str:
        """As one argument of a command line. It holds no secret."""
        return json.dumps(asdict(self), separators=(",", ":"))


def decoded(text: str) -> Confinement:
    """The confinement that `Confinement.encoded` wrote."""
    fields: dict[str, Any] = json.loads(text)
    isolation = Isolation(**fields.pop("isolation"))
    return Confinement(**{**fields, "isolation": isolation, "kafka_ports": tuple(fields["kafka_ports"])})


def confined(isolation: Isolation, topology: str | Path, hardware: Hardware, bootstrap_servers: str) -> Confinement:
    """The isolation of a replica of a stage on a kind of hardware."""
    file = Path(topology).resolve()
    fields = asdict(isolation)
    for kind in ("reads", "writes"):
        # Not resolved: rules follow links when they are made.
        fields[kind] = tuple(os.path.join(file.parent, os.path.expanduser(path)) for path in fields[kind])
    return Confinement(
        Isolation(**fields), str(file), ports_of(bootstrap_servers), max(hardware.cores, 0.0), hardware.gpus > 0
    )


def ports_of(bootstrap_servers: str) -> tuple[int, ...]:
    """TCP ports in ``host:port,host:port``; Kafka's usual one where none is given."""
    found = (server.strip().rpartition(":")[2] for server in bootstrap_servers.split(",") if server.strip())
    return tuple(sorted({int(port) if port.isdigit() else 9092 for port in found}))


def visible(environment: Mapping[str, str], also: Sequence[str] = ()) -> dict[str, str]:
    """The part of an environment that a sandboxed process may see: nothing that could be a secret."""
    return {
        name: value
        for name, value in environment.items()
        if name in _VISIBLE or name in also or name.startswith(_VISIBLE_PREFIXES)
    }
