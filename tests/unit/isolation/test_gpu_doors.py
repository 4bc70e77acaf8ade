"""What a sandboxed replica on a GPU may see and open: the driver, its libraries, and shared memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from inferline_stream.errors import InvalidInput
from inferline_stream.isolation import containers, limits, paths
from inferline_stream.isolation.confinement import Confinement, confined, decoded, visible
from inferline_stream.isolation.containers import Container
from inferline_stream.isolation.landlock import PathGrant
from inferline_stream.isolation.launch import Launch
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation

CORE, T4 = Hardware("cpu-1", 0.1), Hardware("t4", 0.5, gpus=1, gpu_model="Tesla T4")
GPU = "GPU-1f2e3d4c"


def test_settings_of_frameworks_are_seen_and_their_secrets_are_not() -> None:
    seen = {"HF_HOME": "/models", "VLLM_USE_V1": "1", "NCCL_P2P_DISABLE": "1", "PYTORCH_CUDA_ALLOC_CONF": "x"}
    hidden = {"HF_TOKEN": "hf_x", "VLLM_API_KEY": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    declared = confined(Isolation("sandbox", environment=("HF_TOKEN",)), "/app/topology.py", CORE)
    assert visible({**seen, **hidden}, confined(Isolation(), "/app/topology.py", T4)) == seen
    assert visible({**seen, **hidden}, declared) == {**seen, "HF_TOKEN": "hf_x"}


def granted(isolation: Isolation, hardware: Hardware) -> dict[str, PathGrant]:
    return {grant.path: grant for grant in paths.grants(confined(isolation, "/app/topology.py", hardware))}


def test_a_replica_on_a_gpu_may_open_shared_memory_and_the_libraries_of_cuda_and_another_may_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/cuda-12.4/lib64:relative:/opt/tensorrt/lib")
    monkeypatch.setattr(paths.glob, "glob", lambda pattern: ["/usr/local/cuda-12.4"])
    found = granted(Isolation(), T4)
    assert found["/dev/shm"].write
    for path in ("/usr/local/cuda-12.4", "/usr/local/nvidia", "/opt/tensorrt/lib", "/usr/local/cuda-12.4/lib64"):
        assert not found[path].write
    assert "relative" not in found
    assert not {"/dev/shm", "/opt/tensorrt/lib"} & granted(Isolation(), CORE).keys()
    assert granted(Isolation(shm_mb=64), CORE)["/dev/shm"].write


def test_weights_may_be_read_where_they_are_mounted() -> None:
    isolation = Isolation(volumes=("weights:/models/llama", "cache.v2:/cache"))
    assert list(isolation.mounts) == [("weights", "/models/llama"), ("cache.v2", "/cache")]
    found = granted(isolation, CORE)
    assert (found["/models/llama"].write, found["/cache"].write) == (False, False)
    confinement = confined(isolation, "/app/topology.py", CORE)
    assert decoded(confinement.encoded()) == confinement


@pytest.mark.parametrize("volume", ["/models", "weights", "weights:models", "We:/models", "a:/b:/c", ":/models", 3])
def test_a_volume_that_cannot_be_is_refused(volume: object) -> None:
    with pytest.raises(ValueError, match="is no NAME:/path"):
        Isolation(volumes=(volume,))  # type: ignore[arg-type]


def test_shared_memory_is_no_longer_than_declared_and_no_file_is_cut_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {}
    monkeypatch.setattr(limits.resource, "getrlimit", lambda which: (-1, -1))
    monkeypatch.setattr(limits.resource, "setrlimit", lambda which, pair: held.update({which: pair[0]}))
    limits.limit(Confinement(Isolation(file_mb=10, shm_mb=2048), ""))
    assert held[limits.resource.RLIMIT_FSIZE] == 2048 << 20


@pytest.mark.parametrize(("held", "bounded"), [(None, False), (1 << 62, False), (64 << 20, True)])
def test_beside_a_gpu_only_a_control_group_bounds_memory_and_where_none_does_that_is_said(
    monkeypatch: pytest.MonkeyPatch, held: int | None, bounded: bool
) -> None:
    monkeypatch.setattr(limits, "group_memory_bytes", lambda: held)
    for isolation in (Isolation(), Isolation(memory_mb=100)):
        lack = limits.unbounded_memory_here(Confinement(isolation, "", gpu=True))
        assert ("nothing bounds" in lack) is not bounded
    assert limits.unbounded_memory_here(Confinement(Isolation(), "")) == ""


def test_a_replica_on_a_gpu_is_given_a_group_with_a_limit_of_memory_that_it_did_not_declare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "own_group", lambda controller: (tmp_path, True))
    assert limits.join_groups(Confinement(Isolation(), ""), 7) == ()
    assert limits.join_groups(Confinement(Isolation(), "", gpu=True), 7) == ("memory",)
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    assert (tmp_path / "inferline-7/memory.max").read_text() == str(half)


@pytest.fixture
def specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(containers, "_CDI", (str(tmp_path / "etc"), str(tmp_path / "run")))
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvidia.yaml").write_text(f"kind: nvidia.com/gpu\ndevices:\n- name: {GPU}\n- name: GPU-2\n")
    return tmp_path / "etc/nvidia.yaml"


def command(engine: str, monkeypatch: pytest.MonkeyPatch, level: str = "container", *devices: str) -> list[str]:
    monkeypatch.setattr(containers, "engine", lambda level: f"/usr/bin/{engine}")
    isolation = Isolation(level, shm_mb=512, volumes=("weights:/usr/share",))
    confinement = confined(isolation, "/app/topology.py", T4)
    return Launch("some.module", confinement, cores=1, devices=devices).command


def test_podman_gives_a_container_its_devices_by_their_names_in_the_specification(
    specification: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = command("podman", monkeypatch, "container", GPU, "GPU-2")
    assert [part for part in made if "device" in part] == [
        f"--device=nvidia.com/gpu={GPU}",
        "--device=nvidia.com/gpu=GPU-2",
    ]
    assert "--env=CUDA_VISIBLE_DEVICES" in made
    assert "--shm-size=512m" in made
    assert "--volume=/usr/share:/usr/share:ro" in made
    image = made.index("inferline-stream")
    assert json.loads(made[image + 5])["gpu"], "the sealed process within is one on a GPU"


def test_a_device_that_podman_knows_nothing_of_is_refused_with_the_command_that_helps(
    specification: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match=r"nvidia.com/gpu=GPU-3: run `nvidia-ctk cdi generate --device-name-"):
        command("podman", monkeypatch, "container", "GPU-3")


@pytest.mark.parametrize(
    ("answer", "level", "second"),
    [
        ('["/etc/cdi"]', "container", "GPU-2"),
        ("[]", "container", "GPU-2"),  # it is set to read none
        ("", "container", "GPU-2"),  # before version 28
        ('["/etc/cdi"]', "container", "GPU-3"),  # of which no specification knows
        ('["/etc/cdi"]', "gvisor", "GPU-2"),
    ],
)
def test_docker_gives_a_container_its_devices_by_specification_or_by_nvidias_toolkit(
    answer, level, second, specification: Path, monkeypatch
) -> None:
    devices, by_specification = (GPU, second), (answer, level, second) == ('["/etc/cdi"]', "container", "GPU-2")
    docker = specification.with_name("docker")
    docker.write_text(f"#!/bin/sh\n[ \"$1 $2\" = 'info --format' ] && echo '{answer}'\n")
    docker.chmod(0o755)
    monkeypatch.setattr(containers, "engine", lambda level: str(docker))
    containers._reads_specifications.cache_clear()
    made = Launch("some.module", confined(Isolation(level), "/app/topology.py", T4), cores=1, devices=devices).command
    assert ("--gpus" in made) is not by_specification
    assert [part for part in made if part.startswith("--device=")] == (
        [f"--device=nvidia.com/gpu={uuid}" for uuid in devices] if by_specification else []
    )
    seen = "void" if by_specification else ",".join(devices)
    assert f"--env=NVIDIA_VISIBLE_DEVICES={seen}" in made
    if not by_specification:
        assert made[made.index("--gpus") + 1] == f'"device={seen}"'


def test_podman_labels_no_device_so_that_selinux_lets_a_container_with_gpus_open_them_and_no_other_is_without_labels(
    specification: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--security-opt=label=disable" in command("podman", monkeypatch, "container", GPU)
    assert "--security-opt=label=disable" not in command("podman", monkeypatch)


@pytest.mark.parametrize("engine", ["podman", "docker"])
@pytest.mark.parametrize("devices", [(), (GPU,)])
def test_what_an_image_or_the_host_asks_of_nvidias_toolkit_gives_no_container_a_gpu_beyond_its_own(
    engine: str, devices: tuple[str, ...], specification: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    monkeypatch.setenv("NVIDIA_DRIVER_CAPABILITIES", "graphics")
    made = command(engine, monkeypatch, "container", *devices)
    assert [part for part in made if part.startswith("--env=NVIDIA_")] == [
        f"--env=NVIDIA_VISIBLE_DEVICES={GPU if devices and engine == 'docker' else 'void'}",
        "--env=NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ]


def test_a_gpu_is_refused_where_no_way_leads_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match='isolation "kata" has no way to a GPU'):
        command("podman", monkeypatch, "kata", GPU)


def test_gvisor_is_given_whole_gpus_and_asked_to_hand_the_drivers_calls_through(
    specification: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = command("podman", monkeypatch, "gvisor", GPU)
    assert {"--runtime=runsc", "--runtime-flag=nvproxy", f"--device=nvidia.com/gpu={GPU}"} <= set(made)
    assert "--runtime-flag=nvproxy" not in command("podman", monkeypatch, "container", GPU)
    with pytest.raises(InvalidInput, match="takes whole GPUs alone, and MIG-1 is a slice"):
        command("podman", monkeypatch, "gvisor", "MIG-1")


def test_a_container_without_a_gpu_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "engine", lambda level: "/usr/bin/podman")
    confinement = confined(Isolation("gvisor"), "/app/topology.py", CORE)
    made = Container("some.module", confinement, cores=1, pinned=(), environment={}).command
    assert not any("device" in part.lower() for part in made if "_VISIBLE" not in part and "confinement" not in part)
