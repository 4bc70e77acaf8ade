"""A whole pipeline profiled on this host: real processes, a real broker, and the store in between."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import InvalidTopology, Unreachable
from inferline_stream.pipeline.profile import Overheads, PipelineProfile
from inferline_stream.pipeline.shape import shape_of, visit_ratios
from inferline_stream.profiler.machine import Machine
from inferline_stream.profiler.overheads import keep_overheads, overheads_file
from inferline_stream.profiler.pipeline_profiler import profile_pipeline
from inferline_stream.profiler.profiling_options import Options, Progress
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import KafkaServer
from tests.support.model_server import model_server
from tests.support.sandbox import needs_sandbox

TOPOLOGY = """
import time
from msgspec import Struct
from inferline_stream import Pipeline, Stage, Topic

class Number(Struct):
    value: int

class Sums(Struct):
    read: Number
    slow: Number | None

def read(numbers: list[Number]) -> list[Number]:
    return numbers

def is_third(number: Number) -> bool:
    return number.value % 3 == 0

class Slow:
    def __init__(self) -> None:
        time.sleep(0.3)

    def __call__(self, numbers: list[Number]) -> list[Number]:
        time.sleep(0.02)
        return numbers

def add(sums: list[Sums]) -> list[int]:
    return [s.read.value + (s.slow.value if s.slow else 0) for s in sums]

first = Stage("read", read, hardware=["cpu-1", "t4"], max_batch_size=2)
slow = Stage("slow", Slow, after=[first.when(is_third)], hardware=["cpu-1"], max_batch_size=4)
add = Stage("add", add, after=[first, slow], hardware=["emulated-cpu"], emulated={1: "5ms", 4: "8ms"})
pipeline = Pipeline("sums", slo="1s", source=Topic("numbers"), sink=Topic("sums"), stages=[first, slow, add])
"""

SERVED = """
from inferline_stream import OpenInference, Pipeline, Stage, Topic

def ask(number: int) -> dict[str, int]:
    return {{"number": number}}

def answer(outputs: dict) -> int:
    return int(outputs["doubled"])

server = OpenInference("{url}", model="double", request=ask, response=answer, retries=0)
work = Stage("work", server=server, hardware=["cpu-1"], max_batch_size=1, concurrency=8)
pipeline = Pipeline("served", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[work])
"""

EVENTS = [b'{"value": %d}' % number for number in range(90)]
WITHOUT_GPU = Machine("Test CPU", 2)
QUICK = Options(sample_s=30.0, stage_s=0.2)


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    file = tmp_path / "topology.py"
    file.write_text(TOPOLOGY)
    return file


async def profiled(topology: Path, **given: Any) -> PipelineProfile:
    return await profile_pipeline(load_topology(topology), topology, EVENTS, **{"options": QUICK, **given})


async def test_a_pipeline_is_measured_once_and_then_known(
    topology: Path, embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("INFERLINE_CACHE", raising=False)
    pipeline = load_topology(topology)
    reported: list[Progress] = []
    measured = await profiled(
        topology,
        bootstrap_servers=embedded_broker.bootstrap_servers,
        machine=WITHOUT_GPU,
        progress=reported.append,
    )
    assert set(measured.profiles) == {("read", "cpu-1"), ("slow", "cpu-1"), ("add", "emulated-cpu")}
    slow = measured.profiles["slow", "cpu-1"]
    assert slow.batch_sizes == (1, 2, 4)
    assert all(entry.quantiles_s[0] >= 0.02 for entry in slow.service_times)
    assert slow.start_up_s >= 0.3
    emulated = measured.profiles["add", "emulated-cpu"]
    assert [entry.batch_size for entry in emulated.service_times] == [1, 2, 4]
    assert emulated.service_times[0].quantiles_s[0] >= 0.005
    ratios = visit_ratios(shape_of(pipeline), measured.paths)
    assert ratios == pytest.approx({"read": 1.0, "slow": 1 / 3, "add": 1.0})
    assert 0 < measured.hop_overhead_s < 1
    assert 0 < measured.least_hop_s < measured.hop_overhead_s < measured.hop_overhead_s + measured.hop_spread_s[-1] < 2
    assert measured.overheads is None

    done = [progress.done for progress in reported]
    assert done == sorted(done)
    assert reported[-1].done == reported[-1].total == 1 + 3 + 1 + 3
    assert [p.note for p in reported if "t4" in p.note] == [
        "stage 'read' on 't4': not profiled, this machine has no GPU; plans leave it out"
    ]

    known = Overheads(4_000.0, ((0.0, 0.1),))
    keep_overheads(overheads_file(WITHOUT_GPU), known)
    reported.clear()
    again = await profiled(topology, machine=WITHOUT_GPU, progress=reported.append)
    assert reported[-1].total == 0, "measured again what was known"
    keys = [b"a", b"b", *(b"a" for _ in EVENTS[2:])]
    keyed = await profiled(topology, keys=keys, machine=WITHOUT_GPU)
    assert (again.keys.shares, again.keys.ordered) == ((), ("read", "slow"))
    assert keyed.keys.shares == (("a", 1 - 1 / len(EVENTS)),)
    assert again.overheads == known
    assert again.paths == measured.paths
    assert again.samples == measured.samples
    assert set(measured.samples) == set(shape_of(pipeline).stages)
    for key, profile in again.profiles.items():
        assert profile.service_times[0].mean_s == pytest.approx(
            measured.profiles[key].service_times[0].mean_s, rel=1e-3
        )
    assert again.hop_overhead_s == pytest.approx(measured.hop_overhead_s, rel=1e-3)
    assert again.hop_spread_s == pytest.approx(measured.hop_spread_s, rel=1e-3)


async def test_on_a_users_kafka_only_the_time_between_stages_is_measured_for_each_broker(
    topology: Path, embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("INFERLINE_CACHE", raising=False)
    await profiled(topology)
    doing: list[str] = []
    measured = await profiled(
        topology,
        bootstrap_servers=embedded_broker.bootstrap_servers,
        options=Options(broker="kafka-2:9092"),
        progress=lambda p: doing.append(p.doing),
    )
    assert set(doing) - {"", "done"} == {"time between two stages"}
    assert measured.hop_overhead_s > 0
    elsewhere = await profiled(topology, options=Options(broker="kafka-3:9092"))
    assert elsewhere.hop_overhead_s == 0


async def test_only_what_changed_is_measured(topology: Path) -> None:
    await profiled(topology)
    topology.write_text(TOPOLOGY.replace("time.sleep(0.02)", "time.sleep(0.03)"))
    doing: list[str] = []
    measured = await profiled(topology, progress=lambda p: doing.append(p.doing))
    assert {text.partition(":")[0] for text in doing if " on " in text} == {"slow on cpu-1"}
    assert measured.profiles["slow", "cpu-1"].service_times[0].quantiles_s[0] >= 0.03


async def problem_of(topology: Path) -> str:
    with pytest.raises(InvalidTopology) as raised:
        await profiled(topology)
    (problem,) = raised.value.problems
    return problem


async def test_stages_that_cannot_be_built_are_reported_together(topology: Path) -> None:
    topology.write_text(TOPOLOGY.replace("time.sleep(0.3)", "import a_model_that_nobody_has"))
    problem = await problem_of(topology)
    assert problem.startswith(f"{topology}:")
    assert "in __init__: Slow cannot be built: ModuleNotFoundError" in problem
    assert "stage 'slow', declared at" in problem


async def test_a_stage_whose_process_ends_on_the_samples_events_is_named(topology: Path) -> None:
    topology.write_text(TOPOLOGY.replace("time.sleep(0.02)", "import os; os._exit(3)"))
    problem = await problem_of(topology)
    assert "stage 'slow' on the sample's events: its process ended with exit code 3" in problem


async def test_a_broker_that_does_not_answer_is_reported_before_anything_is_measured(topology: Path) -> None:
    doing: list[str] = []
    with pytest.raises(Unreachable, match="does not answer"):
        await profiled(
            topology,
            bootstrap_servers="127.0.0.1:1",
            settings=Settings(connect_timeout_s=0.3),
            progress=lambda p: doing.append(p.doing),
        )
    assert set(doing) <= {"", "time between two stages"}


FORKED = """
import time
from inferline_stream import Isolation, Pipeline, Stage, Topic

