"""A single-node Apache Kafka as a process of one's own: it can be killed, suspended and restarted on the same data.

Its jars come from Maven Central, into a cache folder that several starters may share.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Self

from inferline_stream.errors import Unreachable
from inferline_stream.settings import KAFKA_VERSION, surroundings

HOST = "127.0.0.1"
CLUSTER_ID = "aW5mZXJsaW5lLXN0cmVhbQ"  # 16 bytes in URL-safe base 64, as Kafka wants it
_HEAP, _START_S = "512m", 180.0

TEST_SETTINGS: Mapping[str, str] = {
    # One node, so one copy of everything.
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    # Creating 50 partitions for each internal topic takes seconds; nothing here needs so many.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    # Clients name their topics; a typo must be an error.
    "auto.create.topics.enable": "false",
    # A group's first member waits for nobody, as on the embedded broker.
    "group.initial.rebalance.delay.ms": "0",
    # Tests provoke expiry, and wait for it.
    "group.min.session.timeout.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "offsets.retention.check.interval.ms": "500",
    # A killed broker may come back once its controller has forgotten it: after 2 s instead of 9 s.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    # A controller that has nothing to do writes a record that says so twice a second: a third of an idle broker's work.
    "metadata.max.idle.interval.ms": "30000",
    # Compaction at once, in 16 MiB instead of 128 MiB.
    "log.cleaner.backoff.ms": "250",
    "log.cleaner.dedupe.buffer.size": "16777216",
    # Each partition's first record touches two index files, 10 MiB each by default. Where a disk reads that far ahead,
    # Linux fills all of it with zeros: 8 ms per partition, seconds at the beginning of a run.
    "log.index.size.max.bytes": "262144",
}
"""Broker settings of every Kafka that is started here."""


class LocalKafka:
    """A single-node Apache Kafka (KRaft) on local Java, with its port, data and log in a temporary folder.

    Every method blocks; in a coroutine call ``await asyncio.to_thread(kafka.restart)`` or enter it with ``async with``.

    Args:
        settings: broker settings that override `TEST_SETTINGS`, e.g. ``{"offsets.retention.minutes": "1"}``.
        listeners: further ones, named by their security protocol (``SASL_SSL``); `ports` has their ports.

    Raises:
        Unreachable: no Java ≥ 17, no Maven, or the broker did not answer in time.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        listeners: Sequence[str] = (),
    ) -> None:
        self._settings = {**TEST_SETTINGS, **(settings or {})}
        self._listeners = listeners
        self._resources = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._classpath = ""
        self._formatted = Path()
        self._classes = Path()
        self.folder = Path()
        self.port = 0
        self.ports: dict[str, int] = {}

    @property
    def bootstrap_servers(self) -> str:
        """The broker's address, the same after every restart."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running broker."""
        return self._running().pid

    @property
    def log(self) -> Path:
        """What the broker wrote to standard output and error."""
        return self.folder / "broker.log"

    def start(self) -> None:
        """Start on the same port and data as before, if there was a before; returns once the broker answers."""
        self._start(f"-XX:SharedArchiveFile={self._classes}")  # where it is of no use, Java reads the jars

    def _start(self, classes: str) -> None:
        self._process = subprocess.Popen(
            self._java("kafka.Kafka", str(self.folder / "server.properties"), heap=_HEAP, options=(classes,)),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self._watchdog = _kill_when_we_are_gone(self._process.pid)
        try:
            wait_until_answering(self.port, self._process, _START_S, self.log)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the broker in good order; what it acknowledged is on disk."""
        self._end(signal.SIGTERM, timeout_s=30.0)

    def kill(self) -> None:
        """SIGKILL: the broker ends in no order at all."""
        self._end(signal.SIGKILL, timeout_s=10.0)

    def suspend(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, from when this returns."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # threads at work stop a moment later

    def resume(self) -> None:
        """SIGCONT, after `suspend`."""
        self._running().send_signal(signal.SIGCONT)

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill) and start again."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            where = surroundings()
            jars = kafka_jars(where.cache, where.kafka_version)
            self._classpath = f"{jars}/*"
            self._formatted = formatted_folder(jars)
            self._classes = classes_archive(jars)
            self.folder = Path(
                undo.enter_context(tempfile.TemporaryDirectory(prefix="kafka-", ignore_cleanup_errors=True))
            )
            self._log = undo.enter_context(self.log.open("ab"))
            self.port, controller_port, *ports = free_ports(2 + len(self._listeners))
            self.ports = dict(zip(self._listeners, ports, strict=True))
            self._write_properties(controller_port)
            self._format()
            if not self._classes.exists():
                self._keep_classes()
            self.start()
            self._resources = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()  # nothing is kept, so nothing need be put in order
        self._resources.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.__exit__)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("this broker is not running; call start()")
        return self._process

    def _end(self, how: signal.Signals, timeout_s: float) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.send_signal(signal.SIGCONT)  # a suspended process would never see SIGTERM
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10.0)
        self._process = None
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.wait()
            if self._watchdog.stdin is not None:
                self._watchdog.stdin.close()

    def _java(self, main: str, *arguments: str, heap: str, options: Sequence[str] = ()) -> list[str]:
        logging_level = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        # A broker that lives for a minute: the optimising compiler would take most of a core for as long.
        # Checking the bytecode of jars whose digests Maven has checked would take a sixth of its start.
        # With what it allocates in half a second to collect, it stands still for 7 ms, not for 20.
        frugal = (
            *("-XX:+UseSerialGC", "-Xmn16m", "-XX:TieredStopAtLevel=1"),
            *("-XX:+UnlockDiagnosticVMOptions", "-XX:-BytecodeVerificationRemote"),
        )
        return ["java", f"-Xmx{heap}", *frugal, *options, logging_level, "-cp", self._classpath, main, *arguments]

    def _write_properties(self, controller_port: int) -> None:
        further = "".join(f",{name}://{HOST}:{port}" for name, port in self.ports.items())
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{controller_port}{further}",
            "listener.security.protocol.map": ",".join(
                f"{name}:{protocol}"
                for name, protocol in (("CONTROLLER", "PLAINTEXT"), *((n, n) for n in ("PLAINTEXT", *self.ports)))
            ),
            "log.dirs": str(self.folder / "data"),
            **self._settings,
        }
        lines = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self.folder / "server.properties").write_text(lines, encoding="utf-8")

    def _format(self) -> None:
        """Give the broker an empty data folder: a copy, since a Java that makes one starts for seconds.

        It holds the cluster's and the broker's id and the version's features, which are the same for every broker here.
        """
        data = self.folder / "data"
        if self._formatted.is_dir():
            shutil.copytree(self._formatted, data)
            return
        properties = str(self.folder / "server.properties")
        command = self._java("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", properties, heap="128m")
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unreachable(f"Kafka could not format {data}: {done.stderr or done.stdout}")
        with (
            contextlib.suppress(OSError),  # another broker was first, or the cache is not ours to write to
            tempfile.TemporaryDirectory(prefix=".formatted-", dir=self._formatted.parent) as workshop,
        ):
            shutil.copytree(data, Path(workshop) / "data").rename(self._formatted)

    def _keep_classes(self) -> None:
        """Let a broker that ends at once write down the classes that Java has read: a third of each later start."""
        with (
            contextlib.suppress(OSError),  # the cache is not ours to write to
            tempfile.TemporaryDirectory(prefix=".classes-", dir=self._classes.parent) as workshop,
        ):
            written = Path(workshop) / "classes.jsa"
            self._start(f"-XX:ArchiveClassesAtExit={written}")
            broker = self._running()
            self.stop()
            if broker.returncode != -signal.SIGKILL:  # else it is not all there
                written.replace(self._classes)


def formatted_folder(jars: Path) -> Path:
    """Where an empty data folder is kept: beside the jars of its version, by the cluster's id, which it holds."""
    return jars.with_name(f"{jars.name}-formatted-{CLUSTER_ID}")


def classes_archive(jars: Path) -> Path:
    """Where the archive of the broker's classes is kept: beside the jars of its version, by the Java that wrote it."""
    java = Path(shutil.which("java") or "java").resolve()
    return jars.with_name(f"{jars.name}-classes-{java.stat().st_mtime_ns:x}.jsa")


def free_ports(count: int) -> list[int]:
    """Loopback ports on which nobody listens, below the range that the kernel gives to outgoing connections.

    A client that tries again and again to reach a stopped broker would otherwise, sooner or later, be given the
    broker's own port as its source and connect to itself.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def wait_until_answering(
    port: int, process: subprocess.Popen[bytes] | None, timeout_s: float, log: Path | None
) -> None:
    """Return once a broker answers at a port of this host.

    Raises:
        Unreachable: it did not in time, or its process ended; shows the end of its log.
    """
    deadline_s = time.monotonic() + timeout_s
    while not _answers(port):
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline_s:
            what = (
                f"ended with status {process.returncode}" if process and ended else f"gave no answer in {timeout_s} s"
            )
            tail = log.read_text(errors="replace")[-2000:] if log else ""
            raise Unreachable(f"Apache Kafka at {HOST}:{port} {what}\n{tail}")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    """Whether a broker answers ApiVersions v0; Kafka does so only once it serves every request."""
    correlation = 7
    request = struct.pack(">hhih", 18, 0, correlation, -1)  # key, version, correlation, no client id
    try:
        with socket.create_connection((HOST, port), timeout=2.0) as broker:
            broker.settimeout(2.0)
            broker.sendall(struct.pack(">i", len(request)) + request)
            answer = broker.recv(8, socket.MSG_WAITALL)
            return len(answer) == 8 and struct.unpack(">ii", answer)[1] == correlation
    except OSError:
        return False


def _kill_when_we_are_gone(pid: int) -> subprocess.Popen[bytes]:
    """A shell that waits for the end of its input, which comes when this process ends in any way."""
    return subprocess.Popen(["/bin/sh", "-c", 'read -r _; kill -9 "$1"', "sh", str(pid)], stdin=subprocess.PIPE)


logger = logging.getLogger(__name__)

OLDEST_JAVA = 17

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>inferline-stream</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>VERSION</version>
    </dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


def kafka_jars(cache: Path, version: str = KAFKA_VERSION) -> Path:
    """Return the folder of Kafka's jars; downloads them on first use.

    It appears whole or not at all, and one starter downloads while others wait for it.

    Args:
        cache: where downloads are kept.
        version: of Kafka.

    Raises:
        Unreachable: no Java, no Maven, or the download failed.
    """
    folder = _folder(cache, version)
    lack = why_no_java(cache, version)
    if lack is not None:
        raise Unreachable(f"no local Apache Kafka: {lack}")
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _download(folder, version)
    return folder


def why_no_java(cache: Path, version: str = KAFKA_VERSION) -> str | None:
    """What a local Kafka lacks, as a clause, or None if it can run."""
    java = shutil.which("java")
    if java is None:
        return f"there is no Java (version {OLDEST_JAVA} or later is needed)"
    shown = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    own = re.search(r'version "(\d+)', shown)
    if own is None or int(own[1]) < OLDEST_JAVA:
        return f"{java} is Java {own[1] if own else 'of an unknown version'}, older than {OLDEST_JAVA}"
    if shutil.which("mvn") is None and not _folder(cache, version).is_dir():
        return f"there is no Maven (`mvn`) to download Kafka's jars to {_folder(cache, version)}"
    return None


def _folder(cache: Path, version: str) -> Path:
    return cache / f"kafka-{version}"


def _download(folder: Path, version: str) -> None:
    logger.info("downloading Apache Kafka %s to %s", version, folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as workshop:
        (Path(workshop) / "pom.xml").write_text(_POM.replace("VERSION", version), encoding="utf-8")
        jars = Path(workshop) / "jars"
        command = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"]
        done = subprocess.run(
            [*command, f"-DoutputDirectory={jars}"], cwd=workshop, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Unreachable(f"Maven could not fetch Apache Kafka {version}: {done.stdout[-1500:]}")
        jars.rename(folder)
