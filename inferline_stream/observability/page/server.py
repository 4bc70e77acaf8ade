"""Serves the live page and its stream of updates from threads of its own; takes commands from who knows the token."""

from __future__ import annotations

import hmac
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from threading import BoundedSemaphore, Event, Thread
from typing import Literal

import msgspec

from inferline_stream.errors import InferlineError, UsageError
from inferline_stream.observability.limited_server import LimitedHandler, LimitedServer
from inferline_stream.observability.page.page_files import HEADERS, LIVE, WHAT_IF, page_file
from inferline_stream.observability.page.snapshot import Arrows, snapshot
from inferline_stream.observability.page.what_if_server import Answers, answered
from inferline_stream.observability.pipeline_state import PipelineState

FEWEST_CHARACTERS = 16
MOST_REPLICAS = 10_000
HOURS_SHOWN = 48


class PageCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One wish of a person at the page.

    Args:
        action: hold decisions, decide again, hold a stage at a number of replicas, or leave it to the policy again.
        stage: for the last two.
        replicas: for ``scale``.
    """

    action: Literal["pause", "resume", "scale", "release"]
    stage: str = ""
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class PageControl:
    """Who may command, and who obeys.

    Args:
        token: a request with it is allowed.
        obey: called with each command, from another thread; raises an `InferlineError` where it cannot be done.

    Raises:
        UsageError: the token could be guessed.
    """

    token: str
    obey: Callable[[PageCommand], None]

    def __post_init__(self) -> None:
        if len(self.token) < FEWEST_CHARACTERS:
            raise UsageError(
                f"--ui-token has {len(self.token)} characters, which could be guessed; give {FEWEST_CHARACTERS} or "
                "more, such as `openssl rand -hex 16` writes"
            )

    def allows(self, authorization: str) -> bool:
        """Whether the header's value shows the token; takes as long for a wrong one."""
        return hmac.compare_digest(authorization.encode(), f"Bearer {self.token}".encode())


def read_command(body: bytes, stages: frozenset[str]) -> PageCommand:
    """The command that a request's body holds.

    Args:
        body: JSON.
        stages: of the pipeline.

    Raises:
        ValueError: it is none, in words.
    """
    try:
        command = msgspec.json.decode(body, type=PageCommand)
    except msgspec.DecodeError as error:
        raise ValueError(f"no command: {error}") from None
    if command.action in ("scale", "release") and command.stage not in stages:
        raise ValueError(f"no stage {command.stage!r}; the pipeline has {', '.join(sorted(stages))}")
    if not 0 <= command.replicas <= MOST_REPLICAS:
        raise ValueError(f"{command.replicas} replicas: give 0 to {MOST_REPLICAS}")
    return command


logger = logging.getLogger(__name__)

_FILES = {**WHAT_IF, **LIVE}

UPDATE_S = 0.4
"""Pause between two updates: more than two a second."""

WRONG_TOKEN_S = 0.5
"""Pause before a wrong token is answered."""

_LONGEST_COMMAND_BYTES = 1000

MOST_VIEWERS = 32
"""Streams at once; each holds a thread."""

_KEPT_S, _EVERY_S = 600, 1.0
"""The last minutes are kept, so that anyone who opens the page sees how it came to this."""

_Sample = tuple[float, float, float | None, float | None, float | None, float, float, int, int]
"""Time, arrival rate, P50, P95, P99, dollars per hour held, of the plan, replicas wanted, ready."""


class PageServer:
    """The page of one pipeline, from its making until it is closed.

    Args:
        state: returns the newest state, None before there is one; called from other threads.
        arrows: edges of the DAG.
        port: TCP port, 0 for any free one.
        host: address to listen on.
        control: takes commands; None for a page that is read-only.
        what_if: answers what its what-if page asks; empty where there is no such page.

    Raises:
        UsageError: the port is taken or may not be used.
    """

    def __init__(
        self,
        state: Callable[[], PipelineState | None],
        arrows: Arrows,
        port: int,
        host: str = "127.0.0.1",
        *,
        control: PageControl | None = None,
        what_if: Answers | None = None,
    ) -> None:
        self._closing = Event()
        samples: deque[_Sample] = deque(maxlen=int(_KEPT_S / _EVERY_S))
        handler = _handler(
            state, arrows, samples=samples, control=control, what_if=what_if or {}, closing=self._closing
        )
        # A stream ends with its viewer; how many there are is limited.
        self._server = LimitedServer("the page", "--ui-port", host, port, handler, request_s=math.inf)
        self.port, self.url = self._server.port, self._server.url
        self._history = Thread(target=_keep, args=(state, samples, self._closing), name="page history", daemon=True)
        self._history.start()

    def close(self) -> None:
        """End every stream and free the port."""
        self._closing.set()
        self._server.close()
        self._history.join()


