"""Code that a topology gives by name is loaded in its stage's own replica, and nowhere else."""

import asyncio
import sys
from pathlib import Path

import pytest

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.profiler.bench_messages import EventOutcome
from inferline_stream.profiler.benches import benches_here
from inferline_stream.profiler.this_host import sample_spec
from inferline_stream.profiler.topology_check import building_problems
from inferline_stream.settings import Settings

TOPOLOGY = """
from inferline_stream import Pipeline, Stage, Topic

double = Stage("double", "named_models.numbers:Double", takes=int, returns=int, hardware=["cpu-1"])
last = Stage("last", "named_models.last:last", after=[double.when("named_models.numbers:is_large")], hardware=["cpu-1"])
pipeline = Pipeline("named", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[double, last])
"""
NUMBERS = """
class Double:
    def __call__(self, values: list[int]) -> list[int]:
        return [2 * value for value in values]

def is_large(value: int) -> bool:
    return value > 10
"""


@pytest.fixture
def topology(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "named_models").mkdir()
    (tmp_path / "named_models/numbers.py").write_text(NUMBERS)
    (tmp_path / "named_models/last.py").write_text("def last(values): return values\n")
    (tmp_path / "topology.py").write_text(TOPOLOGY)
    return tmp_path / "topology.py"


def found(pipeline: Pipeline, topology: Path) -> list[str]:
    return asyncio.run(building_problems(pipeline, topology, Settings(start_timeout_s=30.0)))[0]


async def test_a_replica_runs_a_named_stage_and_judges_named_conditions(topology: Path) -> None:
    stage = load_topology(topology).stage("double")
    spec = sample_spec(stage, topology, [])
    async with benches_here([spec], Settings()) as benches, benches.bench(stage, spec) as bench:
        assert await bench.run([b"4", b"8"]) == [EventOutcome(b"8"), EventOutcome(b"16", edges=1)]


def test_stages_are_built_and_the_caller_loads_none_of_their_code(topology: Path) -> None:
    assert found(load_topology(topology), topology) == []
    assert not [name for name in sys.modules if name.startswith("named_models")]


@pytest.mark.parametrize(
    ("file", "text", "stage", "said"),
    [
        ("last.py", "", "last", "'named_models.last:last' cannot be loaded (AttributeError: module"),
        ("last.py", "def last(values): yield", "last", "last is a generator; write a function that returns"),
        ("numbers.py", NUMBERS.replace("is_large", "is_small"), "double", "'named_models.numbers:is_large' cannot be"),
        (
            "numbers.py",
            NUMBERS.replace("-> bool", "-> int"),
            "double",
            "condition is_large returns int; it must",
        ),
    ],
)
def test_check_finds_what_a_name_does_not_give(topology: Path, file: str, text: str, stage: str, said: str) -> None:
    (topology.parent / "named_models" / file).write_text(text)
    (problem,) = found(load_topology(topology), topology)
    assert f"stage {stage!r} cannot be built in a worker process" in problem
    assert said in problem
