"""Profiles on disk: what was saved is loaded, for as long as it holds."""

import json
import re
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import InvalidFile, InvalidTopology
from inferline_stream.pipeline.profile import PROBABILITIES, Contention, Profile, ServiceTime, Variation
from inferline_stream.pipeline.shape import Paths
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.profiler.code_version import code_digest
from inferline_stream.profiler.machine import Machine, why_not_here
from inferline_stream.profiler.profile_store import VERSION, Known, ProfileStore
from inferline_stream.profiler.profiling_options import Options, pairs_to_profile

HERE = Machine("Test CPU", 4)
EVENTS = [b"1", b"2"]
SAMPLES = {"a": b"\xff1", "b": {"a": b"2"}}

TOPOLOGY = '''
"""A pipeline."""
from inferline_stream import Pipeline, Sample, Stage, Topic
import rules

LIMIT = 3

def helper(value: int) -> int:
    return value + 1

def first(values: list[int]) -> list[int]:
    return [helper(value) for value in values if value < LIMIT]

def is_even(value: int) -> bool:
    return value % 2 == 0

class Second:
    def __call__(self, values: list[int]) -> list[int]:
        import lazily
        return [rules.double(value) for value in values]

def unrelated() -> None:
    """Nobody calls this."""

a = Stage("a", first, hardware=["cpu-1", "t4"], max_batch_size=8)
b = Stage("b", Second, after=[a.when(is_even)], hardware=["emulated-cpu"], emulated={1: "20ms"})
pipeline = Pipeline("p", slo="1s", source=Topic("i"), sink=Topic("o"), stages=[a, b], sample=Sample("a.csv", "e.jsonl"))
'''

TIMES = (
    ServiceTime(1, 0.010123456, tuple(0.01 + i / 1000 for i in range(9))),
    ServiceTime(8, 0.02, tuple(0.02 + i / 1000 for i in range(9))),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "topology.py").write_text(TOPOLOGY)
    (tmp_path / "rules.py").write_text("def double(value):\n    return 2 * value\n")
    (tmp_path / "lazily.py").write_text("WEIGHT = 1\n")
    return tmp_path


def load(folder: Path, *changes: tuple[str, str]) -> Pipeline:
    text = TOPOLOGY
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (folder / "topology.py").write_text(text)
    return load_topology(folder)


def store(folder: Path, pipeline: Pipeline, **changes: Any) -> ProfileStore:
    return ProfileStore(pipeline, folder, **{"events": EVENTS, "machine": HERE, **changes})


def saved(folder: Path) -> ProfileStore:
    kept = store(folder, load(folder))
    kept.save(Profile("a", "cpu-1", TIMES, 0.5))
    kept.save(Profile("b", "emulated-cpu", TIMES[:1], 0.25))
    kept.save_paths(
        Known(paths=Paths((1, 0), (0.75, 0.25)), failed={"a": 2}, hop_overhead_s={"embedded": 0.0012}, samples=SAMPLES)
    )
    return kept


def test_what_is_saved_is_loaded_to_five_digits(folder: Path) -> None:
    known = saved(folder).load()
    found = known.profiles["a", "cpu-1"]
    assert found.start_up_s == 0.5
    assert found.batch_sizes == (1, 8)
    assert found.service_times[0].mean_s == pytest.approx(TIMES[0].mean_s, rel=1e-4)
    assert found.service_times[1].quantiles_s == pytest.approx(TIMES[1].quantiles_s)
    assert known.paths == Paths((1, 0), (0.75, 0.25))
    assert known.failed == {"a": 2}
    assert known.samples == SAMPLES
    assert known.hop_overhead_s == {"embedded": 0.0012}
    assert known.stale == {("a", "t4"): "not profiled yet"}


def test_a_profile_that_cannot_be_written_names_its_file_and_the_remedy(folder: Path) -> None:
    (folder / ".inferline").write_text("a file where the folder belongs")
    with pytest.raises(InvalidFile, match=r"\.json: cannot be written \(.+\); copy the topology into a folder"):
        saved(folder)


