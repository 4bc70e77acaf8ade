"""The assistant example: its stages answer questions, and its reranker is a server of the Open Inference Protocol."""

import asyncio
import json
import shlex
import socket
import subprocess
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inferline_stream.dataplane.replica.served_model import EventRefused, ServedModel
from inferline_stream.dataplane.sample_files import read_arrivals, read_events
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.validation import problems
from inferline_stream.profiler.topology_check import event_problems, sample_problems
from tests.support.model_server import closed

EXAMPLE = Path(__file__).parents[2] / "topologies/assistant"

ASKED = {
    "Why is there only one queue per stage?": "Why one queue per stage?",
    "How do I send a dead letter back to its topic?": "`dlq replay` sends a letter",
    "Which Kafka versions are supported?": "Apache Kafka 4.1 or later",
    "Is Kerberos supported?": "Kerberos (GSSAPI)",
    "How do I stop a run in good order?": "Stop a run with Ctrl-C",
    "How do I rehearse alerts?": "Try the alerts with a burst",
    "How do I make a client in an asynchronous stage?": "Make clients in the constructor",
}
"""Questions, and a part of the passage that answers each."""


@pytest.fixture(scope="module")
def example():
    return load_topology(EXAMPLE)


@pytest.fixture(scope="module")
def retrieved(example):
    import topology

    return example.stage("retrieve").run()([topology.Question(text) for text in ASKED])


@pytest.fixture
def url(example):
    """The address of its server, started by the command of its topology."""
    started, deadline_s = example.stage("rerank").server, 60.0
    port = unused_port()
    url = started.url.format(port=port)
    with subprocess.Popen(shlex.split(started.command.format(port=port)), cwd=EXAMPLE) as process:
        try:
            give_up_s = time.monotonic() + deadline_s
            while not answers(f"{url}/v2/models/rerank/ready"):
                assert process.poll() is None, f"the server ended with exit code {process.returncode}"
                assert time.monotonic() < give_up_s, f"the server was not ready within {deadline_s:g} s"
                time.sleep(0.05)
            yield url
        finally:
            process.kill()


def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as listens:
        return listens.getsockname()[1]


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5.0) as response:
            return response.status == 200
    except OSError:
        return False


def test_it_is_sound_and_its_sample_can_be_read(example):
    assert list(problems(example)) == []
    assert sample_problems(example, EXAMPLE) == []
    assert event_problems(example, EXAMPLE) == []


def test_every_passage_has_its_embedding_and_the_length_that_the_readme_gives():
    lengths = [len(json.loads(line)["text"]) for line in (EXAMPLE / "passages.jsonl").read_text().splitlines()]
    assert np.load(EXAMPLE / "passages.npy").shape == (len(lengths), 384)
    assert all(80 <= length <= 240 for length in lengths), (min(lengths), max(lengths))
    readme = (EXAMPLE / "README.md").read_text()
    assert f"{len(lengths)} passages of 80 to 240 characters" in readme
    assert f"8 nearest of {len(lengths)}" in readme


def test_the_passage_that_answers_is_among_those_found(retrieved):
    texts = [json.loads(line)["text"] for line in (EXAMPLE / "passages.jsonl").read_text().splitlines()]
    for found, answer in zip(retrieved, ASKED.values(), strict=True):
        assert any(answer in texts[number] for number in found.passages), found.text


async def test_its_server_puts_the_best_passage_first_and_the_last_stage_quotes_it(example, retrieved, url):
    started = example.stage("rerank").server
    model = ServedModel(replace(started, command="", url=url), str(EXAMPLE))
    try:
        best = [*await model(retrieved[:4]), *await model(retrieved[4:])]
        with pytest.raises(EventRefused, match=r"400 .*IndexError"):
            await model([type(retrieved[0])("A passage that is not there?", [10_000])])
    finally:
        await closed(model)
    answers = await example.stage("compose").run()(best)
    right = [answer in given.answer for given, answer in zip(answers, ASKED.values(), strict=True)]
    assert sum(right) >= len(right) - 1, [given.answer for given in answers]


async def test_answers_are_waited_for_together(example):
    import topology

    class Compose(topology.Compose):
        FIRST_WORD_S, WORD_S = 0.05, 0.0

        async def _answer(self, best):
            under_way.append(best.passage)
            answer = await super()._answer(best)
            assert len(under_way) == 8, "all had begun when the first was done"
            return answer

    under_way: list[int] = []
    compose = Compose()
    parts = [[topology.Ranked("?", number, 1.0), topology.Ranked("?", number, 1.0)] for number in range(4)]
    assert len(await asyncio.gather(*map(compose, parts))) == 4


def test_its_questions_are_all_different_and_the_live_arrivals_rise_above_those_planned():
    questions = read_events(EXAMPLE / "questions.jsonl")
    assert len(set(questions)) == len(questions) > 40
    planned, live = (read_arrivals(EXAMPLE / name) for name in ("arrivals.csv", "live.csv"))
    assert live.arrival_rate > 1.2 * planned.arrival_rate
