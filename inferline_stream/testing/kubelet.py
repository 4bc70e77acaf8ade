"""A kubelet for `KubeApi` whose containers are real processes of this machine: what a manifest names is what runs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from inferline_stream.testing.kube_api import KubeApi
from inferline_stream.testing.kube_node import Container

_PROBE_S = 0.1


def kubelet(
    folder: Path,
    api: KubeApi | None = None,
    environment: Mapping[str, str] | None = None,
    images: Mapping[str, Mapping[str, str]] | None = None,
) -> Callable[[Container], Awaitable[int]]:
    """Runs a container as a process of this machine: SIGTERM when its pod is to go, SIGKILL when it is overdue.

    Its volumes are folders of its own, filled where they are ConfigMaps; its commands are this environment's.

    Args:
        folder: for volumes and logs, by pod.
        api: has the ConfigMaps; none are needed without.
        environment: variables that every container has besides its own.
        images: and those that an image's containers have, such as where to find other code.
    """

    async def run(container: Container) -> int:
        pod = container.pod["metadata"]["name"]
        (declared,) = container.pod["spec"]["containers"]
        mounts = _mounts(folder / pod, container.pod["spec"], declared, api)
        told = {entry["name"]: entry.get("value", pod) for entry in declared.get("env", ())}
        command = [mounts.get(part, part) for part in (*declared["command"], *declared.get("args", ()))]
        program = sys.executable if command[0] == "python" else str(Path(sys.executable).with_name(command[0]))
        log = folder / f"{pod}.log"
        with log.open("ab") as written:
            process = await asyncio.create_subprocess_exec(
                program,
                *command[1:],
                env={**os.environ, **(environment or {}), **(images or {}).get(declared["image"], {}), **told},
                stdout=written,
                stderr=written,
                start_new_session=True,
            )

        async def stopped() -> None:
            await container.stop.wait()
            process.terminate()

        async def killed() -> None:
            await asyncio.shield(container.end)
            process.kill()

        async def probed() -> None:
            while not _is_ready(declared, mounts):  # noqa: ASYNC110  files tell nobody that they have come
                await asyncio.sleep(_PROBE_S)
            container.ready.set()

        watching = [asyncio.create_task(work()) for work in (stopped, killed, probed)]
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        container.log = log.read_text("utf-8", errors="replace")
        return 128 - code if code < 0 else code

    return run


def _is_ready(declared: dict[str, Any], mounts: Mapping[str, str]) -> bool:
    """What a container's readiness probe says; ``test -e FILE`` is the only one that is understood."""
    if (probe := declared.get("readinessProbe")) is None:
        return True
    test, exists, file = probe["exec"]["command"]
    assert (test, exists) == ("test", "-e"), probe
    (mount,) = [mount for mount in mounts if file.startswith(f"{mount}/")]
    return Path(mounts[mount] + file.removeprefix(mount)).exists()


def _mounts(folder: Path, spec: dict[str, Any], declared: dict[str, Any], api: KubeApi | None) -> dict[str, str]:
    """Folders of this machine by what the container calls them."""
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    found = {}
    for mount in declared.get("volumeMounts", ()):
        own = folder / mount["name"] if mount["name"] != "life" else folder
        own.mkdir(parents=True, exist_ok=True)
        if (source := volumes[mount["name"]].get("configMap")) is not None:
            assert api is not None, f"{source['name']} is nowhere"
            for item in source.get("items", ()):
                file = own / item["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(api.applied["configmaps", source["name"]]["data"][item["key"]])
        found[mount["mountPath"]] = str(own)
    return found
