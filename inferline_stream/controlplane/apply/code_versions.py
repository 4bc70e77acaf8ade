"""Which code replicas are started with: the running version, and beside it one that is tried out."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from inferline_stream.actuators.actuator import Actuator, ObservedReplica
from inferline_stream.controlplane.records.control_records import CodeVersion, Override
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.dataplane.slot_grants import CanaryShare
from inferline_stream.pipeline.version import kind_alone, kind_of_version, version_on
from inferline_stream.tuner.plan_basis import Replicas

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class CodeVersions:
    """Keeps the actuator's templates, and the replicas of a version that is tried out.

    Args:
        actuator: starts replicas.
        own: templates of the run's own code, by stage and hardware kind.
        digests: of the code of each stage as it runs; a stage left out is taken to differ.
        running: code that has taken the place of the run's own; None for none.
        trial: what is tried out, if anything.
    """

    actuator: Actuator
    own: Mapping[tuple[str, str], ReplicaSpec]
    digests: Mapping[str, str] = field(default_factory=dict)
    running: CodeVersion | None = None
    trial: Override | None = None
    _known: Mapping[tuple[str, str], ReplicaSpec] | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages that are tried out: those whose code is another one, or all where none is known to be."""
        code = None if self.trial is None else self.trial.code
        if code is None:
            return ()
        every = tuple(dict.fromkeys(stage for stage, _ in self.own))
        now = self.digests if self.running is None else self.running.digests
        changed = tuple(stage for stage in every if code.digests.get(stage, "") != now.get(stage))
        return changed if changed and not code.image else every

    def share_of(self, stage: str) -> CanaryShare | None:
        """Return what the version gets of a stage's events; None where it gets none."""
        return self.trial.canary_share if self.trial is not None and stage in self.stages else None

    def specs(self) -> dict[tuple[str, str], ReplicaSpec]:
        """Return the templates of all replicas."""
        found = {key: _of(self.running, spec) for key, spec in self.own.items()}
        code = None if self.trial is None else self.trial.code
        if code is not None:
            for (stage, kind), spec in self.own.items():
                if stage in self.stages:
                    named = kind_of_version(kind, code.name)
                    found[stage, named] = _of(code, spec, named)
        return found

    async def know(self) -> None:
        """Have the actuator know the templates as they are now."""
        specs = self.specs()
        if specs != self._known:
            await self.actuator.know(specs)
            self._known = specs

    async def reconcile(self, observed: Sequence[ObservedReplica], wanted: Replicas, slots: Mapping[str, int]) -> None:
        """Have as many replicas of the version as its share takes, and none of any other one.

        Args:
            observed: every replica that there is.
            wanted: of the running version, by stage and hardware kind.
            slots: dispatchers of each stage: one without a replica of the version would give it nothing.
        """
        there = Counter((r.stage, r.hardware) for r in observed if version_on(r.hardware) and r.state != "retiring")
        needed = self._needed(wanted, slots)
        for stage, kind in sorted({*there, *needed}):
            count = needed.get((stage, kind), 0)
            if count != there[stage, kind]:
                logger.info("stage %s: %d replicas of version %s asked for", stage, count, version_on(kind))
                await self.actuator.scale(stage, kind, count)

    def _needed(self, wanted: Replicas, slots: Mapping[str, int]) -> dict[tuple[str, str], int]:
        found = {}
        for stage in self.stages:
            kinds, share = wanted.get(stage, {}), self.share_of(stage)
            if share is not None and any(kinds.values()):
                kind, every = max(kinds, key=kinds.__getitem__), float(sum(kinds.values()))
                count = max(math.ceil(share.share * every - 1e-9), slots.get(stage, 1))
                found[stage, kind_of_version(kind, share.version)] = count
        return found


def plainly(observed: Sequence[ObservedReplica]) -> tuple[ObservedReplica, ...]:
    """Return replicas by their hardware kind, whatever version they run: what they cost and take is the kind's."""
    return tuple(replace(r, hardware=kind_alone(r.hardware)) if version_on(r.hardware) else r for r in observed)


def _of(code: CodeVersion | None, spec: ReplicaSpec, kind: str = "") -> ReplicaSpec:
    hardware = replace(spec.hardware, name=kind) if kind else spec.hardware
    if code is None:
        return spec
    return msgspec.structs.replace(spec, topology=code.topology or spec.topology, image=code.image, hardware=hardware)
