"""What a run is given: what runs, who feeds it, and who shows it. All that follows reads from this one value."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from inferline_stream.controlplane.run_options import Endpoints, RecordOptions
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.isolation.limits import cores_here
from inferline_stream.kafka.pipeline_topics import REPLICATION
from inferline_stream.observability.page.what_if_server import Answers
from inferline_stream.observability.pipeline_state import DecisionRecord, PipelineState
from inferline_stream.pipeline.emulation import emulated_s, fallback_s
from inferline_stream.pipeline.hardware import Catalogue, catalogue
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace
from inferline_stream.settings import Settings
from inferline_stream.tuner.policy import POLICIES, Policy
from inferline_stream.tuner.tuner_state import TunerState


class FeedReport(Protocol):
    """What a feed came to."""

    @property
    def lateness_p99_s(self) -> float:
        """How late events were sent."""

    @property
    def sent(self) -> int:
        """Events handed to Kafka's client."""

    @property
    def acknowledged(self) -> int:
        """Events that are in Kafka."""

    @property
    def last_error(self) -> str:
        """Why the last of the others is not; empty where all are."""


class SourceFeed(Protocol):
    """Whatever writes events into the source topic for the length of a run."""

    async def ready(self) -> Any:
        """Wait until it could begin."""

    def start(self) -> None:
        """Begin, now."""

    def stop(self) -> None:
        """Write nothing more."""

    async def finished(self) -> FeedReport:
        """Wait for its end."""


FeedTo = Callable[[str, str], AbstractAsyncContextManager[SourceFeed]]
"""(bootstrap servers, topic) → what feeds it."""


class RunDisplay:
    """What shows a run to people. This one shows nothing."""

    def step(self, text: str) -> None:
        """The run has come to its next step."""

    def progress(self, done: int, of: int, left_s: float) -> None:
        """How far that step is, and about how much longer it takes, 0 where nobody can tell; often."""

    def note(self, text: str) -> None:
        """Something to keep on the screen: an address, a warning."""

    def decided(self, record: DecisionRecord) -> None:
        """A decision, as it is made."""

    def now(self, state: PipelineState) -> None:
        """The newest picture, about twice a second."""


@dataclass(slots=True)
class NewestState:
    """The newest state of a run, for a page that is open before the run's controller is there."""

    read: Callable[[], PipelineState | None] | None = None
    """The controller's own, once there is one."""

    def __call__(self) -> PipelineState | None:
        """Return it; None before there is one."""
        return None if self.read is None else self.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run's inputs.

    Args:
        pipeline: what runs.
        topology: its file, which every replica loads; dispatchers do not.
        bootstrap_servers: of a Kafka that answers.
        plan: replicas to begin with, batch limits, hardware.
        measured: profiles.
        log_folder: where replicas' output goes.
        supervisor_folder: private folder, of a short path, where the next controller on this host finds the supervisor
            if this one dies; None: no other finds it.
        feed: writes the source topic; None if somebody else does.
        arrivals: that the feed brings, from its beginning; None where nobody knows them.
        replication: copies of each topic that has to be created.
        policy: the Tuner's step.
        policy_state: where the policy begins, if not from the plan alone.
        advisory: decide without acting.
        records: how records are read and written.
        display: who shows it.
        duration_s: stop after so long; None runs to the end of the feed, or until stopped.
        endpoints: of the live page and of metrics; by default none.
        what_if: answers of the live page's what-if page; None for a page without one.
        newest_state: learns where the newest state is, for a page that was opened before.
        hands_over: leave dispatchers and replicas at work at the end, for the controller that follows.
        replans: plan again now and then, from what was recorded and measured.
        settings: periods and time limits.
        sample: the arrivals that the plan was made for, for what others would have bought for them.
        run_folder: where the finished run is written down, a folder that does not exist yet; None for nowhere.
        cores: most that all replicas together may have; by default those of this machine.
        live_since_s: seconds since the epoch; what entered before is a backlog, apart from live traffic in metrics.
    """

    pipeline: Pipeline
    topology: Path
    bootstrap_servers: str
    plan: Plan
    measured: PipelineProfile
    log_folder: Path
    supervisor_folder: Path | None = None
    records: RecordOptions = field(default_factory=RecordOptions)
    display: RunDisplay = field(default_factory=RunDisplay)
    feed: FeedTo | None = None
    arrivals: Trace | None = None
    replication: int = REPLICATION
    policy: Policy = POLICIES["default"]
    policy_state: TunerState | None = None
    advisory: bool = False
    duration_s: float | None = None
    endpoints: Endpoints = field(default_factory=lambda: Endpoints(ui=False, metrics_port=None))
    what_if: Answers | None = None
    newest_state: NewestState = field(default_factory=NewestState)
    hands_over: bool = False
    replans: bool = True
    settings: Settings = field(default_factory=Settings)
    sample: Trace | None = None
    run_folder: Path | None = None
    live_since_s: float = 0.0
    cores: float = field(default_factory=cores_here)

    @property
    def kinds(self) -> Catalogue:
        """Hardware kinds known to the pipeline."""
        return catalogue(self.pipeline.hardware)

    @property
    def standby(self) -> dict[str, int]:
        """Replicas that stand by, by stage, where people have not set another number."""
        return {stage.name: stage.standby for stage in self.pipeline.stages}

    @property
    def identity(self) -> str:
        """What a controller must have in common with the one before to take over its processes, their code included."""
        topology = self.topology.resolve()
        code = hashlib.blake2s(digest_size=8)
        for file in sorted(topology.parent.rglob("*.py")):
            code.update(str(file).encode() + file.read_bytes())
        what = (
            self.pipeline.name,
            self.records.prefix,
            self.bootstrap_servers,
            str(topology),
            self.records.delivery,
            code.hexdigest(),
        )
        return " ".join(what)

    @property
    def replica_specs(self) -> dict[tuple[str, str], ReplicaSpec]:
        """What a new replica is given, by stage and hardware kind."""
        pairs = {(stage, a.hardware) for stage, held in self.plan.allocations.items() for a in held}
        return {(stage, kind): self._replica_spec(stage, kind) for stage, kind in pairs | self.measured.profiles.keys()}

    def _replica_spec(self, stage: str, hardware: str) -> ReplicaSpec:
        declared, kind = self.pipeline.stage(stage), self.kinds[hardware]
        return ReplicaSpec(
            replica="",
            stage=stage,
            topology=str(self.topology.resolve()),
            hardware=kind,
            emulated_s=emulated_s(declared.emulated, hardware) if kind.emulated else None,
            fallback_s=fallback_s(declared.emulated, hardware) if kind.emulated and declared.fallback else None,
            isolation=declared.confined,
        )

    def dispatcher_spec(self, stage: str) -> DispatcherSpec:
        """What a stage's new dispatchers are given, but for the name and the slot of each."""
        return DispatcherSpec(
            dispatcher="",
            slot=0,
            routes=routes_of(self.pipeline, stage, self.records.prefix),
            bootstrap_servers=self.bootstrap_servers,
            delivery=self.records.delivery,
            tracing=self.records.tracing,
            live_since_s=self.live_since_s,
            settings={
                name: getattr(self.settings, name)
                for name in self.settings.__dataclass_fields__
                if getattr(self.settings, name) != getattr(Settings(), name)
            },
        )
