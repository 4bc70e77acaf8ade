"""Loading a topology file, and what is said of one that cannot be loaded."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferline_stream.dataplane.topology_loader import load_code, load_topology
from inferline_stream.errors import InvalidTopology

SOUND = """
from __future__ import annotations
import msgspec
from inferline_stream import Pipeline, Stage, Topic

class Event(msgspec.Struct):
    value: int

def run(events: list[Event]) -> list[Event]:
    return events

pipeline = Pipeline("p", slo="1s", source=Topic("i"), sink=Topic("o"), stages=[Stage("a", run, hardware=["cpu-1"])])
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, text: str, name: str = "topology.py") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_file_or_its_folder_is_loaded(tmp_path: Path) -> None:
    file = write(tmp_path, SOUND)
    assert load_topology(file).name == "p"
    assert load_topology(tmp_path).name == "p"
    assert load_topology(str(file)).stages[0].run.__module__ == "topology"


def test_annotations_written_as_text_are_resolved_in_its_module(tmp_path: Path) -> None:
    from inferline_stream.pipeline.annotations import stage_types

    assert stage_types(load_topology(write(tmp_path, SOUND)).stages[0].run).takes.__name__ == "Event"


def test_its_folder_is_first_on_the_path(tmp_path: Path) -> None:
    write(tmp_path, "VALUE = 'beside'", "numbers_of_ours.py")
    load_topology(
        write(tmp_path, "from numbers_of_ours import VALUE\n" + SOUND.replace("from __future__ import annotations", ""))
    )
    assert sys.path[0] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_each_call_executes_the_file_afresh(tmp_path: Path) -> None:
    file = write(tmp_path, SOUND)
    assert load_topology(file).slo == "1s"
    file.write_text(SOUND.replace('"1s"', '"2s"'))
    assert load_topology(file).slo == "2s"


def test_modules_of_two_topologies_do_not_mix(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, f"NAME = {name!r}", "shared_name.py")
        write(tmp_path / name, f"NAME = {name!r}", "package_name/__init__.py")
        text = SOUND.replace("from __future__ import annotations", "import shared_name, package_name")
        write(tmp_path / name, text.replace('Pipeline("p"', "Pipeline(shared_name.NAME + package_name.NAME"))
    assert load_topology(tmp_path / "one").name == "oneone"
    assert load_topology(tmp_path / "two").name == "twotwo"
    assert load_topology(tmp_path / "one").name == "oneone"


def test_the_only_pipeline_may_have_any_name(tmp_path: Path) -> None:
    assert load_topology(write(tmp_path, SOUND.replace("pipeline =", "mine ="))).name == "p"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "topology.py: declares no pipeline; end it with `pipeline = Pipeline(...)`"),
        (SOUND.replace("pipeline =", "a =") + "\nb = Pipeline('q', slo='1s', source=None, sink=None, stages=[])",
         "topology.py: declares several pipelines (a, b)"),
        ("x = (\n", "topology.py:1: SyntaxError: '(' was never closed"),
        ("import a_module_that_nobody_has", "topology.py:1: ModuleNotFoundError: No module named"),
        ("def f():\n    return missing\n\nf()", "topology.py:2: NameError: name 'missing' is not defined"),
        ("raise SystemExit(3)", "topology.py:1: SystemExit: 3"),
        ("import os\nos._exit(0)", "topology.py:2: SystemExit: os._exit(0)"),
        ("class Mine(BaseException):\n    pass\n\nraise Mine(4)", "topology.py:4: topology.Mine: 4"),
        ("raise BaseExceptionGroup('several', [KeyboardInterrupt()])", "topology.py:1: BaseExceptionGroup: several"),
        ("def f():\n    return f()\n\nf()", "topology.py:2: RecursionError: maximum recursion depth exceeded"),
        (f"x = {'-' * 30_000}1", "topology.py:"),  # Pythons name it differently
        ("from inferline_stream import Stage\nStage('a', list, hardware=['x'], after=7)",
         "topology.py:2: TypeError: after= takes a list, not int; write after=[...]"),
        ("from inferline_stream import Stage\nStage('a', list, hardware=['x'], agrees=max)",
         "topology.py:2: agrees is no longer known: results of two versions are no longer compared; leave it out"),
        ("from inferline_stream import Isolation\nIsolation(image='reviews:1')",
         "topology.py:2: image is no longer known: no replica gets a container of its own; leave it out"),
        ("import msgspec\nmsgspec.json.decode(b'{')", "topology.py:2: msgspec.DecodeError"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_reported_with_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidTopology) as raised:
        load_topology(write(tmp_path, text))
    assert str(raised.value).startswith(f"{tmp_path}/{said}")


def test_an_error_in_a_module_beside_it_names_that_module(tmp_path: Path) -> None:
    write(tmp_path, "x = 1\ny = 1 / 0\n", "broken_beside.py")
    with pytest.raises(InvalidTopology, match=r"broken_beside\.py:2: ZeroDivisionError: division by zero"):
        load_topology(write(tmp_path, "import broken_beside"))


def test_a_name_behind_a_folder_that_has_none_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, SOUND)
    monkeypatch.chdir(tmp_path)
    assert load_topology(".:pipeline").name == "p"
    with pytest.raises(InvalidTopology, match="declares no pipeline 'other'; there is pipeline"):
        load_topology(".:other")


def test_a_file_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InvalidTopology, match="cannot be read \\(No such file or directory\\)"):
        load_topology(tmp_path / "nowhere.py")


def test_a_name_that_would_hide_a_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidTopology, match="would hide the module 'json'; rename the file"):
        load_topology(write(tmp_path, SOUND, "json.py"))


def test_code_given_by_name_is_imported_when_it_is_loaded_and_not_before(tmp_path: Path) -> None:
    write(tmp_path, "class Outer:\n    class Inner:\n        pass\n", "models_of_ours/scoring.py")
    named = SOUND.replace('Stage("a", run', 'Stage("a", "models_of_ours.scoring:Outer.Inner"')
    (stage,) = load_topology(write(tmp_path, named)).stages
    assert not [name for name in sys.modules if name.startswith("models_of_ours")]
    assert load_code(str(stage.run), tmp_path).__qualname__ == "Outer.Inner"


def test_a_module_beside_the_topology_wins_over_one_of_another_folder(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder, f"NAME = {folder!r}", "named_twice.py")
    assert [load_code("named_twice:NAME", tmp_path / folder) for folder in ("one", "two")] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scoring", "'scoring' does not name code; write \"module:name\""),
        ("nowhere_at_all:run", "code 'nowhere_at_all:run' cannot be loaded (ModuleNotFoundError: No module named"),
        ("half_written:run", "cannot be loaded (AttributeError: module 'half_written' has no attribute 'run'); give a"),
        ("half_bare:run", "half_bare.py:1: code 'half_bare:run' cannot be loaded (BaseException: bare"),
        ("half_broken:run", "half_broken.py:2: code 'half_broken:run' cannot be loaded (ZeroDivisionError"),
    ],
)
def test_code_that_cannot_be_loaded_is_reported_with_its_name_and_the_remedy(
    tmp_path: Path, name: str, said: str
) -> None:
    write(tmp_path, "x = 1\n", "half_written.py")
    write(tmp_path, "x = 1\ny = 1 / 0\n", "half_broken.py")
    write(tmp_path, "raise BaseException('bare')", "half_bare.py")
    with pytest.raises(InvalidTopology) as raised:
        load_code(name, tmp_path)
    assert said in str(raised.value)
