"""Metadata, topics and their settings."""

from __future__ import annotations

from collections.abc import Callable

from aiokafka.errors import InvalidRequestError, UnknownTopicOrPartitionError

from inferline_stream.broker.state import CLUSTER_ID, NODE_ID, Broker, Client, failure
from inferline_stream.broker.topic_settings import DEFAULTS
from inferline_stream.broker.wire import Fields

_TOPIC, _BROKER = 2, 4  # kinds of resources that have settings
_BY_TOPIC, _STATIC, _BY_DEFAULT = 1, 4, 5  # where the value of a setting comes from

_BROKER_SETTINGS = {
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "num.partitions": "1",
    "offset.metadata.max.bytes": "4096",
    "transaction.max.timeout.ms": "900000",
}


async def metadata(broker: Broker, request: Fields, client: Client) -> Fields:
    """The one broker and the topics asked for; all of them where none is named."""
    names = request["topics"]
    return {
        "brokers": [{"node_id": NODE_ID, "host": broker.host, "port": broker.port, "rack": None}],
        "cluster_id": CLUSTER_ID,
        "controller_id": NODE_ID,
        "topics": [_described(broker, name) for name in (sorted(broker.topics.by_name) if names is None else names)],
    }


def _described(broker: Broker, name: str) -> Fields:
    topic = broker.topics.by_name.get(name)
    return {
        "error_code": UnknownTopicOrPartitionError.errno if topic is None else 0,
        "topic": name,
        "is_internal": False,
        "partitions": [
            {
                "error_code": 0,
                "partition": number,
                "leader": NODE_ID,
                "replicas": [NODE_ID],
                "isr": [NODE_ID],
                "offline_replicas": [],
            }
            for number in range(len(topic.partitions) if topic else 0)
        ],
    }


async def create_topics(broker: Broker, request: Fields, client: Client) -> Fields:
    """Create topics; each succeeds or fails for itself."""

    def create(topic: Fields) -> Callable[[], None]:
        given = {entry["config_key"]: entry["config_value"] for entry in topic["configs"]}
        size = len(topic["replica_assignment"]) or topic["num_partitions"]
        copies = -1 if topic["replica_assignment"] else topic["replication_factor"]
        only = bool(request.get("validate_only"))
        return lambda: broker.topics.create(topic["topic"], size, copies, given, validate_only=only)

    return {"topic_errors": [_result(one["topic"], create(one)) for one in request["create_topic_requests"]]}


async def create_partitions(broker: Broker, request: Fields, client: Client) -> Fields:
    """Add partitions to topics."""

    def grow(topic: Fields) -> Callable[[], None]:
        count, only = topic["new_partitions"]["count"], request["validate_only"]
        return lambda: broker.topics.grow(topic["topic"], count, validate_only=only)

    return {"topic_errors": [_result(topic["topic"], grow(topic)) for topic in request["topic_partitions"]]}


async def delete_topics(broker: Broker, request: Fields, client: Client) -> Fields:
    """Delete topics, and the offsets that groups committed for them."""

    def delete(name: str) -> Callable[[], None]:
        def both() -> None:
            broker.topics.delete(name)
            broker.groups.forget_topic(name)

        return both

    return {"topic_error_codes": [_result(name, delete(name)) for name in request["topics"]]}


def _result(topic: str, action: Callable[[], object]) -> Fields:
    error_code, message = failure(action)
    return {"topic": topic, "error_code": error_code, "error_message": message}


async def describe_configs(broker: Broker, request: Fields, client: Client) -> Fields:
    """Settings of topics and of the broker."""
    return {"resources": [_described_settings(broker, resource) for resource in request["resources"]]}


def _described_settings(broker: Broker, resource: Fields) -> Fields:
    found: dict[str, tuple[str | None, int]] = {}

    def look_up() -> None:
        if resource["resource_type"] == _BROKER:
            found.update({name: (value, _STATIC) for name, value in _BROKER_SETTINGS.items()})
        elif resource["resource_type"] == _TOPIC:
            given = broker.topics.topic(resource["resource_name"]).given
            found.update({name: (value, _BY_DEFAULT) for name, value in DEFAULTS.items()})
            found.update({name: (value, _BY_TOPIC) for name, value in given.items()})
        else:
            raise InvalidRequestError

    error_code, message = failure(look_up)
    wanted = resource["config_names"]
    return {
        "error_code": error_code,
        "error_message": message,
        "resource_type": resource["resource_type"],
        "resource_name": resource["resource_name"],
        "config_entries": [
            {
                "config_names": name,
                "config_value": value,
                "read_only": resource["resource_type"] == _BROKER,
                "is_default": source == _BY_DEFAULT,
                "config_source": source,
                "is_sensitive": False,
                "config_synonyms": [],
            }
            for name, (value, source) in found.items()
            if wanted is None or name in wanted
        ],
    }


async def alter_configs(broker: Broker, request: Fields, client: Client) -> Fields:
    """Replace what topics were told; the broker itself cannot be told anything."""

    def alter(resource: Fields) -> Callable[[], None]:
        given = {entry["config_name"]: entry["config_value"] for entry in resource["config_entries"]}

        def check_and_set() -> None:
            if resource["resource_type"] != _TOPIC:
                raise InvalidRequestError("the embedded broker's own settings cannot be altered")
            broker.topics.topic(resource["resource_name"]).configure(given, validate_only=request["validate_only"])

        return check_and_set

    answers = []
    for resource in request["resources"]:
        error_code, message = failure(alter(resource))
        kind = {"resource_type": resource["resource_type"], "resource_name": resource["resource_name"]}
        answers.append({"error_code": error_code, "error_message": message, **kind})
    return {"resources": answers}
