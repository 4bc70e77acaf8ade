"""This machine's devices, looked at in a thread of its own: a driver that hangs holds up that thread alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Thread

from inferline_stream.actuators.devices import Device
from inferline_stream.actuators.nvml import devices as machine_devices

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
        look: returns the devices; called in that thread.
    """

    def __init__(self, look: Callable[[], tuple[Device, ...]] = machine_devices) -> None:
        self._look = look
        self._thread: Thread | None = None
        self._again = Event()
        self._closed = False
        self._asked_s: float | None = None
        """When the look began that has no answer yet."""
        self._seen: tuple[float, tuple[Device, ...]] | None = None
        """When the newest answer was asked for, and the answer."""

    def devices(self, since_s: float) -> tuple[Device, ...]:
        """Return the devices, by a look that began after a time of `time.monotonic`.

        Raises:
            NoDevice: there is none yet.
        """
        if self._thread is None:
            self._thread = Thread(target=self._watch, name="devices", daemon=True)
            self._thread.start()
        asked_s, seen = self._asked_s, self._seen
        if asked_s is not None and (silent_s := time.monotonic() - asked_s) > LIMIT_S:
            raise NoDevice(f"waits for the GPU driver, which has not answered for {silent_s:.0f} s")
        if seen is None or seen[0] < since_s:
            self._again.set()
            raise NoDevice("waits for the GPU driver to say which devices are free", again_s=0.05)
        return seen[1]

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