def test_how_times_vary_is_kept(folder: Path) -> None:
    variation = Variation(((0.5, 200), (2.7768, 56)), largest=True, noise=tuple(map(float, range(-9, 10))))
    times = (replace(TIMES[0], fixed_s=TIMES[0].mean_s / 4, spread=0.25), TIMES[1])
    kept = store(folder, load(folder))
    kept.save(Profile("a", "cpu-1", times, 0.5, variation))
    found = kept.load().profiles["a", "cpu-1"]
    assert found.variation == variation
    assert found.service_times[0].fixed_s == pytest.approx(TIMES[0].mean_s / 4, rel=1e-4)
    assert [entry.spread for entry in found.service_times] == [0.25, 0.0]


def test_a_profile_is_readable(folder: Path) -> None:
    file = saved(folder).save(Profile("a", "cpu-1", TIMES, 0.5), note="throughput did not grow")
    assert file.parent.name == "test-cpu-4-cores"
    document = json.loads(file.read_text())
    assert document["version"] == VERSION
    assert document["profile"]["service_times"][1]["quantiles_s"][PROBABILITIES.index(0.5)] == pytest.approx(0.023)
    assert document["note"] == "throughput did not grow"
    assert file.read_text().count("\n") > 30


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ([("return [helper(value)", "return [value")], {("a", "cpu-1"): "its code has changed"}),
        ([("return value + 1", "return value + 2")], {("a", "cpu-1"): "its code has changed"}),
        ([("LIMIT = 3", "LIMIT = 4")], {("a", "cpu-1"): "its code has changed"}),
        ([("import lazily\n", "import lazily as l\n")], {("b", "emulated-cpu"): "its code has changed"}),
        (
            [('emulated={1: "20ms"}', 'emulated={1: "30ms"}')],
            {("b", "emulated-cpu"): "its emulated service times have changed"},
        ),
        ([("max_batch_size=8", "max_batch_size=16")], {("a", "cpu-1"): "max_batch_size has grown from 8 to 16"}),
        (
            [
                ("stages=[a, b],", 'stages=[a, b], hardware=[Hardware("cpu-1", 9.0)],'),
                ("import Pipeline", "import Hardware, Pipeline"),
            ],
            {("a", "cpu-1"): "hardware 'cpu-1' has changed"},
        ),
        ([('slo="1s"', 'slo="2s"')], {}),
        ([('"""Nobody calls this."""', "return None")], {}),
        ([("max_batch_size=8", "max_batch_size=4")], {}),
    ],
)
def test_a_profile_holds_until_what_it_depends_on_changes(
    folder: Path, changes: list[tuple[str, str]], stale: dict[tuple[str, str], str]
) -> None:
    saved(folder)
    known = store(folder, load(folder, *changes)).load()
    known.stale.pop(("a", "t4"))
    assert known.stale == stale
    assert set(known.profiles) == {("a", "cpu-1"), ("b", "emulated-cpu")} - set(stale)


@pytest.mark.parametrize("file", ["rules.py", "lazily.py"])
def test_a_module_beside_the_topology_counts_as_code(folder: Path, file: str) -> None:
    saved(folder)
    (folder / file).write_text((folder / file).read_text() + "# changed\n")
    assert store(folder, load(folder)).load().stale["b", "emulated-cpu"] == "its code has changed"


def test_a_smaller_limit_cuts_the_profile(folder: Path) -> None:
    saved(folder)
    known = store(folder, load(folder, ("max_batch_size=8", "max_batch_size=4"))).load()
    assert known.profiles["a", "cpu-1"].batch_sizes == (1,)


def test_a_larger_limit_needs_no_profile_where_larger_batches_were_found_useless(folder: Path) -> None:
    saved(folder).save(Profile("a", "cpu-1", TIMES, 0.5), note="throughput did not grow beyond batches of 8")
    known = store(folder, load(folder, ("max_batch_size=8", "max_batch_size=64"))).load()
    assert ("a", "cpu-1") in known.profiles


