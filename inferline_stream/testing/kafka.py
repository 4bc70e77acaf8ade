"""A Kafka for tests: one that is there, one in a container, one on local Java, or the embedded broker.

`find_apache_kafka()` tries, in this order, `KAFKA_BOOTSTRAP_SERVERS`, a container engine (with the extra `testing`),
and Java with Maven:

    with find_apache_kafka() as kafka:
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)

Tests that stop and restart a broker start a `LocalKafka` of their own.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol, Self

from inferline_stream.errors import Unreachable
from inferline_stream.settings import Surroundings, surroundings
from inferline_stream.testing.local_kafka import (
    HOST,
    TEST_SETTINGS,
    LocalKafka,
    free_ports,
    wait_until_answering,
    why_no_java,
)

logger = logging.getLogger(__name__)


class KafkaServer(Protocol):
    """Something that speaks the Kafka protocol at an address."""

    @property
    def bootstrap_servers(self) -> str:
        """``host:port``, or several of them, separated by commas."""


class KafkaAt:
    """A Kafka that somebody else runs."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers


class EmbeddedKafka:
    """The embedded broker in a process of its own, so that it does not share the tests' event loop.

    Attributes:
        process: the broker. It ends with its standard input, whose other end closes when we are gone, however we go.
    """

    process: subprocess.Popen[str]

    def __init__(self) -> None:
        self.bootstrap_servers = ""

    def __enter__(self) -> Self:
        command = [
            sys.executable,
            "-m",
            "inferline_stream.embedded_broker",
            "--port",
            "0",
            "--output",
            "json",
            "--parent-pipe",
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Unreachable(f"the embedded broker ended with status {self.process.wait()} before it listened")
        self.bootstrap_servers = json.loads(line)["bootstrap_servers"]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait(timeout=10.0)


@contextmanager
def find_apache_kafka(where: Surroundings | None = None) -> Iterator[KafkaServer]:
    """An Apache Kafka: the one of `KAFKA_BOOTSTRAP_SERVERS`, else in a container, else on local Java.

    Raises:
        Unreachable: none of the three is possible; says what each lacks.
    """
    with ExitStack() as stack:
        yield _first_possible(stack, where or surroundings())


def _first_possible(stack: ExitStack, where: Surroundings) -> KafkaServer:
    if where.kafka_bootstrap_servers:
        return KafkaAt(where.kafka_bootstrap_servers)
    no_container = "no Docker or podman engine answers"
    if engine := container_engine(where):
        try:
            return stack.enter_context(_kafka_in_a_container(engine, where.kafka_version))
        except Unreachable as error:
            no_container = str(error)
            logger.warning("no Apache Kafka in a container: %s", no_container)
    if (lack := why_no_java(where.cache, where.kafka_version)) is None:
        return stack.enter_context(LocalKafka())
    raise Unreachable(
        f"no Apache Kafka: KAFKA_BOOTSTRAP_SERVERS is not set, {no_container}, and {lack}; "
        "make one of the three possible"
    )


def container_engine(where: Surroundings) -> str | None:
    """Address of a Docker or podman engine that answers, or None."""
    usual = ["/var/run/docker.sock", "/run/podman/podman.sock", f"/run/user/{os.getuid()}/podman/podman.sock"]
    for address in [where.container_engine] if where.container_engine else [f"unix://{path}" for path in usual]:
        if address.startswith("unix://") and _unix_engine_answers(address.removeprefix("unix://")):
            return address
        if address.startswith("tcp://"):
            return address  # of DOCKER_HOST; whether it answers shows when it is used
    return None


def _unix_engine_answers(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.settimeout(2.0)
            engine.connect(path)
            engine.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
            return b" 200 " in engine.recv(64)
    except OSError:
        return False


@contextmanager
def _kafka_in_a_container(engine: str, version: str) -> Iterator[KafkaServer]:
    try:
        from testcontainers.core.config import testcontainers_config
        from testcontainers.core.container import DockerContainer
    except ImportError as error:
        raise Unreachable(
            f"the engine at {engine} is not used without the package testcontainers ({error}): "
            "pip install 'inferline-stream[testing]'"
        ) from error

    (port,) = free_ports(1)
    settings = {
        **TEST_SETTINGS,
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": "1@localhost:9093",
        "controller.listener.names": "CONTROLLER",
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    }
    image = f"apache/kafka:{version}"
    # Its helper, which removes what a killed process leaves, is one more image to pull, and looks for its own engine.
    testcontainers_config.ryuk_disabled = True
    with ExitStack() as stack:
        try:
            container = DockerContainer(image, docker_client_kw={"environment": {**os.environ, "DOCKER_HOST": engine}})
            for name, value in settings.items():
                container.with_env("KAFKA_" + name.upper().replace(".", "_"), value)
            stack.enter_context(container.with_bind_ports(9092, port))
        except Exception as error:  # of testcontainers, docker, requests or the socket: in any case, no Kafka
            raise Unreachable(f"the engine at {engine} does not run {image} ({error})") from error
        wait_until_answering(port, None, 90.0, None)
        yield KafkaAt(f"{HOST}:{port}")


@contextmanager
def shared_kafka(folder: Path) -> Iterator[KafkaServer]:
    """The Apache Kafka of all processes that share a folder.

    Locks are of the kind that the system takes back from a process that dies, and that no child inherits. Where the
    one that started it has died, its Kafka has, too: the next one starts another.

    Raises:
        Unreachable: see `find_apache_kafka`.
    """
    address, lock = folder / "apache-kafka", folder / "apache-kafka.lock"
    with (
        (folder / "apache-kafka.users").open("a+") as users,
        (folder / "apache-kafka.starter").open("a+") as starter,
        ExitStack() as stack,
    ):
        with _locked(lock):
            if not _taken(starter):
                server: KafkaServer = KafkaAt(address.read_text())
                fcntl.lockf(users, fcntl.LOCK_SH)
            else:
                server = stack.enter_context(find_apache_kafka())
                address.write_text(server.bootstrap_servers)
                stack.callback(_wait_for_others, starter, lock, users)
        yield server


def _wait_for_others(starter: IO[str], lock: Path, users: IO[str]) -> None:
    """Let no other process join, and return when all that joined have left."""
    with _locked(lock):
        fcntl.lockf(starter, fcntl.LOCK_UN)
    fcntl.lockf(users, fcntl.LOCK_EX)


def _taken(file: IO[str]) -> bool:
    """Take a lock that nobody has; return whether it is ours now."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("a+") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield
