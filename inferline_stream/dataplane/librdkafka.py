"""confluent-kafka, which is librdkafka: its settings and errors in our terms, for the reader and the sender on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from inferline_stream.dataplane.client import Fenced, KafkaFailed
from inferline_stream.dataplane.connecting import hosts, refused, security_of, unreachable

logger = logging.getLogger(__name__)

REQUEST_S = 10.0
"""Longest wait for one answer."""

_PASSING = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._WAIT_COORD,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.REQUEST_TIMED_OUT,
    }
)
"""What a cluster says while it settles: a topic was just created, a broker or a group's coordinator comes and goes."""

_FENCED = (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED)


class TransactionOffsets(NamedTuple):
    """Offsets, and the group they are of, as a transaction wants them."""

    positions: list[TopicPartition]
    group: Any


def common(bootstrap_servers: str) -> dict[str, Any]:
    """What both clients are given: where Kafka is, TLS and SASL by librdkafka's own names."""
    security = security_of(bootstrap_servers)
    settings: dict[str, Any] = {
        "bootstrap.servers": hosts(bootstrap_servers),
        "socket.nagle.disable": True,
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 500,
        "log_level": 3,
        "error_cb": _told,  # without one, confluent-kafka raises fatal errors out of whichever call comes next
        "security.protocol": security.security_protocol,
    }
    for name in security.__dataclass_fields__:
        if (value := getattr(security, name)) and name.startswith(("sasl_", "ssl_")):
            settings[name.replace("_", ".")] = value
    if not security.sasl:
        settings.pop("sasl.mechanism", None)
    elif security.sasl_mechanism == "OAUTHBEARER":
        settings["sasl.oauthbearer.method"] = "oidc"
    return settings


def _told(error: KafkaError) -> None:
    """What the client tells of itself; whatever it means for a call is that call's error."""
    logger.debug("%s", error)


def may_pass(error: KafkaError) -> bool:
    """Whether the next try may succeed. librdkafka itself marks only errors of transactions as such."""
    return bool(error.retriable()) or error.code() in _PASSING


def translated(error: KafkaException, what: str) -> Fenced | KafkaFailed:
    """librdkafka's error as ours."""
    reason = error.args[0]
    if reason.code() in _FENCED:
        return Fenced("fenced: a successor has taken over")
    return KafkaFailed(f"Kafka refuses {what}: {reason}")


async def topics_known(
    client: Any, bootstrap_servers: str, timeout_s: float, run: Callable[..., Any]
) -> dict[str, int]:
    """Partitions of every topic, once a broker answers; one that turns us away is not asked again.

    Raises:
        Unreachable: no answer in time, or refused.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            found = await run(client.list_topics, None, min(1.0, timeout_s))
        except KafkaException as error:
            if time.monotonic() >= deadline_s or await refused(bootstrap_servers):
                raise await unreachable(
                    bootstrap_servers,
                    f"Kafka does not answer within {timeout_s:g} s ({error.args[0]}); is it running?",
                ) from error
        else:
            return {name: len(topic.partitions) for name, topic in found.topics.items()}
