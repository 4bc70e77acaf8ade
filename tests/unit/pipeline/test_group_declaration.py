"""Consumer groups that run already are declared in place of stages, and each mistake of that is found."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from inferline_stream import (
    Command,
    ConsumerGroup,
    Deployment,
    FaustApp,
    KedaScaler,
    Pipeline,
    PromQL,
    Sample,
    Stage,
    Topic,
)
from inferline_stream.cli.main import app
from inferline_stream.pipeline.shape import Arrow, shape_of
from inferline_stream.pipeline.validation import problems
from tests.unit.pipeline.declaring import only_problem, pass_on


def shop(**changes: Any) -> Pipeline:
    """Two groups in a row; keywords replace arguments of the pipeline, of `orders` or of `enrich`."""
    of = {name: changes.pop(name, {}) for name in ("orders", "enrich")}
    orders = ConsumerGroup("orders", **{"group": "orders-v2", "topic": "orders", **of["orders"]})
    enrich = ConsumerGroup("enrich", **{"group": "enrich-v1", "topic": "enriched", "after": [orders], **of["enrich"]})
    return Pipeline("shop", **{"slo": "5s", "stages": [enrich, orders], **changes})


def test_groups_need_neither_source_nor_sink_nor_sample() -> None:
    pipeline = shop()
    assert problems(pipeline) == ()
    assert pipeline.stages == ()
    assert [group.name for group in pipeline.groups] == ["enrich", "orders"]
    assert pipeline.source.name == "orders"
    shape = shape_of(pipeline)
    assert (shape.stages, shape.arrows) == (("orders", "enrich"), (Arrow(0, 1),))


@pytest.mark.parametrize(
    "workers",
    [
        None,
        KedaScaler(),
        KedaScaler("ml/enrich", tolerance=0),
        Deployment("enrich"),
        Deployment("ml/enrich.v2"),
        Command("docker compose up -d --scale enrich={replicas} enrich"),
        FaustApp("shop.app:app"),
    ],
)
def test_each_kind_of_workers_is_taken(workers: Any) -> None:
    query = None if isinstance(workers, FaustApp) else PromQL("http://prometheus:9090/path", "sum(x) / sum(y)")
    assert problems(shop(enrich={"workers": workers, "service_time": query})) == ()


@pytest.mark.parametrize(
    ("of_group", "says"),
    [
        ({"workers": Command("scale enrich")}, "does not say how many; write {replicas} where"),
        ({"workers": Command('scale "enrich={replicas}')}, "is no command (No closing quotation)"),
        ({"workers": Deployment("ml/prod/enrich")}, 'write "name" or "namespace/name"'),
        ({"workers": Deployment("ml/Enrich")}, 'write "name" or "namespace/name"'),
        ({"workers": KedaScaler("ml/prod/enrich")}, "KedaScaler 'ml/prod/enrich' names no Deployment; write"),
        ({"workers": KedaScaler(3)}, "KedaScaler 3 names no Deployment"),
        ({"workers": KedaScaler(tolerance=10)}, "tolerance 10 is no share; write 0.1 for 10%"),
        ({"workers": KedaScaler(tolerance="0")}, "tolerance '0' is no share"),
        ({"workers": FaustApp("shop.app")}, 'write "module:attribute"'),
        ({"workers": KedaScaler}, "is none of Deployment(...), KedaScaler(), Command(...) and FaustApp(...)"),
        ({"service_time": "rate(x[1m])"}, 'is no query; write PromQL("http://prometheus:9090", "...")'),
        ({"service_time": PromQL("prometheus:9090", "x")}, 'write "http://host:9090"'),
        ({"service_time": PromQL("http://p:9090", " ")}, "asks nothing; write a query that gives the seconds"),
        (
            {"service_time": PromQL("http://p:9090", "x"), "workers": FaustApp("a:b")},
            "the workers of a FaustApp report it themselves; leave it out",
        ),
        ({"hardware": "cpu-3"}, "unknown hardware 'cpu-3'; did you mean"),
        ({"topic": ""}, "topic '' is no name; give the one that Kafka knows"),
        ({"name": "decisions"}, "is the name of one of the pipeline's own topics; rename the group"),
        ({"topic": "orders"}, "reads the same topic 'orders'; leave after out"),
        ({"after": ["orders"], "topic": "orders"}, "after holds 'orders', which is no ConsumerGroup"),
        ({"after": [ConsumerGroup("other", group="o", topic="o")]}, "'other', which is not in stages=[...]; list it"),
    ],
)
def test_a_mistake_of_a_group_names_the_group_and_the_remedy(of_group: dict[str, Any], says: str) -> None:
    name = of_group.pop("name", "enrich")
    orders = ConsumerGroup("orders", group="orders-v2", topic="orders")
    given = {"group": "enrich-v1", "topic": "enriched", "after": [orders], **of_group}
    problem = only_problem(Pipeline("shop", slo="5s", stages=[orders, ConsumerGroup(name, **given)]))
    assert f": group {name!r}: " in problem
    assert says in problem


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slo": "5"}, "is not a duration"),
        ({"sink": Topic("out")}, "leave sink out"),
        ({"source": Topic("in")}, "leave source out"),
        ({"sample": Sample("a.csv", "e.jsonl")}, "leave sample out"),
        ({"on_expired": "drop"}, "on_expired 'drop' is of stages"),
        ({"enrich": {"group": "orders-v2"}}, "2 groups have the id 'orders-v2'"),
        (
            {"orders": {"workers": Deployment("ml/all")}, "enrich": {"workers": KedaScaler("ml/all")}},
            "2 groups have workers in the Deployment 'ml/all', and each would set its replicas",
        ),
        (
            {"orders": {"workers": Deployment("enrich")}, "enrich": {"workers": KedaScaler()}},
            "2 groups have workers in the Deployment 'enrich'",
        ),
        (
            {"enrich": {"after": []}},
            "its first groups read 2 topics ('enriched', 'orders'); declare a pipeline for each",
        ),
    ],
)
def test_a_mistake_of_the_pipeline_names_the_remedy(changes: dict[str, Any], says: str) -> None:
    assert says in only_problem(shop(**changes))


def test_a_group_behind_two_others_would_be_a_join() -> None:
    first = ConsumerGroup("first", group="a", topic="in")
    second = ConsumerGroup("second", group="b", topic="in")
    both = ConsumerGroup("both", group="c", topic="joined", after=[first, second])
    assert "comes after 2 groups: how long a join waits" in only_problem(
        Pipeline("shop", slo="5s", stages=[first, second, both])
    )


def test_groups_in_a_circle_are_named() -> None:
    pipeline = shop()
    enrich, orders = pipeline.groups
    orders.after = (enrich,)
    found = [problem for problem in problems(pipeline) if "form a cycle" in problem]
    assert ["enrich → orders → enrich" in problem for problem in found] == [True]


def test_stages_and_groups_are_not_mixed() -> None:
    stage = Stage("rank", pass_on, hardware=["cpu-1"])
    group = ConsumerGroup("orders", group="orders-v2", topic="orders")
    found = problems(Pipeline("shop", slo="5s", stages=[stage, group]))
    assert any("stages holds 'rank' beside consumer groups ('orders'); declare a pipeline for each" in p for p in found)


def test_a_problem_names_the_line_that_declares_the_group() -> None:
    group = ConsumerGroup("only", group="g", topic="")
    number = next(
        i for i, text in enumerate(Path(__file__).read_text().splitlines(), start=1) if 'ConsumerGroup("only"' in text
    )
    problem = only_problem(Pipeline("line", slo="1s", stages=[group]))
    assert problem.startswith(f"{__file__}:{number}: group 'only': ")


def test_commands_for_stages_name_the_one_for_groups(tmp_path: Path) -> None:
    file = tmp_path / "topology.py"
    file.write_text(
        "from inferline_stream import ConsumerGroup, Pipeline\n"
        "orders = ConsumerGroup('orders', group='orders-v2', topic='orders')\n"
        "pipeline = Pipeline('shop', slo='5s', stages=[orders])\n"
    )
    checked = CliRunner().invoke(app, ["check", str(file)])
    assert checked.stdout.endswith("is sound; consumer groups that run already: orders\n")
    planned = CliRunner().invoke(app, ["plan", str(file)])
    assert planned.exit_code == 2
    assert "`inferline-stream advise` plans for groups" in " ".join(planned.output.split())
