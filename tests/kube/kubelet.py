"""A kubelet whose containers are real processes of this machine: what a manifest names is what runs."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import os
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from inferline_stream.isolation import bootstrap
from tests.kube.api import Api
from tests.kube.node import Container
from tests.kube.wire import Wire

_PROBE_S = 0.1


class Kubelet:
    """Runs a container as a process of this machine: SIGTERM when its pod is to go, SIGKILL when it is overdue.

    Its volumes are folders of its own, filled from ConfigMaps and Secrets; its commands are this environment's.
    A pod reaches a Service through a `Wire` of its own, and the API server where its service account is mounted.

    Args:
        folder: for volumes and logs, by pod.
        api: has the ConfigMaps, Secrets and Services.
        images: variables that an image's containers have besides their own, such as where to find other code.
    """

    def __init__(
        self,
        folder: Path,
        api: Api,
        images: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._folder, self._api = folder, api
        self._images = images or {}
        self.processes: dict[str, int] = {}
        """Process of each pod."""
        self.wires: dict[str, Wire] = {}
        """By pod, its way to a Service."""

    def log(self, pod: str) -> str:
        """Return what a pod's container has written."""
        file = self._folder / f"{pod}.log"
        return file.read_text("utf-8", errors="replace") if file.exists() else ""

    async def __call__(self, container: Container) -> int:
        """Run a container to its end; returns the exit code."""
        async with AsyncExitStack() as stack:
            return await self._run(container, stack)

    async def _run(self, container: Container, stack: AsyncExitStack) -> int:
        pod = container.pod["metadata"]["name"]
        (declared,) = container.pod["spec"]["containers"]
        mounts = self._mounts(self._folder / pod, container.pod["spec"], declared)
        fields = {"metadata.name": pod, "status.podIP": container.pod["status"]["podIP"]}
        fields["spec.nodeName"] = container.pod["spec"]["nodeName"]
        given = {}
        for entry in declared.get("env", ()):
            text = entry.get("value") or fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            for path, folder in mounts.items():
                text = text.replace(f'"{path}"', f'"{folder}"')
            given[entry["name"]] = await self._wired(text, pod, fields["status.podIP"], stack)
        command = [mounts.get(part, part) for part in (*declared["command"], *declared.get("args", ()))]
        if command[:2] == ["python", "-m"]:  # it ends with this process, however that ends
            command = [*bootstrap.command(command[2]), *command[3:]]
        else:
            command[0] = str(Path(sys.executable).with_name(command[0]))
        if container.pod["spec"].get("automountServiceAccountToken", True):
            kubeconfig = self._folder / f"{pod}.kubeconfig"
            kubeconfig.write_text(json.dumps(await self._api.account(container.pod["spec"]["serviceAccountName"])))
            given["KUBECONFIG"] = str(kubeconfig)
        image = self._images.get(declared["image"], {})
        with (self._folder / f"{pod}.log").open("ab") as written:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**os.environ, **image, **given},
                stdout=written,
                stderr=written,
                start_new_session=True,
            )
        self.processes[pod] = process.pid

        async def stopped() -> None:
            await container.stop.wait()
            process.terminate()

        async def killed() -> None:
            await asyncio.shield(container.end)
            process.kill()

        async def probed() -> None:
            while not _is_ready(declared, mounts):
                await asyncio.sleep(_PROBE_S)
            container.ready.set()

        watching = [asyncio.create_task(work()) for work in (stopped, killed, probed)]
        try:
            code = await process.wait()
            container.log = self.log(pod) if code else ""
        finally:
            self.processes.pop(pod, None)
            if process.returncode is None:
                process.kill()
                await process.wait()
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        return 128 - code if code < 0 else code

    async def _wired(self, text: str, pod: str, address: str, stack: AsyncExitStack) -> str:
        """Have a pod reach each Service that a text names through a wire at the pod's own address."""
        for name, service in [(n, s) for (kind, n), s in self._api.applied.items() if kind == "services"]:
            (port,) = service["spec"]["ports"]
            where = f"{service['spec']['clusterIP']}:{port['port']}"
            if where in text:
                wire = Wire(address, port["port"], functools.partial(self._api.endpoints, name))
                self.wires[pod] = await stack.enter_async_context(wire)
                text = text.replace(where, f"{address}:{port['port']}")
        return text

    def _mounts(self, folder: Path, spec: dict[str, Any], declared: dict[str, Any]) -> dict[str, str]:
        """Folders of this machine by what the container calls them."""
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        found = {}
        for mount in declared.get("volumeMounts", ()):
            own = folder / mount["name"]
            own.mkdir(parents=True, exist_ok=True)
            found[mount["mountPath"]] = str(own)
            if (source := volumes[mount["name"]].get("configMap")) is not None:
                for item in source.get("items", ()):
                    file = own / item["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(self._api.applied["configmaps", source["name"]]["data"][item["key"]])
            if (source := volumes[mount["name"]].get("secret")) is not None:
                for name, text in self._api.applied["secrets", source["secretName"]]["data"].items():
                    (own / name).write_bytes(base64.b64decode(text))
        return found


def _is_ready(declared: dict[str, Any], mounts: Mapping[str, str]) -> bool:
    """What a container's readiness probe says; ``test -e FILE`` is the only one that is understood."""
    if (probe := declared.get("readinessProbe")) is None:
        return True
    test, exists, file = probe["exec"]["command"]
    assert (test, exists) == ("test", "-e"), probe
    (mount,) = [mount for mount in mounts if file.startswith(f"{mount}/")]
    return Path(mounts[mount] + file.removeprefix(mount)).exists()
