"""One Apache Kafka for several processes that run tests: the first one starts it, and stops it after all others."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from inferline_stream.testing.kafka import KafkaAt, KafkaServer, find_apache_kafka


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
