"""What a stage on a GPU needs: found where it is, and named with its remedy where it is not."""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferline_stream.actuators.devices import Device
from inferline_stream.actuators.gpu_needs import GpuNeed, gpu_needs
from inferline_stream.cli.main import app

L4 = Device("GPU-1", "NVIDIA L4", 23 << 30)


def looked_at(
    root: Path,
    *,
    devices: tuple[Device, ...] = (L4,),
    programs: Collection[str] = ("nvidia-modprobe",),
    cuda: int = 13000,
    lack: str = "",
    mps: bool = True,
) -> dict[str, GpuNeed]:
    found = gpu_needs(
        root,
        devices=lambda: devices,
        which=lambda name: f"/usr/bin/{name}" if name in programs else None,
        cuda_version=lambda: cuda,
        framework_lack=lambda: lack,
        mps_daemon=lambda: root if mps else None,
    )
    return {need.name: need for need in found}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with one GPU and its driver."""
    for name in ("dev/nvidiactl", "dev/nvidia0", "dev/nvidia-uvm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
    (tmp_path / "proc/driver/nvidia/version").write_text(version)
    return tmp_path


def test_a_machine_that_has_everything_lacks_nothing_and_says_what_it_has(root: Path) -> None:
    found = looked_at(root)
    assert [need.remedy for need in found.values()] == [""] * len(found)
    assert "580.95.05" in found["driver"].found
    assert (found["NVML"].found, found["CUDA"].found) == ("NVIDIA L4", "13.0")
    assert found["device nodes"].found == "/dev/nvidiactl, /dev/nvidia0"


@pytest.mark.parametrize(
    ("gone", "name", "remedy"),
    [
        ("proc/driver/nvidia/version", "driver", "modprobe nvidia"),
        ("dev/nvidia0", "device nodes", "nvidia-modprobe -c=0"),
        ("dev/nvidia-uvm", "unified memory", "nvidia-modprobe -u -c=0"),
    ],
)
def test_a_file_that_is_missing_is_one_need_with_its_remedy(gone: str, name: str, remedy: str, root: Path) -> None:
    (root / gone).unlink()
    found = looked_at(root)
    assert [need.name for need in found.values() if need.remedy] == [name]
    assert remedy in found[name].remedy


@pytest.mark.parametrize(
    ("given", "name", "remedy"),
    [
        ({"devices": ()}, "NVML", "libnvidia-ml.so.1"),
        ({"cuda": 0}, "CUDA", "libcuda1"),
        ({"lack": "torch.cuda.is_available() is false"}, "the stage's framework", "pip install onnxruntime-gpu"),
        ({"mps": False}, "sharing", "nvidia-cuda-mps-control -d"),
    ],
)
def test_what_a_library_or_a_program_lacks_is_one_need_with_its_remedy(
    given: dict, name: str, remedy: str, root: Path
) -> None:
    found = looked_at(root, **given)
    assert [need.name for need in found.values() if need.remedy] == [name]
    assert remedy in found[name].remedy


def test_only_shares_need_a_daemon(root: Path) -> None:
    assert [need.name for need in looked_at(root).values() if need.optional] == []
    lacking = looked_at(root, mps=False)
    assert [need.name for need in lacking.values() if need.optional] == ["sharing"]


def test_nothing_at_all_is_every_need_and_the_guide_has_each(tmp_path: Path) -> None:
    found = looked_at(tmp_path, devices=(), programs=(), cuda=0, lack="neither is installed", mps=False)
    assert all(need.remedy for need in found.values())
    guide = (Path(__file__).parents[3] / "docs/how-to/gpu.md").read_text(encoding="utf-8")
    assert [name for name in found if f"| {name}" not in guide] == []


@pytest.mark.parametrize(
    ("given", "code"),
    [({}, 0), ({"mps": False}, 0), ({"cuda": 0}, 3), ({"devices": (), "mps": False}, 3)],
)
@pytest.mark.parametrize("form", ["table", "json"])
def test_the_command_names_what_is_missing_with_its_remedy_and_fails_for_what_every_stage_needs(
    form: str, given: dict, code: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = tuple(looked_at(root, **given).values())
    monkeypatch.setattr("inferline_stream.actuators.gpu_needs.gpu_needs", lambda: needs)
    monkeypatch.setattr("inferline_stream.isolation.seal.unsupported", lambda isolation: ())
    done = CliRunner().invoke(app, ["sandbox", "check", "--gpu", "--output", form])
    assert done.exit_code == code, done.output
    if form == "json":
        assert json.loads(done.stdout)["gpu"] == [asdict(need) for need in needs]
        return
    lines = [line.strip() for line in (*done.stdout.splitlines(), "")]
    for need in needs:
        (at,) = (n for n, line in enumerate(lines) if need.name in line and line.endswith(need.found))
        assert lines[at].split()[0] == ("there" if not need.remedy else "optional" if need.optional else "missing")
        assert (lines[at + 1] == f"→ {need.remedy}") == bool(need.remedy)
