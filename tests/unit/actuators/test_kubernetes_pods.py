"""What pods say of their replicas' ends, in the words that a real cluster (1.36) used."""

from __future__ import annotations

import re
from typing import Any

import pytest

from inferline_stream.actuators.kubernetes import pods as pods_module
from inferline_stream.actuators.kubernetes.object_names import HARDWARE_LABEL, REPLICA, STAGE_LABEL, hardware_of, labels
from inferline_stream.actuators.kubernetes.pods import LOST, Pods, is_going, pending_of


def pod(name: str = "a", stage: str = "rank", **status: Any) -> dict[str, Any]:
    labels = {STAGE_LABEL: stage, HARDWARE_LABEL: "t4"}
    placed = {"type": "PodScheduled", "status": "True"}
    status = {"phase": "Running", **status, "conditions": [placed, *status.get("conditions", ())]}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"nodeName": "node-1"}, "status": status}


def disrupted(reason: str, message: str) -> dict[str, Any]:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}


def test_a_kind_with_a_plus_is_a_label_that_kubernetes_takes_and_comes_back_from_it() -> None:
    labelled = labels("p", "rank", REPLICA, "a100-1g.10gb+me")
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", labelled[HARDWARE_LABEL])
    assert hardware_of(labelled) == "a100-1g.10gb+me"


@pytest.mark.parametrize(
    ("taint", "going"),
    [
        ("cloud.google.com/impending-node-termination", True),
        ("aws-node-termination-handler/spot-itn", True),
        ("nvidia.com/gpu", False),
    ],
)
def test_replicas_on_a_node_with_the_taint_of_one_that_is_taken_are_going(taint: str, going: bool) -> None:
    pods = Pods()
    pods.changed(pod(), 0.0)
    (before,) = pods.observed()
    assert not before.going
    node = {"spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]}}
    pods.going = frozenset(["node-1"] if is_going(node) else [])
    (after,) = pods.observed()
    assert after.going == going


def test_a_pod_whose_node_was_deleted_is_lost_and_its_end_says_why() -> None:
    pods = Pods()
    assert pods.changed(pod(), 0.0) == []
    cause = disrupted("DeletionByPodGC", "PodGC: node no longer exists")
    (end,) = pods.changed(pod(phase="Failed", conditions=[cause]), 1.0)
    assert (end.replica, end.exit_code, end.expected) == ("a", LOST, False)
    assert end.reason == "its pod was deleted, or its node is gone (PodGC: node no longer exists)"
    assert pods.gone("a") == [], "it was reported"


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ([], "its pod was evicted or deleted; it finished its batch"),
        (
            [disrupted("EvictionByEvictionAPI", "Eviction API: evicting")],
            "its pod was evicted or deleted (Eviction API: evicting); it finished its batch",
        ),
    ],
)
def test_a_pod_that_had_time_to_end_says_why_where_the_cluster_does(cause: list[dict[str, Any]], said: str) -> None:
    pods = Pods()
    pods.changed(pod(), 0.0)
    going = pod(conditions=cause)
    going["metadata"]["deletionTimestamp"] = "2026-11-27T11:50:54Z"
    assert pods.changed(going, 1.0) == []
    going["status"]["containerStatuses"] = [
        {"name": "replica", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    ]
    assert pods.changed(going, 2.0) == []
    (end,) = pods.gone("a")
    assert (end.exit_code, end.expected, end.reason) == (0, False, said)


def test_a_pod_says_of_our_container_what_holds_it_up_beside_a_sidecar() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    sidecar = {"name": "istio-proxy", "state": {"running": {}}}
    ours = {"name": "replica", "state": {"waiting": waiting}}
    assert pending_of({"status": {"containerStatuses": [sidecar, ours]}}) == "Back-off pulling image"
    sidecars = {"name": "istio-proxy", "state": {"waiting": waiting}}
    assert (
        pending_of({"status": {"containerStatuses": [sidecars, {"name": "replica", "state": {"running": {}}}]}}) == ""
    )


def test_what_becomes_of_a_stages_pods_is_seen_by_its_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, place_of = 0, pods_module._place

    def counted(known: Any) -> tuple[str, str]:
        nonlocal looked
        looked += 1
        return place_of(known)

    monkeypatch.setattr(pods_module, "_place", counted)
    pods = Pods()
    for number in range(100):
        pods.changed(pod(f"pod-{number}", f"stage-{number % 10}"), 0.0)
    for number in range(100):
        leaving = pod(f"pod-{number}", f"stage-{number % 10}")
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        pods.changed(leaving, 1.0)
    assert {r.state for r in pods.of("stage-3", "t4")} == {"retiring"}
    for number in range(100):
        pods.gone(f"pod-{number}")
    assert (pods.observed(), pods.of("stage-3", "t4")) == ((), [])
    assert looked <= 3 * 100