def test_other_events_make_real_profiles_stale_but_not_declared_ones(folder: Path) -> None:
    saved(folder)
    known = store(folder, load(folder), events=[b"3"]).load()
    assert known.stale["a", "cpu-1"] == "the sample's events have changed"
    assert ("b", "emulated-cpu") in known.profiles
    assert known.paths is None


def test_events_of_a_topics_last_hour_do_not_make_profiles_stale(folder: Path) -> None:
    change = (', sample=Sample("a.csv", "e.jsonl")', "")
    store(folder, load(folder, change)).save(Profile("a", "cpu-1", TIMES, 0.5))
    assert ("a", "cpu-1") in store(folder, load(folder, change), events=[b"3"]).load().profiles


@pytest.mark.parametrize(
    "change", [("value % 2 == 0", "value % 2 == 1"), ("a.when(is_even)", "a"), ("value + 1", "value + 2")]
)
def test_paths_hold_until_a_condition_the_shape_or_any_stage_changes(folder: Path, change: tuple[str, str]) -> None:
    saved(folder)
    known = store(folder, load(folder, change)).load()
    assert known.paths is None
    assert known.hop_overhead_s == {"embedded": 0.0012}


def test_another_machine_keeps_profiles_of_its_own(folder: Path) -> None:
    saved(folder)
    other = store(folder, load(folder), machine=Machine("Other CPU", 64))
    assert other.load().stale["a", "cpu-1"] == "not profiled yet"
    other.save(Profile("a", "cpu-1", TIMES, 0.1))
    assert other.load().profiles["a", "cpu-1"].start_up_s == 0.1
    assert store(folder, load(folder)).load().profiles["a", "cpu-1"].start_up_s == 0.5


def test_a_kind_that_is_not_here_is_taken_from_a_machine_that_had_it(folder: Path) -> None:
    saved(folder)
    with_gpu = store(folder, load(folder), machine=Machine("Big CPU", 64, ("Tesla T4",)))
    with_gpu.save(Profile("a", "t4", TIMES, 3.0))
    known = store(folder, load(folder)).load()
    assert known.profiles["a", "t4"].start_up_s == 3.0
    pairs, notes = pairs_to_profile(load(folder), known, Options(), HERE)
    assert pairs == []
    assert notes == []


def test_service_times_of_another_place_than_the_platform_are_noted_until_they_are_measured_there(folder: Path) -> None:
    saved(folder)
    pipeline, there = load(folder), Machine("ray, node", 1)
    of_ray = store(folder, pipeline, platform="ray")
    options = Options(platform="ray", elsewhere=True)
    pairs, (note, _) = pairs_to_profile(pipeline, of_ray.load(), options, HERE)
    assert pairs == []
    assert note == (
        "stage 'a' on 'cpu-1': its times are not of ray; `inferline-stream profile --on ray` measures them there"
    )
    in_cluster, _ = pairs_to_profile(pipeline, of_ray.load(), options, HERE, in_cluster=True)
    assert [(stage.name, kind.name) for stage, kind in in_cluster] == [("a", "cpu-1"), ("a", "t4")]
    for kind in ("cpu-1", "t4"):
        of_ray.save(Profile("a", kind, TIMES, 0.7), there=there)
    known = of_ray.load()
    assert pairs_to_profile(pipeline, known, options, HERE) == ([], [])
    assert known.profiles["a", "cpu-1"].start_up_s == 0.7
    assert store(folder, pipeline).load().profiles["a", "cpu-1"].start_up_s == 0.5, "here it is what it was"


