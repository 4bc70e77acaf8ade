"""What the parent of a pod's replica is made of: memory that each pod has beside its model."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

from inferline_stream.actuators.network.credentials import new_credential, replica_context
from inferline_stream.actuators.network.host_link import HostLink
from inferline_stream.actuators.network.replica_host import ReplicaHost, _Offered
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from tests.support.sandbox import needs_sandbox


def test_a_replicas_host_has_no_kafka_client() -> None:
    code = (
        "import inferline_stream.actuators.network.replica_host, sys; "
        "print(sorted({'aiokafka', 'aiohttp', 'numpy', 'lightkube'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@needs_sandbox
async def test_a_replicas_host_imports_its_code_once_and_prepares_no_fork(tmp_path: Path) -> None:
    for name, content in new_credential("work").replica.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "topology.py").touch()
    kind, isolation = Hardware("cpu-1", 0.1, cores=0), Isolation(forked=True)
    replica = ReplicaSpec("work-a", "work", str(tmp_path / "topology.py"), kind, isolation=isolation)
    host = ReplicaHost(replica, "", ["127.0.0.1:9"], replica_context(tmp_path), tmp_path / "logs")
    host.start()
    assert not host._children._fork_servers._servers
    host.end("the test is over")
    async with asyncio.timeout(20.0):
        assert (await host.run()).reason == "the test is over"


async def test_an_attempt_that_was_given_up_before_its_connection_ended_leaves_nothing_in_the_log() -> None:
    host: Any = None
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    offered = _Offered(host)
    offered.closed(HostLink(offered.heard, offered.closed), "the other side closed the connection")
    del offered
    gc.collect()
    await asyncio.sleep(0)
    assert reported == []
