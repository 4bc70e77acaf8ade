"""Whether gVisor or Kata is really there is looked for, not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.enforced import look, under
from inferline_stream.pipeline.isolation import Isolation

HOST = "#139-Ubuntu SMP PREEMPT_DYNAMIC Sat Aug  1 03:52:05 UTC 2026"
ROOT = "29 1 0:26 / / rw,relatime - overlay overlay rw,lowerdir=/l"
SHARED = "35 29 0:31 /c/resolv.conf /etc/resolv.conf rw,relatime - virtiofs kataShared rw"


def test_gvisor_is_known_by_its_kernels_name_and_kata_by_where_its_files_come_from() -> None:
    assert under("gvisor", "#1 SMP Sun Jan 10 15:06:54 PST 2016", ROOT)
    assert not under("gvisor", HOST, ROOT)
    assert under("kata", HOST, f"{ROOT}\n{SHARED}\n")
    assert not under("kata", HOST, ROOT)


@pytest.mark.parametrize("level", ["gvisor", "kata"])
def test_a_runtime_that_nothing_shows_is_reported_as_missing(level: str, tmp_path: Path) -> None:
    missing = look(Confinement(Isolation(level), str(tmp_path / "topology.py"))).missing
    assert f"{level}: nothing shows it, so the kernel may be the host's own" in missing
