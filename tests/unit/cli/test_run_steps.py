"""A run that came to its end may be a failure all the same."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from inferline_stream import Pipeline, Stage, Topic
from inferline_stream.cli.options import RunOptions
from inferline_stream.cli.plan_steps import Declared
from inferline_stream.cli.run_steps import judge, replay_of
from inferline_stream.errors import GateFailed, InferlineError, UsageError
from inferline_stream.pipeline.trace import Trace
from inferline_stream.runs.report import RunReport

LOGS = Path("here/logs")


def report(*, lost: int = 0, miss_rate: float | None = 0.0) -> RunReport:
    return RunReport(
        pipeline="p", lost=lost, duplicated=0, events_in=100, events_out=100 - lost, slo_miss_rate=miss_rate, cost=0.0,
        decisions=[], slo_s=0.25, p50_s=None, p95_s=None, p99_s=None, completed={}, duration_s=1.0,
        predicted_p99_s=0.2, replicas_most={}, lag={}, exits=[], lost_ids=[], emulated=False, advisory=False,
    )  # fmt: skip


def test_events_that_are_left_in_kafka_are_said_to_be_there() -> None:
    left = msgspec.structs.replace(report(lost=3), lag={"p.work": 4, "p.done": 0})
    with pytest.raises(InferlineError, match=r"not finished \(4 in group p.work\): the next run goes on with them"):
        judge(left, None, LOGS)


def test_a_run_that_lost_events_fails_with_code_1_also_without_a_gate() -> None:
    with pytest.raises(InferlineError, match=r"^3 events lost, .* See what .* wrote in here/logs$") as raised:
        judge(report(lost=3), None, LOGS)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(("lost", "miss_rate"), [(3, 0.0), (0, 0.02), (0, None)])
def test_a_gate_that_does_not_hold_fails_with_code_6(lost: int, miss_rate: float | None) -> None:
    with pytest.raises(GateFailed) as raised:
        judge(report(lost=lost, miss_rate=miss_rate), 0.99, LOGS)
    assert raised.value.exit_code == 6


@pytest.mark.parametrize(("objective", "miss_rate"), [(None, 0.5), (0.99, 0.01)])
def test_a_run_without_a_loss_and_within_its_gate_is_a_success(objective: float | None, miss_rate: float) -> None:
    judge(report(miss_rate=miss_rate), objective, LOGS)


@pytest.mark.parametrize(("asked", "arrivals"), [(True, None), (None, Path("arrivals.csv"))])
def test_without_a_sample_there_is_nothing_to_replay(asked: bool | None, arrivals: Path | None) -> None:
    stage = Stage("work", list, hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
    what = Declared(pipeline, Path("/p/topology.py"), [b"1"], Trace(np.array([0.0])))
    with pytest.raises(UsageError, match="declares no sample, so there are no events to replay: add sample=Sample"):
        replay_of(RunOptions(topology=what.file, bootstrap_servers="k:1", replay=asked, arrivals=arrivals), what)
    assert replay_of(RunOptions(topology=what.file, bootstrap_servers="k:1"), what) == (None, None)