def _sample(state: PipelineState) -> _Sample:
    """What the page's time lines show of one state."""
    counts = [c for stage in state.stages for c in stage.replicas]
    return (
        round(state.time_s, 3),
        round(state.arrival_rate, 3),
        state.recent_p50_s,
        state.recent_p95_s,
        state.recent_p99_s,
        state.cost_per_hour,
        state.plan_cost_per_hour,
        sum(c.wanted for c in counts),
        sum(c.ready for c in counts),
    )


def _keep(state: Callable[[], PipelineState | None], samples: deque[_Sample], closing: Event) -> None:
    """Add a sample every second until closed, and begin again where the clock was set back; for a thread of its own."""
    while not closing.wait(_EVERY_S):
        if (newest := state()) is None:
            continue
        sample = _sample(newest)
        if samples and sample[0] < samples[-1][0]:
            samples.clear()
        if not samples or sample[0] > samples[-1][0]:
            samples.append(sample)


def _obeyed(control: PageControl, body: bytes, stages: frozenset[str]) -> tuple[HTTPStatus, str, bytes]:
    try:
        command = read_command(body, stages)
    except ValueError as error:
        return HTTPStatus.BAD_REQUEST, "text/plain", f"{error}\n".encode()
    try:
        control.obey(command)
    except (InferlineError, TimeoutError) as error:
        return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error or 'Kafka did not take it in time'}\n".encode()
    logger.info("the live page asked for %s %s", command.action, command.stage)
    return HTTPStatus.OK, "text/plain", b"written\n"


def _handler(
    state: Callable[[], PipelineState | None],
    arrows: Arrows,
    *,
    samples: deque[_Sample],
    control: PageControl | None,
    what_if: Answers,
    closing: Event,
) -> type[LimitedHandler]:
    viewers = BoundedSemaphore(MOST_VIEWERS)

    class PageHandler(LimitedHandler):
        protocol_version = "HTTP/1.1"
        other_host = "ask for this page by its own address"
        fixed_headers = HEADERS

        def do_GET(self) -> None:
            if self.path == "/events":
                self._stream()
            elif self.path == "/history":
                page = {"samples": list(samples), "writable": control is not None, "what_if": bool(what_if)}
                self.answer(HTTPStatus.OK, "application/json", msgspec.json.encode(page))
            elif self.path == "/ahead":
                newest = state()
                hours = () if newest is None else newest.hours[:HOURS_SHOWN]
                self.answer(HTTPStatus.OK, "application/json", msgspec.json.encode(hours))
            elif self.path in _FILES:
                name, kind = _FILES[self.path]
                self.answer(HTTPStatus.OK, kind, page_file(name))
            else:
                self.answer(*answered(what_if, self.path))

        def do_POST(self) -> None:
            self.close_connection = True  # what of the body has not been read must not become the next request
            length = self.headers.get("Content-Length", "")
            newest = state()
            if control is None:
                self.answer(HTTPStatus.NOT_IMPLEMENTED, "text/plain", b"read-only: run with --ui-token\n")
            elif self.path != "/control":
                self.answer(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")
            elif not control.allows(self.headers.get("Authorization", "")):
                closing.wait(WRONG_TOKEN_S)
                self.answer(HTTPStatus.UNAUTHORIZED, "text/plain", b"this is not the token of --ui-token\n")
            elif not length.isdecimal() or int(length) > _LONGEST_COMMAND_BYTES or newest is None:
                self.answer(HTTPStatus.BAD_REQUEST, "text/plain", b"no command\n")
            else:
                stages = frozenset(stage.name for stage in newest.stages)
                self.answer(*_obeyed(control, self.rfile.read(int(length)), stages))

        def _stream(self) -> None:
            if not viewers.acquire(blocking=False):
                self.answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"too many viewers\n")
                return
            self.close_connection = True
            try:
                self.send_response(HTTPStatus.OK)
                for header, value in {**HEADERS, "Content-Type": "text/event-stream"}.items():
                    self.send_header(header, value)
                self.end_headers()
                self.wfile.write(b"retry: 1000\n\n")
                while not closing.is_set():
                    newest = state()
                    if newest is not None:
                        self.wfile.write(b"data: " + snapshot(newest, arrows) + b"\n\n")
                    else:
                        self.wfile.write(b": no state yet\n\n")
                    self.wfile.flush()
                    closing.wait(UPDATE_S)
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                pass  # the viewer has left
            finally:
                viewers.release()

    return PageHandler
