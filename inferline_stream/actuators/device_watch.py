"""This machine's devices, looked at in a thread of its own: a driver that hangs holds up that thread alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Thread

from inferline_stream.actuators.devices import Device
from inferline_stream.actuators.nvml import DeviceReader, Look
from inferline_stream.observability.pipeline_state import DeviceState

LIMIT_S = 30.0
"""A driver that has not answered for so long hangs. To open NVML takes seconds for each GPU, unless its driver
persists."""

_EVERY_S = 1.0


class NoDevice(Exception):
    """Every device of the kind is taken, or none is known yet.

    Args:
        words: what a replica waits for.
        again_s: when to look again.
    """

    def __init__(self, words: str, again_s: float = _EVERY_S) -> None:
        super().__init__(words)
        self.again_s = again_s


class DeviceWatch:
    """Looks at the devices again and again, from the first time that somebody asks for them.

    The thread is not waited for: within a driver that hangs, nothing can end it.

    Args:
        look: asks the driver; called in that thread.
    """

    def __init__(self, look: Callable[[], Look] | None = None) -> None:
        self._look = look or DeviceReader().look
        self._thread: Thread | None = None
        self._again = Event()
        self._closed = False
        self._asked_s: float | None = None
        """When the look began that has no answer yet."""
        self._seen: tuple[float, Look] | None = None
        """When the newest answer was asked for, and the answer."""

    def devices(self, since_s: float) -> tuple[Device, ...]:
        """Return the devices, by a look that began after a time of `time.monotonic`.

        Raises:
            NoDevice: there is none yet.
        """
        if self._thread is None:
            self._thread = Thread(target=self._watch, name="devices", daemon=True)
            self._thread.start()
        seen = self._seen
        if silent := self._silent():
            raise NoDevice(f"waits for the GPU driver, which {silent}")
        if seen is None or seen[0] < since_s:
            self._again.set()
            raise NoDevice("waits for the GPU driver to say which devices are free", again_s=0.05)
        return seen[1].devices

    def states(self) -> tuple[DeviceState, ...]:
        """Return how the devices stand; nothing before anybody asked for them."""
        known = self._seen[1].states if self._seen else ()
        if silent := self._silent():
            return tuple(replace(state, lost=f"the driver {silent}") for state in known or (DeviceState("every GPU"),))
        return known

    def _silent(self) -> str:
        """Say for how long the driver has not answered, if that is too long."""
        asked_s = self._asked_s
        silent_s = 0.0 if asked_s is None else time.monotonic() - asked_s
        return f"has not answered for {silent_s:.0f} s" if silent_s > LIMIT_S else ""

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        self._again.set()

    def _watch(self) -> None:
        while not self._closed:
            self._again.clear()
            self._asked_s = began_s = time.monotonic()
            self._seen = began_s, self._look()
            self._asked_s = None
            self._again.wait(_EVERY_S)
