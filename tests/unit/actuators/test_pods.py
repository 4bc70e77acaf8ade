"""What pods say, without an API server."""

from inferline_stream.actuators.kubernetes.pods import pending_of


def test_a_pod_says_of_our_container_what_holds_it_up_beside_a_sidecar() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    sidecar = {"name": "istio-proxy", "state": {"running": {}}}
    ours = {"name": "replica", "state": {"waiting": waiting}}
    assert pending_of({"status": {"containerStatuses": [sidecar, ours]}}) == "Back-off pulling image"
    sidecars = {"name": "istio-proxy", "state": {"waiting": waiting}}
    assert (
        pending_of({"status": {"containerStatuses": [sidecars, {"name": "replica", "state": {"running": {}}}]}}) == ""
    )
