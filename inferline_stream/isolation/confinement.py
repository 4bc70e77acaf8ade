"""What one process learns about its isolation: the stage's declaration, and where and beside what it runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.settings import KAFKA_CONFIG, KAFKA_VARIABLES, KafkaSecurity, kafka_addresses, kafka_security

_VISIBLE = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "CI", "COLUMNS", "TERM", "NO_COLOR"),
    )
)
_VISIBLE_PREFIXES = (
    *("LC_", "PYTHON", "CUDA_", "NVIDIA_", "ORT_", "OMP_", "MKL_", "OPENBLAS_", "NUMBA_", "COVERAGE_"),
    *("HF_", "NCCL_", "PYTORCH_", "TORCH_", "TRANSFORMERS_", "TRITON_", "VLLM_"),
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL")
"""Such as HF_TOKEN and VLLM_API_KEY, which a stage has to declare."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """One process's isolation.

    Args:
        isolation: as the stage declares it, paths absolute.
        topology: the topology file, absolute; empty for a dispatcher, which runs none of its code.
        kafka_ports: TCP ports that Kafka is reached at; none for a process that has nothing to do with it.
        kafka_files: what connecting to Kafka takes: certificates, keys and properties.
        cores: of the hardware kind, for the limit where control groups are delegated; 0 for none.
        gpu: whether it needs a GPU's devices.
        nodes: of the GPUs that are its own, below ``/dev``; None where that is not known, for all.
        listens: TCP ports that it may be reached at; 0 for whichever is free. A stage has none.
        scratch: folder of its own for temporary files; empty for none.
        kernels: folder of what the profile's replicas have compiled for its GPU, which it begins with a copy of; empty
            for none. It is not granted: no replica writes what another one runs.
    """

    isolation: Isolation
    topology: str
    kafka_ports: tuple[int, ...] = ()
    kafka_files: tuple[str, ...] = ()
    cores: float = 0.0
    gpu: bool = False
    nodes: tuple[str, ...] | None = None
    listens: tuple[int, ...] = ()
    scratch: str = ""
    kernels: str = ""

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP ports that it may connect to."""
        return tuple(sorted({*self.kafka_ports, *self.isolation.ports}))

    @property
    def network(self) -> bool:
        """Whether it may make sockets at all."""
        return bool(self.ports or self.listens)

    def encoded(self) -> str:
        """As one argument of a command line. It holds no secret."""
        return json.dumps(asdict(self), separators=(",", ":"))


def decoded(text: str) -> Confinement:
    """The confinement that `Confinement.encoded` wrote."""
    fields: dict[str, Any] = json.loads(text)
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Confinement(**{**fields, **lists, "isolation": Isolation(**fields["isolation"])})


def confined(
    isolation: Isolation, topology: str | Path, hardware: Hardware, bootstrap_servers: str = ""
) -> Confinement:
    """Return the isolation of a process that runs users' code on a kind of hardware.

    Args:
        isolation: as declared.
        topology: the topology file.
        hardware: the kind.
        bootstrap_servers: of Kafka, for a process that connects to it; a replica does not.
    """
    file = Path(topology).resolve()
    fields = asdict(isolation)
    for kind in ("reads", "writes", "executes"):
        # Not resolved: rules follow links when they are made.
        fields[kind] = tuple(os.path.join(file.parent, os.path.expanduser(path)) for path in fields[kind])
    ports, files = _kafka(bootstrap_servers)
    return Confinement(
        Isolation(**fields), str(file), ports, files, cores=max(hardware.cores, 0.0), gpu=hardware.gpus > 0
    )


def dispatcher_confinement(bootstrap_servers: str, tracing: str = "") -> Confinement:
    """Return the isolation of a dispatcher: Kafka's ports, and where spans go; no file of a topology.

    Args:
        bootstrap_servers: of Kafka.
        tracing: OpenTelemetry exporter; empty for none.
    """
    ports, files = _kafka(bootstrap_servers)
    variables = tuple(sorted(name for name in os.environ if name.startswith("OTEL_"))) if tracing else ()
    spans = (_span_port(tracing),) if tracing.startswith("otlp") else ()
    return Confinement(
        Isolation("sandbox", ports=spans, environment=variables, on_unsupported="degrade"), "", ports, files
    )


def _kafka(bootstrap_servers: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ports and files that connecting to Kafka takes."""
    ports, files = ports_of(bootstrap_servers), []
    if ports and (security := security_of(bootstrap_servers)) is not None:
        files = [os.environ.get(KAFKA_CONFIG, ""), security.ssl_ca_location]
        files += [security.ssl_certificate_location, security.ssl_key_location]
        endpoint = urlsplit(security.sasl_oauthbearer_token_endpoint_url)
        ports += (endpoint.port or {"https": 443, "http": 80}[endpoint.scheme],) if endpoint.scheme else ()
    return tuple(sorted(set(ports))), tuple(os.path.abspath(name) for name in files if name)


def _span_port(tracing: str) -> int:
    named = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    endpoint = urlsplit(next((os.environ[name] for name in named if os.environ.get(name)), ""))
    usual = {"https": 443, "http": 80}.get(endpoint.scheme, 4317 if "grpc" in tracing else 4318)
    return endpoint.port or usual


def security_of(bootstrap_servers: str) -> KafkaSecurity | None:
    """How Kafka is connected to; None for an address that says that it is plaintext.

    Raises:
        UsageError: the environment asks for what cannot be.
    """
    return None if bootstrap_servers.startswith("PLAINTEXT://") else kafka_security()


def ports_of(bootstrap_servers: str) -> tuple[int, ...]:
    """TCP ports in ``host:port,host:port``; none for no address.

    Raises:
        UsageError: as `kafka_addresses`.
    """
    if not bootstrap_servers:
        return ()
    return tuple(sorted({port for _, port in kafka_addresses(bootstrap_servers.removeprefix("PLAINTEXT://"))}))


def visible(environment: Mapping[str, str], confinement: Confinement) -> dict[str, str]:
    """The part of an environment that a sandboxed process may see: no secret, but Kafka's if it needs them."""
    also = {*confinement.isolation.environment, *(KAFKA_VARIABLES if confinement.kafka_ports else ())}
    return {
        name: value
        for name, value in environment.items()
        if name in _VISIBLE or name in also or (name.startswith(_VISIBLE_PREFIXES) and not _SECRET.search(name))
    }
