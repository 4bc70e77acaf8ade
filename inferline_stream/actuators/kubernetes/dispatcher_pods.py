"""Which pod runs which dispatcher, as this controller or one before has posted to the assignments topic."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferline_stream.actuators.actuator import ObservedDispatcher
from inferline_stream.actuators.kubernetes.object_names import STAGE_LABEL
from inferline_stream.actuators.kubernetes.pods import TEMPLATE_LABEL, is_finished, is_ready, pending_of
from inferline_stream.dataplane.host_postings import Posting, decode_posting, encode_posting, host_of, posting_key
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.errors import UNREADABLE, InferlineError
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.kafka.writer import write_once

logger = logging.getLogger(__name__)

_POST_AGAIN_S = 0.1


@dataclass(frozen=True, slots=True)
class DispatcherPod:
    """A pod that can run a dispatcher, or does.

    Args:
        name: of the pod.
        stage: of its Deployment.
        node: that it is on; empty while it has none.
        template: of its Deployment's versions, the one that it was made from.
        started_s: when it was first seen, on the event loop's clock.
        listens: whether its host is ready.
        goes: whether it is being deleted.
        pending: why it has no place yet, or cannot start in it; empty where it runs.
    """

    name: str
    stage: str
    node: str
    template: str
    started_s: float
    listens: bool
    goes: bool
    pending: str


class DispatcherPods:
    """Posts each dispatcher that is wanted to a pod that has none, as soon as there is one.

    Args:
        bootstrap_servers: of Kafka.
        topic: full name of the assignments topic.
    """

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._bootstrap_servers, self._topic = bootstrap_servers, topic
        self.pods: dict[str, DispatcherPod] = {}
        self._wanted: dict[str, dict[str, DispatcherSpec]] = {}
        """By stage, dispatchers that were asked for, by name."""
        self._on: dict[str, DispatcherSpec] = {}
        """By pod, what was posted to it."""
        self._posted: set[str] = set()
        """Dispatchers that were ever posted: no name is posted twice, its process may live."""
        self._given_up: set[str] = set()
        """Those that were replaced because they were silent."""
        self._leads = False
        """Whether dispatchers were asked for or about. A controller that waits must not know postings before it leads:
        the one that leads writes others meanwhile."""
        self._looked = False
        self._listed = False
        self._looking, self._posting = asyncio.Lock(), asyncio.Lock()
        self._soon = asyncio.Event()

    @property
    def stages(self) -> set[str]:
        """Stages that have such a pod, or were asked for dispatchers."""
        return {*self._wanted, *(pod.stage for pod in self.pods.values())}

    def want(self, stage: str, dispatchers: Sequence[DispatcherSpec]) -> None:
        """These dispatchers of a stage from now on."""
        self._leads = True
        self._wanted[stage] = {spec.dispatcher: spec for spec in dispatchers}

    def listed(self, there: set[str]) -> None:
        """These pods are all that there are."""
        self._listed = True
        self.pods = {name: pod for name, pod in self.pods.items() if name in there}
        self._soon.set()

    def changed(self, pod: Mapping[str, Any], now_s: float) -> None:
        """Take in a pod that was added or has changed, as in the API server's JSON."""
        metadata = pod["metadata"]
        known = self.pods.get(name := metadata["name"])
        self.pods[name] = DispatcherPod(
            name,
            metadata["labels"][STAGE_LABEL],
            pod["spec"].get("nodeName", ""),
            metadata["labels"].get(TEMPLATE_LABEL, ""),
            now_s if known is None else known.started_s,
            is_ready(pod),
            bool(metadata.get("deletionTimestamp")) or is_finished(pod),
            pending_of(pod),
        )
        self._soon.set()

    def gone(self, pod: str) -> None:
        """Forget a pod that is no more."""
        self.pods.pop(pod, None)
        self._soon.set()

    def pod_of(self, dispatcher: str) -> str | None:
        """Return the pod that a dispatcher was posted to."""
        return next((pod for pod, spec in self._on.items() if spec.dispatcher == dispatcher), None)

    def give_up(self, dispatcher: str) -> str | None:
        """Show a silent dispatcher no more; return its pod."""
        self._given_up.add(dispatcher)
        return self.pod_of(dispatcher)

    async def observe(self) -> tuple[ObservedDispatcher, ...]:
        """Return every dispatcher that has a pod, or waits for one."""
        self._leads = True
        if self.pods:
            await self._look()
        found = []
        for pod in self.pods.values():
            spec = self._on.get(pod.name)
            if spec is not None and not pod.goes and spec.dispatcher not in self._given_up:
                found.append(
                    ObservedDispatcher(
                        spec.dispatcher,
                        pod.stage,
                        spec.slot,
                        spec.incarnation,
                        None,
                        "stopping" if self._is_unwanted(pod.name) else "running",
                        pod.started_s,
                        pod.node,
                    )
                )
        now_s = asyncio.get_running_loop().time()
        for stage, specs in self._wanted.items():
            why = next((pod.pending for pod in self.pods.values() if pod.stage == stage and pod.pending), "")
            for spec in specs.values():
                if spec.dispatcher not in self._posted:
                    waits = ObservedDispatcher(spec.dispatcher, stage, spec.slot, 1, None, "running", now_s, "", why)
                    found.append(waits)
        return tuple(found)

    async def keep_posted(self) -> None:
        """Post dispatchers that wait for a pod as pods come, and take postings of pods back that are gone, for ever."""
        while True:
            await self._soon.wait()
            self._soon.clear()
            try:
                await self.post()
            except InferlineError as error:
                logger.warning("dispatchers cannot be posted: %s", error)
                await asyncio.sleep(_POST_AGAIN_S)
                self._soon.set()

    async def post(self) -> None:
        """Bring postings up to date.

        Raises:
            Unreachable: Kafka does not answer.
        """
        async with self._posting:
            anything = self._looked or self.pods or any(self._wanted.values())
            if not self._leads or not anything:  # Kafka is not asked for nothing
                return
            await self._look()
            for pod in [pod for pod in self._on if self._listed and self._is_unwanted(pod)]:
                await self._write(pod, None)
                self._on.pop(pod, None)
            for stage, specs in list(self._wanted.items()):  # others may be asked for while one is written
                free, slots = self._free(stage), len({spec.slot for spec in specs.values()})  # some may stand by
                for spec in specs.values():
                    if free and spec.dispatcher not in self._posted:
                        pod = free.pop(0)
                        await self._write(pod, encode_posting(Posting(pod, spec, slots)))
                        self._note(pod, spec)

    async def _look(self) -> None:
        """Read what controllers before have written, once."""
        async with self._looking:
            if self._looked:
                return
            async with TopicFollower(self._bootstrap_servers, self._topic) as topic:
                records = await topic.read_to(await topic.end())
            for record in records:
                key = (record.key or b"").decode(errors="replace")
                if pod := host_of(key):
                    with contextlib.suppress(*UNREADABLE):
                        posting = None if record.value is None else decode_posting(key, record.value)
                        self._on.pop(pod, None)
                        if posting is not None:
                            self._note(pod, posting.dispatcher)
            self._looked = True

    def _note(self, pod: str, spec: DispatcherSpec) -> None:
        self._on[pod] = spec
        self._posted.add(spec.dispatcher)

    async def _write(self, pod: str, value: bytes | None) -> None:
        await asyncio.shield(write_once(self._bootstrap_servers, Record.keyed(self._topic, posting_key(pod), value)))

    def _is_unwanted(self, pod: str) -> bool:
        """Whether a posting has no use any more: its pod is gone, or its dispatcher is none of those asked for."""
        there, spec = self.pods.get(pod), self._on.get(pod)
        if there is None:
            return True
        wanted = self._wanted.get(there.stage)
        return wanted is not None and spec is not None and spec.dispatcher not in wanted

    def _free(self, stage: str) -> list[str]:
        """Return pods that wait for a dispatcher: those of the newest template first, and of each the oldest."""
        free = [
            pod
            for pod in self.pods.values()
            if pod.stage == stage and pod.listens and not pod.goes and pod.name not in self._on
        ]
        newest = max((pod.started_s for pod in free), default=0.0)
        templates = {pod.template for pod in free if pod.started_s == newest}
        return [pod.name for pod in sorted(free, key=lambda pod: (pod.template not in templates, pod.started_s))]
