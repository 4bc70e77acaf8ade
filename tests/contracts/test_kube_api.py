"""The exchanges that the Kubernetes actuator relies on: as the fake API server answers, so has a real one."""

from __future__ import annotations

import pytest

from tests.kube.exchanges import contradictions, faked, recorded

RECORDED = recorded()


@pytest.mark.parametrize("version", RECORDED)
async def test_whatever_the_fake_says_a_real_api_server_has_said(version: str) -> None:
    said = await faked()
    assert said.keys() == RECORDED[version].keys()
    assert contradictions(said, RECORDED[version]) == []


def test_a_contradiction_is_found_wherever_it_is_and_saying_less_is_none() -> None:
    real = {"status": 404, "body": {"reason": "NotFound", "items": [{"name": "a"}]}}
    assert contradictions({"status": 404, "body": {"items": [{}]}}, real) == []
    assert contradictions({"status": 200}, real) == [".status: 200, not 404"]
    assert contradictions({"body": {"items": [{"name": "b"}]}}, real) == [".body.items.0.name: 'b', not 'a'"]
    assert contradictions({"body": {"items": []}}, real) == [".body.items: [], not [{'name': 'a'}]"]
    assert contradictions({"body": {"code": 1}}, real) == [".body.code: 1, not said"]
