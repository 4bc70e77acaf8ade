"""An operator's night: `run` on Apache Kafka, watched by Prometheus and Alertmanager, with every trouble but fire.

Each test makes one kind of trouble, waits for its alert at a webhook, does what the runbook says, and waits for the
alert to be resolved. The rules are the command's own, a rehearsal sixty times as fast as in earnest.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import inferline_stream.observability as room
from inferline_stream.errors import Unreachable
from inferline_stream.observability.alert_rules import GUIDES
from inferline_stream.pipeline.consumer_group import ConsumerGroup, PromQL
from inferline_stream.pipeline.trace import levels_trace
from inferline_stream.profiler import service_time_query
from inferline_stream.profiler.service_time_query import ServiceTimeQueries
from inferline_stream.settings import surroundings
from inferline_stream.testing.local_kafka import LocalKafka, free_ports
from tests.integration._monitoring import Monitoring, Notice, monitoring

COMMAND = [sys.executable, "-c", "from inferline_stream.cli.main import app; app()"]
REPLAY = [sys.executable, "-m", "inferline_stream.connectors.sources.trace_replay"]
STEADY = 15.0
"""Events per second, which one replica carries with ease."""

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus-alertmanager") is None, reason="apt-get install prometheus prometheus-alertmanager"
)


@dataclass
class Watched:
    """A pipeline under way, and who watches it."""

    folder: Path
    kafka: LocalKafka
    heard: Monitoring
    metrics_port: int
    run: subprocess.Popen[bytes]
    began_s: float = 0.0
    """When the night began: all was well."""
    hung_s: tuple[float, float] = (0.0, 0.0)
    """From when to when what the stage asks did not answer."""

    def start(self) -> None:
        """Start a controller as an operator would."""
        with (self.folder / "run.log").open("ab") as log:
            self.run = subprocess.Popen(
                [
                    *COMMAND, "run", str(self.folder), "--bootstrap-servers", self.kafka.bootstrap_servers,
                    "--no-replay", "--no-ui", "--metrics-port", str(self.metrics_port),
                    "--log-format", "json", "--output", "json",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def stop(self) -> None:
        """End the run, in good order if it can."""
        self.run.terminate()
        try:
            self.run.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.run.kill()
            self.run.wait()
            raise

    def ready(self, timeout_s: float) -> None:
        """Wait until events come out, and in time: those that waited for the start are through."""
        late = "increase(inferline_slo_missed_total[5s]) == 0"
        self.until(f"increase(inferline_slo_events_total[5s]) > {2 * STEADY} and {late}", timeout_s)

    def until(self, expr: str, timeout_s: float) -> None:
        """Wait until Prometheus finds an expression true."""
        deadline_s = time.monotonic() + timeout_s
        while not self.heard.query(expr):
            assert self.run.poll() is None, self.log()
            assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {expr}\n{self.log()}"
            time.sleep(0.2)

    def silent(self, alert: str) -> None:
        """Wait until an alert does not fire, whatever happened before."""
        self.until(f'absent(ALERTS{{alertname="{alert}",alertstate="firing"}})', 30)

    @contextmanager
    def traffic(self, levels: list[tuple[float, float]], name: str) -> Iterator[subprocess.Popen[bytes]]:
        """Feed the source topic."""
        trace = levels_trace(levels, 1.0, np.random.default_rng(1))
        arrivals = self.folder / f"{name}.csv"
        arrivals.write_text("arrival_s\n" + "".join(f"{at:.5f}\n" for at in trace.arrivals_s))
        process = subprocess.Popen(
            [
                *REPLAY, "--bootstrap-servers", self.kafka.bootstrap_servers, "--topic", "questions",
                "--arrivals", str(arrivals), "--events", str(self.folder / "questions.jsonl"),
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=10)

    def log(self) -> str:
        """The end of what the run wrote."""
        return (self.folder / "run.log").read_text()[-3000:]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("night")
    shutil.copy(Path(__file__).parent / "watched" / "topology.py", folder)
    (folder / "questions.jsonl").write_text("".join(f'{{"number":{n}}}\n' for n in range(100)))
    sample = levels_trace([(STEADY, 30.0)], 1.0, np.random.default_rng(0))
    (folder / "arrivals.csv").write_text("arrival_s\n" + "".join(f"{at:.5f}\n" for at in sample.arrivals_s))
    rules = folder / "rules.yml"
    subprocess.run([*COMMAND, "rules", str(folder), "--faster", "60", "--save", str(rules)], check=True, timeout=60)
    with ExitStack() as stack:
        try:
            kafka = stack.enter_context(LocalKafka())
        except Unreachable as error:
            if surroundings().ci:
                raise
            pytest.skip(str(error))
        (port,) = free_ports(1)
        heard = stack.enter_context(monitoring(folder, rules, port))
        night = Watched(folder, kafka, heard, port, subprocess.Popen(["true"]))
        night.run.wait()
        night.start()
        stack.callback(night.stop)
        night.until("inferline_slo_seconds", 180)  # its topics are there
        with night.traffic([(STEADY, 600.0)], "steady"):
            night.ready(180)
            night.began_s = time.time()
            yield night
        assert night.run.poll() is None, night.log()


def runbook(notice: Notice) -> str:
    """What the runbook says on an alert."""
    file, _, anchor = notice.annotations["runbook"].partition("#")
    page = Path(room.__file__).parents[2] / "docs" / file.removeprefix(f"{GUIDES}/")
    sections = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)
    (section,) = (text for text in sections if text.split("\n", 1)[0].lower() == anchor)
    return " ".join(section.split())


def test_a_ramp_is_reported_before_the_slo_is_missed_and_resolved_once_replicas_are_there(watched: Watched) -> None:
    watched.silent("InferlineSLOAtRisk")
    began_s = time.time()
    (before,) = watched.heard.query("inferline_slo_missed_total")
    ramp = [(3.0 * step, 1.5) for step in range(1, 16)]
    with watched.traffic(ramp, "ramp") as feeding:
        reported = watched.heard.wait("InferlineSLOAtRisk", "firing", 60, began_s)
        feeding.wait(timeout=60)
    resolved = watched.heard.wait("InferlineSLOAtRisk", "resolved", 60, reported.at_s)
    # Misses of the last minute that the ramp brought: those of the first events were before.
    missed = f"(sum(inferline_slo_missed_total) - {before['value'][1]})"
    events = "(sum(inferline_slo_events_total) - (sum(inferline_slo_events_total offset 1m) or vector(0)))"
    rates = watched.heard.query_range(f"{missed} / {events}", began_s, resolved.at_s)
    passed = [at_s for at_s, rate in rates if rate > 0.01]
    assert rates
    assert all(at_s > reported.at_s for at_s in passed), (
        f"reported {reported.at_s - began_s:.1f} s after it began, {rates}"
    )
    assert reported.labels["severity"] == "ticket"
    assert "not up yet" in runbook(reported)
    assert watched.heard.query('sum(inferline_replicas{stage="ask",state="ready"}) > 1')
    assert watched.heard.query('inferline_decisions_total{action="scale_up"} > 0')


def test_a_replica_that_cannot_start_again_is_reported_and_comes_back_once_its_model_is_there(watched: Watched) -> None:
    watched.silent("InferlineReplicasMissing")
    began_s = time.time()
    (watched.folder / "broken").touch()
    try:
        for pid in replicas_of("ask", watched):
            os.kill(pid, signal.SIGKILL)
        reported = watched.heard.wait("InferlineReplicasMissing", "firing", 30, began_s, stage="ask")
        assert ".inferline/logs/<pipeline>/<replica>.log" in runbook(reported)
        logs, deadline_s = watched.folder / ".inferline" / "logs" / "watched", time.monotonic() + 20
        while not any("weights.bin is not where it was" in log.read_text() for log in logs.glob("ask-*.log")):
            assert time.monotonic() < deadline_s, "no log of a replica says within 20 s why it does not start"
            time.sleep(0.1)
    finally:
        (watched.folder / "broken").unlink()
    watched.heard.wait("InferlineReplicasMissing", "resolved", 40, reported.at_s, stage="ask")
    watched.ready(20)


def test_a_stuck_partition_pages_and_moves_on_once_what_the_stage_waits_for_answers(watched: Watched) -> None:
    watched.silent("InferlineStuckPartition")
    began_s = time.time()
    (watched.folder / "hung").touch()
    reported = watched.heard.wait("InferlineStuckPartition", "firing", 40, began_s)
    assert (reported.labels["stage"], reported.labels["severity"]) == ("ask", "page")
    assert "fix the stage" in runbook(reported)
    (watched.folder / "hung").unlink()
    resolved = watched.heard.wait("InferlineStuckPartition", "resolved", 30, reported.at_s)
    watched.hung_s = began_s, resolved.at_s
    watched.until("sum(inferline_stage_lag_records) < 20", 30)


def test_a_broker_that_does_not_answer_is_reported_as_stale_input_until_it_does(watched: Watched) -> None:
    watched.silent("InferlineInputStale")
    began_s = time.time()
    watched.kafka.suspend()
    try:
        reported = watched.heard.wait("InferlineInputStale", "firing", 40, began_s)
        assert "the broker does not answer" in runbook(reported)
    finally:
        watched.kafka.resume()
    watched.heard.wait("InferlineInputStale", "resolved", 40, reported.at_s)
    watched.ready(30)


def test_a_dead_controller_pages_and_another_takes_up_where_it_was(watched: Watched) -> None:
    watched.silent("InferlineControllerDown")
    began_s = time.time()
    watched.run.kill()
    watched.run.wait()
    reported = watched.heard.wait("InferlineControllerDown", "firing", 30, began_s)
    assert reported.labels["severity"] == "page"
    assert "Start the controller again" in runbook(reported)
    watched.start()
    watched.heard.wait("InferlineControllerDown", "resolved", 180, reported.at_s)
    watched.ready(60)
    assert watched.heard.query("inferline_controller_term > 1")


def test_every_documented_metric_is_filled_by_a_live_run(watched: Watched) -> None:
    page = Path(room.__file__).parents[2] / "docs/reference/metrics.md"
    documented = set(re.findall(r"^\| `(\w+)`", page.read_text(), re.MULTILINE))
    watched.until("inferline_recent_p99_seconds", 20)
    found = {series["metric"]["__name__"] for series in watched.heard.query('{__name__=~"inferline_.+"}')}
    filled = {re.sub(r"_(bucket|sum|count)$", "", name) if "latency" in name else name for name in found}
    assert documented - filled <= {
        "inferline_decisions_total",  # not before the first decision
        "inferline_stage_reachable_system_calls",  # not where all can be reached
        "inferline_unreadable_records_total",  # not before such a record
        "inferline_start_up_seconds",  # not where places do not tell how a replica came to run
        "inferline_stage_start_up_seconds",  # not before a controller has seen a start
        *(name for name in documented if name.startswith("inferline_device_")),  # not where no replica needs a GPU
        # not where one topic is all
        *(name for name in documented if re.match("inferline_(background|class)_", name)),
    }


async def test_a_query_for_service_times_is_answered_by_a_real_prometheus(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_time_query, "ASK_S", 0.1)
    for query, known in (("0.05", True), ('sum(up{job!="none"}) / sum(up{job!="none"}) * 0.05', True), ("up{", False)):
        asked = PromQL(watched.heard.prometheus, query)
        group = ConsumerGroup("enrich", group="g", topic="t", service_time=asked)
        async with ServiceTimeQueries([group]) as queries, asyncio.timeout(30.0):
            while queries.throughput("enrich") is None and "parse error" not in queries.trouble.get("enrich", ""):
                await asyncio.sleep(0.05)
            found = queries.throughput("enrich")
        assert (found is not None and found.value == pytest.approx(20.0)) == known


def test_the_nights_log_says_which_alert_fired_when_what_to_do_and_that_it_helped(watched: Watched) -> None:
    log = []
    for alert in ("SLOAtRisk", "ReplicasMissing", "StuckPartition", "InputStale", "ControllerDown"):
        fired = watched.heard.wait(f"Inferline{alert}", "firing", 0.0, watched.began_s)
        fixed = watched.heard.wait(f"Inferline{alert}", "resolved", 0.0, fired.at_s)
        at = time.strftime("%H:%M:%S", time.localtime(fired.at_s))
        log.append(f"{at} {fired.labels['severity']:<6} {fired.name}: {fired.annotations['summary']}")
        log.append(f"{'':>16}runbook: {runbook(fired).partition(' ')[2]}")
        log.append(f"{'':>16}fixed after {fixed.at_s - fired.at_s:.0f} s")
    sys.stdout.write("\n".join(["", *log, ""]))  # what `pytest -rP` shows
    notices = [notice for notice in watched.heard.notices if notice.status == "firing"]
    paged = [notice for notice in notices if notice.labels["severity"] == "page"]
    began_s, until_s = watched.hung_s
    # A replica that hangs is killed after twelve seconds. Where the hang lasts longer, so does the one in its place.
    hung = [each for each in paged if each.name == "InferlinePoolInTrouble" and began_s < each.at_s < until_s + 10]
    assert {notice.name for notice in paged if notice not in hung} - {
        "InferlineSLOBurnFast", "InferlineSLOBurnSteady",
    } == {"InferlineStuckPartition", "InferlineControllerDown"}  # fmt: skip


def test_every_rule_could_be_evaluated_all_night_long(watched: Watched) -> None:
    assert [rule["name"] for rule in watched.heard.rules() if rule["health"] != "ok"] == []


def replicas_of(stage: str, watched: Watched) -> list[int]:
    """Process ids of a stage's replicas, from the supervisor's log."""
    log = (watched.folder / ".inferline" / "logs" / "watched" / "supervisor.log").read_text()
    pids = [int(pid) for pid in re.findall(rf" {stage}-emulated-cpu-\S+ started, process (\d+)", log)]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
