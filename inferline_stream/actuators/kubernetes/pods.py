"""What a cluster says about replicas by its pods, and about more of them by its quotas. Without any IO."""

from __future__ import annotations

import math
import string
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from inferline_stream.actuators.actuator import ObservedReplica, ReplicaExit, deaths_in_a_row, restart_in_s
from inferline_stream.actuators.kubernetes.object_names import DISPATCHER, REPLICA, STAGE_LABEL, hardware_of

TEMPLATE_LABEL = "pod-template-hash"
"""Kubernetes' own, of every pod of a Deployment."""

LOST = -1
"""Exit code of a pod that vanished without one: deleted by force, or its node is gone."""


@dataclass(slots=True)
class _Known:
    seen: ObservedReplica
    template: str = ""
    """Of its Deployment's versions, the one that it was made from."""
    failures: int = 0
    """Deaths in a row before this one, none of which came long after its start."""
    reported: bool = False
    """Whether its end was reported: what is left is an empty pod that waits to be deleted."""
    expected: bool = False
    disruption: str = ""
    """Why the cluster deletes it, in its words: a drained node, a lost one, a pod of more importance."""
    code: int = LOST
    reason: str = ""


@dataclass(slots=True)
class Pods:
    """Replicas by what the API server said of their pods.

    A pod is one replica for its whole life and lends it its name. Where its container has ended, the pod is dead, even
    if the kubelet starts the container again: its place is filled by deleting it.
    """

    going: frozenset[str] = frozenset()
    """Nodes that are taken away soon."""
    _known: dict[str, _Known] = field(default_factory=dict)
    _by_place: defaultdict[tuple[str, str], dict[str, _Known]] = field(default_factory=lambda: defaultdict(dict))
    """The same, by stage and hardware kind."""
    _owed: dict[tuple[str, str], int] = field(default_factory=dict)
    """Replicas that were asked to go and whose pods are not yet seen to."""
    _heirs: dict[tuple[str, str], list[tuple[int, int]]] = field(default_factory=dict)
    """Restarts and failures of replicas whose places are not filled again yet."""

    def observed(self) -> tuple[ObservedReplica, ...]:
        """Return every replica that is not gone, oldest first."""
        return tuple(map(self._observed, self._known.values()))

    def of(self, stage: str, hardware: str) -> list[ObservedReplica]:
        """Return those of one stage and hardware kind, oldest first."""
        return [self._observed(known) for known in self._by_place[stage, hardware].values()]

    def _observed(self, known: _Known) -> ObservedReplica:
        return replace(known.seen, going=True) if known.seen.node in self.going else known.seen

    def replaced(self, stage: str, hardware: str) -> bool:
        """Whether the cluster is replacing pods of an older template, and has one more than it was asked for."""
        return len({known.template for known in self._by_place[stage, hardware].values()}) > 1

    def stuck(self, now_s: float, patience_s: float) -> set[tuple[str, str]]:
        """Return the Deployments whose newer pods have found no place for so long, while older ones have theirs."""
        return {
            place
            for place in list(self._by_place)
            if self.replaced(*place)
            and any(
                k.template == self._template(place) and k.seen.pending and now_s - k.seen.started_s >= patience_s
                for k in self._by_place[place].values()
            )
        }

    def _template(self, place: tuple[str, str]) -> str:
        """Return the version that a Deployment makes its pods from: that of the pod made last."""
        return next(reversed(self._by_place[place].values())).template

    def retiring(self, stage: str, hardware: str, count: int) -> None:
        """Expect so many ends more, or fewer, of whichever pods the cluster ends then."""
        self._owed[stage, hardware] = max(0, self._owed.get((stage, hardware), 0) + count)

    def changed(self, pod: Mapping[str, Any], now_s: float) -> list[ReplicaExit]:
        """Take in a pod that was added or has changed; return the replicas that have ended.

        Args:
            pod: as in the API server's JSON.
            now_s: on the event loop's clock.
        """
        name, kind = pod["metadata"]["name"], _kind(pod)
        known = self._known.get(name)
        if known is None:
            if is_finished(pod):  # before our time
                return []
            restarts, failures = self._heirs.get(kind, [(0, 0)]).pop(0) if self._heirs.get(kind) else (0, 0)
            template = pod["metadata"]["labels"].get(TEMPLATE_LABEL, "")
            known = _Known(ObservedReplica(name, *kind, "running", None, now_s, restarts), template, failures)
            self._known[name] = self._by_place[kind][name] = known
        if pod["metadata"].get("deletionTimestamp") and known.seen.state != "retiring":
            if known.template != self._template(kind):
                known.expected = True
            elif self._owed.get(kind, 0) > 0:
                known.expected = True
                self._owed[kind] -= 1
            known.seen = replace(known.seen, state="retiring")
        known.seen = replace(known.seen, pending=pending_of(pod), node=pod["spec"].get("nodeName", ""))
        known.disruption = _condition(pod, "DisruptionTarget", "True").get("message", "")
        ended = _ended(pod)
        if ended is None:
            return []
        known.code, known.reason = ended
        if known.seen.state == "retiring" or known.reported:
            return []  # reported once the pod is gone; or reported already
        known.reported = True
        known.failures = deaths_in_a_row(known.failures, now_s - known.seen.started_s)
        known.seen = replace(known.seen, state="waiting", restarts=known.seen.restarts + 1, pending="")
        return [self._exit(known, restart_in_s(known.failures))]

    def gone(self, name: str) -> list[ReplicaExit]:
        """Forget a pod that is no more; return its replica's end, unless it was reported before."""
        known = self._known.pop(name, None)
        if known is None:
            return []
        del self._by_place[_place(known)][name]
        if not known.expected:
            lost = 0 if known.reported else 1
            self._heirs.setdefault(_place(known), []).append((known.seen.restarts + lost, known.failures))
        if known.reported:
            return []
        return [self._exit(known, None if known.expected else 0.0)]

    def missing(self, names: Iterable[str]) -> list[ReplicaExit]:
        """Forget all that is not in a fresh list of pods."""
        there = set(names)
        return [exit_ for name in list(self._known) if name not in there for exit_ in self.gone(name)]

    def _exit(self, known: _Known, restart: float | None) -> ReplicaExit:
        seen = known.seen
        cause = f" ({known.disruption})" if known.disruption else ""
        if known.code == 0 and not known.expected and seen.state == "retiring":
            reason = f"its pod was evicted or deleted{cause}; it finished its batch"
        elif known.reason:
            reason = known.reason
        elif known.expected:
            reason = "ended as asked"
        else:
            reason = f"its pod was deleted, or its node is gone{cause}"
        code = 0 if known.expected and known.code == LOST else known.code
        return ReplicaExit(
            seen.replica,
            seen.stage,
            seen.hardware,
            code,
            known.expected,
            reason.splitlines()[-1],
            restart,
            known.reason,
        )


