"""Judges the version that is tried out by what dispatchers count, and has it go on, go back, or take over.

All that it knows of a version is in Kafka: what is tried out, on which share and until when in the control topic, and
what was counted in the dispatchers' reports. So another controller goes on where this one ends. A verdict is written in
one transaction, and followed once it is read back: there is no moment at which it holds by half.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from inferline_stream.actuators.actuator import ReplicaExit
from inferline_stream.controlplane.apply.code_versions import CodeVersions
from inferline_stream.controlplane.decide.canary_steps import Move, Trial, next_move
from inferline_stream.controlplane.decide.decider import Decider
from inferline_stream.controlplane.decide.version_judge import Evidence, Judgement, Tolerance, judge
from inferline_stream.controlplane.observe.live_profile import with_times_of
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.pool_reports import PoolReports
from inferline_stream.controlplane.records.control_records import CANARY_KEY, CodeVersion, Override, encode
from inferline_stream.controlplane.replica_counts import copied
from inferline_stream.dataplane.slot_grants import CanaryShare
from inferline_stream.kafka.records import Record
from inferline_stream.observability.pipeline_state import CanaryState
from inferline_stream.observability.stage_counts import CanaryCounts
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.version import version_on
from inferline_stream.tuner.decision import Action, Decision, Reason

LOOK_S = 0.5

_REASONS = {
    "widen": Reason.CANARY_PASSED,
    "promote": Reason.CANARY_PROMOTED,
    "roll_back": Reason.CANARY_ROLLED_BACK,
}


@dataclass(slots=True)
class CanaryKeeper:
    """Looks after one version at a time.

    Args:
        view: what was counted.
        decider: what people have set, and the decisions' log.
        versions: which code replicas run.
        promoted: called with the profile of a version that takes over, by what it did.
        tolerance: how much worse a version may be.
    """

    view: PipelineView
    decider: Decider
    versions: CodeVersions
    promoted: Callable[[PipelineProfile], None] = lambda measured: None
    tolerance: Tolerance = field(default_factory=Tolerance)
    _last: Override | None = None
    """What was tried out at the last look."""
    _written: Override | None = None
    """What a verdict was written on that is not read back yet."""
    _begun: bool = False
    _deaths: Counter[str] = field(default_factory=Counter)
    """By version, replicas that ended by themselves."""
    _last_death: str = ""
    """Why the last of any did."""

    def ended(self, exit_: ReplicaExit) -> None:
        """A replica's process is gone."""
        version = version_on(exit_.hardware)
        if version and not exit_.expected:
            self._deaths[version] += 1
            self._last_death = exit_.reason

    async def step(self) -> None:
        """Look at the version, and act on what is known of it."""
        trial, last, self._last = self.decider.overrides.canary, self._last, self.decider.overrides.canary
        if trial is None:
            if (ended := self.decider.found.overrides.canary) is not None and last is None and not self._begun:
                await self.decider.leadership.write_records(
                    [Record.keyed(self.view.context.names.control, CANARY_KEY, None)]
                )
                self._report("roll_back", ended, "the run that tried it out has ended")
            if last is not None and self._written is None:
                self._report("roll_back", last, "taken back by people")
            self._written, self._begun = None, True
        elif self.decider.held:  # the run ends; it is still tried out where the run is led on
            return
        elif trial.code is not None and trial != self._written:
            move = next_move(self._trial(trial, trial.code))
            if move.kind != "keep":
                await self._follow(move, trial, trial.code)

    def _trial(self, trial: Override, code: CodeVersion) -> Trial:
        stages = self.versions.stages
        replicas = sum(
            version_on(replica.hardware) == code.name
            for stage in stages
            for replica in self.view.reports.replicas(stage)
        )
        return Trial(
            trial.value or 0.0,
            (trial.until_s or 0.0) - time.time(),
            {stage: judged(self.view.reports, stage, trial.canary_share, self.tolerance) for stage in stages},
            held=self.decider.paused,
            deaths=self._deaths[code.name],
            last_death=self._last_death,
            replicas=max(1, replicas),
            why_over=self._why_over(code),
        )

    def _why_over(self, code: CodeVersion) -> str:
        given_s = self.decider.overrides.code_s
        return "newer code was given meanwhile" if given_s is not None and given_s > code.began_s else ""

    async def _follow(self, move: Move, trial: Override, code: CodeVersion) -> None:
        control, records = self.view.context.names.control, list[Record]()
        if move.kind == "promote":
            code = msgspec.structs.replace(code, replaces=str(self.decider.run.topology.resolve()))
            now = Override("code", value=time.time(), who=trial.who, code=code)
            records.append(Record.keyed(control, now.key, encode(now)))
        wider = encode(msgspec.structs.replace(trial, value=move.share)) if move.kind == "widen" else None
        await self.decider.leadership.write_records([*records, Record.keyed(control, CANARY_KEY, wider)])
        self._written = trial
        self._report(move.kind, trial, move.detail)
        if move.kind == "promote":
            view = self.view
            self.promoted(with_times_of(code.name, view.measured, view.shape, view.reports.totals()))

    def _report(self, kind: str, trial: Override, detail: str) -> None:
        name = "" if trial.code is None else trial.code.name
        wanted = copied(self.decider.fleet.wanted)
        self.decider.decided(Decision(wanted, Action.CANARY, _REASONS[kind], f"version {name}: {detail}"))


def judged(reports: PoolReports, stage: str, share: CanaryShare, tolerance: Tolerance | None = None) -> Judgement:
    """Return what is known of a version of a stage at its present share."""
    counts = reports.total(stage).canaries.get(share.step, CanaryCounts())
    memory = reports.memory_bytes(stage, share.version), reports.memory_bytes(stage, "")
    return judge(Evidence(counts, share.mirror, *memory), tolerance)


def canary_states(
    reports: PoolReports, stages: Iterable[str], trial: Override | None, tolerance: Tolerance | None = None
) -> dict[str, CanaryState]:
    """Return how a version stands, by stage that has counted something of it, as people are shown it."""
    found = {}
    share = None if trial is None else trial.canary_share
    for stage in stages:
        counts = None if share is None else reports.total(stage).canaries.get(share.step)
        if share is not None and counts is not None:
            known = judged(reports, stage, share, tolerance)
            found[stage] = CanaryState(
                share.version, share.share, known.verdict, known.words, counts.share, share.mirror
            )
    return found
