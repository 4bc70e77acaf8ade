"""`check`: every bad topology gets its message and exit code 3, without a traceback."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from inferline_stream.cli.main import app

SOUND = """
from msgspec import Struct
from inferline_stream import Edge, Pipeline, Sample, Stage, Topic

class Post(Struct):
    text: str

class Tagged(Struct):
    text: str
    language: str

class Findings(Struct):
    language: Tagged
    toxicity: float | None

class Language:
    def __call__(self, posts: list[Post]) -> list[Tagged]:
        return [Tagged(post.text, "en") for post in posts]

def is_english(tagged: Tagged) -> bool:
    return tagged.language == "en"

def judge(tagged: list[Tagged]) -> list[float]:
    return [0.0] * len(tagged)

def decide(findings: list[Findings]) -> list[bool]:
    return [True] * len(findings)

language = Stage("language", Language, hardware=["cpu-1"])
toxicity = Stage("toxicity", judge, after=[language.when(is_english)], hardware=["cpu-1"])
verdict = Stage("verdict", decide, after=[language, toxicity], hardware=["cpu-1"])
# late
pipeline = Pipeline("moderation", slo="250ms", source=Topic("posts"), sink=Topic("verdicts"),
                    stages=[language, toxicity, verdict], sample=Sample(arrivals="arrivals.csv", events="posts.jsonl"))
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "arrivals.csv").write_text("arrival_s\n0\n1\n")
    (tmp_path / "posts.jsonl").write_text('{"text": "hello"}\n{"text": "world"}\n')
    (tmp_path / "topology.py").write_text(SOUND)
    return tmp_path


def check(folder: Path, *changes: tuple[str, str]) -> Result:
    text = SOUND
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (folder / "topology.py").write_text(text)
    return CliRunner().invoke(app, ["check", str(folder / "topology.py")])


def test_a_sound_topology_passes(folder: Path) -> None:
    result = check(folder)
    assert result.exit_code == 0, result.stderr
    assert "pipeline 'moderation' is sound; its 3 stages were built in worker processes" in result.stdout


def test_background_events_that_should_be_done_already_are_refused(folder: Path) -> None:
    archive = 'source=[Topic("posts"), Topic("archive", background=True, finish_by="1999-12-31T00:00:00Z")]'
    result = check(folder, ('source=Topic("posts")', archive))
    assert result.exit_code == 3
    assert "source topic 'archive': finish_by '1999-12-31T00:00:00Z' is over; give a time to come" in result.stderr


@pytest.mark.parametrize(("gathered", "counts"), [("many.gathered()", "events"), ("many", "results")])
def test_it_says_how_many_results_an_event_may_have_and_what_the_slo_counts(
    folder: Path, gathered: str, counts: str
) -> None:
    (folder / "topology.py").write_text(f"""
from inferline_stream import Pipeline, Stage, Topic

def split(posts: list[dict]) -> list[list[int]]:
    return [[1] for _ in posts]

def last(events: {"list[list[int]]" if counts == "events" else "list[int]"}) -> list[int]:
    return [1 for _ in events]

many = Stage("split", split, many=True, most=12, hardware=["cpu-1"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"),
                    stages=[many, Stage("last", last, after=[{gathered}], hardware=["cpu-1"])])
""")
    result = CliRunner().invoke(app, ["check", str(folder / "topology.py")])
    assert result.exit_code == 0, result.stderr
    assert f"results of an event: split up to 12; the SLO counts {counts}" in result.stdout


def test_the_faust_app_of_the_gallery_is_adopted_as_it_is() -> None:
    result = CliRunner().invoke(app, ["check", str(Path(__file__).parents[2] / "topologies/shop")])
    assert result.exit_code == 0, result.stderr
    assert "consumer groups that run already: shop" in result.stdout


@pytest.mark.parametrize(
    ("changes", "stage", "said"),
    [
        ([("# late", "language.after.append(Edge(verdict))")], "", "stages form a cycle: language → "),
        ([("tagged: list[Tagged]", "tagged: list[Post]")], "toxicity", "takes list[Post], but its parent 'language'"),
        ([("    def __call__(self, posts", "    def __init__(self) -> None:\n        import a_model_nobody_has\n\n"
           "    def __call__(self, posts")], "language", "cannot be built in a worker process"),
        ([('"posts.jsonl"', '"missing.jsonl"')], "", "missing.jsonl: cannot be read (No such file or directory)"),
        ([("class Post(Struct):\n    text: str", "class Post(Struct):\n    text: int")], "language",
         "posts.jsonl: stage 'language' cannot take the event"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_file_and_stage(
    folder: Path, changes: list[tuple[str, str]], stage: str, said: str
) -> None:
    result = check(folder, *changes)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if said in line]
    assert line.startswith(f"error: {folder}/")
    assert f"stage {stage!r}" in line or not stage


def test_mistakes_of_every_kind_are_reported_at_once(folder: Path) -> None:
    result = check(
        folder,
        ('slo="250ms"', 'slo="250"'),
        ("tagged: list[Tagged]", "tagged: list[Post]"),
        ('"arrivals.csv"', '"missing.csv"'),
        ("    return [True] * len(findings)", "    return [True] * len(findings)\n\ndecide.__call__ = None"),
        (
            "    def __call__(self, posts",
            "    def __init__(self) -> None:\n        1 / 0\n\n    def __call__(self, posts",
        ),
    )
    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    for said in ("SLO '250'", "takes list[Post]", "missing.csv", "ZeroDivisionError: division by zero"):
        assert sum(said in line for line in lines) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (", "topology.py:1: SyntaxError"),
        ("import a_module_nobody_has", "ModuleNotFoundError"),
        ("", "no pipeline"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_reported(folder: Path, text: str, said: str) -> None:
    (folder / "topology.py").write_text(text)
    result = CliRunner().invoke(app, ["check", str(folder)])
    assert result.exit_code == 3
    assert said in result.stderr


def test_a_file_that_is_not_there_is_reported(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(tmp_path / "nowhere.py")])
    assert result.exit_code == 3
    assert "nowhere.py: cannot be read" in result.stderr


def test_paths_are_shown_from_where_the_user_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    result = check(folder, ('slo="250ms"', 'slo="0ms"'))
    assert result.stderr.startswith("error: topology.py:")


def test_events_of_every_source_keep_a_pipeline_awake(folder: Path) -> None:
    (folder / "arrivals.csv").write_text("arrival_s\n0\n400\n")
    (folder / "returns.csv").write_text("arrival_s\n50\n100\n150\n200\n")
    own = 'source=Topic("returns", sample=Sample(arrivals="returns.csv", events="posts.jsonl")), sink=Topic("tags")'
    again = f'again = Stage("again", Language, hardware=["cpu-1"], {own})'
    result = check(
        folder,
        ("# late", again), ("verdict],", "verdict, again],"), ('slo="250ms"', 'slo="1us", idle="60s"'),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "On the sample they wake 1 time, and 16.67% of the events are late by it" in result.stdout  # of six
