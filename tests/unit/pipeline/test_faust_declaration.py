"""A Faust app as a declared consumer group."""

import sys
import types

import faust
import pytest

from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.consumer_group import FaustApp
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.validation import validated


@pytest.fixture
def shop(monkeypatch):
    module = types.ModuleType("shop_app")
    monkeypatch.setitem(sys.modules, "shop_app", module)
    module.app = faust.App("shop.v2", broker="kafka://127.0.0.1:1", store="memory://")
    orders, enriched = module.app.topic("orders"), module.app.topic("enriched")

    async def rank(stream):
        async for _ in stream:
            yield

    async def enrich(stream):
        async for _ in stream:
            yield

    for function, topic, sinks in ((rank, enriched, []), (enrich, orders, [enriched])):
        function.__module__ = "shop_app"
        module.app.agent(topic, sink=sinks)(function)
    return module


def test_an_app_is_one_group_that_enters_by_the_topic_that_no_agent_writes(shop):
    pipeline = validated(Pipeline.from_faust(shop.app, slo="5s"))

    (group,) = pipeline.groups
    assert (pipeline.name, group.group, group.topic, group.workers) == (
        "shop-v2",
        "shop.v2",
        "orders",
        FaustApp("shop_app:app"),
    )
    assert Pipeline.from_faust(shop.app, slo="5s", topic="enriched").groups[0].topic == "enriched"


def test_an_app_that_a_worker_could_not_import_is_refused_with_the_remedy(shop):
    app = shop.app
    del shop.app

    with pytest.raises(InvalidTopology, match="is no attribute of shop_app"):
        Pipeline.from_faust(app, slo="5s")
