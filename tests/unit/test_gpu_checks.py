"""`python -m tests.gpu`, on machines that are made up: it says what holds, and that there is no device."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferline_stream.actuators.devices import Device
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.validation import problems
from tests.gpu import stages
from tests.gpu.__main__ import main
from tests.gpu.checks import CHECKS, Failed, Machine, ask, made

L4 = Device("GPU-1", "NVIDIA L4", 23 << 30)
RUN = {"completed": {"dead_lettered": 1}, "events_in": 160, "lost": 0, "p99_s": 0.05, "slo_miss_rate": 0.0}
PLAN = {"plan": {"allocations": {"embed": [{"hardware": "l4"}]}, "predicted_p99_s": 0.06}}


def profile(mean_s: float = 0.01, largest: int = 4) -> dict[str, Any]:
    times = [{"batch_size": size, "mean_s": mean_s} for size in (1, largest)]
    return {"profiles": [{"start_up_s": 2.0, "service_times": times}]}


def machine(folder: Path, *, installed: bool = True, **documents: Any) -> Machine:
    """One whose commands answer with documents; `profile` may be a function of the topology's path."""
    known = {"profile": profile(), "run": RUN, "plan": PLAN, "python": "0.2", **documents}

    def answer(*arguments: str, **environment: str) -> str:
        found = known[arguments[0]]
        if arguments[0] == "python" and "SentenceEncoder" in arguments[1]:
            found = known.get("provider", "CUDAExecutionProvider\n")
        found = found(arguments[1]) if callable(found) else found
        return found if isinstance(found, str) else json.dumps(found)

    return Machine(L4, folder, answer, lambda name: installed)


def outcomes(of: Machine, *names: str) -> dict[str, tuple[str, str]]:
    return {name: (how, found) for name, how, found, _ in made(of, names or tuple(CHECKS))}


def test_on_a_machine_without_a_device_it_says_so_and_checks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], ()) == 0
    said = capsys.readouterr().out
    assert "No NVIDIA GPU answers on this machine, so nothing was checked." in said
    assert "CUDA_VISIBLE_DEVICES may hide devices" in said, "what is missing, with its remedy"


def test_every_check_holds_on_a_machine_as_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.gpu.checks.shutil.which", lambda name: None)
    found = outcomes(machine(tmp_path))
    assert {name for name, (how, _) in found.items() if how != "holds"} == {"MPS"}
    assert found["MPS"] == ("left out", "nvidia-cuda-mps-control is not installed")
    assert found["topologies/gpu"][1].startswith("on l4: P99 50 ms, predicted 60 ms")


def test_mps_is_measured_under_a_daemon_that_is_ended_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's program is a script here, and profiles are made up."""
    log, script = tmp_path / "log", tmp_path / "nvidia-cuda-mps-control"
    script.write_text(f'#!/bin/sh\ntest -d "$CUDA_MPS_PIPE_DIRECTORY" && echo "${{1:-$(cat)}}" >> {log}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = outcomes(machine(tmp_path / "checks"), "MPS")
    assert found == {"MPS": ("holds", "time slices 10.0 ms, MPS 10.0 ms")}
    assert log.read_text().split() == ["-d", "quit"]


def slow_half(path: str) -> dict[str, Any]:
    return profile(0.1 if "/half/" in path else 0.01)


@pytest.mark.parametrize(
    ("name", "documents", "said"),
    [
        ("a device-side assert", {"run": {**RUN, "completed": {"dead_lettered": 144}}}, "144 dead letters of 160"),
        ("a device-side assert", {"run": {**RUN, "lost": 1}}, "1 lost"),
        ("two halves", {"profile": slow_half}, "10.00 × as long"),
        ("the image's libraries", {"provider": "CPUExecutionProvider\n"}, "a session runs on CPUExecutionProvider"),
        ("topologies/gpu", {"run": {**RUN, "slo_miss_rate": 0.3}}, "30.00% above the SLO"),
        ("a batch too large", {"profile": profile(largest=16)}, "batches up to 16 were measured"),
        ("CUDA starts sealed", {"profile": {"profiles": []}}, "ValueError"),
    ],
)
def test_what_does_not_hold_is_named_with_its_figures(
    name: str, documents: dict[str, Any], said: str, tmp_path: Path
) -> None:
    how, found = outcomes(machine(tmp_path, **documents), name)[name]
    assert (how, said in found) == ("fails", True), found


def test_what_needs_a_framework_is_left_out_where_there_is_none(tmp_path: Path) -> None:
    found = outcomes(machine(tmp_path, installed=False))
    assert {name for name, (how, _) in found.items() if how == "holds"} == {"CUDA starts sealed", "NVML"}
    assert not [name for name, (how, _) in found.items() if how == "fails"]


def test_a_command_that_fails_is_a_check_that_fails_with_its_last_words() -> None:
    with pytest.raises(Failed, match=r"`python` ended with code 1: ValueError: no device"):
        ask("python", "raise ValueError('no device')")


@pytest.mark.parametrize("source", [stages.DRIVER, stages.MATRICES, stages.MEMORY])
def test_the_topologies_of_the_checks_are_sound(source: str, tmp_path: Path) -> None:
    written = stages.write(tmp_path / "check", source, numbers=[1, 2], per_s=2.0, model="NVIDIA L4", kind="half")
    assert list(problems(load_topology(written))) == []


def test_the_exit_code_says_that_a_check_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: Callable[..., list[tuple[str, str, str, float]]] = lambda *_: [("NVML", "fails", "error 999", 0.1)]  # noqa: E731
    monkeypatch.setattr("tests.gpu.__main__.made", rows)
    assert main(["NVML"], (L4,)) == 1
    assert "NVML  fails        0 s  error 999" in capsys.readouterr().out
