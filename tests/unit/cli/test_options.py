"""Options that commands share: what a topology prints is no part of a command's result."""

from pathlib import Path

import pytest

from inferline_stream.cli.options import pipeline_of

TOPOLOGY = """
from inferline_stream import Pipeline, Stage, Topic

def work(numbers: list[int]) -> list[int]:
    return numbers

import os

print("reading settings")
os.system("echo by a library")
pipeline = Pipeline(
    "p", slo="1s", source=Topic("i"), sink=Topic("o"), stages=[Stage("a", work, hardware=["cpu-1"])]
)
"""


def test_what_a_topology_prints_goes_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "topology.py").write_text(TOPOLOGY)
    assert pipeline_of(tmp_path).name == "p"
    printed = capfd.readouterr()
    assert (printed.out, sorted(printed.err.splitlines())) == ("", ["by a library", "reading settings"])
