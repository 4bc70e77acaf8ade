"""A worker of a Faust app, in a process of its own: `faust worker` with a sensor that reports its throughput.

Run with ``python -m inferline_stream.actuators.faust_worker APP FOLDER FD TOPIC``. The app, as ``module:attribute``, is
imported from the working folder. Faust keeps its tables in FOLDER. A line of JSON goes to the file descriptor each
second; once nobody reads it, the worker ends in order, as it does by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from typing import Any

import faust
import msgspec
from faust.cli.base import find_app
from faust.cli.faust import cli

from inferline_stream.actuators.faust_workers import WorkerReport

_REPORT_S = 1.0


class ThroughputSensor(faust.Sensor):
    """Measures how long agents have events in hand. Time with several in hand counts once.

    Records of the topic that events enter by are counted, each once, however many agents take it. What other agents
    make of them is part of their time. Only time of events that were finished counts: an agent that fails leaves its
    event unfinished, and would otherwise look busy for ever.
    """

    def __init__(self, topic: str) -> None:
        super().__init__()
        self._topic = topic
        self.report = WorkerReport(0, 0.0)
        self._busy: deque[tuple[float, float]] = deque(maxlen=1_000)
        """From when to when agents were busy, apart from each other; an event in hand for longer counts time twice."""

    def on_stream_event_in(self, tp: Any, offset: int, stream: Any, event: Any) -> dict[str, float]:
        """An agent takes an event."""
        return {"taken_s": time.perf_counter()}

    def on_stream_event_out(self, tp: Any, offset: int, stream: Any, event: Any, state: Any = None) -> None:
        """An agent has finished one."""
        now_s, known_s = time.perf_counter(), 0.0
        since_s = state["taken_s"] if state else now_s
        while self._busy and self._busy[-1][1] > since_s:
            from_s, until_s = self._busy.pop()
            known_s += until_s - from_s
            since_s = min(since_s, from_s)
        self._busy.append((since_s, now_s))
        self.report = WorkerReport(self.report.events, self.report.busy_s + now_s - since_s - known_s)

    def on_message_out(self, tp: Any, offset: int, message: Any) -> None:
        """Every agent that takes a record has finished it."""
        if tp.topic == self._topic:
            self.report = WorkerReport(self.report.events + 1, self.report.busy_s)


def _report(sensor: ThroughputSensor, fd: int) -> None:
    try:
        while True:
            time.sleep(_REPORT_S)
            os.write(fd, msgspec.json.encode(sensor.report) + b"\n")
    except OSError:  # its supervisor is gone
        os.kill(os.getpid(), signal.SIGTERM)


def main(app: str, folder: str, fd: int, topic: str) -> None:
    """Run one worker until it is asked to end."""
    sensor = ThroughputSensor(topic)
    find_app(app).sensors.add(sensor)
    threading.Thread(target=_report, args=(sensor, fd), daemon=True).start()
    # Without its web server: workers of one host would all want its port.
    cli(["-A", app, "--datadir", folder, "worker", "--without-web", "-l", "info"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
