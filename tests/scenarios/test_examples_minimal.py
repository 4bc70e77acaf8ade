"""The minimal example: its files are what its generator and its README say."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inferline_stream.dataplane.sample_files import read_arrivals, read_events
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.trace import Trace

EXAMPLE = Path(__file__).parents[2] / "topologies/minimal"


@pytest.fixture
def example(tmp_path):
    return Path(shutil.copytree(EXAMPLE, tmp_path / "mine", ignore=shutil.ignore_patterns(".*", "__pycache__")))


def test_its_files_are_what_its_generator_writes(example):
    before = {path.name: path.read_bytes() for path in example.iterdir()}
    subprocess.run([sys.executable, "generate.py"], cwd=example, check=True)
    written = {name for name in before if name.endswith((".csv", ".jsonl"))}
    for name in written:
        assert (example / name).read_bytes() == before[name], f"{name} is not what generate.py writes"


def test_its_live_arrivals_have_the_levels_that_its_readme_tells():
    trace = read_arrivals(EXAMPLE / "live.csv")

    def rate(window: Trace, seconds: float) -> tuple[float, float]:
        return len(window) / seconds, 4 * np.sqrt(len(window)) / seconds  # a Poisson count within four deviations

    for start_s, end_s, written in [(0, 2, 16), (2, 8, 48), (8, 90, 10)]:
        found, tolerance = rate(trace.window(start_s, end_s), end_s - start_s)
        assert found == pytest.approx(written, abs=tolerance)
        assert f"{written}" in (EXAMPLE / "README.md").read_text()


def test_its_questions_take_both_branches():
    pipeline = load_topology(EXAMPLE)
    read, search, answer = pipeline.stages
    (condition,) = [edge.condition for edge in search.after]
    import topology

    events = [json.loads(event) for event in read_events(EXAMPLE / "questions.jsonl")]
    results = read.run([topology.Question(**event) for event in events])
    hard = [condition(result) for result in results]
    assert 0.4 < np.mean(hard) < 0.8
    found = search.run()([result for result, is_hard in zip(results, hard, strict=True) if is_hard])
    assert len(found) == sum(hard)
    assert all(isinstance(text, str) and text for text in found)
    assert answer.run([topology.Findings(results[0], None), topology.Findings(results[1], "a log")]) == [
        topology.Answer(results[0].number, "yes", looked_up=False),
        topology.Answer(results[1].number, "a log", looked_up=True),
    ]
