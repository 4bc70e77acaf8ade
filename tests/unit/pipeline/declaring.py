"""Pipelines to make mistakes in."""

from pathlib import Path
from typing import Any

from msgspec import Struct

from inferline_stream import Pipeline, Sample, Stage, Topic
from inferline_stream.pipeline.validation import problems


class Post(Struct):
    text: str


class Tagged(Struct):
    text: str
    language: str


class Findings(Struct):
    language: Tagged
    toxicity: float | None
    duplicate: bool


class Language:
    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def __call__(self, posts: list[Post]) -> list[Tagged]:
        return [Tagged(post.text, "en") for post in posts]


def is_english(tagged: Tagged) -> bool:
    return tagged.language == "en"


def judge(tagged: list[Tagged]) -> list[float]:
    return [0.0] * len(tagged)


def search(tagged: list[Tagged]) -> list[bool]:
    return [False] * len(tagged)


def decide(findings: list[Findings]) -> list[str]:
    return ["ok"] * len(findings)


def pass_on(posts: list[Post]) -> list[Post]:
    return posts


def moderation(**changes: Any) -> Pipeline:
    """The example of the documentation; keywords replace arguments of `Pipeline`, or of a stage by its name."""
    of_stage = {name: changes.pop(name, {}) for name in ("language", "toxicity", "duplicate", "verdict")}
    cpu = {"hardware": ["cpu-1"]}
    language = Stage("language", of_stage["language"].pop("run", Language), **{**cpu, **of_stage["language"]})
    toxicity = Stage(
        "toxicity",
        of_stage["toxicity"].pop("run", judge),
        **{"after": [language.when(is_english)], "hardware": ["cpu-1", "t4"], **of_stage["toxicity"]},
    )
    duplicate = Stage("duplicate", search, **{"after": [language], **cpu, **of_stage["duplicate"]})
    verdict = Stage(
        "verdict",
        of_stage["verdict"].pop("run", decide),
        **{"after": [language, toxicity, duplicate], **cpu, **of_stage["verdict"]},
    )
    arguments: dict[str, Any] = {
        "name": "moderation",
        "slo": "250ms",
        "source": Topic("posts"),
        "sink": Topic("verdicts"),
        "stages": [language, toxicity, duplicate, verdict],
        "sample": Sample("arrivals.csv", "posts.jsonl"),
        **changes,
    }
    return Pipeline(arguments.pop("name"), **arguments)


def only_problem(pipeline: Pipeline) -> str:
    """The one problem of a pipeline, reported with the file that declares it."""
    found = problems(pipeline)
    assert len(found) == 1, "\n".join(found)
    file = pipeline.declared.rpartition(":")[0]
    assert Path(file).parent == Path(__file__).parent
    assert found[0].startswith(file)
    return found[0]


def line(run: Any, **arguments: Any) -> Pipeline:
    """A pipeline of one stage."""
    stage = Stage("only", run, **{"hardware": ["cpu-1"], **arguments})
    return Pipeline("line", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
