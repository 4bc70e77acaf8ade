"""Runs a piece of code in a process that is confined as a replica is."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any

from inferline_stream.isolation import bootstrap, limits
from inferline_stream.isolation.confinement import confined
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation

PRELUDE = """
import errno, json, os, socket, sys, threading
from inferline_stream.isolation.confinement import decoded
from inferline_stream.isolation.seal import seal

outcome = {}


def tried(name, attempt):
    try:
        attempt()
        outcome[name] = "done"
    except OSError as error:
        outcome[name] = errno.errorcode[error.errno]
    except Exception as error:
        outcome[name] = type(error).__name__


CONFINEMENT = decoded(os.environ["CONFINEMENT"])
"""


CORE, GPU = Hardware("cpu-1", 0.0), Hardware("t4", 0.5, gpus=1, gpu_model="Tesla T4")


def run(folder: Path, code: str, isolation: Isolation, hardware: Hardware = CORE) -> dict[str, Any]:
    """Run code in a process with this isolation; what came of it."""
    (folder / "topology.py").touch()
    confinement = confined(isolation, folder / "topology.py", hardware, "127.0.0.1:9092" if hardware is CORE else "")
    (folder / "inside.py").write_text(
        PRELUDE + textwrap.dedent(code) + "\nprint(json.dumps(outcome), flush=True)\nos._exit(0)"
    )
    folder.chmod(0o755)
    environment = bootstrap.environment(1, confinement, os.environ)
    with subprocess.Popen(
        bootstrap.command("inside", confinement=confinement),
        env={**environment, "PYTHONPATH": str(folder), "CONFINEMENT": confinement.encoded()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        output, said = process.communicate(timeout=60)
    limits.leave_groups(process.pid)
    assert process.returncode == 0, said
    found: dict[str, Any] = json.loads(output)
    return found
