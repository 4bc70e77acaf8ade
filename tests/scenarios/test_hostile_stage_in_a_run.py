"""A hostile stage in a run under load: the other stages keep the SLO, and alerts name the hostile one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.observability.alert_rules import Target, rules_yaml
from inferline_stream.observability.metrics import StateCollector
from inferline_stream.observability.pipeline_state import PipelineState
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import KafkaServer
from tests.contracts.hostile import ATTACKS, heard
from tests.support.emulated_runs import emulated_run
from tests.support.sandbox import needs_sandbox

pytestmark = [
    needs_sandbox,
    pytest.mark.skipif(
        shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
    ),
]

TOPOLOGY = (
    ATTACKS
    + """
from msgspec import Struct

from inferline_stream import Isolation, Pipeline, Sample, Stage, Topic


class Order(Struct):
    number: int
    attack: str
    against: str


class Both(Struct):
    enter: Order
    hostile: int | None


def enter(orders: list[Order]) -> list[Order]:
    return orders


def hostile(orders: list[Order]) -> list[int]:
    for order in orders:
        ATTACKS[order.attack](order.against)
    return [order.number for order in orders]


def last(both: list[Both]) -> list[dict[str, int | bool]]:
    return [{"number": found.enter.number, "attacked": found.hostile is not None} for found in both]


EMULATED = {"hardware": ["emulated-cpu"], "emulated": {1: "2ms", 8: "6ms"}}
entering = Stage("enter", enter, **EMULATED)
attacking = Stage("hostile", hostile, after=[entering.when(lambda order: bool(order.attack))], max_batch_size=1,
                  isolation=Isolation("sandbox", memory_mb=300, file_mb=2), **EMULATED)
ending = Stage("last", last, after=[entering, attacking], **EMULATED)
pipeline = Pipeline("attacked", slo="5s", source=Topic("in"), sink=Topic("out"), stages=[entering, attacking, ending],
                    sample=Sample(arrivals="arrivals.csv", events="orders.jsonl"))
"""
)

HARMLESS = 29
"""Events before each attack; what the run sends comes to every attack once, and to the first ones again."""


async def test_the_others_keep_the_slo_and_the_alert_names_the_stage(
    embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    folder = tmp_path / "filled"
    folder.mkdir(mode=0o777)
    secret = tmp_path / "model.bin"
    secret.write_bytes(b"another stage's model")
    (tmp_path / "topology.py").write_text(TOPOLOGY)
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        attacks = [
            *(("read", "/etc/shadow"), ("read", str(secret)), ("read", f"/proc/{os.getpid()}/environ")),
            *(("connect", str(elsewhere.getsockname()[1])), ("shell", f"touch {folder}/shell"), ("fill", str(folder))),
            *(("kill", str(os.getpid())), ("fork", ""), ("threads", ""), ("allocate", ""), ("flood", "")),
        ]
        harmless = [{"number": number, "attack": "", "against": ""} for number in range(HARMLESS)]
        lines = [
            order
            for number, (attack, against) in enumerate(attacks)
            for order in (*harmless, {"number": 1000 + number, "attack": attack, "against": against})
        ]
        (tmp_path / "orders.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        run: Run = emulated_run(
            tmp_path,
            embedded_broker.bootstrap_servers,
            tmp_path,
            levels=[(45, 8)],
            probability={("enter", "hostile"): 1 / (HARMLESS + 1)},
        )
        async with asyncio.timeout(120), open_run(run) as under_way:
            await under_way.ready()
            controller = under_way.controller
            before = await known(controller)
            others = {r.replica for r in await controller.actuator.observe() if r.stage != "hostile"}
            await under_way.fed(asyncio.Event())

            async def all_done() -> bool:
                state = controller.state
                return state is not None and state.events_out + state.completed_without_output >= state.events_in > 0

            assert await until(all_done, 60.0), "every event came to its end"
            after = await known(controller)
            assert others <= {r.replica for r in await controller.actuator.observe()}, (
                "a stage that is not hostile died"
            )
            report = await under_way.report(await under_way.drain())
        assert heard(elsewhere) == []
    assert list(folder.iterdir()) == []
    assert report.lost == 0
    dead = {stage.name: stage.total.dead_lettered for stage in after.stages}
    assert (dead["enter"], dead["last"]) == (0, 0)
    assert dead["hostile"] > 0
    assert report.events_in - report.events_out >= len(attacks), "an attack has succeeded"
    assert after.late_events <= report.events_out / 100, "events of the other stages missed the SLO"
    fired = stages_named_by_alerts(tmp_path, before, after)
    assert {stage for _, stage in fired} == {"hostile"}
    assert ("InferlineDeadLettersGrow", "hostile") in fired


async def known(controller: object) -> PipelineState:
    async def there() -> bool:
        return controller.state is not None  # type: ignore[attr-defined]

    assert await until(there, 30.0)
    state: PipelineState = controller.state  # type: ignore[attr-defined]
    return state


def stages_named_by_alerts(folder: Path, before: PipelineState, after: PipelineState) -> set[tuple[str, str]]:
    """Alerts that Prometheus fires for a stage ten minutes after the metrics went from one state to another."""
    (folder / "rules.yml").write_text(rules_yaml(Target(after.pipeline, after.slo_s, after.objective)))
    then, now = samples(before), samples(after)
    series = [{"series": name, "values": f"{then.get(name, 0.0)}x3 {value}x9"} for name, value in now.items()]
    wanted = 'count by (alertname, stage) (ALERTS{alertstate="firing",stage!=""})'
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [{"expr": wanted, "eval_time": "12m", "exp_samples": []}],
            }
        ],
    }
    (folder / "test.yml").write_text(json.dumps(test))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    assert "exp:" in said or done.returncode == 0, said
    return set(re.findall(r'alertname="(\w+)", stage="(\w+)"', said))


def samples(state: PipelineState) -> dict[str, float]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StateCollector(lambda: state, lambda: state.time_s))
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
