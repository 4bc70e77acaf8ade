"""Ctrl-C and SIGTERM of a run: the first asks for an orderly end."""

from __future__ import annotations

import asyncio
import signal

from inferline_stream.cli.command_group import Terminated


class Stopping:
    """The first Ctrl-C or SIGTERM asks for an orderly end, the second for an end, a third gets it from the system."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._last = signal.SIGINT

    def watch(self) -> None:
        """Catch both signals for the task that runs now."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def heard(number: signal.Signals) -> None:
            self._last = number
            if self.stop.is_set():
                task.cancel()
                for again in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(again)
            self.stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, heard, number)

    def forced(self) -> KeyboardInterrupt:
        """What the command ends with after the second."""
        return Terminated() if self._last is signal.SIGTERM else KeyboardInterrupt()
