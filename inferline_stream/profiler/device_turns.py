"""Which of this machine's devices each worker process is given; where there are too few, one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from inferline_stream.actuators.device_watch import NoDevice
from inferline_stream.actuators.devices import Device, devices_for, used_by_others
from inferline_stream.actuators.nvml import devices as machine_devices
from inferline_stream.pipeline.hardware import Hardware

FREED_S = 10.0
"""Longest wait for the memory of a process that has ended: drivers give it back a little later."""

_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class _Turn:
    kind: Hardware
    devices: tuple[str, ...]
    end: Callable[[], Awaitable[None]]


class DeviceTurns:
    """Deals devices to processes. Where none is free, it ends the process that has had its own longest.

    Args:
        look: every device of the machine, with what is used of it now.
    """

    def __init__(self, look: Callable[[], Sequence[Device]] = machine_devices) -> None:
        self._look = look
        self._seen: dict[str, Device] = {}
        self._turns: dict[str, _Turn] = {}
        self.taken_back = 0
        """How many processes had to end for others."""

    async def take(self, name: str, kinds: Iterable[Hardware], end: Callable[[], Awaitable[None]]) -> tuple[str, ...]:
        """Return the UUIDs of the devices that a process is given; none where the machine has no device of any kind.

        Args:
            name: of the process; what it had before is free again.
            kinds: that its stage may run on; the first of which there is room counts.
            end: ends the process.

        Raises:
            NoDevice: the machine has devices of a kind, and others use them.
        """
        self.leave(name)
        wanted = [kind for kind in kinds if kind.gpus]
        loop = asyncio.get_running_loop()
        until_s = loop.time() + FREED_S
        while True:
            machine = self._machine()
            empty = [replace(device, used_bytes=0, busy=0.0) for device in machine]
            here = [kind for kind in wanted if devices_for(kind, empty, ()) is not None]
            if not here:
                return ()
            taken = [(turn.kind, turn.devices) for turn in self._turns.values()]
            for kind in here:
                if (found := devices_for(kind, machine, taken)) is not None:
                    self._turns[name] = _Turn(kind, found, end)
                    return found
            if self._turns:
                await self._turns.pop(next(iter(self._turns))).end()
                self.taken_back += 1
                until_s = loop.time() + FREED_S
            elif loop.time() >= until_s:
                raise NoDevice(f"no device that is {' or '.join(kind.name for kind in here)} is free: others use them")
            else:
                await asyncio.sleep(_LOOK_S)

    def leave(self, name: str) -> None:
        """Note that a process has ended."""
        self._turns.pop(name, None)

    async def end_all(self) -> None:
        """End every process that has a device."""
        while self._turns:
            await self._turns.pop(next(iter(self._turns))).end()

    def _machine(self) -> list[Device]:
        """Every device; of one that was dealt, what others used of it before."""
        dealt = {uuid for turn in self._turns.values() for uuid in turn.devices}
        now = {device.uuid: device for device in self._look()}
        before = {uuid: device for uuid, device in self._seen.items() if uuid in dealt}
        self._seen = {uuid: used_by_others(before.get(uuid, device), device) for uuid, device in now.items()}
        return list(self._seen.values())
