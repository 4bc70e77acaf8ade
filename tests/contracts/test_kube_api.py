"""The exchanges that the Kubernetes actuator relies on: as the fake API server answers, so does a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightkube import KubeConfig

from tests.kube.exchanges import contradictions, exchanges, faked, recorded
from tests.kube.real_cluster import binaries, control_plane

RECORDED = recorded()


@pytest.mark.parametrize("version", [*RECORDED, *(["built here"] if binaries() else [])])
async def test_whatever_the_fake_says_a_real_api_server_says(version: str, tmp_path: Path) -> None:
    said = await faked()
    if version in RECORDED:
        real = RECORDED[version]
    else:
        with control_plane(tmp_path) as plane:
            real = await exchanges(KubeConfig.from_dict(plane.kubeconfig("default")).get())
    assert said.keys() == real.keys()
    assert contradictions(said, real) == []


def test_a_contradiction_is_found_wherever_it_is_and_saying_less_is_none() -> None:
    real = {"status": 404, "body": {"reason": "NotFound", "items": [{"name": "a"}]}}
    assert contradictions({"status": 404, "body": {"items": [{}]}}, real) == []
    assert contradictions({"status": 200}, real) == [".status: 200, not 404"]
    assert contradictions({"body": {"items": [{"name": "b"}]}}, real) == [".body.items.0.name: 'b', not 'a'"]
    assert contradictions({"body": {"items": []}}, real) == [".body.items: [], not [{'name': 'a'}]"]
    assert contradictions({"body": {"code": 1}}, real) == [".body.code: 1, not said"]
