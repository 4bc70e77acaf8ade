"""What runs around replicas takes: measured behind a real dispatcher, and kept for the release that measured it."""

from pathlib import Path

import pytest

from inferline_stream.pipeline.profile import Overheads
from inferline_stream.profiler import overheads
from inferline_stream.profiler.overheads import keep_overheads, kept_overheads, measure_overheads
from inferline_stream.testing.kafka import KafkaServer


async def test_a_slots_rate_and_cores_by_rate_are_measured(embedded_broker: KafkaServer) -> None:
    found = await measure_overheads(embedded_broker.bootstrap_servers, timeout_s=30.0)
    assert found.slot_rate > 100
    rates = [rate for rate, _ in found.cores]
    assert rates[0] == 0
    assert rates == sorted(rates)
    assert all(cores > 0 for _, cores in found.cores)


def test_what_another_release_measured_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "machines" / "here.json"
    assert kept_overheads(file) is None
    known = Overheads(4_000.0, ((0.0, 0.1), (100.0, 0.2)))
    keep_overheads(file, known)
    assert kept_overheads(file) == known
    monkeypatch.setattr(overheads, "release", lambda: "another")
    assert kept_overheads(file) is None
