"""Where `run` has its dispatchers and replicas: on this machine, on Kubernetes, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.controlplane.run import Run
from inferline_stream.errors import UsageError

On = Literal["local", "ray", "kubernetes"]

_BUILT = ("local",)


@dataclass(frozen=True, slots=True)
class Place:
    """The command's options; see `cli.run.run`."""

    on: On = "local"

    def check(self, bootstrap_servers: str | None) -> None:
        """Refuse what cannot be done there.

        Raises:
            UsageError: an option is missing, or belongs to another place.
        """
        if self.on != "local" and bootstrap_servers is None:
            raise UsageError(f"--on {self.on} needs --bootstrap-servers: the embedded broker is for this machine only")
        if self.on not in _BUILT:
            raise UsageError(f"--on {self.on}: pools run on one machine in this release; leave out --on")


@asynccontextmanager
async def actuator_of(place: Place, run: Run) -> AsyncIterator[Actuator | None]:
    """Start and stop the run's processes there; None for processes of this machine.

    Raises:
        UsageError: a library is not installed, or the cluster refuses.
        Unreachable: the cluster does not answer.
    """
    if place.on == "local":
        yield None
