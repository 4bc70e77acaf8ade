"""Versions that are tried out on a pipeline under load: bad ones are given up, a good one takes over."""

from __future__ import annotations

import asyncio
import shutil
import time
from functools import partial
from pathlib import Path

from inferline_stream.controlplane.decide.version_judge import Tolerance
from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.observe.recovery import recover
from inferline_stream.controlplane.records.control_records import CodeVersion, Override
from inferline_stream.controlplane.records.explanation import PlanHistory, sentences
from inferline_stream.controlplane.records.record_writers import write_overrides
from inferline_stream.pipeline.version import version_on
from inferline_stream.testing.kafka import KafkaServer
from tests.support.emulated_runs import SWING, on_this_host, swing_runs


def release(folder: Path, work: str) -> Path:
    """A copy of the pipeline whose first stage does this before its work."""
    shutil.copytree(SWING, folder)
    topology = folder / "topology.py"
    source = topology.read_text()
    begins = "def parse(orders: list[Order]) -> list[int]:\n"
    assert begins in source
    topology.write_text(source.replace(begins, f"{begins}    {work}\n"))
    return topology


async def test_versions_that_fail_or_differ_are_given_up_a_good_one_takes_over_and_no_event_is_lost(
    embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    release(tmp_path / "running", "open(__file__ + '.ran', 'a').close()")
    fails = release(tmp_path / "fails", "if any(order.number % 5 == 0 for order in orders): raise ValueError('new')")
    differs = release(
        tmp_path / "differs", "orders = [Order(order.number + (order.number % 5 == 0)) for order in orders]"
    )
    good = release(tmp_path / "good", "open(__file__ + '.ran', 'a').close()  # another comment")
    run = swing_runs(tmp_path, tmp_path / "running")(
        embedded_broker.bootstrap_servers,
        levels=[(60, 50)],
        replicas={"parse": 2, "check": 1, "decide": 1},
    )
    async with on_this_host(run, 150.0) as (under_way, actuator):
        controller, names = under_way.controller, under_way.context.names
        controller.canary.tolerance = Tolerance(failed=0.05, slower=0.5)

        async def tried(name: str, topology: Path, *, mirror: bool = False) -> None:
            now_s = time.time()
            code = CodeVersion(
                name, str(topology), now_s, mirror=mirror, digests={**controller.versions.digests, "parse": name}
            )
            trial = Override("canary", value=0.5, until_s=now_s + 60, who="a test", code=code)
            await write_overrides(run.bootstrap_servers, names, [(trial.key, trial)])

        async def decided(reason: str, times: int = 1) -> bool:
            return sum(made.reason == reason for made in controller.decider.decisions) == times

        async def none_left() -> bool:
            return not any(version_on(seen.hardware) for seen in await actuator.observe())

        enough = asyncio.Event()
        feeding = asyncio.create_task(under_way.fed(enough))
        await tried("bad1", fails)
        assert await until(partial(decided, "canary_rolled_back"), 40.0), controller.canary
        assert await until(none_left, 20.0)
        await tried("bad2", differs, mirror=True)
        assert await until(partial(decided, "canary_rolled_back", 2), 40.0), controller.canary
        await tried("good", good)
        assert await until(partial(decided, "canary_promoted"), 40.0), controller.canary
        shown = (tmp_path / "good/topology.py.ran").exists()

        async def taken_over() -> bool:
            return not controller.fleet.older and await none_left()

        assert await until(taken_over, 30.0)
        specs = {spec.topology for spec in controller.versions.specs().values()}
        enough.set()
        await feeding
        found = await recover(run.bootstrap_servers, names)
        report = await under_way.report(await under_way.drain())
    assert shown
    assert specs == {str(good)}
    assert (report.lost, report.duplicated) == (0, 0)
    assert report.events_in == report.events_out > 400  # no dead letter among them
    assert found.overrides.canary is None
    explained = "\n".join(sentences(PlanHistory("swing", found.plans, found.decisions, found.overrides), 20))
    assert "version bad1: worse: stage parse: events on which it alone fails" in explained
    assert "version bad2: worse: stage parse: other results" in explained
    assert "version good: as good on 50% of the events" in explained
