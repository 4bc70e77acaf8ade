"""Gives a replica its Kafka client: aiokafka, or confluent-kafka where that is installed and wanted."""

from __future__ import annotations

import importlib
from typing import Any

from inferline_stream.dataplane.client import Reader, Sender
from inferline_stream.dataplane.reading import StageReader
from inferline_stream.dataplane.sending import StageSender
from inferline_stream.errors import UsageError


def stage_reader(kafka_client: str, bootstrap_servers: str, *given: Any, **named: Any) -> Reader:
    """A reader on aiokafka or confluent-kafka; the rest as `StageReader` takes it.

    Raises:
        UsageError: confluent-kafka is not installed.
    """
    if kafka_client == "aiokafka":
        return StageReader(bootstrap_servers, *given, **named)
    check_installed(kafka_client)
    from inferline_stream.dataplane.librdkafka_reading import ConfluentReader

    return ConfluentReader(bootstrap_servers, *given, **named)


def stage_sender(
    kafka_client: str, bootstrap_servers: str, client_id: str, transactional_id: str | None = None
) -> Sender:
    """A sender on aiokafka or confluent-kafka.

    Raises:
        UsageError: confluent-kafka is not installed.
    """
    if kafka_client == "aiokafka":
        return StageSender(bootstrap_servers, client_id, transactional_id)
    check_installed(kafka_client)
    from inferline_stream.dataplane.librdkafka_sending import ConfluentSender

    return ConfluentSender(bootstrap_servers, client_id, transactional_id)


def check_installed(kafka_client: str) -> None:
    """See early that a client is there.

    Raises:
        UsageError: confluent-kafka is not installed.
    """
    if kafka_client == "aiokafka":
        return
    try:
        importlib.import_module("confluent_kafka")
    except ImportError:
        raise UsageError(
            "the client confluent needs confluent-kafka: pip install 'inferline-stream[confluent]'"
        ) from None
