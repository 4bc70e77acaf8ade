"""What a topic can be told, with Kafka's names and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiokafka.errors import InvalidConfigurationError

DEFAULTS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "compression.type": "producer",
    "delete.retention.ms": "86400000",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "min.cleanable.dirty.ratio": "0.5",
    "min.insync.replicas": "1",
    "retention.bytes": "-1",
    "retention.ms": "604800000",
    "segment.bytes": "1073741824",
    "segment.ms": "604800000",
}
"""Every setting that topics of this broker have."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "cleanup.policy": ("delete", "compact", "compact,delete", "delete,compact"),
    "compression.type": ("producer",),  # batches are stored as they were produced
    "message.timestamp.type": ("CreateTime", "LogAppendTime"),
}


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """Settings as a partition's log uses them; -1 means without limit."""

    compact: bool
    delete: bool
    log_append_time: bool
    delete_retention_ms: int
    max_message_bytes: int
    min_cleanable_dirty_ratio: float
    retention_bytes: int
    retention_ms: int
    segment_bytes: int
    segment_ms: int


def topic_settings(given: Mapping[str, str | None]) -> TopicSettings:
    """Settings with defaults filled in."""
    for name, value in given.items():
        if name not in DEFAULTS or value is None:
            raise InvalidConfigurationError(f"the embedded broker's topics have no {name}={value!r}")
        if value not in _CHOICES.get(name, (value,)):
            raise InvalidConfigurationError(f"{name}={value!r} is none of {', '.join(_CHOICES[name])}")
    merged = {**DEFAULTS, **{name: value for name, value in given.items() if value is not None}}
    policies = merged["cleanup.policy"].split(",")
    try:
        return TopicSettings(
            compact="compact" in policies,
            delete="delete" in policies,
            log_append_time=merged["message.timestamp.type"] == "LogAppendTime",
            delete_retention_ms=int(merged["delete.retention.ms"]),
            max_message_bytes=int(merged["max.message.bytes"]),
            min_cleanable_dirty_ratio=float(merged["min.cleanable.dirty.ratio"]),
            retention_bytes=int(merged["retention.bytes"]),
            retention_ms=int(merged["retention.ms"]),
            segment_bytes=int(merged["segment.bytes"]),
            segment_ms=int(merged["segment.ms"]),
        )
    except ValueError as error:
        raise InvalidConfigurationError(f"a setting of the topic is no number: {error}") from error
