"""A pool that holds batches, on emulated hardware: they fill as the Estimator says for the arrivals that were sent."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.trace import Trace, gamma_trace
from tests.support.director import Director
from tests.support.emulated_runs import declared_profile

KIND, LIMIT, REPLICAS, RATE, EVENTS = "emulated-cpu", 8, 8, 150.0, 300

TOPOLOGY = """
from inferline_stream import Pipeline, Stage, Topic

def same(values: list[bytes]) -> list[bytes]:
    return values

work = Stage("work", same, hardware=["emulated-cpu"], emulated={1: "30ms", 8: "51ms"}, max_batch_size=8)
pipeline = Pipeline("held", slo="90ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"), stages=[work])
"""


async def send(director: Director, trace: Trace) -> np.ndarray:
    """Send the trace; return the timestamps of its records in seconds, ascending."""
    began_s, sent = time.time() + 0.05, []
    topic = director.names.topic("in")
    for at_s in trace.arrivals_s:
        await asyncio.sleep(max(0.0, began_s + at_s - time.time()))
        sent.append(await director.producer.send(topic, b"x"))
    return np.sort([record.timestamp / 1e3 for record in await asyncio.gather(*sent)])


async def test_batches_that_are_held_fill_as_the_estimator_says(embedded_broker, tmp_path: Path):
    (tmp_path / "topology.py").write_text(TOPOLOGY)
    measured, predicted = {}, {}
    async with Director(embedded_broker.bootstrap_servers, tmp_path / "topology.py", max_batch_size=LIMIT) as director:
        await director.start(replicas=REPLICAS)
        profile = declared_profile(director.pipeline, {})
        trace = gamma_trace(RATE, 1.0, EVENTS / RATE, np.random.default_rng(3))
        events = batches = 0
        for hold_s in (0.0, 0.025):
            number = await director.grant("work", hold_s=hold_s)
            await director.until(
                lambda wanted=number: director.report("work").number == wanted, "the grant is followed"
            )
            entry_s = await send(director, trace)
            done = events + len(trace)
            await director.until(lambda all_=done: director.total("work", "events") == all_, "all are done")
            ran = sum(stats.batches for stats in director.report("work").counts.batch_stats[KIND].values())
            measured[hold_s] = len(trace) / (ran - batches)
            events, batches = done, ran
            held = {"work": (Allocation(KIND, LIMIT, REPLICAS, hold_s),)}
            found = simulate(
                shape_of(director.pipeline),
                held,
                profile,
                Trace(entry_s - entry_s[0]),
                order_slo_s=director.pipeline.slo_s,
            )
            predicted[hold_s] = found.stages["work"].mean_batch_size
    assert measured[0.025] > 2 * measured[0.0]
    assert measured == pytest.approx(predicted, rel=0.25)
