"""`profile --on`: stages are measured where they will run, and plans are made with what was measured there."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from inferline_stream.testing.kube_api import KubeApi, kubeconfig_of
from inferline_stream.testing.kubelet import kubelet

DEADLINE_S = 180.0
COMMAND = Path(sys.executable).with_name("inferline-stream")
TOPOLOGY = """
from inferline_stream import Pipeline, Sample, Stage, Topic


def double(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


def broken(numbers: list[int]) -> list[int]:
    raise RuntimeError("no model here")


doubling = Stage("double", double, hardware=["cpu-0.5"])
pipeline = Pipeline("doubles", slo="2s", source=Topic("in"), sink=Topic("out"), stages=[doubling],
                    sample=Sample(arrivals="arrivals.csv", events="events.jsonl"))
"""


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    folder = tmp_path / "doubles"
    folder.mkdir()
    (folder / "topology.py").write_text(TOPOLOGY)
    (folder / "events.jsonl").write_text("1\n2\n3\n")
    (folder / "arrivals.csv").write_text("arrival_s\n" + "".join(f"{n / 10}\n" for n in range(100)))
    return folder / "topology.py"


async def called(*command: object, **environment: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, " ".join(said.decode().split())


async def test_a_plan_for_a_cluster_is_made_with_profiles_of_the_cluster_or_not_at_all(
    topology: Path, tmp_path: Path
) -> None:
    async with asyncio.timeout(DEADLINE_S), KubeApi() as api:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(kubeconfig_of(api)))
        api.node.run = kubelet(tmp_path, api)
        code, said = await called(COMMAND, "plan", topology, "--on", "kubernetes")
        assert code == 3
        assert "stage 'double' on 'cpu-0.5' has no profile" in said
        assert "inferline-stream profile TOPOLOGY --on kubernetes" in said

        profile = (COMMAND, "profile", topology, "--on", "kubernetes", "--image", "d:1", "--time", "200ms")
        code, said = await called(*profile, KUBECONFIG=str(kubeconfig))
        assert code == 0, said
        (kept,) = (topology.parent / ".inferline/profiles/doubles/kubernetes").glob("*.json")
        measured = json.loads(kept.read_text())
        assert (measured["stage"], measured["hardware"]["name"]) == ("double", "cpu-0.5")
        assert measured["service_times"][0]["mean_s"] > 0
        assert api.pods() == []
        assert not [name for plural, name in api.applied if plural == "jobs"]

        jobs_so_far = sum(path.endswith("/jobs") for _, path in api.requests)
        code, said = await called(*profile, KUBECONFIG=str(kubeconfig))
        assert (code, sum(path.endswith("/jobs") for _, path in api.requests)) == (0, jobs_so_far), "it is known"
        code, said = await called(COMMAND, "plan", topology, "--on", "kubernetes")
        assert code == 0, said

        topology.write_text(TOPOLOGY.replace('"double", double', '"double", broken'))
        code, said = await called(*profile, KUBECONFIG=str(kubeconfig))
        assert code == 3
        assert "could not be profiled in kubernetes" in said
        assert "no model here" in said


async def test_a_job_without_a_place_says_what_it_waits_for(topology: Path, tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), KubeApi(places={"": 0}) as api:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(kubeconfig_of(api)))
        code, said = await called(
            *(COMMAND, "profile", topology, "--on", "kubernetes", "--image", "d:1", "--within", "2s"),
            KUBECONFIG=str(kubeconfig),
        )
    assert code == 3
    assert "had not ended after 2 s: 0/1 nodes are available" in said