def test_what_cannot_be_measured_here_is_noted(folder: Path) -> None:
    pipeline = load(folder)
    pairs, (note,) = pairs_to_profile(pipeline, store(folder, pipeline).load(), Options(), HERE)
    assert [(stage.name, kind.name) for stage, kind in pairs] == [("a", "cpu-1"), ("b", "emulated-cpu")]
    assert note == ("stage 'a' on 't4': not profiled, this machine has no GPU; plans leave it out")


def test_a_stage_that_cannot_be_measured_at_all_is_an_error(folder: Path) -> None:
    pipeline = load(folder, ('["cpu-1", "t4"]', '["t4"]'))
    with pytest.raises(InvalidTopology, match=r"stage 'a': none of its hardware can be profiled here: .*no GPU"):
        pairs_to_profile(pipeline, store(folder, pipeline).load(), Options(), HERE)


def test_everything_or_single_stages_can_be_measured_again(folder: Path) -> None:
    known = saved(folder).load()
    pipeline = load(folder)
    assert pairs_to_profile(pipeline, known, Options(), HERE)[0] == []
    every, _ = pairs_to_profile(pipeline, known, Options(again=True), HERE)
    assert [stage.name for stage, _ in every] == ["a", "b"]
    only, _ = pairs_to_profile(pipeline, known, Options(again=True, stages=frozenset("b")), HERE)
    assert [stage.name for stage, _ in only] == ["b"]


