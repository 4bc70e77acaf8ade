"""Settings of a topic, by Kafka's names with Kafka's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aiokafka.errors import InvalidConfigurationError

_CHOICES = {
    "cleanup.policy": ("delete", "compact", "compact,delete", "delete,compact"),
    "compression.type": ("producer",),  # batches are stored as they were produced
    "message.timestamp.type": ("CreateTime", "LogAppendTime"),
}


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """Every setting that topics of this broker have; underscores stand for Kafka's dots, -1 for no limit."""

    cleanup_policy: str = "delete"
    compression_type: str = "producer"
    delete_retention_ms: int = 86_400_000
    max_message_bytes: int = 1_048_588
    message_timestamp_type: str = "CreateTime"
    min_cleanable_dirty_ratio: float = 0.5
    min_insync_replicas: int = 1
    retention_bytes: int = -1
    retention_ms: int = 604_800_000
    segment_bytes: int = 1_073_741_824
    segment_ms: int = 604_800_000

    def named(self) -> dict[str, str]:
        """The settings by Kafka's names."""
        return {name.replace("_", "."): str(value) for name, value in asdict(self).items()}


def topic_settings(given: Mapping[str, str | None]) -> TopicSettings:
    """Settings as they were given, the others by default; refuses what this broker's topics do not have."""
    defaults, values = TopicSettings(), dict[str, Any]()
    for name, value in given.items():
        if name not in defaults.named() or value not in _CHOICES.get(name, (value,)):
            raise InvalidConfigurationError(f"topics of the embedded broker cannot have {name}={value!r}")
        field = name.replace(".", "_")
        try:
            values[field] = type(getattr(defaults, field))(value)
        except (ValueError, TypeError):
            raise InvalidConfigurationError(f"{name}={value!r} is no number") from None
    return TopicSettings(**values)
