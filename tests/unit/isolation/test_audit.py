"""What a stage would lack, found by watching it run unrestricted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.isolation.audit import Finding
from inferline_stream.profiler.stage_audit import Audited, audit_pipeline
from inferline_stream.settings import Settings
from tests.support.sandbox import needs_sandbox

pytestmark = needs_sandbox

TOPOLOGY = """
import socket, tempfile
from pathlib import Path
from inferline_stream import Isolation, Pipeline, Stage, Topic

HERE = Path(__file__).parent


class Work:
    def __init__(self) -> None:
        import lately
        (HERE / "weights.bin").read_bytes()
        (HERE / "secret.bin").read_bytes()
        with socket.socket() as client:
            client.connect_ex(("127.0.0.1", 4321))
        with tempfile.TemporaryFile() as file:
            file.write(b"x")

    def __call__(self, values: list[int]) -> list[int]:
        import colorsys
        (HERE / "weights.bin").read_bytes()
        return values


def same(values: list[int]) -> list[int]:
    return values


first = Stage("first", same, hardware=["cpu-1"], isolation="sandbox")
work = Stage("work", Work, hardware=["cpu-1"], after=[first], isolation=Isolation(reads=["weights.bin"]))
pipeline = Pipeline("audited", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[first, work])
"""


async def audited(folder: Path, text: str, stages: Sequence[str] = ()) -> dict[str, Audited]:
    for name in ("weights.bin", "secret.bin"):
        (folder / name).write_bytes(b"x")
    (folder / "lately.py").write_text("imported = True")
    file = folder / "topology.py"
    file.write_text(text)
    found = await audit_pipeline(load_topology(file), file, [b"1", b"2"], Settings(start_timeout_s=30.0), stages=stages)
    return {one.stage: one for one in found}


async def test_everything_that_would_be_refused_is_found_and_the_line_that_grants_it_is_written(tmp_path: Path) -> None:
    found = await audited(tmp_path, TOPOLOGY)
    assert found["first"].declaration == '"sandbox"'
    lacks = found["work"].found
    assert not [finding for finding in lacks if finding.kind == "write" and "__pycache__" in finding.what]
    assert Finding(False, "read", str(tmp_path / "secret.bin")) in lacks
    assert Finding(False, "read", str(tmp_path / "weights.bin")) not in lacks
    assert Finding(False, "connect", "4321") in lacks
    assert Finding(True, "open", str(tmp_path / "weights.bin")) in lacks
    assert found["work"].declaration == (
        "Isolation(\"sandbox\", reads=['secret.bin', 'weights.bin'], ports=[4321], seal='imports', scratch=True)"
    )


async def test_with_the_line_that_was_written_nothing_is_refused_any_more(tmp_path: Path) -> None:
    written = (await audited(tmp_path, TOPOLOGY, ["work"]))["work"].declaration
    better = TOPOLOGY.replace('Isolation(reads=["weights.bin"])', written)
    again = await audited(tmp_path, better, ["work"])
    assert list(again) == ["work"]
    assert dict(again["work"].found) == {}
