"""The GPU example behind stand-ins for its two libraries, at the door that it has to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.validation import problems
from inferline_stream.profiler.topology_check import event_problems, sample_problems

TOPOLOGY = Path(__file__).parents[2] / "topologies/gpu/topology.py"


def vector(word: str) -> Any:
    """Of a word: always the same, and unlike that of another one."""
    return np.random.default_rng(list(word.encode())).normal(size=384).astype(np.float32)


class Model:
    """A bag of words."""

    devices: ClassVar[list[str]] = []

    def __init__(self, folder: str, device: str) -> None:
        assert Path(folder, "config.json").exists()
        self.devices.append(device)

    def half(self) -> None:
        self.devices.append("half")

    def encode(self, texts: list[str], output_value: str = "", **options: Any) -> Any:
        assert options["batch_size"] == len(texts)
        words = [np.stack([vector(word) for word in text.split()]) for text in texts]
        if output_value == "token_embeddings":
            tensors = [SimpleNamespace(cpu=lambda each=each: each) for each in words]
            return [SimpleNamespace(float=lambda each=each: each) for each in tensors]
        sums = np.stack([each.sum(axis=0) for each in words])
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def extract_model(folder: str) -> Path:
    Path(folder, "config.json").touch()
    return Path(folder)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fakes = {
        "sentence_transformers": {"SentenceTransformer": Model},
        "all_minilm_l6_v2": {"extract_model": extract_model},
        "torch": {"cuda": SimpleNamespace(is_available=lambda: False)},
    }
    for name, members in fakes.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    Model.devices.clear()
    return load_topology(TOPOLOGY)


@pytest.mark.parametrize("variable", ["on_devices", "on_cores"])
def test_the_example_is_sound_and_its_sample_can_be_read(variable: str, example: Any) -> None:
    found = load_topology(f"{TOPOLOGY}:{variable}")
    assert list(problems(found)) == []
    assert sample_problems(found, TOPOLOGY.parent) == []
    assert event_problems(found, TOPOLOGY.parent) == []


@pytest.mark.parametrize(("driver", "name"), [(True, "repeats"), (False, "repeats-on-cores")])
def test_the_machine_says_which_of_two_pipelines_of_the_same_code_is_meant(
    driver: bool, name: str, example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: driver if "nvidia" in str(path) else exists(path))
    found, other = load_topology(TOPOLOGY), load_topology(f"{TOPOLOGY}:on_devices")
    assert found.name == name
    assert [(s.name, s.run.__name__) for s in found.stages] == [(s.name, s.run.__name__) for s in other.stages]
    assert ("cpu-1" in found.stages[0].hardware) == (not driver)


@pytest.mark.parametrize(("available", "devices"), [(True, ["cuda", "half"]), (False, ["cpu"])])
def test_a_post_is_ranked_beside_itself_where_it_is_known_on_a_device_if_there_is_one(
    available: bool, devices: list[str], example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["torch"], "cuda", SimpleNamespace(is_available=lambda: available), raising=False)
    embed, rank = (example.stage(name).run for name in ("embed", "rank"))
    retrieve, order = embed(), rank()
    assert Model.devices == devices * 2
    known = sys.modules[embed.__module__].known_posts()
    found = order(
        retrieve([SimpleNamespace(text=known[40]), SimpleNamespace(text="quite unlike anything else there is")])
    )
    assert (found[0].nearest, found[0].repeated) == (known[40], True)
    assert found[0].score == pytest.approx(1.0, abs=1e-4)
    assert not found[1].repeated
