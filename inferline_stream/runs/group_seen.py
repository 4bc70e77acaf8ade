"""What was seen of a pipeline of consumer groups while it was watched, and a declaration of groups that were found."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from inferline_stream.controlplane.observe.log_growth import LogGrowth
from inferline_stream.errors import InvalidInput
from inferline_stream.pipeline.group_look import GroupLook
from inferline_stream.pipeline.group_profile import Learned
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.units import count_of
from inferline_stream.profiler.group_learner import GroupLearner


class Seen:
    """Takes in looks: a learner for each group, and when events entered.

    Args:
        pipeline: of groups; events enter by the topic of those without a parent.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.learners = {group.name: GroupLearner(group.name) for group in pipeline.groups}
        self.notes: tuple[str, ...] = ()
        self.reported: Mapping[str, Learned] = {}
        """Throughputs that groups' workers report, where they do."""
        self._entry = next(group.name for group in pipeline.groups if not group.after)
        self._growth = LogGrowth()
        self._came: list[NDArray[np.float64]] = [np.empty(0)]
        self._began_s = 0.0

    def take(self, looks: Mapping[str, GroupLook]) -> None:
        """Take in a look at every group."""
        for name, look in looks.items():
            self.learners[name].take(look)
        entry = looks[self._entry]
        if self._growth.newest_s is None:
            self._began_s = entry.at_s
        if (came := self._growth.sample(entry.at_s, entry.ends)).size:
            self._came.append(came)

    def close(self, other_topics: Mapping[str, Collection[str]], unanswered: Mapping[str, str], *, exact: bool) -> None:
        """Note what a person should know of how it was watched.

        Args:
            other_topics: that a group also reads, by its declared name.
            unanswered: by group, why the query for its service time has no answer.
            exact: whether the coordinator's log was read, of groups that it has.
        """
        shared = [
            f"group {name!r} also reads {', '.join(map(repr, sorted(others)))}: what its members do there counts as "
            "work on its declared topic"
            for name, others in other_topics.items()
            if others
        ]
        refused = (
            "__consumer_offsets cannot be read, so throughput is known only from overload; where Kafka has it, "
            "`topics --print` has the right that is missing"
        )
        silent = [f"group {name!r}: {why}" for name, why in unanswered.items()]
        self.notes = (*shared, *silent, *([] if exact else [refused]))

    @property
    def events(self) -> int:
        """That have entered since the first look."""
        return self._growth.total

    @property
    def watched_s(self) -> float:
        """From the first look to the last."""
        newest_s = self._growth.newest_s
        return 0.0 if newest_s is None else newest_s - self._began_s

    def arrivals(self) -> Trace:
        """When events entered, from the first look on."""
        return Trace(np.concatenate(self._came) - self._began_s)


def declaration(found: Mapping[str, Mapping[str, int]]) -> str:
    """Return a topology that declares groups, for a person to correct.

    Args:
        found: partitions of each topic that a group reads, by the group's id.

    Raises:
        InvalidInput: a group reads nothing.
    """
    if silent := [group for group, topics in found.items() if not topics]:
        raise InvalidInput(*(f"group {group!r} has no members and no offsets: is that its id?" for group in silent))
    lines, names = [], []
    for group, topics in found.items():
        name = re.sub(r"\W|^(?=\d)", "_", group)
        topic, *others = sorted(topics, key=lambda topic: (-topics[topic], topic))
        names.append(name)
        lines += [f"# It also reads {', '.join(others)}: declare the topic with the most records."] if others else []
        lines += [
            f"{name} = ConsumerGroup(",
            f'    "{re.sub(r"[^A-Za-z0-9_-]", "-", group)}",',
            f'    group="{group}",',
            f'    topic="{topic}",  # {count_of(topics[topic], "partition")}',
            "    # after=[...],  # the group that writes this topic; without it, events enter here",
            '    # workers=Deployment("namespace/name"),  # who changes their number; needed by `run`, not by `advise`',
            '    hardware="cpu-1",  # what a worker runs on, for its price',
            ")",
        ]
    return "\n".join(
        [
            '"""Consumer groups that run already, as `inferline-stream advise` found them. Correct what is wrong."""',
            "",
            "from inferline_stream import ConsumerGroup, Pipeline",
            "",
            *lines,
            f'pipeline = Pipeline("adopted", slo="5s", stages=[{", ".join(names)}])',
            "",
        ]
    )
