"""What a sandboxed replica on a GPU may see and open: the driver, its libraries, and shared memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inferline_stream.isolation import limits, paths
from inferline_stream.isolation.confinement import Confinement, confined, decoded, visible
from inferline_stream.isolation.landlock import PathGrant
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation

CORE, T4 = Hardware("cpu-1", 0.1), Hardware("t4", 0.5, gpus=1, gpu_model="Tesla T4")


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
