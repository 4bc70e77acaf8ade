"""pytest fixtures that give tests a Kafka. Load them with ``pytest_plugins = ["inferline_stream.testing.fixtures"]``.

- `apache_kafka`: one Apache Kafka for the whole session, started by the first test that asks for it. Where none is
  possible the test is skipped and the summary says so; with `CI=true` it fails instead. Processes of pytest-xdist share
  it: three of them would spend a minute of a core on starting, compiling and idling.
- `embedded_broker`: one embedded broker for the whole session, in a process of its own.
  Each process of pytest-xdist has a session, and so an embedded broker, of its own.
- `kafka`: the test runs twice, once on each.
- `own_apache_kafka`: a broker of the module's own, to be stopped, killed, suspended and restarted.

A Kafka that is given by `KAFKA_BOOTSTRAP_SERVERS` should be a single node with `local_kafka.TEST_SETTINGS`: tests
create topics of one copy, expect none to appear by itself, and let sessions and transactions end within a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from inferline_stream.errors import Unreachable
from inferline_stream.settings import surroundings
from inferline_stream.testing.kafka import EmbeddedKafka, KafkaServer, find_apache_kafka, shared_kafka
from inferline_stream.testing.local_kafka import LocalKafka

_MISSING = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def apache_kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """The session's Apache Kafka."""
    with ExitStack() as stack:
        try:
            if hasattr(request.config, "workerinput"):
                server = stack.enter_context(shared_kafka(tmp_path_factory.getbasetemp().parent))
            else:
                server = stack.enter_context(find_apache_kafka())
        except Unreachable as error:
            _missing(request.config, str(error))
        yield server


@pytest.fixture(scope="module")
def own_apache_kafka(request: pytest.FixtureRequest) -> Iterator[LocalKafka]:
    """An Apache Kafka of a module's own, for tests that hurt it: each leaves it running."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(LocalKafka())
        except Unreachable as error:
            _missing(request.config, str(error))
        yield server


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[KafkaServer]:
    """The session's embedded broker."""
    with EmbeddedKafka() as server:
        yield server


@pytest.fixture(scope="session", params=["apache", "embedded"])
def kafka(request: pytest.FixtureRequest) -> KafkaServer:
    """Apache Kafka, then the embedded broker: a contract test holds on both."""
    server: KafkaServer = request.getfixturevalue("apache_kafka" if request.param == "apache" else "embedded_broker")
    return server


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a process of pytest-xdist lacks."""
    if (why := getattr(node, "workeroutput", {}).get("apache_kafka_missing")) is not None:
        node.config.stash[_MISSING] = why


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say that the contract tests ran on the embedded broker alone, where they did."""
    if (why := config.stash.get(_MISSING, None)) is not None:
        terminalreporter.section("Apache Kafka")
        terminalreporter.line(f"Contract tests ran on the embedded broker alone: {why}")


def _missing(config: pytest.Config, why: str) -> None:
    config.stash[_MISSING] = why
    if (output := getattr(config, "workeroutput", None)) is not None:
        output["apache_kafka_missing"] = why
    if surroundings().ci:
        pytest.fail(f"CI=true, so Apache Kafka is never skipped: {why}", pytrace=False)
    pytest.skip(why)
