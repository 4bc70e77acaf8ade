"""The Helm chart in helm's own hands, on a real API server; where `.ci/cluster` has built both."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from lightkube.resources.apps_v1 import Deployment

from inferline_stream.actuators.kubernetes.inference_pipeline import PipelineResource, SeenResource
from inferline_stream.actuators.kubernetes.installation import Installation, chart_values, manifests
from tests.contracts.chart import CHART
from tests.contracts.test_installation import NEWEST, OLDEST, OURS, _in, key, of_kubernetes
from tests.kube.api import client_of
from tests.kube.real_cluster import ControlPlane, RealApi, binaries, control_plane

FOLDER = binaries()

if FOLDER is not None:
    HELM = FOLDER / "helm"

    @pytest.fixture(scope="module")
    def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
        with control_plane(tmp_path_factory.mktemp("cluster")) as found:
            yield found

    async def helm(folder: Path, *words: str, of: Installation = OURS, kubeconfig: object = None) -> str:
        """Return what helm says with the values that `deploy --save` would write."""
        (folder / "values.yaml").write_text(yaml.safe_dump(chart_values(of)))
        (folder / "kubeconfig").write_text(json.dumps(kubeconfig))
        process = await asyncio.create_subprocess_exec(
            HELM, *words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"KUBECONFIG": str(folder / "kubeconfig"), "HOME": str(folder)},
        )  # fmt: skip
        said, why = await process.communicate()
        assert process.returncode == 0, why.decode()
        return said.decode()

    @pytest.mark.parametrize("of", [OURS, _in("ml")], ids=["all values", "least values"])
    async def test_what_it_renders_are_the_manifests(of: Installation, tmp_path: Path) -> None:
        assert "0 chart(s) failed" in await helm(tmp_path, "lint", str(CHART), "-f", "values.yaml", of=of)
        text = await helm(tmp_path, "template", "r", str(CHART), "-n", "ml", "-f", "values.yaml", of=of)
        found = {key(m): m for m in yaml.safe_load_all(text) if m}
        dashboard = found.pop(("ConfigMap", f"{of.name}-dashboard"))
        assert found == {key(m): json.loads(json.dumps(m)) for m in manifests(of)}
        assert json.loads(dashboard["data"]["inferline.json"])["panels"]
        for version in (OLDEST, NEWEST):
            for each in of_kubernetes([dashboard, *found.values()]):
                kubernetes_validate.validate(each, version, strict=True)

    @pytest.mark.parametrize("switch", ["rbac", "networkPolicies", "monitor", "rules", "dashboard"])
    async def test_each_part_can_be_left_out(switch: str, tmp_path: Path) -> None:
        words = ("template", "r", str(CHART), "-f", "values.yaml")
        whole, less = await helm(tmp_path, *words), await helm(tmp_path, *words, "--set", f"{switch}.enabled=false")
        assert len(list(yaml.safe_load_all(less))) < len(list(yaml.safe_load_all(whole)))

    async def test_a_role_without_the_names_of_its_secrets_is_refused(tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match=r"names\.credentials is empty"):
            await helm(tmp_path, "template", "r", str(CHART), "-f", "values.yaml", "--set", "names.credentials=null")

    async def test_it_is_installed_upgraded_and_removed_and_the_resource_has_a_status(
        plane: ControlPlane, tmp_path: Path
    ) -> None:
        async with RealApi(plane) as api, client_of(api) as client:
            values = ("-f", "values.yaml", "--set", "monitor.enabled=false,rules.enabled=false")

            async def called(*words: str) -> str:
                return await helm(tmp_path, *words, of=_in(api.namespace), kubeconfig=api.kubeconfig)

            async def controller() -> Any:
                return await client.get(Deployment, OURS.name, namespace=api.namespace)

            resource = PipelineResource(client, api.namespace, "moderation")

            async def seen() -> SeenResource:
                found = await resource.read()
                assert found is not None
                return found

            await called("install", "moderation", str(CHART), *values)
            assert (await controller()).spec.replicas == 2
            assert (await seen()).spec == {}
            await resource.report({"observedGeneration": 1, "replicas": "2/3", "conditions": [{"type": "Ready"}]})
            assert ((await seen()).generation, (await seen()).observed) == (1, 1)
            await called("upgrade", "moderation", str(CHART), *values, "--set", "spec.slo=200ms,image=other:4")
            assert (await controller()).spec.template.spec.containers[0].image == "other:4"
            assert (await seen()).spec == {"slo": "200ms"}
            assert ((await seen()).generation, (await seen()).observed) == (2, 1), "its status is kept"
            with pytest.raises(AssertionError, match=r"spec\.slo"):
                await called("upgrade", "moderation", str(CHART), *values, "--set", "spec.slo=soon")
            await called("uninstall", "moderation", "--wait")
            assert await resource.read() is None