def _kind(pod: Mapping[str, Any]) -> tuple[str, str]:
    found = pod["metadata"]["labels"]
    return found[STAGE_LABEL], hardware_of(found)


def _place(known: _Known) -> tuple[str, str]:
    return known.seen.stage, known.seen.hardware


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether its container says that it is ready."""
    return bool(_container(pod).get("ready"))


def is_finished(pod: Mapping[str, Any]) -> bool:
    """Whether nothing runs in it any more."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the status of our container, and none of a sidecar's that others have injected."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((each for each in statuses if each.get("name") in (DISPATCHER, REPLICA)), {})


def _ended(pod: Mapping[str, Any]) -> tuple[int, str] | None:
    """Return exit code and words of the pod's first and only life, once that is over."""
    container = _container(pod)
    last = container.get("lastState", {}).get("terminated")
    ended = last or container.get("state", {}).get("terminated")
    if ended is not None:
        code = int(ended.get("exitCode", LOST))
        words = ended.get("message") or ended.get("reason") or f"ended with exit code {code}"
        return (128 - code if code > 128 else code), words.strip()
    if is_finished(pod):
        status = pod["status"]
        return LOST, status.get("message") or status.get("reason") or ""
    return None


def pending_of(pod: Mapping[str, Any]) -> str:
    """Return why the pod has no place yet, or cannot start in it; empty where it runs."""
    if (why := _unplaced(pod)) is not None:
        return why
    waiting = _container(pod).get("state", {}).get("waiting")
    if waiting and waiting.get("reason") not in ("ContainerCreating", "PodInitializing", None):
        return str(waiting.get("message") or waiting["reason"])
    return ""


def _unplaced(pod: Mapping[str, Any]) -> str | None:
    """Return why no node has room for it; None where one has."""
    if not (found := _condition(pod, "PodScheduled", "False")):
        return None
    return str(found.get("message") or found.get("reason") or "not scheduled yet")


def _condition(pod: Mapping[str, Any], kind: str, status: str) -> Mapping[str, Any]:
    """Return a condition of the pod that has a status; an empty one where it has not."""
    found: Iterable[Mapping[str, Any]] = pod.get("status", {}).get("conditions") or ()
    return next((each for each in found if (each.get("type"), each.get("status")) == (kind, status)), {})


_TAKEN = frozenset((
    "aws-node-termination-handler/spot-itn",
    "cloud.google.com/impending-node-termination",
    "karpenter.sh/disrupted",
    "node.cloudprovider.kubernetes.io/shutdown",
    "ToBeDeletedByClusterAutoscaler",
))  # fmt: skip
"""Taints of a node that is taken away soon, as termination handlers and autoscalers set them."""


def is_going(node: Mapping[str, Any]) -> bool:
    """Whether a node, as in the API server's JSON, is taken away soon."""
    taints: Iterable[Mapping[str, Any]] = node.get("spec", {}).get("taints") or ()
    return any(taint.get("key") in _TAKEN for taint in taints)


def left_by_quotas(wanted: Mapping[str, Mapping[str, str]], quotas: Iterable[Mapping[str, Any]]) -> list[int]:
    """How many more replicas each quota of a namespace has room for, for each resource that it limits.

    Args:
        wanted: of one replica, as `manifests.resources` gives it.
        quotas: ResourceQuotas as in the API server's JSON; those for some pods only are left out.
    """
    asked = {f"{verb}.{name}": value for verb in ("requests", "limits") for name, value in wanted.get(verb, {}).items()}
    asked |= {name: asked[f"requests.{name}"] for name in ("cpu", "memory") if f"requests.{name}" in asked}
    asked |= {"pods": "1"}
    found = []
    for quota in quotas:
        if any(quota.get("spec", {}).get(name) for name in ("scopes", "scopeSelector")):
            continue
        hard, used = (quota.get("status", {}).get(name) or {} for name in ("hard", "used"))
        for name, most in hard.items():
            if (each := _quantity(asked.get(name, "0"))) > 0:
                found.append(max(0, math.floor((_quantity(most) - _quantity(used.get(name, "0"))) / each + 1e-9)))
    return found


_SUFFIXES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_SUFFIXES |= {f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGTPE")}


def _quantity(text: str) -> float:
    """A quantity as Kubernetes writes it, e.g. ``250m`` or ``2Gi``."""
    number = text.rstrip(string.ascii_letters)
    suffix = text.removeprefix(number)
    return float(number) * _SUFFIXES[suffix]