class Work:
    def __init__(self) -> None:
        import far_away  # imported once by the parent, and then by nobody
        time.sleep(0.05)

    def __call__(self, numbers: list[int]) -> list[int]:
        return numbers

work = Stage("work", Work, hardware=["cpu-1"], isolation=Isolation(FORKED), max_batch_size=1)
pipeline = Pipeline("forks", slo="1s", source=Topic("numbers"), sink=Topic("out"), stages=[work])
"""


@needs_sandbox
async def test_start_up_is_that_of_a_fork_where_replicas_are_forked_and_can_be(tmp_path: Path) -> None:
    took_s = []
    thread = "import threading\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    for number, (declared, head) in enumerate((("", ""), ("forked=True", ""), ("forked=True", thread))):
        (file := tmp_path / str(number) / "topology.py").parent.mkdir()
        file.with_name("far_away.py").write_text("import time; time.sleep(1.5)")
        file.write_text(FORKED.replace("FORKED", declared).replace("\nclass Work", f"{head}\nclass Work"))
        events = [b"%d" % number for number in range(20)]
        measured = await profile_pipeline(load_topology(file), file, events, options=QUICK, machine=WITHOUT_GPU)
        took_s.append(measured.profiles["work", "cpu-1"].start_up_s)
    alone_s, forked_s, unforkable_s = took_s
    assert min(alone_s, unforkable_s) > 1.5
    assert 0.05 < forked_s < 1.5, "the import is no part of it, building the stage is"


async def test_a_served_stage_is_profiled_up_to_what_its_server_takes_and_one_that_is_away_is_named(
    tmp_path: Path,
) -> None:
    file, numbers, notes = tmp_path / "topology.py", [b"%d" % number for number in range(20)], list[str]()
    async with model_server() as server:
        server.takes_s, server.takes_at_once = 0.01, 3
        file.write_text(SERVED.format(url=server.url))
        pipeline = load_topology(file)
        measured = await profile_pipeline(
            pipeline, file, numbers, options=QUICK, progress=lambda step: notes.append(step.note)
        )
    assert [entry.concurrency for entry in measured.profiles["work", "cpu-1"].contention] == [2]
    assert any("4 batches at once: server http://" in note and "answers 429" in note for note in notes)
    with pytest.raises(
        Unreachable,
        match=r"stage 'work' on the sample's events: server http://.* cannot be reached: Connection refused",
    ):
        await profile_pipeline(pipeline, file, numbers, options=replace(QUICK, again=True))
