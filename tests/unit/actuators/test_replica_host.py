"""What the parent of a pod's replica is made of: memory that each pod has beside its model."""

from __future__ import annotations

import subprocess
import sys


def test_a_replicas_host_has_no_kafka_client() -> None:
    code = (
        "import inferline_stream.actuators.network.replica_host, sys; "
        "print(sorted({'aiokafka', 'aiohttp', 'numpy', 'lightkube'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
