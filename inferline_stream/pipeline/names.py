"""How a pipeline's topics, consumer groups and headers are called."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

HEADER_PREFIX = "__inferline."
EVENT_ID = HEADER_PREFIX + "event_id"
ENTRY_TIME = HEADER_PREFIX + "entry_time_us"
PARENT = HEADER_PREFIX + "parent"
SKIPPED = HEADER_PREFIX + "skipped"
OF = HEADER_PREFIX + "of"
PART = HEADER_PREFIX + "part"
VERSION = HEADER_PREFIX + "version"
ERRORS_PREFIX = HEADER_PREFIX + "errors."

WIRE_VERSION = 1
"""Version of headers and topic records."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_LONGEST_NAME = 80  # two of them, a prefix and a suffix fit into Kafka's 249 characters


def check_version(version: int) -> None:
    """Refuse a record that a newer release wrote: its fields may mean something else.

    Raises:
        ValueError: for such a version.
    """
    if not 0 < version <= WIRE_VERSION:
        raise ValueError(f"version {version}, this release reads up to version {WIRE_VERSION}")


def event_id_prefix(topic: str, topic_id: str) -> str:
    """Return what the ids of a topic's events begin with; a slash, the partition, a slash and the offset follow.

    Args:
        topic: its full name.
        topic_id: of this incarnation of it, shortened, so that ids are not used again where it is deleted and created
            again; empty where the broker gives topics none.
    """
    return f"{topic}@{topic_id}" if topic_id else topic


@dataclass(frozen=True, slots=True)
class Names:
    """Names of everything one pipeline has in Kafka; every one of them carries the prefix."""

    pipeline: str
    prefix: str = ""

    def topic(self, name: str) -> str:
        """A topic that the user names: source or sink."""
        return self.prefix + name

    def stage_topic(self, stage: str, background: str = "") -> str:
        """Input topic of a stage that is not an entry stage, of live events or of those of a background topic."""
        return self.group(stage, background)

    def group(self, stage: str, background: str = "") -> str:
        """Consumer group of a stage, for live events or for those of a background topic."""
        return f"{self.prefix}{self.pipeline}.{stage}" + (f".{background}" if background else "")

    def transactional_id(self, slot: str) -> str:
        """Return the transactional id of a slot's producer, where results are exactly once.

        The dispatcher that initialises it fences the one before.

        Args:
            slot: ``<stage>-<number>``.
        """
        return f"{self.prefix}{self.pipeline}.{slot}"

    @property
    def assignments(self) -> str:
        """Compacted topic: leadership and which dispatcher serves which slot."""
        return f"{self.prefix}{self.pipeline}.assignments"

    @property
    def stage_stats(self) -> str:
        """What dispatchers report."""
        return f"{self.prefix}{self.pipeline}.stage-stats"

    @property
    def arrivals(self) -> str:
        """Log growth of the source topics."""
        return f"{self.prefix}{self.pipeline}.arrivals"

    @property
    def decisions(self) -> str:
        """Compacted topic: plans and decisions."""
        return f"{self.prefix}{self.pipeline}.decisions"

    @property
    def control(self) -> str:
        """Overrides: scale, pause, resume, limits."""
        return f"{self.prefix}{self.pipeline}.control"

    @property
    def completed(self) -> str:
        """Events that ended without a sink record, each with its reason."""
        return f"{self.prefix}{self.pipeline}.completed"

    @property
    def own(self) -> frozenset[str]:
        """Topics of which there is one in each pipeline, and that nothing else may write to."""
        control = {self.assignments, self.decisions, self.control}
        return frozenset(control | {self.stage_stats, self.arrivals, self.completed})

    @staticmethod
    def dead_letters(topic: str) -> str:
        """Where records of a topic go that could not be processed."""
        return f"{topic}.dlq"


def problems_of_name(name: Any, what: str) -> Iterator[str]:
    """Yield why a pipeline, a stage or a group (``what``) cannot be called so."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        yield (
            f"{what} name {name!r} cannot stand in a topic's name: begin with a letter or digit, then letters, digits, "
            f"'_' and '-', at most {_LONGEST_NAME}"
        )
    elif what != "pipeline":
        names = Names("")
        if names.stage_topic(name) in names.own:
            yield f"{what} name {name!r} is the name of one of the pipeline's own topics; rename the {what}"


def nearest(name: Any, known: Iterable[str]) -> str:
    """Return the remedy for a name nobody knows: the nearest one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; known are {', '.join(names)}" if names else ""