@pytest.mark.parametrize("text", ["", "{", f'{{"version": {VERSION}}}', '{"version": "one"}', '{"a": ' + "[" * 100_000])
def test_a_damaged_file_is_reported_by_name(folder: Path, text: str) -> None:
    kept = saved(folder)
    file = kept.save(Profile("a", "cpu-1", TIMES, 0.5))
    file.write_text(text)
    with pytest.raises(InvalidFile, match=r"cpu-1\.json: cannot be read as a profile"):
        kept.load()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"paths": {"masks": [1, 2], "weights": [0.5, 0.5]}}, "path 10 takes an arrow out of a stage"),
        ({"paths": {"masks": [-1], "weights": [1.0]}}, "path -1 takes an arrow out of a stage"),
        ({"hop_spread_s": {"embedded": [0.1, 0.0]}}, "of a hop must ascend"),
    ],
)
def test_paths_that_no_event_takes_are_reported_by_their_file(
    folder: Path, change: dict[str, object], why: str
) -> None:
    kept = saved(folder)
    file = next(folder.rglob("paths.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InvalidFile, match=rf"paths\.json: .*{why}"):
        kept.load()


@pytest.mark.parametrize(
    ("of", "name", "why"),
    [
        ("profile", "stage", "of stage '../../outside', and the pipeline has a, b"),
        ("hardware", "name", "of hardware '../../outside'"),
    ],
)
def test_names_in_a_profile_that_was_measured_elsewhere_choose_no_file(
    folder: Path, of: str, name: str, why: str
) -> None:
    kept = saved(folder)
    file = next(folder.rglob("a.cpu-1.json"))
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    (document := json.loads(file.read_text()))[of][name] = "../../outside"
    with pytest.raises(InvalidFile, match=re.escape(why)):
        kept.take({"there/a.cpu-1.json": json.dumps(document)})
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before


def test_a_profile_in_the_file_of_another_is_measured_again(folder: Path) -> None:
    kept = saved(folder)
    file = next(folder.rglob("a.cpu-1.json"))
    file.write_text(file.read_text().replace('"stage": "a"', '"stage": "b"'))
    assert kept.load().stale["a", "cpu-1"] == "its file holds another profile"


def test_a_file_of_another_version_is_measured_again(folder: Path) -> None:
    kept = saved(folder)
    file = kept.save(Profile("a", "cpu-1", TIMES, 0.5))
    file.write_text(file.read_text().replace(f'"version": {VERSION}', f'"version": {VERSION + 1}'))
    assert kept.load().stale["a", "cpu-1"] == "not profiled yet"


def test_the_same_code_elsewhere_has_the_same_digest(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pipeline = load(folder)
    mine = [code_digest(stage.run, folder) for stage in pipeline.stages]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(folder, elsewhere, dirs_exist_ok=True)
    again = load_topology(elsewhere)
    assert [code_digest(stage.run, elsewhere) for stage in again.stages] == mine
    assert mine[0] != mine[1]


def test_constants_that_are_sets_do_not_depend_on_the_hash_seed(folder: Path) -> None:
    import subprocess
    import sys

    code = textwrap.dedent(f"""
        from pathlib import Path
        from inferline_stream.dataplane.topology_loader import load_topology
        from inferline_stream.profiler.code_version import code_digest
        print(code_digest(load_topology({str(folder)!r}).stages[0].run, Path({str(folder)!r})))
    """)
    load(folder, ("LIMIT = 3", 'LIMIT = len({"a", "b"}); WORDS = {"a", "b", "c", "d"}'), ("< LIMIT", "not in WORDS"))
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("kind", "machine", "why"),
    [
        ("cpu-1", Machine("x", 1), None),
        ("cpu-4", Machine("x", 2), "this machine has 2 cores, cpu-4 needs 4"),
        ("cpu-1", Machine("x", 1, shares=False), None),
        ("emulated-gpu-large", Machine("x", 1, shares=False), None),
        ("t4", Machine("x", 1), "this machine has no GPU"),
        ("t4", Machine("x", 3, ("Tesla T4",)), None),
        ("h100", Machine("x", 16, ("NVIDIA H100 80GB HBM3",)), None),
        ("l4", Machine("x", 1, ("NVIDIA L40S",)), "this machine has NVIDIA L40S, and NVIDIA L4 is needed"),
        ("h100", Machine("x", 1, ("Tesla T4",)), "this machine has Tesla T4, and NVIDIA H100 is needed"),
    ],
)
def test_which_kinds_a_machine_can_stand_for(kind: str, machine: Machine, why: str | None) -> None:
    from inferline_stream.pipeline.hardware import catalogue

    assert why_not_here(catalogue()[kind], machine) == why


def test_a_share_of_a_core_is_refused_where_nothing_holds_it() -> None:
    from inferline_stream.pipeline.hardware import catalogue

    assert "--oversubscribe" in (why_not_here(catalogue()["cpu-0.25"], Machine("x", 8, shares=False)) or "")


def test_named_code_counts_with_what_it_imports_and_is_not_imported_itself(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name, text in {"score": "from . import words\nraise RuntimeError", "words": "A = 1", "other": "B = 1"}.items():
        (tmp_path / "models" / f"{name}.py").write_text(text)
    before = code_digest("models.score:Score", tmp_path)
    (tmp_path / "models" / "other.py").write_text("B = 2")
    assert code_digest("models.score:Score", tmp_path) == before
    assert code_digest("models.score:Other", tmp_path) != before
    (tmp_path / "models" / "words.py").write_text("A = 2")
    assert code_digest("models.score:Score", tmp_path) != before


WAITING = ("def first(values", "async def first(values")


def test_how_long_batches_take_beside_others_is_kept_and_cut_to_what_may_run_at_once(folder: Path) -> None:
    contention = (Contention(2, (1.25, 1.5)), Contention(4, (1.5, 2.123456)))
    measured = Profile("a", "cpu-1", TIMES, 0.3, contention=contention)
    store(folder, load(folder, WAITING)).save(measured)
    loaded = store(folder, load(folder, WAITING)).load().profiles["a", "cpu-1"]
    assert loaded.contention == (contention[0], Contention(4, (1.5, 2.1235)))
    fewer = load(folder, WAITING, ("max_batch_size=8", "max_batch_size=8, concurrency=2"))
    assert store(folder, fewer).load().profiles["a", "cpu-1"].concurrencies == (1, 2)
    more = load(folder, WAITING, ("max_batch_size=8", "max_batch_size=8, concurrency=32"))
    assert store(folder, more).load().stale["a", "cpu-1"] == "concurrency has grown from 16 to 32"
